//! What the engine costs, beside what was promised. Run by `cargo xtask bench`, as root.

mod accuracy;
mod bucket;
mod packet;
mod scene;
mod setting;
mod stats;
mod worker;

use std::{env, path::PathBuf, process::ExitCode};

use chadthrottle::Result;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1).peekable();
    if arguments.next_if(|word| word == "worker").is_some() {
        let arguments: Vec<_> = arguments.collect();
        return match worker::main(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("worker: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let object = env::var_os("CHADT_BENCH_OBJECT").map(PathBuf::from).unwrap_or_default();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_chadthrottle"));
    let scene = scene::Scene::new()?;
    let mut yardstick = scene::Yardstick::load(&object)?;
    let only = env::var("CHADT_BENCH_ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only == part;
    let most = if env::var_os("CHADT_BENCH_QUICK").is_some() { 64 } else { 4_096 };
    if wanted("bucket") {
        let step = bucket::measure(&mut yardstick)?;
        eprintln!("step {:.2} ns kernel, {:.2} host, {:?} cycles/ns", step.kernel_ns, step.host_ns, step.cycles_per_ns);
    }
    if wanted("setting") {
        setting::measure(&scene, &program, most)?;
    }
    if wanted("packet") {
        packet::measure(&scene, &mut yardstick, &program, most)?;
    }
    if wanted("accuracy") {
        accuracy::measure(&scene, &program)?;
    }
    Ok(())
}
