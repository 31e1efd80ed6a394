//! The project's own commands: `cargo xtask build-ebpf | test | vm`.

mod apt;
mod ebpf;
mod sh;

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
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::BuildEbpf(options) => ebpf::run(&options),
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
