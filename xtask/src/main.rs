//! The project's own commands: `cargo xtask build-ebpf | test | vm | bench | pictures`.

mod apt;
mod bench;
mod counts;
mod ebpf;
mod pictures;
mod sh;
mod suite;
mod vm;

use clap::{Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "ChadThrottle's build and test commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the eBPF object that the binary embeds, and write down where it comes from
    BuildEbpf(ebpf::Options),
    /// Run every test that this machine can run, and say which it cannot
    Test(suite::Options),
    /// Run the root tests on Debian's kernels, in QEMU
    Vm(vm::Options),
    /// Measure what the engine costs and how well it holds, and write docs/benchmarks/engine.md
    Bench(bench::Options),
    /// Draw the pictures of the README anew, in docs/pictures
    Pictures,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::BuildEbpf(options) => ebpf::run(&options),
        Command::Test(options) => suite::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Pictures => pictures::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the checkout that this binary was built from.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}
