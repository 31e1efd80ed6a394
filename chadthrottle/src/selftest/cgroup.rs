//! A cgroup of our own, for processes whose traffic is limited.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::error::{Context, Result};

/// Longest wait for the kernel to let go of the processes in a cgroup.
const PATIENCE: Duration = Duration::from_secs(2);

/// A cgroup that is removed when dropped, with every process in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes `parent`/`name`; an empty one of that name, left behind by a killed run, is replaced.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(name);
        // Fails when there is none, and when it is in use: then making it fails, too.
        let _ = fs::remove_dir(&path);
        fs::create_dir(&path).context(format!("make the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `command` start inside.
    pub fn contain<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        let path = self.path.join("cgroup.procs");
        let file = fs::OpenOptions::new().write(true).open(&path);
        let file: OwnedFd = file.context(format!("open {}", path.display()))?.into();
        // SAFETY: the closure only calls write, which is async-signal-safe, on a descriptor it owns.
        // "0" means whoever writes it.
        Ok(unsafe {
            command.pre_exec(move || nix::unistd::write(&file, b"0").map(drop).map_err(io::Error::from))
        })
    }

    /// Everything in it is a child of ours, or a child of one.
    fn kill_all(&self) {
        // Linux 5.14 has a file for it.
        if fs::write(self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        let members = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|line| line.parse().ok()) {
            // It may have ended by now.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.path).is_err_and(|cause| cause.kind() != io::ErrorKind::NotFound) {
            if Instant::now() > deadline {
                tracing::warn!("can't remove the cgroup {}", self.path.display());
                return;
            }
            self.kill_all();
            thread::sleep(Duration::from_millis(10));
        }
    }
}
