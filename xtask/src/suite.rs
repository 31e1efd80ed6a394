//! `cargo xtask test`: every test that this machine can run, and a word on those it cannot.

use crate::{counts::Counts, sh, vm};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

/// What `test` takes.
#[derive(Args)]
pub struct Options {
    /// Also on the kernels of `cargo xtask vm`
    #[arg(long)]
    vm: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let mut failed = Vec::new();
    let mut total = Counts::default();
    let mut step = |name: &'static str, cargo: &mut Command| -> Result<Counts> {
        println!("\nxtask: {name}");
        let (success, counts) = counted(cargo).with_context(|| name)?;
        if !success {
            failed.push(name);
        }
        total += counts;
        Ok(counts)
    };

    step(
        "tests that need no rights",
        test(&["--workspace", "--no-fail-fast"]).env_remove("CHADT_REQUIRE_ROOT"),
    )?;
    let root = if sh::is_root() {
        let mut cargo = test(&["--package", "chadthrottle", "--test", "root", "--", "--test-threads", "1"]);
        let counts = step("root and namespace tests", cargo.env("CHADT_REQUIRE_ROOT", "1"))?;
        if counts.passed == 0 {
            failed.push("root and namespace tests: none ran");
        }
        if counts.ignored > 0 {
            failed.push("root and namespace tests: some were skipped");
        }
        format!("root and namespace tests: {counts}")
    } else {
        "root and namespace tests SKIPPED: they load eBPF programs and make network namespaces, which only root may; \
         run `cargo xtask test` as root"
            .into()
    };
    let machines = match options.vm.then(|| vm::run(&vm::Options::default())) {
        None => "other kernels SKIPPED: not asked for (`cargo xtask test --vm`)".into(),
        Some(Ok(())) => format!("other kernels passed: {}", vm::USUAL.join(", ")),
        Some(Err(error)) => {
            failed.push("tests on other kernels");
            format!("other kernels FAILED: {error:#}")
        }
    };

    println!("\n{root}\n{machines}");
    if !failed.is_empty() {
        bail!("test: FAILED ({total}): {}", failed.join("; "));
    }
    println!("xtask test: ok, {total}");
    Ok(())
}

fn test(arguments: &[&str]) -> Command {
    let mut cargo = sh::cargo();
    cargo.current_dir(crate::root()).arg("test").args(arguments);
    cargo
}

/// Runs it, shows its stdout, and adds up its `test result:` lines. Also whether it succeeded.
fn counted(command: &mut Command) -> Result<(bool, Counts)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo")?;
    let mut counts = Counts::default();
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read cargo's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(more) = Counts::parse(&line) {
            counts += more;
        }
    }
    Ok((child.wait()?.success(), counts))
}
