//! Nothing of ours outlives its use, however it ends. Every trial looks at the whole machine afterwards.

use chadthrottle::kernel::fault;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};

use crate::support::*;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("cleanup::killed_client", |scene| client_gets(scene, Signal::SIGKILL)),
        plain("cleanup::terminated_client", |scene| client_gets(scene, Signal::SIGTERM)),
        plain("cleanup::client_hung_up", |scene| client_gets(scene, Signal::SIGHUP)),
        plain("cleanup::killed_owner", killed_owner),
        plain("cleanup::terminated_owner", terminated_owner),
        plain("cleanup::stopped_owner", stopped_owner),
        plain("cleanup::end_of_the_target", end_of_the_target),
        plain("cleanup::end_of_the_duration", end_of_the_duration),
        plain("cleanup::cleared", cleared),
        trial("cleanup::killed_while_setting_up", |scene| faults(scene, "CHADT_FAULT_KILL", fault::POINTS)),
        trial("cleanup::panic_while_setting_up", |scene| faults(scene, "CHADT_FAULT_PANIC", fault::POINTS)),
    ]
}

/// A process that transfers in both directions, and its peer.
struct Pair {
    server: Traffic,
    client: Traffic,
    get: u64,
    put: u64,
}

impl Pair {
    fn new(scene: &Scene) -> Result<Self> {
        let server = scene.server()?;
        let address = scene.tcp(Version::V4);
        let (get, put) = (scene.run(), scene.run());
        let client = scene.client(&[
            format!("connect tcp {address} get cc=cubic run={get}"),
            format!("connect tcp {address} put cc=cubic run={put}"),
        ])?;
        Ok(Self { server, client, get, put })
    }

    /// Words of a command that limits it.
    fn limit(&self) -> String {
        format!("pid:{} -u 1M -d 1M", self.client.pid())
    }

    fn ensure_limited(&self) -> Result<()> {
        let time = now();
        for (receiver, run) in [(&self.client, self.get), (&self.server, self.put)] {
            let rate = received(receiver, run, time + 0.5, time + 1.0)?;
            ensure!(rate < 2e6, "run {run} moves {rate:.0} bytes/s");
        }
        Ok(())
    }

    fn ensure_free(&self, from: f64, within: f64) -> Result<()> {
        await_full_speed(&self.client, self.get, from, within)?;
        await_full_speed(&self.server, self.put, from, within).map(drop)
    }
}

pub fn client_gets(scene: &Scene, signal: Signal) -> Result<()> {
    let pair = Pair::new(scene)?;
    let mut limit = scene.limit(&pair.limit())?;
    pair.ensure_limited()?;
    let time = now();
    limit.call.process().signal(signal);
    pair.ensure_free(time, 1.0)?;
    let (status, output) = limit.call.finish()?;
    let expected = signal != Signal::SIGKILL;
    ensure!(status.success() == expected, "{signal}: {status}: {}", output.messages());
    Ok(())
}

pub fn killed_owner(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit())?;
    pair.ensure_limited()?;
    let owner = scene.owner()?;
    let time = now();
    signal(owner, Signal::SIGKILL)?;
    pair.ensure_free(time, 3.0)?;
    let (status, output) = limit.call.finish()?;
    ensure!(status.code() == Some(1), "the client: {status}");
    ensure!(!output.stderr.is_empty(), "the client says nothing about its dead owner");
    // The next start finds nothing in its way.
    let limit = scene.limit(&pair.limit())?;
    pair.ensure_limited()?;
    limit.end()?;
    scene.succeed("clear").map(drop)
}

pub fn terminated_owner(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit())?;
    pair.ensure_limited()?;
    let owner = scene.owner()?;
    let time = now();
    signal(owner, Signal::SIGTERM)?;
    pair.ensure_free(time, 1.0)?;
    limit.call.finish().map(drop)
}

/// It lives, but renews nothing: the lease runs out.
pub fn stopped_owner(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit())?;
    pair.ensure_limited()?;
    let owner = scene.owner()?;
    let time = now();
    signal(owner, Signal::SIGSTOP)?;
    let free = pair.ensure_free(time, 3.5);
    signal(owner, Signal::SIGCONT)?;
    free?;
    // And holds again when it goes on.
    sleep_until(now() + 1.0)?;
    pair.ensure_limited()?;
    limit.end().map(drop)
}

pub fn end_of_the_target(scene: &Scene) -> Result<()> {
    let mut pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit())?;
    pair.client.process().signal(Signal::SIGKILL);
    pair.client.process().wait()?;
    let time = now();
    let (status, _) = limit.call.finish()?;
    ensure!(status.success(), "{status}");
    ensure!(now() - time < 1.0, "the command ended only {:.1} s after its target", now() - time);
    Ok(())
}

fn end_of_the_duration(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&format!("{} --duration 2", pair.limit()))?;
    pair.ensure_limited()?;
    let since = limit.since;
    let (status, _) = limit.call.finish()?;
    let lasted = now() - since;
    ensure!(status.success() && (1.8..2.5).contains(&lasted), "{status} after {lasted:.2} s");
    pair.ensure_free(now(), 0.5)
}

fn cleared(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    scene.succeed(&format!("limit {} --detach", pair.limit()))?;
    pair.ensure_limited()?;
    let limit = scene.limit(&format!("tree:{} -u 2M", pair.client.pid()))?;
    scene.succeed("clear")?;
    let time = now();
    pair.ensure_free(time, 1.0)?;
    // Whose limit was cleared is told so, and ends.
    limit.call.finish()?;
    Ok(())
}

/// The owner dies, or panics, at every step of setting a limit.
pub fn faults(scene: &Scene, variable: &str, points: &[&str]) -> Result<Finding> {
    let pair = Pair::new(scene)?;
    for point in points {
        let mut command = scene.command(&format!("limit {}", pair.limit()));
        command.env(variable, point);
        let call = Call::spawn(command, Default::default())?;
        if call.await_message("limited").is_ok() && *point != "owner.limited" {
            return Ok(Finding::Skipped(format!("{point} is not passed: the binary has no faults built in")));
        }
        let time = now();
        let (status, output) = call.finish()?;
        ensure!(!status.success(), "{point}: the command did not notice");
        ensure!(!output.stderr.is_empty(), "{point}: the command says nothing");
        pair.ensure_free(time, 3.0).map_err(|error| Error::failed(format!("{point}: {error}")))?;
        scene.succeed("clear")?;
        let deadline = now() + 2.0;
        while !scene.helpers()?.is_empty() {
            ensure!(now() < deadline, "{point}: there are still processes of ours");
            sleep_until(now() + 0.02)?;
        }
    }
    Ok(Finding::Holds)
}

fn signal(process: nix::unistd::Pid, signal: Signal) -> Result<()> {
    kill(process, signal).map_err(|cause| Error::failed(format!("send {signal} to {process}: {cause}")))
}
