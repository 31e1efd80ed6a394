//! `run` and the short form `--pid`, as users call them.

use std::process::Command;

use chadthrottle::selftest::process::{Call, Place};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::support::*;

/// The limits here, bytes/s.
const RATE: f64 = 2e6;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("command::run_limits_from_the_first_packet", first_packet),
        plain("command::run_covers_children", children),
        plain("command::run_passes_exit_codes_on", exit_codes),
        plain("command::run_passes_signals_on", signals),
        plain("command::short_form", short_form),
    ]
}

/// `run` with a limit both ways, in the client's place.
fn run(scene: &Scene, command: &[&str]) -> Result<Call> {
    let mut ours = Command::new(program());
    ours.arg("--runtime-dir").arg(scene.runtime_dir()).arg("--cgroup-root").arg(scene.cgroup().path());
    ours.args(["run", "-u", &RATE.to_string(), "-d", &RATE.to_string(), "--"]).args(command);
    Call::spawn(ours, Place { namespace: Some(&scene.lab.client), cgroup: Some(scene.cgroup()) })
}

/// Fails unless `run` of the traffic is held from its first byte on. In the first second a bucket that starts empty
/// has let through its rate, and no more.
fn ensure_held_at_once(receiver: &Traffic, run: u64, asked: f64) -> Result<()> {
    let deadline = asked + 60.0;
    while receiver.meter().totals(run).rx == 0 {
        ensure!(now() < deadline, "run {run} moves nothing");
        sleep_until(now() + 0.01)?;
    }
    let began = now();
    let first = received(receiver, run, asked, began + 1.0)? * (began + 1.0 - asked) / RATE;
    ensure!(first < 1.5, "in the first second run {run} moves {first:.3} of its limit");
    ensure_held(receiver, run, began, RATE)
}

fn first_packet(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let number = scene.run();
    let program = program().display().to_string();
    let asked = now();
    let mut call = run(scene, &[&program, "traffic", &format!("connect tcp {address} put run={number}")])?;
    ensure_held_at_once(&server, number, asked)?;
    let limits = scene.status()?.limits;
    ensure!(limits.len() == 1 && limits[0].name == "chadthrottle", "{limits:?}");
    ensure!(call.process().runs(), "the command has ended");
    // The end of its stdin is the end of the traffic program, and that the end of its limit.
    let (status, output) = call.finish()?;
    ensure!(status.success(), "{status}: {}", output.messages());
    ensure!(output.stdout.iter().any(|line| line.contains("ready")), "its output does not come through");
    scene.await_no_helpers(5.0)
}

fn children(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (first, second) = (scene.run(), scene.run());
    let transfer = |run| format!("connect tcp {address} put run={run}");
    // A child in the background would get no stdin, which ends it.
    let script = "exec 3<&0; \"$0\" traffic \"$1\" <&3 & \"$0\" traffic \"$2\" <&3 & wait";
    let program = program().display().to_string();
    let call = run(scene, &["sh", "-c", script, &program, &transfer(first), &transfer(second)])?;
    let deadline = now() + 60.0;
    while [first, second].iter().any(|run| server.meter().totals(*run).rx == 0) {
        ensure!(now() < deadline, "one of the children moves nothing");
        sleep_until(now() + 0.01)?;
    }
    let (from, to) = (now() + 1.0, now() + 4.0);
    let both = (received(&server, first, from, to)? + received(&server, second, from, to)?) / RATE;
    ensure!((0.5..1.5).contains(&both), "the children together get {both:.3} of the limit");
    let (status, output) = call.finish()?;
    ensure!(status.success(), "{status}: {}", output.messages());
    Ok(())
}

fn exit_codes(scene: &Scene) -> Result<()> {
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let (status, output) = run(scene, &["sh", "-c", script])?.finish()?;
        ensure!(status.code() == Some(expected), "'{script}' ended with {status}: {}", output.messages());
    }
    let (status, output) = run(scene, &["/no/such/command"])?.finish()?;
    ensure!(status.code() == Some(127), "no command ended with {status}: {}", output.messages());
    scene.await_no_helpers(5.0)
}

fn signals(scene: &Scene) -> Result<()> {
    for (name, signal) in [("TERM", Signal::SIGTERM), ("INT", Signal::SIGINT), ("USR1", Signal::SIGUSR1)] {
        let script = format!("trap 'exit 42' {name}; echo ready; while :; do sleep 0.02; done");
        let mut call = run(scene, &["sh", "-c", &script])?;
        call.process()
            .wait_for("the trap", |said| said.stdout.iter().any(|line| line == "ready").then_some(()))?;
        call.process().signal(signal);
        let (status, output) = call.finish()?;
        ensure!(status.code() == Some(42), "after {signal}: {status}: {}", output.messages());
    }
    scene.await_no_helpers(5.0)
}

/// `--pid P`, with the long names of the rates.
fn short_form(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let words = format!("--pid {} --download-limit {RATE} --upload-limit {RATE}", pair.client.pid());
    let call = scene.start(&words)?;
    let (since, line) = call.await_message("limited")?;
    ensure!(line.contains(&pair.target()), "it says '{line}'");
    pair.ensure_held(since, RATE)?;
    ensure!(
        scene.report(&pair.target())?.directions.iter().all(|(_, limit)| limit.is_some()),
        "one is missing"
    );
    let ended = Limit { call, since }.end()?;
    pair.ensure_free(ended, 1.0)?;
    // And for a while only.
    let call = scene.start(&format!("{words} --duration 2"))?;
    let (since, _) = call.await_message("limited")?;
    let (status, _) = call.finish()?;
    let lasted = now() - since;
    ensure!(status.success() && (1.8..4.0).contains(&lasted), "{status} after {lasted:.2} s");
    pair.ensure_free(now(), 1.0)
}
