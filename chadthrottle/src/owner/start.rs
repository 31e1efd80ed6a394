//! Starts the owner and the janitor: processes that share nothing with the one that started them.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};
use serde::{Deserialize, Serialize};

use super::runtime::Runtime;
use crate::{
    backend::Site,
    error::{Context, Error, Result},
    kernel::process::{self, Process},
};

/// This very program, even if its file has been replaced or removed since.
const SELF: &str = "/proc/self/exe";
/// How long the owner may take to say how its start went.
const PATIENCE: Duration = Duration::from_secs(15);

/// Niceness of owner and janitor. They do little, but in time: what they limit may be a hundred busy processes on one
/// processor, and beside them, as one of equals, they would take a minute for what is a second's work. It takes
/// CAP_SYS_NICE; without it they stay where they are.
pub(super) const NICENESS: i32 = -15;

/// What a starting owner says through the pipe, as one JSON object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(super) enum Startup {
    /// It listens.
    Ready,
    /// Another process has the lock.
    Busy,
    /// It can't, and has ended.
    Failed {
        /// Why.
        error: Error,
    },
}

/// Starts an owner that is no child of ours and waits until it says how that went.
pub(super) fn owner(runtime: &Runtime, site: &Site) -> Result<Startup> {
    let (reading, writing) = pipe2(OFlag::O_CLOEXEC).context("make a pipe for the owner")?;
    let mut command = Command::new(SELF);
    command.arg0("chadthrottle").arg("owner").arg("--runtime-dir").arg(runtime.path());
    if let Some(root) = &site.cgroup_root {
        command.arg("--cgroup-root").arg(root);
    }
    command.arg("--ready-fd").arg(writing.as_raw_fd().to_string());
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(runtime.open_log()?);
    let inherited = writing.as_raw_fd();
    let niceness = NICENESS.to_string();
    // SAFETY: the closure runs in the child between fork and exec and makes only system calls.
    unsafe { command.pre_exec(move || leave_home(&[inherited], &niceness).and_then(|()| be_grandchild())) };
    let mut between = command.spawn().context("start the owner")?;
    drop(writing);
    // It ended as soon as the owner was born. If our caller ignores SIGCHLD nobody is left to wait for.
    let _ = between.wait();
    read_startup(reading, runtime)
}

/// Starts the janitor as a child of the owner, which it knows by a pidfd; `estate` is for it to settle.
pub(super) fn janitor(runtime: &Runtime, owner: &Process, estate: Option<BorrowedFd<'_>>) -> Result<Child> {
    let mut inherited = vec![process::number(owner)];
    let mut command = Command::new(SELF);
    command.arg0("chadthrottle").arg("janitor").arg("--runtime-dir").arg(runtime.path());
    command.arg("--owner-pidfd").arg(inherited[0].to_string());
    if let Some(estate) = estate {
        command.arg("--estate-fd").arg(estate.as_raw_fd().to_string());
        inherited.push(estate.as_raw_fd());
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    let niceness = NICENESS.to_string();
    // SAFETY: as above.
    unsafe { command.pre_exec(move || leave_home(&inherited, &niceness)) };
    command.spawn().context("start the janitor")
}

/// An own session, and no open file but stdio and those.
fn leave_home(inherited: &[RawFd], niceness: &str) -> io::Result<()> {
    nix::unistd::setsid()?;
    // Where the kernel shares the processors out among sessions (CONFIG_SCHED_AUTOGROUP), a process's own niceness
    // counts within its session only. Not every kernel does, and not everybody may.
    // SAFETY: the name is a C string, the text as long as it is.
    unsafe {
        let file = libc::open(c"/proc/self/autogroup".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, niceness.as_ptr().cast(), niceness.len());
            libc::close(file);
        }
    }
    process::keep_descriptors();
    for fd in inherited {
        // SAFETY: only sets flags of our own descriptors.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Goes on as a child that the caller's parent does not know.
fn be_grandchild() -> io::Result<()> {
    // SAFETY: we are the only thread here, between fork and exec.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: ends this process at once, without running anything that belongs to the caller.
        _ => unsafe { libc::_exit(0) },
    }
}

fn read_startup(reading: OwnedFd, runtime: &Runtime) -> Result<Startup> {
    let log = runtime.log();
    let mut fds = [PollFd::new(reading.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, patience).context("wait for the owner")? == 0 {
        return Err(Error::failed(format!("the owner does not come up; its log: {}", log.display())));
    }
    let mut text = Vec::new();
    File::from(reading).read_to_end(&mut text).context("listen to the owner")?;
    serde_json::from_slice(&text)
        .map_err(|_| Error::failed(format!("the owner died while it started; its log: {}", log.display())))
}
