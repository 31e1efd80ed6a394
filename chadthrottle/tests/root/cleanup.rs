//! Nothing of ours outlives its use, however it ends. Every trial looks at the whole machine afterwards.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::Command,
};

use chadthrottle::{
    kernel::{
        fault,
        process::{self, Process},
        sockets,
    },
    selftest::{process::Place, workplace::Workplace},
};
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
        plain("cleanup::killed_owner_and_janitor_then_clear", |scene| killed_both(scene, Then::Clear)),
        plain("cleanup::killed_owner_and_janitor_then_a_new_limit", |scene| killed_both(scene, Then::Limit)),
        plain("cleanup::killed_owner_and_janitor_then_another_folder", |scene| {
            killed_both(scene, Then::LimitElsewhere)
        }),
        plain("cleanup::terminated_owner", terminated_owner),
        plain("cleanup::stopped_owner", stopped_owner),
        plain("cleanup::end_of_the_target", end_of_the_target),
        plain("cleanup::end_of_the_duration", end_of_the_duration),
        plain("cleanup::passed_on", passed_on),
        plain("cleanup::cleared", cleared),
        plain("cleanup::killed_selftest", killed_selftest),
        plain("cleanup::selftest_makes_its_folder", selftest_folder),
        trial("cleanup::killed_while_setting_up", |scene| faults(scene, "CHADT_FAULT_KILL", fault::POINTS)),
        trial("cleanup::panic_while_setting_up", |scene| faults(scene, "CHADT_FAULT_PANIC", fault::POINTS)),
        trial("cleanup::client_that_dies_or_panics", faults_of_the_client),
    ]
}

