//! How long it takes to set, change and remove a limit.

use std::{path::Path, process::Command, time::Instant};

use chadthrottle::{
    Error, Kind, Result,
    model::{Direction, PerDirection, Rate, Target},
    owner::{
        client::Client,
        protocol::{LimitRequest, Reply, Request},
    },
    selftest::{
        interrupt,
        process::{Call, Place},
    },
};

use crate::{
    scene::{Engine, NO_REFUSAL, Scene},
    stats::{median, quantile},
    worker::Worker,
};

/// Limits set, changed and removed for one line of the table.
const SAMPLES: usize = 100;
/// The same through the command line, which takes longer.
const CALLS: usize = 20;

/// Times in ms.
pub struct Times {
    /// What was done, and through what.
    pub what: String,
    /// Limits in force meanwhile.
    pub limits: usize,
    /// Half of them took less.
    pub median: f64,
    /// All but one in a hundred took less.
    pub p99: f64,
}

fn timed<T>(times: &mut Vec<f64>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    interrupt::check()?;
    let start = Instant::now();
    let done = work();
    times.push(start.elapsed().as_secs_f64() * 1e3);
    done
}

fn line(what: &str, limits: usize, times: Vec<f64>, lines: &mut Vec<Times>) {
    let line = Times {
        what: what.to_owned(),
        limits,
        median: median(times.iter().copied()),
        p99: quantile(times, 0.99),
    };
    eprintln!("{:<28} {:>5} limits: median {:.2} ms, p99 {:.2} ms", line.what, limits, line.median, line.p99);
    lines.push(line);
}

/// All lines. `most`: the largest number of limits.
pub fn measure(scene: &Scene, program: &Path, most: usize) -> Result<Vec<Times>> {
    let mut lines = Vec::new();
    for limits in [1, most] {
        let (mut crowd, pids) = Worker::crowd(scene.place(), limits + SAMPLES, 64.min(limits))?;
        library(scene, &pids, limits, &mut crowd, &mut lines)?;
        protocol(scene, program, &pids, limits, &mut crowd, &mut lines)?;
    }
    Ok(lines)
}

fn library(
    scene: &Scene,
    pids: &[u32],
    limits: usize,
    crowd: &mut Worker,
    lines: &mut Vec<Times>,
) -> Result<()> {
    let mut engine = Engine::open(scene)?;
    let (held, more) = pids.split_at(limits);
    for pid in held {
        engine.limit(*pid)?;
    }
    crowd.tell("talk")?;
    let (mut add, mut change, mut remove) = (Vec::new(), Vec::new(), Vec::new());
    for pid in more {
        let id = engine.id();
        timed(&mut add, || engine.apply(id, Direction::Upload, *pid, NO_REFUSAL))?;
        timed(&mut change, || engine.apply(id, Direction::Upload, *pid, NO_REFUSAL / 2))?;
        timed(&mut remove, || engine.backend(Direction::Upload).remove(id))?;
        engine.tick()?;
    }
    crowd.tell("rest")?;
    for (what, times) in [("add", add), ("change", change), ("remove", remove)] {
        line(&format!("{what}, library"), limits, times, lines);
    }
    Ok(())
}

fn request(scene: &Scene, pid: u32) -> Request {
    Request::Limit(LimitRequest {
        targets: vec![Target::Pid(pid)],
        scope: chadthrottle::model::Scope::All,
        wait: false,
        rates: rates(NO_REFUSAL),
        backends: PerDirection::default(),
        no_fallback: false,
        partial: false,
        duration: None,
        detach: false,
        site: scene.site(),
    })
}

fn rates(rate: u64) -> PerDirection<Option<Rate>> {
    PerDirection { upload: Rate::new(rate), download: None }
}

fn protocol(
    scene: &Scene,
    program: &Path,
    pids: &[u32],
    limits: usize,
    crowd: &mut Worker,
    lines: &mut Vec<Times>,
) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("chadt-bench-").tempdir();
    let folder = folder.map_err(|cause| Error::caused(Kind::Failed, "make a folder", &cause))?;
    // The owner is a call of the program, and starts with the first limit, which a command sets.
    let (held, more) = pids.split_at(limits);
    let options = [
        "--runtime-dir".to_owned(),
        folder.path().display().to_string(),
        "--cgroup-root".to_owned(),
        scene.cgroup.path().display().to_string(),
    ];
    let limit = |pid: u32| {
        let words = ["limit", &format!("pid:{pid}"), "--upload-limit", "100GB/s"].map(str::to_owned);
        let mut command = Command::new(program);
        command.args(words).args(&options);
        command
    };
    let first = Call::spawn(limit(held[0]), Place::default())?;
    first.await_message("limited")?;
    let mut client = Client::connect(folder.path())?.ok_or_else(|| Error::failed("there is no owner"))?;
    for pid in &held[1..] {
        interrupt::check()?;
        client.request(&request(scene, *pid))?;
    }
    crowd.tell("talk")?;
    let (mut add, mut change, mut remove, mut call) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pid in more {
        let reply = timed(&mut add, || client.request(&request(scene, *pid)))?;
        let Reply::Limited { limit, .. } = reply else {
            return Err(Error::failed("the owner answered something else"));
        };
        let rates = rates(NO_REFUSAL / 2);
        timed(&mut change, || client.request(&Request::Change { id: limit.id, rates }))?;
        let targets = vec![Target::Pid(*pid)];
        timed(&mut remove, || client.request(&Request::Clear { targets }))?;
    }
    for pid in &more[..CALLS] {
        let mut command = timed(&mut call, || {
            let command = Call::spawn(limit(*pid), Place::default())?;
            command.await_message("limited")?;
            Ok(command)
        })?;
        command.process().signal(nix::sys::signal::Signal::SIGINT);
        command.finish()?;
    }
    crowd.tell("rest")?;
    for (what, times) in [
        ("add, by the owner", add),
        ("change, by the owner", change),
        ("remove, by the owner", remove),
        ("add, from the command line", call),
    ] {
        line(what, limits, times, lines);
    }
    client.close_and_wait(std::time::Duration::from_secs(30))?;
    let mut first = first;
    first.process().signal(nix::sys::signal::Signal::SIGINT);
    first.finish()?;
    Ok(())
}
