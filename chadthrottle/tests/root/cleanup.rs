//! Nothing of ours outlives its use, however it ends. Every trial looks at the whole machine afterwards.

use chadthrottle::{kernel::fault, selftest::process::Place};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};

use crate::support::*;

/// The limits here, bytes/s; [`Pair::ensure_limited`] knows it.
const RATE: f64 = 1e6;

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
        trial("cleanup::killed_while_setting_up", |scene| faults(scene, "CHADT_FAULT_KILL")),
        trial("cleanup::panic_while_setting_up", |scene| faults(scene, "CHADT_FAULT_PANIC")),
        trial("cleanup::client_that_dies_or_panics", faults_of_the_client),
    ]
}

fn client_gets(scene: &Scene, signal: Signal) -> Result<()> {
    let pair = Pair::new(scene)?;
    let mut limit = scene.limit(&pair.limit(RATE))?;
    pair.ensure_limited()?;
    let time = now();
    limit.call.process().signal(signal);
    pair.ensure_free(time, 1.0)?;
    let (status, output) = limit.call.finish()?;
    let expected = signal != Signal::SIGKILL;
    ensure!(status.success() == expected, "{signal}: {status}: {}", output.messages());
    Ok(())
}

fn killed_owner(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit(RATE))?;
    pair.ensure_limited()?;
    let owner = scene.owner()?;
    let time = now();
    signal(owner, Signal::SIGKILL)?;
    pair.ensure_free(time, 3.0)?;
    let (status, output) = limit.call.finish()?;
    ensure!(status.code() == Some(1), "the client: {status}");
    ensure!(!output.stderr.is_empty(), "the client says nothing about its dead owner");
    // The next start finds nothing in its way.
    let limit = scene.limit(&pair.limit(RATE))?;
    pair.ensure_limited()?;
    limit.end()?;
    scene.succeed("clear").map(drop)
}

fn terminated_owner(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit(RATE))?;
    pair.ensure_limited()?;
    let owner = scene.owner()?;
    let time = now();
    signal(owner, Signal::SIGTERM)?;
    pair.ensure_free(time, 1.0)?;
    limit.call.finish().map(drop)
}

/// It lives, but renews nothing: the lease runs out.
fn stopped_owner(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit(RATE))?;
    pair.ensure_limited()?;
    let owner = scene.owner()?;
    let time = now();
    signal(owner, Signal::SIGSTOP)?;
    let free = pair.ensure_free(time, 5.0);
    signal(owner, Signal::SIGCONT)?;
    free?;
    // And holds again when it goes on.
    sleep_until(now() + 1.0)?;
    pair.ensure_limited()?;
    limit.end().map(drop)
}

fn end_of_the_target(scene: &Scene) -> Result<()> {
    let mut pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit(RATE))?;
    pair.client.process().signal(Signal::SIGKILL);
    pair.client.process().wait()?;
    let time = now();
    let (status, _) = limit.call.finish()?;
    ensure!(status.success(), "{status}");
    ensure!(now() - time < 2.0, "the command ended only {:.1} s after its target", now() - time);
    Ok(())
}

fn end_of_the_duration(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&format!("{} --duration 2", pair.limit(RATE)))?;
    pair.ensure_limited()?;
    let since = limit.since;
    let (status, _) = limit.call.finish()?;
    let lasted = now() - since;
    ensure!(status.success() && (1.8..4.0).contains(&lasted), "{status} after {lasted:.2} s");
    pair.ensure_free(now(), 1.0)
}

fn cleared(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    scene.succeed(&format!("limit {} --detach", pair.limit(RATE)))?;
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
fn faults(scene: &Scene, variable: &str) -> Result<Finding> {
    let pair = Pair::new(scene)?;
    let before = scene.machine()?;
    for point in fault::POINTS {
        let mut command = scene.command(&format!("limit {}", pair.limit(RATE)));
        command.env(variable, point);
        let call = Call::spawn(command, Place::default())?;
        if call.await_message("limited").is_ok() && *point != "owner.limited" {
            return Ok(Finding::Skipped(format!("{point} is not passed: the binary has no faults built in")));
        }
        let time = now();
        let (status, output) = call.finish()?;
        ensure!(!status.success(), "{point}: the command did not notice");
        ensure!(!output.stderr.is_empty(), "{point}: the command says nothing");
        let aftermath = || {
            pair.ensure_free(time, 3.0)?;
            scene.succeed("clear")?;
            scene.await_no_helpers(5.0)?;
            before.ensure_restored()
        };
        aftermath().map_err(|error| Error::failed(format!("{point}: {error}")))?;
    }
    Ok(Finding::Holds)
}

/// The command that set a limit dies, or panics, at every step: its limit ends, whether it knew of it or not.
fn faults_of_the_client(scene: &Scene) -> Result<Finding> {
    let pair = Pair::new(scene)?;
    let before = scene.machine()?;
    for variable in ["CHADT_FAULT_KILL", "CHADT_FAULT_PANIC"] {
        for point in fault::CLIENT_POINTS {
            let mut command = scene.command(&format!("limit {}", pair.limit(RATE)));
            command.env(variable, point);
            let mut call = Call::spawn(command, Place::default())?;
            let begun = now();
            while call.process().runs() {
                if now() > begun + 30.0 {
                    let reason = format!("{point} is not passed: the binary has no faults built in");
                    return Ok(Finding::Skipped(reason));
                }
                sleep_until(now() + 0.01)?;
            }
            let time = now();
            let (status, output) = call.finish()?;
            ensure!(!status.success(), "{variable} {point}: {status}: {}", output.messages());
            let aftermath = || {
                pair.ensure_free(time, 1.0)?;
                scene.await_no_helpers(5.0)?;
                before.ensure_restored()
            };
            aftermath().map_err(|error| Error::failed(format!("{variable} {point}: {error}")))?;
        }
    }
    Ok(Finding::Holds)
}

fn signal(process: nix::unistd::Pid, signal: Signal) -> Result<()> {
    kill(process, signal).map_err(|cause| Error::failed(format!("send {signal} to {process}: {cause}")))
}
