//! Boots a machine, shows what it prints, and reads the result from it.

use crate::counts::Counts;
use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// How long the kernel alone may take; some 3 s are usual.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// A kernel that crashed before its first process runs says nothing about the programs.
const BOOT_ATTEMPTS: u32 = 4;

/// What a machine said.
#[derive(Debug, Default)]
pub struct Outcome {
    /// `uname -r`, when it booted.
    pub release: Option<String>,
    /// The sum of its `test result:` lines.
    pub counts: Option<Counts>,
    /// A run of the tests found none of that name.
    pub none_found: bool,
    /// Exit code of the tests; None when the machine never came that far.
    pub exit: Option<i32>,
    /// How long it ran.
    pub seconds: f64,
}

impl Outcome {
    /// All tests that were asked for ran, none failed, and none was skipped.
    pub fn passed(&self) -> bool {
        let counts = self.counts.unwrap_or_default();
        self.exit == Some(0)
            && !self.none_found
            && counts.passed > 0
            && counts.failed == 0
            && counts.ignored == 0
    }

    fn learn(&mut self, line: &str) {
        if let Some(release) = line.strip_prefix("guest: kernel ") {
            self.release = Some(release.to_owned());
        } else if let Some(code) = line.strip_prefix("guest: exit ") {
            self.exit = code.parse().ok();
        } else if let Some(counts) = Counts::parse(line) {
            self.none_found |= counts == Counts::default();
            *self.counts.get_or_insert_default() += counts;
        }
    }
}

/// What to boot.
pub struct Machine<'a> {
    /// For the screen.
    pub name: &'a str,
    /// The kernel's bootable image.
    pub vmlinuz: &'a Path,
    /// What else the kernel is told.
    pub options: &'a str,
    /// The file with everything else.
    pub initramfs: &'a Path,
    /// Where to write what it prints.
    pub log: &'a Path,
    /// Whether the kernel prints more than emergencies.
    pub kernel_messages: bool,
}

/// A running machine; gone with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots, and waits for the end of the machine or of its time. A machine that never came to its first process
    /// is started again; once tests may have run, what happens counts.
    pub fn boot(&self, limit: Duration) -> Result<Outcome> {
        let mut attempt = 1;
        loop {
            let outcome = self.boot_once(limit)?;
            if outcome.release.is_some() || attempt == BOOT_ATTEMPTS {
                return Ok(outcome);
            }
            attempt += 1;
            println!("xtask: Linux {} did not come up: attempt {attempt} of {BOOT_ATTEMPTS}", self.name);
        }
    }

    fn boot_once(&self, limit: Duration) -> Result<Outcome> {
        let Self { name, log, .. } = self;
        println!("xtask: booting Linux {name}");
        let messages = if self.kernel_messages {
            "loglevel=7 softlockup_all_cpu_backtrace=1"
        } else {
            "quiet loglevel=3"
        };
        let start = Instant::now();
        let mut machine = Running(
            Command::new("qemu-system-x86_64")
                // Not kvm: what it does to a guest depends on the host, and nested it often does not work at all.
                // And one thread for both processors: where each has its own (QEMU 7.2), a processor that translates
                // code while the other patches it may keep the breakpoint that patching puts there for a moment, and
                // traps for ever. Linux patches its code whenever a first eBPF program is attached to a cgroup.
                // Without cmpxchg16b, which the allocator of the kernel uses where it is: QEMU 7.2 once left the
                // accumulator's bits in the flags after it, and the kernel died of a double fault.
                .args(["-accel", "tcg,thread=single", "-cpu", "max,-cx16", "-smp", "2", "-m", "1024"])
                .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"])
                .arg("-kernel")
                .arg(self.vmlinuz)
                .arg("-initrd")
                .arg(self.initramfs)
                // A kernel that crashed would go on, but prove nothing: oops=panic, and panic=-1 with -no-reboot ends it.
                .args(["-append", &format!("console=ttyS0 oops=panic panic=-1 {messages} {}", self.options)])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("start qemu-system-x86_64")?,
        );
        let lines = lines(machine.0.stdout.take().context("the machine has no console")?);
        let mut log = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut outcome = Outcome::default();
        loop {
            let limit = if outcome.release.is_some() { limit } else { limit.min(BOOT_LIMIT) };
            match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
                Ok(line) => {
                    println!("[{name}] {line}");
                    writeln!(log, "{line}").context("write the machine's log")?;
                    outcome.learn(&line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    println!("[{name}] not done after {} s: stopped", limit.as_secs());
                    outcome.exit = None;
                    break;
                }
            }
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        Ok(outcome)
    }
}

/// Reads in a thread, so that a silent machine can be given up.
fn lines(console: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_passes_only_when_tests_ran_to_their_end() {
        let mut outcome = Outcome::default();
        outcome.learn("guest: kernel 6.1.0-50-cloud-amd64");
        outcome.learn("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert!(!outcome.passed());
        outcome.learn("guest: exit 0");
        assert!(outcome.passed());
        assert!(!outcome.none_found);
        let mut other = Outcome::default();
        other.learn("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        other.learn("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out");
        other.learn("guest: exit 0");
        assert!(!other.passed(), "one name has no test");
        outcome.learn("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        assert!(!outcome.passed());
    }
}
