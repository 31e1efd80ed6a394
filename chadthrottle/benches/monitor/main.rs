//! How exactly the monitor counts and what it costs, beside other monitors. Run by `cargo xtask bench`, as root.

mod load;
mod page;
#[path = "../../tests/root/support/sniff.rs"]
mod sniff;
mod tool;

use std::{env, fs, path::PathBuf, process::ExitCode, thread, time::Duration};

use chadthrottle::{
    Error, Kind, Result,
    backend::Site,
    kernel::cgroup,
    monitor::{reading::Count, wire},
    selftest::{
        cgroup::Cgroup,
        interrupt,
        lab::{Lab, Version},
        process::Place,
    },
};
use clap::Parser;
use load::Load;
use page::{Crowd, Results, Start, Workload};
use sniff::Sniffer;
use tool::{Tool, Which};

/// Fails, with a message, unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(chadthrottle::Error::failed(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// Where loads connect to.
const PORT: u16 = 7200;
/// The processor time of a tool is taken over so long, seconds.
const WINDOW: f64 = 10.0;

#[derive(Parser)]
struct Arguments {
    /// Where to write the page
    #[arg(long)]
    page: Option<PathBuf>,
    /// The largest number of sockets
    #[arg(long, default_value_t = 50_000)]
    most: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, rest)) if first == load::WORD => {
            load::play(rest).map_err(|cause| Error::caused(Kind::Failed, "load", &cause))
        }
        _ => run(&Arguments::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    interrupt::listen()?;
    let mut results = Results::default();
    for which in Which::ALL.into_iter().filter(|which| which.is_installed()) {
        for (what, words) in [("2 Gbit/s", ["steady", "250000000"]), ("1,500 connections", ["short", "1500"])]
        {
            results.workloads.push(workload(which, what, &words)?);
        }
    }
    for sockets in [100, 1_000, 10_000, 50_000].into_iter().filter(|sockets| *sockets <= arguments.most) {
        results.crowds.push(crowd(sockets)?);
    }
    results.start = start()?;
    let text = page::write(&results);
    println!("{text}");
    match &arguments.page {
        Some(path) => fs::write(path, text)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write {}", path.display()), &cause)),
        None => Ok(()),
    }
}

/// A cgroup, in which everything is that is watched.
fn room() -> Result<Cgroup> {
    Cgroup::new(&cgroup::mount()?, &format!("chadt-bench-{}", std::process::id()))
}

fn pause(seconds: f64) -> Result<()> {
    thread::sleep(Duration::from_secs_f64(seconds));
    interrupt::check()
}

/// One tool, one load.
fn workload(which: Which, what: &'static str, words: &[&str]) -> Result<Workload> {
    let (cgroup, lab) = (room()?, Lab::new()?);
    let address = lab.server_at(Version::V4, PORT);
    load::sink(&lab.server, address)?;
    let place = Place { namespace: Some(&lab.client), cgroup: Some(&cgroup) };
    let mut load = Load::spawn(place, &[words, &[&address.to_string()]].concat())?;
    let mut tool = Tool::start(which, &lab.client, &cgroup, &["--summary"])?;
    pause(2.0)?;
    let sniffer = Sniffer::new(&lab.client)?;
    load.go()?;
    let before = tool.cost()?;
    // A steady load goes on for longer than the window, the short connections end within it.
    pause(WINDOW)?;
    let after = tool.cost()?;
    load.finish()?;
    // The last ticks.
    pause(2.5)?;
    let truth: u64 = sniffer.finish()?.values().map(|wire| wire.rx + wire.tx).sum();
    let shown = tool.finish(load.pid())?;
    let result = Workload {
        tool: which,
        what,
        shown,
        truth,
        processor: (after.seconds - before.seconds) / WINDOW,
        memory: after.memory,
    };
    eprintln!("{result:?}");
    Ok(result)
}

/// Many open sockets, a few of which move something.
fn crowd(sockets: usize) -> Result<Crowd> {
    let (cgroup, lab) = (room()?, Lab::new()?);
    let place = Place { namespace: Some(&lab.client), cgroup: Some(&cgroup) };
    // A process may have no more than some thousands.
    let each = sockets.div_ceil(sockets.div_ceil(10_000));
    let loads = (0..sockets / each)
        .map(|_| Load::spawn(place, &["crowd", &each.to_string()]))
        .collect::<Result<Vec<_>>>()?;
    let load = &loads[0];
    let site = Site { cgroup_root: Some(cgroup.path().to_owned()) };
    let read_ms = {
        let (mut count, _programs) = wire::open(&site)?;
        let mut times = Vec::new();
        for _ in 0..7 {
            let begun = std::time::Instant::now();
            let reading = count.read(true)?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            ensure!(reading.sockets.len() >= sockets, "only {} sockets are seen", reading.sockets.len());
            pause(0.1)?;
        }
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let mut processor = [0.0; 2];
    let mut memory = [0.0; 2];
    for (index, more) in [&[][..], &["--connections"]].into_iter().enumerate() {
        let mut tool = Tool::start(Which::Chadthrottle, &lab.client, &cgroup, more)?;
        pause(3.0)?;
        let before = tool.cost()?;
        pause(WINDOW)?;
        let after = tool.cost()?;
        (processor[index], memory[index]) = ((after.seconds - before.seconds) / WINDOW, after.memory);
        tool.finish(load.pid())?;
    }
    let result = Crowd { sockets, read_ms, processor, memory };
    eprintln!("{result:?}");
    Ok(result)
}

/// From the start of the command to its first line.
fn start() -> Result<Start> {
    let (cgroup, lab) = (room()?, Lab::new()?);
    let place = Place { namespace: Some(&lab.client), cgroup: Some(&cgroup) };
    let _load = Load::spawn(place, &["crowd", "100"])?;
    let mut times = Vec::new();
    for _ in 0..7 {
        let tool = Tool::start(Which::Chadthrottle, &lab.client, &cgroup, &[])?;
        times.push(tool.first_line()? * 1e3);
        tool.finish(0)?;
    }
    times.sort_by(f64::total_cmp);
    let result = Start { median: times[times.len() / 2], worst: times[times.len() - 1] };
    eprintln!("{result:?}");
    Ok(result)
}
