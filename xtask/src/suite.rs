//! `cargo xtask test`: every test that this machine can run, and a word on those it cannot.

use crate::{counts::Counts, sh, vm};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::{
    io::{self, BufRead, BufReader},
    process::Command,
};

/// How cargo announces the tests that need root.
const ROOT_TESTS: &str = "Running tests/root/main.rs";

/// What `test` takes.
#[derive(Args)]
pub struct Options {
    /// Also on the kernels of `cargo xtask vm`
    #[arg(long)]
    vm: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let mut cargo = sh::cargo();
    cargo.current_dir(crate::root()).args(["test", "--workspace", "--no-fail-fast"]);
    if sh::is_root() {
        // As root nothing has a reason to be skipped.
        cargo.env("CHADT_REQUIRE_ROOT", "1");
    }
    let seen = watch(cargo)?;

    let mut failed = Vec::new();
    if !seen.success {
        failed.push("cargo test");
    }
    let root = if sh::is_root() {
        if seen.root.passed == 0 || seen.root.ignored > 0 {
            failed.push("root and namespace tests: skipped though we are root");
        }
        format!("root and namespace tests: {}", seen.root)
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
        bail!("test: FAILED ({}): {}", seen.all, failed.join("; "));
    }
    println!("xtask test: ok, {}", seen.all);
    Ok(())
}

/// What a run of cargo said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    success: bool,
    all: Counts,
    /// Those of `all` that are in the root tests.
    root: Counts,
    in_root: bool,
}

impl Seen {
    fn learn(&mut self, line: &str) {
        let line = line.trim();
        if line.starts_with("Running ") || line.starts_with("Doc-tests ") {
            self.in_root = line.starts_with(ROOT_TESTS);
        }
        if let Some(counts) = Counts::parse(line) {
            self.all += counts;
            if self.in_root {
                self.root += counts;
            }
        }
    }
}

/// Runs it and shows what it prints. Both of its streams go into one pipe: cargo announces a test binary on
/// one, and the binary reports on the other.
fn watch(mut command: Command) -> Result<Seen> {
    let (reader, writer) = io::pipe().context("make a pipe")?;
    command.stderr(writer.try_clone().context("duplicate a pipe")?).stdout(writer);
    let mut child = command.spawn().context("start cargo")?;
    // It holds the writing ends; with them the pipe would never end.
    drop(command);
    let mut seen = Seen::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("read cargo's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        seen.learn(&line);
    }
    seen.success = child.wait().context("wait for cargo")?.success();
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_tests_are_told_apart() {
        let mut seen = Seen::default();
        for line in [
            "     Running tests/object.rs (target/debug/deps/object-1)",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "     Running tests/root/main.rs (target/debug/deps/root-1)",
            "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "   Doc-tests chadthrottle",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            seen.learn(line);
        }
        assert_eq!(seen.root, Counts { passed: 7, failed: 0, ignored: 1 });
        assert_eq!(seen.all.passed, 12);
    }
}
