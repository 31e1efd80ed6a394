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
pub const USUAL: [&str; 3] = ["5.10", "6.1", "6.12"];

/// The tests that every change has to pass there: of each thing that depends on the kernel one, chosen for how much
/// it shows in its time. The others run with `--all`.
const USUAL_TESTS: [&str; 23] = [
    // Which backends there are, and what they lack.
    "kernels::what_there_is",
    // How long their verifiers take.
    "live::soon_in_force",
    // Both directions, TCP and UDP, IPv4 and IPv6; sockets that are older than the limit, and new ones.
    "coverage::open_connections",
    "coverage::new_connections",
    "coverage::new_mptcp",
    // Everything for downloads without loss: IFB, HTB, classifiers, windows.
    "lossless::ipv6",
    // Windows of unequal connections over a long line, and a device that the machine outside may not have.
    "windows::slow_ones_leave_the_rest",
    "devices::vlan",
    // By fq, which the machine outside may not have.
    "departures::nested",
    "pacing::datagrams_wait_in_fq",
    // Small buffers, of which those of older connections take a program of their own.
    "bursts::small_until_somebody_clears",
    "targets::unit",
    "cleanup::killed_owner",
    "backends::nftables::open_connections",
    // Which the machine outside may not have.
    "backends::police::open_connections",
    "backends::police::exact_at_1_mb",
    "backends::police::killed_while_setting_up",
    "foreign::stays_beside_police",
    // What the monitor lacks, that it says so, and that it lacks nothing else: long and short ways into the kernel, and
    // who uses a socket that several processes hold.
    "kernels::what_the_monitors_lack",
    "monitor::long_tcp",
    "monitor::udp_unconnected",
    "monitor::sendfile",
    "monitor::prefork_workers",
];

/// Parts of names of tests that cannot pass on a kernel, for what it has not; `kernels::what_there_is` makes sure that
/// it has not.
const LACKS: [(&str, &[&str]); 1] =
    [("5.10", &["mptcp", "nftables", "htb", "police", "monitor::", "bursts::"])];

/// What `vm` takes.
#[derive(Args)]
pub struct Options {
    /// Kernel versions: 5.10, 6.1, 6.12, any other that Debian has, or `newest`
    #[arg(default_values = USUAL, value_name = "VERSION")]
    versions: Vec<String>,
    /// Run the tests whose names contain this, instead of the usual ones; may be given several times
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Run all root tests
    #[arg(long, conflicts_with = "filter")]
    all: bool,
    /// Show what the kernel says, too, and where the processors stand when one is stuck
    #[arg(long)]
    kernel_messages: bool,
    /// Give a kernel at most that many seconds
    #[arg(long, default_value_t = 900, value_name = "S")]
    timeout: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            versions: USUAL.map(Into::into).to_vec(),
            filter: Vec::new(),
            all: false,
            kernel_messages: false,
            timeout: 900,
        }
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
        image::write(&image, &kernel, &binaries, &guest_commands(version, options))
            .with_context(|| format!("make the initramfs for Linux {version}"))?;
        let log = cache().join(format!("{version}.log"));
        let machine = boot::Machine {
            name: version,
            vmlinuz: &kernel.vmlinuz,
            options: kernel.options(),
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

/// A shell script; each line of it is one run of the tests.
fn guest_commands(version: &str, options: &Options) -> String {
    let lacks = LACKS.iter().find(|(with, _)| *with == version).map_or(&[][..], |(_, lacks)| lacks);
    let skips: String = lacks.iter().map(|lacks| format!(" --skip '{lacks}'")).collect();
    let runs: Vec<String> = if options.all {
        vec![skips]
    } else if options.filter.is_empty() {
        let there = |test: &&&str| !lacks.iter().any(|lacks| test.contains(lacks));
        USUAL_TESTS.iter().filter(there).map(|test| format!(" --exact '{test}'")).collect()
    } else {
        options.filter.iter().map(|filter| format!("{skips} '{filter}'")).collect()
    };
    let mut script = format!(
        "export CHADT_BIN=/bin/chadthrottle CHADT_REQUIRE_ROOT=1 CHADT_DEBIAN_KERNEL=1 \
         CHADT_FULL_SPEED={FULL_SPEED}\ncode=0\n"
    );
    for run in runs {
        script.push_str(&format!("root --color never --test-threads 1{run} || code=1\n"));
    }
    script + "exit $code\n"
}

fn summary(version: &str, outcome: &Outcome, log: &Path) -> String {
    let Outcome { release, counts, exit, seconds, none_found } = outcome;
    let verdict = if outcome.passed() { "ok" } else { "FAILED" };
    let counts = counts.map_or("no test result".into(), |counts: Counts| counts.to_string());
    let end = match exit {
        Some(0) if *none_found => ", and there is no test of one of the names".into(),
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
            // With them the binary can be told to die at every step.
            .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_not_tested_there() {
        let usual = |version| guest_commands(version, &Options::default());
        assert_eq!(usual("6.1").matches("root --color").count(), USUAL_TESTS.len());
        assert!(usual("6.1").contains("--exact 'coverage::new_mptcp' || code=1\n"));
        assert!(!usual("5.10").contains("nftables"));
        let filter = vec!["coverage".to_owned(), "backends".to_owned()];
        let some = guest_commands("5.10", &Options { filter, ..Options::default() });
        assert!(some.contains(" --skip 'mptcp' --skip 'nftables' --skip 'htb' --skip 'police' --skip 'monitor::' --skip 'bursts::' 'coverage' || code=1\n"));
        assert!(some.contains(" 'backends' || "));
    }
}