pub fn client_gets(scene: &Scene, signal: Signal) -> Result<()> {
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

pub fn killed_owner(scene: &Scene) -> Result<()> {
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

/// Pacing caps of a process's TCP connections, payload bytes/s.
pub fn pacing_caps(pid: u32) -> Result<Vec<u64>> {
    let process = Process::open(pid)?;
    let mut caps = Vec::new();
    for fd in process::sockets(Path::new("/proc"), pid) {
        let socket = sockets::borrow(&process, fd)?;
        if sockets::is_tcp_flow(socket.as_fd()) {
            caps.push(
                sockets::max_pacing_rate(socket.as_fd()).map_err(|cause| Error::failed(cause.to_string()))?,
            );
        }
    }
    Ok(caps)
}

/// Kills owner and janitor, of which neither can do anything about it; `caller`: whose limit the owner holds.
pub fn kill_both(scene: &Scene, caller: u32) -> Result<()> {
    let owner = scene.owner()?;
    let caller = nix::unistd::Pid::from_raw(caller as i32);
    let helpers = scene.helpers()?.into_iter().map(nix::unistd::Pid::from_raw);
    let janitor = helpers.filter(|pid| *pid != owner && *pid != caller);
    let janitor: Vec<_> = janitor.collect();
    ensure!(janitor.len() == 1, "{} processes may be the janitor", janitor.len());
    // Stopped first, so that neither sees the other one die.
    signal(janitor[0], Signal::SIGSTOP)?;
    for process in [owner, janitor[0]] {
        signal(process, Signal::SIGKILL)?;
    }
    Ok(())
}

/// What is done after everybody was killed.
enum Then {
    Clear,
    Limit,
    /// By an owner with a runtime folder of its own, whose journals know nothing.
    LimitElsewhere,
}

/// Nobody is left who could give the pacing caps back; whoever comes next does.
fn killed_both(scene: &Scene, then: Then) -> Result<()> {
    const NO_CAP: u64 = u64::MAX;
    let mut pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    let free = pacing_caps(pid)?;
    ensure!(free == [NO_CAP; 2], "before anything was limited: {free:?}");
    let before = scene.machine()?;
    let mut limit = scene.limit(&pair.limit(RATE))?;
    // One that follows its limit by itself, too: the owner does not know of it yet.
    pair.client.tell(&format!("connect tcp {} put cc=cubic run={}", scene.tcp(Version::V4), scene.run()))?;
    pair.ensure_limited()?;
    kill_both(scene, limit.call.process().pid())?;
    limit.call.finish()?;
    let capped = pacing_caps(pid)?;
    ensure!(capped.len() == 3 && capped.iter().any(|cap| *cap != NO_CAP), "caps after the death: {capped:?}");
    let time = match then {
        Then::Clear => {
            let (_, output) = scene.call("clear")?;
            ensure!(output.messages().contains("pacing caps"), "clear says '{}'", output.messages());
            now()
        }
        Then::Limit => {
            let limit = scene.limit(&pair.limit(RATE))?;
            pair.ensure_limited()?;
            limit.end()?
        }
        Then::LimitElsewhere => {
            let elsewhere = scene.elsewhere();
            let words = format!("limit pid:{pid} -u 1M --duration 2");
            let (status, output) = scene.call_at(&elsewhere, &words)?;
            ensure!(status.success(), "a limit elsewhere ended with {status}: {}", output.messages());
            let caps = pacing_caps(pid)?;
            ensure!(caps == [NO_CAP; 3], "caps after another owner: {caps:?}");
            scene.await_no_helpers(5.0)?;
            // The journal in the first folder still tells of the rest.
            scene.succeed("clear")?;
            fs::remove_dir_all(&elsewhere).map_err(|cause| Error::failed(cause.to_string()))?;
            now()
        }
    };
    let given_back = pacing_caps(pid)?;
    ensure!(given_back == [NO_CAP; 3], "caps in the end: {given_back:?}");
    pair.ensure_free(time, 1.0)?;
    scene.await_no_helpers(5.0)?;
    before.ensure_restored()
}

pub fn terminated_owner(scene: &Scene) -> Result<()> {
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
pub fn stopped_owner(scene: &Scene) -> Result<()> {
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

pub fn end_of_the_target(scene: &Scene) -> Result<()> {
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

/// A connection that a process without a limit holds as well, when the limited one has ended: nobody paces it any more.
fn passed_on(scene: &Scene) -> Result<()> {
    let _server = scene.server()?;
    let failed = |cause: std::io::Error| Error::failed(format!("pass a connection on: {cause}"));
    let address = scene.tcp(Version::V4);
    let stream = scene.lab.client.run(|| std::net::TcpStream::connect(address).map_err(failed))?;
    let cap = || sockets::max_pacing_rate(stream.as_fd()).map_err(failed);
    let before = cap()?;
    // SAFETY: a descriptor of ours; its copy is for the child, and stays open here until the end of the trial.
    ensure!(unsafe { libc::dup(stream.as_raw_fd()) } >= 0, "copy a descriptor");
    let mut command = Command::new("sleep");
    command.arg("60");
    let place = Place { namespace: None, cgroup: Some(scene.cgroup()) };
    let mut child = place.contain(&mut command)?.spawn().map_err(failed)?;
    let limit = scene.limit(&format!("pid:{} -u 300K", child.id()))?;
    sleep_until(limit.since + 0.5)?;
    let held = cap();
    let ended = child.kill().and_then(|()| child.wait());
    let held = held?;
    ended.map_err(failed)?;
    ensure!(held < 400_000, "a cap of {held} under a limit of 300 KB/s");
    let deadline = now() + 3.0;
    while cap()? != before {
        ensure!(now() < deadline, "a cap of {} is left; before it was {before}", cap()?);
        sleep_until(now() + 0.05)?;
    }
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

/// Its folder, and the cgroup that its journal names, are removed by `clear`.
fn killed_selftest(scene: &Scene) -> Result<()> {
    let folder = scene.runtime_dir().join("chadt-selftest-99999999-1");
    let cgroup = scene.cgroup().path().join("chadt-selftest-99999999");
    let failed = |cause| Error::failed(format!("make what a killed self-test leaves: {cause}"));
    fs::create_dir(&folder).map_err(failed)?;
    fs::create_dir(&cgroup).map_err(failed)?;
    let line =
        format!("{{\"op\":\"make\",\"object\":{{\"kind\":\"cgroup\",\"path\":\"{}\"}}}}\n", cgroup.display());
    fs::write(folder.join("journal-99999999-1.jsonl"), line).map_err(failed)?;
    scene.succeed("clear")?;
    ensure!(!folder.exists() && !cgroup.exists(), "something of it is still there");
    Ok(())
}

/// A runtime folder that is not there yet, and is not there afterwards.
fn selftest_folder(scene: &Scene) -> Result<()> {
    let parent = scene.runtime_dir().join("new");
    let workplace = Workplace::new(&parent, scene.cgroup().path())?;
    ensure!(workplace.runtime_dir().starts_with(&parent) && workplace.cgroup().exists(), "not made");
    drop(workplace);
    ensure!(!parent.exists(), "{} is left", parent.display());
    Ok(())
}

/// The owner dies, or panics, at every step of setting a limit.
pub fn faults(scene: &Scene, variable: &str, points: &[&str]) -> Result<Finding> {
    let pair = Pair::new(scene)?;
    let before = scene.machine()?;
    for point in points {
        let mut command = scene.command(&format!("limit {}", pair.limit(RATE)));
        command.env(variable, point);
        let call = Call::spawn(command, Place::default())?;
        if call.await_message("limited").is_ok() && *point != "owner.limited" {
            return Ok(Finding::Skipped(format!("{point} is not passed: the binary has no faults built in")));
        }
        let time = now();
        let (status, output) = call.finish()?;
        // Not 5: a limit that is refused never came to that point.
        let said = output.messages();
        ensure!(status.code() == Some(1) && !said.is_empty(), "{point}: {status}, the command says '{said}'");
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

pub fn signal(process: nix::unistd::Pid, signal: Signal) -> Result<()> {
    kill(process, signal).map_err(|cause| Error::failed(format!("send {signal} to {process}: {cause}")))
}
