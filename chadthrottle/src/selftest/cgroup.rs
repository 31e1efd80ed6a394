//! A cgroup of our own, for processes whose traffic is limited.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStringExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::error::{Context, Error, Kind, Result};

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

/// Where the cgroup2 hierarchy is mounted.
pub fn mount() -> Result<PathBuf> {
    let path = "/proc/self/mountinfo";
    let mounts = fs::read_to_string(path).context(format!("read {path}"))?;
    mounts.lines().find_map(mount_point).ok_or_else(|| {
        Error::new(Kind::NoBackend, "no cgroup2 is mounted; try: mount -t cgroup2 none /sys/fs/cgroup")
    })
}

/// The mount point of a line of mountinfo (proc(5)) that is about a cgroup2 file system.
fn mount_point(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    mount.split(' ').nth(4).map(unescape)
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(word: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\');
        let code = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}
