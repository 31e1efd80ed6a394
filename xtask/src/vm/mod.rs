//! `cargo xtask vm`: the root tests on Debian's kernels, each in a QEMU machine of its own.
//!
//! A machine has nothing but the kernel, its modules, busybox, and our two static binaries, so what
//! passes there depends on nothing else. Its cgroup2 is mounted at `/cg`, where no code may expect it.

mod boot;
mod cpio;
mod image;
mod kernel;

use crate::{apt, counts::Counts, sh};
use anyhow::{Context, Result, bail};
use boot::Outcome;
use clap::Args;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

/// Bytes/s that traffic without a limit reaches in a machine even on a busy host. The trials that ask whether it is
/// free again have limits of 2 MB/s.
const FULL_SPEED: u32 = 6_000_000;

const HOST: &str = "x86_64-unknown-linux-gnu";
const PACKAGES: [&str; 6] =
    ["qemu-system-x86", "busybox-static", "kmod", "xz-utils", "zstd", "debian-archive-keyring"];

/// The kernels that every change has to pass on.
pub const USUAL: [&str; 2] = ["6.1", "6.12"];

/// What `vm` takes.
#[derive(Args)]
pub struct Options {
    /// Kernel versions: 5.10, 6.1, 6.12, any other that Debian has, or `newest`
    #[arg(default_values = USUAL, value_name = "VERSION")]
    versions: Vec<String>,
    /// Run only the tests whose names contain this
    #[arg(long)]
    filter: Option<String>,
    /// Show what the kernel says, too, and where the processors stand when one is stuck
    #[arg(long)]
    kernel_messages: bool,
    /// Give a kernel at most that many seconds
    #[arg(long, default_value_t = 900, value_name = "S")]
    timeout: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { versions: USUAL.map(Into::into).to_vec(), filter: None, kernel_messages: false, timeout: 900 }
    }
}

/// The folder for everything that can be fetched or made again.
fn cache() -> PathBuf {
    crate::root().join("target/vm-cache")
}

/// Boots every kernel in turn and runs the tests there; an error when any of them did not pass.
pub fn run(options: &Options) -> Result<()> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        bail!("the virtual machines are x86-64 and run on x86-64 Linux only");
    }
    apt::ensure(&PACKAGES, "running other kernels")?;
    let binaries = Binaries::build()?;
    let kernels = kernel::fetch(&cache(), &options.versions)?;

    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for (version, kernel) in options.versions.iter().zip(kernels) {
        let image = cache().join(format!("{version}.cpio"));
        image::write(&image, &kernel, &binaries, &guest_command(options))
            .with_context(|| format!("make the initramfs for Linux {version}"))?;
        let log = cache().join(format!("{version}.log"));
        let machine = boot::Machine {
            name: version,
            vmlinuz: &kernel.vmlinuz,
            initramfs: &image,
            log: &log,
            kernel_messages: options.kernel_messages,
        };
        let outcome = machine.boot(Duration::from_secs(options.timeout))?;
        if !outcome.passed() {
            failed.push(version.as_str());
        }
        lines.push(summary(version, &outcome, &log));
    }
    println!("\n{}", lines.join("\n"));
    if !failed.is_empty() {
        bail!("failed on Linux {}", failed.join(", "));
    }
    Ok(())
}

fn guest_command(options: &Options) -> String {
    let filter = options.filter.as_deref().unwrap_or_default();
    format!(
        "CHADT_BIN=/bin/chadthrottle CHADT_REQUIRE_ROOT=1 CHADT_FULL_SPEED={FULL_SPEED} \
         root --color never --test-threads 1 '{filter}'"
    )
}

fn summary(version: &str, outcome: &Outcome, log: &Path) -> String {
    let Outcome { release, counts, exit, seconds } = outcome;
    let verdict = if outcome.passed() { "ok" } else { "FAILED" };
    let counts = counts.map_or("no test result".into(), |counts: Counts| counts.to_string());
    let end = match exit {
        Some(0) => String::new(),
        Some(code) => format!(", tests ended with {code}"),
        None => ", never came to its end".into(),
    };
    let release = release.as_deref().unwrap_or("did not boot");
    format!("vm {version:<6} {verdict}: {counts}{end} ({release}, {seconds:.0} s, log {})", log.display())
}

/// Static builds of what runs in the machines.
pub struct Binaries {
    chadthrottle: PathBuf,
    root_tests: PathBuf,
}

impl Binaries {
    fn build() -> Result<Self> {
        eprintln!("xtask: building static binaries for the machines");
        // Building the test builds the binary, too.
        let output = sh::cargo()
            .current_dir(crate::root())
            .args([
                "test",
                "--no-run",
                "--release",
                "--package",
                "chadthrottle",
                "--test",
                "root",
                "--target",
                HOST,
            ])
            .args(["--message-format", "json-render-diagnostics"])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .stderr(Stdio::inherit())
            .output()
            .context("start cargo")?;
        if !output.status.success() {
            bail!("building the static binaries failed");
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        Ok(Self {
            chadthrottle: executable(&messages, "chadthrottle")?,
            root_tests: executable(&messages, "root")?,
        })
    }
}

/// Takes the path of the target's executable from cargo's messages.
fn executable(messages: &str, target: &str) -> Result<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo named no executable of {target}"))
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}
