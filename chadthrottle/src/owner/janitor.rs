//! Cleans up when the owner could not: a tiny process that waits for the owner's end.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{runtime::Runtime, start, sweep};
use crate::{
    backend,
    error::{Context, Error, Result},
    kernel::process::{self, Process},
};

/// A janitor that ends at once again is not started anew before this time is over.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How often it looks whether the owner is stopped, when there is an estate.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// So many looks in a row must find it stopped.
const STOPPED_LOOKS: u32 = 2;
/// Sweeps that may fail, because what is swept is still in use by processes that are just ending.
const TRIES: u32 = 4;

/// The hidden subcommand: waits for the owner behind the inherited pidfd to end, then settles the inherited
/// estate of its backend, if there is one, and sweeps.
pub fn main(dir: &Path, owner_pidfd: RawFd, estate: Option<RawFd>) -> Result<()> {
    // The name shows in ps; without it the process works as well.
    let _ = nix::sys::prctl::set_name(c"chadt-janitor");
    // SAFETY: only looked at here; whether it is open at all is checked before any use.
    let owner = unsafe { BorrowedFd::borrow_raw(owner_pidfd) };
    fcntl(owner, FcntlArg::F_GETFD).context(format!("use descriptor {owner_pidfd} as the owner's"))?;
    let settle = || {
        // SAFETY: inherited for this, and nobody else here uses it; one that is not open gives an error.
        let estate = unsafe { BorrowedFd::borrow_raw(estate?) };
        Some(backend::settle(estate))
    };
    let mut fds = [PollFd::new(owner, PollFlags::POLLIN)];
    let mut stopped_looks = 0;
    loop {
        let patience = PollTimeout::try_from(LOOK_PERIOD).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, if estate.is_some() { patience } else { PollTimeout::NONE }) {
            Ok(0) => {
                // A stopped owner holds nobody: its lease runs out, and what it left in sockets goes too.
                stopped_looks =
                    if owner_pid(owner).is_some_and(process::is_stopped) { stopped_looks + 1 } else { 0 };
                if stopped_looks == STOPPED_LOOKS
                    && let Some(Err(error)) = settle()
                {
                    tracing::error!("take back the pacing caps of a stopped owner: {error}");
                }
            }
            Ok(_) => break,
            Err(nix::Error::EINTR) => {}
            Err(cause) => return Err(cause).context("wait for the owner's end"),
        }
    }
    match settle() {
        None | Some(Ok(0)) => {}
        Some(Ok(count)) => tracing::warn!("the owner died; took back the pacing caps of {count} connections"),
        Some(Err(error)) => tracing::error!("take back the pacing caps that the owner left: {error}"),
    }
    let mut result = sweep(dir);
    for _ in 1..TRIES {
        if result.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        result = sweep(dir);
    }
    for removed in result? {
        tracing::warn!("the owner died; removed the {removed} that it left");
    }
    Ok(())
}

/// The process behind a pidfd, by what the kernel says of the descriptor.
fn owner_pid(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

/// The owner's side: keeps a janitor running, and ends it when there is nothing left to clean up.
#[derive(Debug)]
pub(super) struct Janitor {
    runtime: Runtime,
    owner: Process,
    running: Option<(Child, Process)>,
    started: Instant,
    /// What it is to settle, by [`backend::settle`].
    estate: Option<OwnedFd>,
}

impl Janitor {
    /// Starts the first one.
    pub fn start(runtime: &Runtime) -> Result<Self> {
        let owner = Process::open(std::process::id())?;
        let mut janitor =
            Self { runtime: runtime.clone(), owner, running: None, started: Instant::now(), estate: None };
        janitor.start_one()?;
        Ok(janitor)
    }

    fn start_one(&mut self) -> Result<()> {
        self.started = Instant::now();
        let mut child = start::janitor(&self.runtime, &self.owner, self.estate.as_ref().map(AsFd::as_fd))?;
        match Process::open(child.id()) {
            Ok(process) => {
                self.running = Some((child, process));
                Ok(())
            }
            Err(error) => {
                end(&mut child);
                Err(Error::failed(format!("the janitor ended at once: {error}")))
            }
        }
    }

    /// Puts one in its place that can settle the estate too.
    pub fn inherit(&mut self, estate: OwnedFd) -> Result<()> {
        self.estate = Some(estate);
        if let Some((mut child, _)) = self.running.take() {
            end(&mut child);
        }
        self.start_one()
    }

    /// Becomes readable when the janitor has ended.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|(_, process)| process.as_fd())
    }

    /// When [`Janitor::look_after`] has to start another.
    pub fn restart_at(&self) -> Option<Instant> {
        self.running.is_none().then_some(self.started + RESTART_PAUSE)
    }

    /// Notices when the janitor has ended, and replaces it.
    pub fn look_after(&mut self, now: Instant) {
        if let Some((child, process)) = &mut self.running
            && !process.alive()
        {
            tracing::warn!("the janitor has ended ({:?}); another is started", child.wait());
            self.running = None;
        }
        if self.restart_at().is_some_and(|time| time <= now)
            && let Err(error) = self.start_one()
        {
            tracing::error!("{error}");
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            end(&mut child);
        }
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
