//! What the engine costs and how well it holds, beside what was promised. Run by `cargo xtask bench`, as root.

mod accuracy;
mod backends;
mod bucket;
mod lossless;
mod packet;
mod page;
mod ping;
mod scene;
mod setting;
mod stats;
mod worker;

/// The scenes and lines of the trials.
#[allow(dead_code, unused_imports, reason = "the trials use more of it")]
#[path = "../../tests/root/support/mod.rs"]
mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use chadthrottle::{Error, Kind, Result, selftest::interrupt};
use clap::Parser;

/// Limits in force where there are many.
const MOST: usize = 4_096;

#[derive(Parser)]
struct Arguments {
    /// The object of the yardstick programs
    #[arg(long)]
    yardstick: PathBuf,
    /// Measure only this
    #[arg(long)]
    only: Option<String>,
    /// Where to write the page
    #[arg(long)]
    page: Option<PathBuf>,
    /// The largest number of limits
    #[arg(long, default_value_t = MOST)]
    most: usize,
    /// Measure the whole matrix of limits, not a few cells of it
    #[arg(long)]
    full: bool,
    /// Only these cells of that matrix
    #[arg(long)]
    cells: Option<String>,
    /// Where to write the page of that matrix and its plot
    #[arg(long)]
    lossless: Option<PathBuf>,
    /// Where to write the page of the backends
    #[arg(long)]
    backends: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    chadthrottle::kernel::process::keep_descriptors();
    let arguments: Vec<_> = env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, rest)) if first == "worker" => {
            worker::main(rest).map_err(|cause| Error::caused(Kind::Failed, "worker", &cause))
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
    if arguments.only.as_deref() == Some("lossless") {
        return lossless::measure(&lossless::Plan {
            full: arguments.full,
            cells: arguments.cells.as_deref(),
            folder: arguments.lossless.as_deref(),
            yardstick: &arguments.yardstick,
        });
    }
    if arguments.only.as_deref() == Some("beside") {
        return lossless::measure_beside();
    }
    if arguments.only.as_deref() == Some("backends") {
        return backends::measure(arguments.backends.as_deref());
    }
    let program = Path::new(env!("CARGO_BIN_EXE_chadthrottle"));
    let scene = scene::Scene::new()?;
    let mut yardstick = scene::Yardstick::load(&arguments.yardstick)?;
    let wanted = |part: &str| arguments.only.as_deref().is_none_or(|only| only == part);
    let mut results = page::Results::default();
    if wanted("bucket") {
        results.step = Some(bucket::measure(&mut yardstick)?);
    }
    if wanted("setting") {
        results.times = setting::measure(&scene, program, arguments.most)?;
    }
    if wanted("accuracy") {
        results.rates = accuracy::measure(&scene, program)?;
    }
    if wanted("packet") {
        results.packets = packet::measure(&scene, &mut yardstick, program, arguments.most)?;
    }
    let text = page::write(&results);
    println!("{text}");
    match &arguments.page {
        Some(path) => fs::write(path, text)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write {}", path.display()), &cause)),
        None => Ok(()),
    }
}
