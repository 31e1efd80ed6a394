//! Signals as something to wait for beside the owner's socket.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    ptr,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd, siginfo},
    },
};

use crate::error::{Context, Result};

/// Blocks signals and hands them out one by one. They stay blocked: whoever watches is about to end.
pub struct Signals(SignalFd);

impl Signals {
    /// From now on `signals` no longer do what they do by themselves. The process must have one thread.
    pub fn watch(signals: impl IntoIterator<Item = Signal>) -> Result<Self> {
        let set: SigSet = signals.into_iter().collect();
        set.thread_block().context("block signals")?;
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("watch signals")
            .map(Self)
    }

    /// The next signal that has come, if one has.
    pub fn next(&self) -> Result<Option<siginfo>> {
        match self.0.read_signal() {
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(None),
            read => read.context("read a signal"),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether the process was started with `signal` ignored, as `nohup` does with SIGHUP. Asked before
/// anything is watched: a blocked signal is delivered even when it is ignored.
pub fn ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; `action` is valid for a write of its type.
    let asked = unsafe { libc::sigaction(signal as libc::c_int, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeroed bytes are a valid sigaction, and so is what the kernel wrote over them.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}
