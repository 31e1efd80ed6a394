//! What the engine costs, beside what was promised. Run by `cargo xtask bench`, as root.

mod packet;
mod scene;
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
    for _ in 0..3 {
        let idle = yardstick.run_steps("idle_ingress", 1_000_000_000, 10_000)?;
        let step = yardstick.run_steps("step_ingress", 1_000_000_000, 10_000)?;
        eprintln!("idle {idle} step {step}: {:.2} ns", (step - idle) as f64 / 100.0);
    }
    packet::measure(&scene, &mut yardstick, &program)?;
    Ok(())
}
