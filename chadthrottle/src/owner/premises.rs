//! The owner's files in the runtime folder, and its cgroup.

use std::{
    fs, io,
    os::{
        fd::BorrowedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
};

use super::{
    refuge::Refuge,
    runtime::{Lock, Runtime, identity},
};
use crate::{
    backend::{self, Site},
    error::{Context, Error, Result},
    kernel::{
        fault,
        journal::{self, Journal, Object},
    },
};

/// The files in the runtime folder, and the cgroup, which are removed with this.
pub(super) struct Premises {
    refuge: Option<Refuge>,
    socket: Object,
    /// Which file the socket is, when there is one.
    bound: Option<(u64, u64)>,
    runtime: Runtime,
    journal: journal::Shared,
    /// Whether stderr is the log.
    logs: bool,
    lock: Lock,
}

impl Premises {
    /// Cleans up after the owners before us, and begins the journal; with `logs`, stderr becomes the log.
    pub fn enter(runtime: Runtime, lock: Lock, logs: bool) -> Result<Self> {
        if logs {
            // The one that was opened before us may have been removed by the owner before us.
            nix::unistd::dup2_stderr(runtime.open_log()?).context("write to the log")?;
        }
        let swept = journal::sweep(runtime.path(), backend::settle)?;
        for removed in swept.removed {
            tracing::info!("removed the {removed} that was left here");
        }
        for error in swept.failed {
            tracing::warn!("{error}");
        }
        let journal = journal::share(Journal::create(runtime.path())?);
        let socket = Object::File { path: runtime.socket() };
        Ok(Self { refuge: None, socket, bound: None, runtime, journal, logs, lock })
    }

    /// Moves this process to a cgroup of its own, where that can be made.
    pub fn move_out(&mut self, site: &Site) {
        match Refuge::enter(site, &mut self.journal.borrow_mut()) {
            Ok(refuge) => self.refuge = Some(refuge),
            Err(error) => tracing::info!("the owner stays in its client's cgroup: {error}"),
        }
        fault::point("owner.moved");
    }

    /// Lets an eBPF map survive the owner and the janitor, where that can be done.
    pub fn keep(&self, map: BorrowedFd<'_>) {
        let kept = self.refuge.as_ref().map_or(Ok(()), |refuge| refuge.keep(map));
        if let Err(error) = kept {
            tracing::warn!("{error}; pacing caps stay if the owner and its janitor are killed together");
        }
        fault::point("ebpf.kept");
    }

    /// Opens the socket, which is written down first.
    pub fn listen(&mut self) -> Result<UnixListener> {
        self.journal.borrow_mut().record(self.socket.clone())?;
        fault::point("owner.journal");
        self.runtime.remove_socket()?;
        let path = self.runtime.socket();
        let doing = || format!("listen at {}", path.display());
        let listener = UnixListener::bind(&path).context(doing())?;
        self.bound = identity(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context(doing())?;
        listener.set_nonblocking(true).context(doing())?;
        Ok(listener)
    }

    /// Moves in anew when somebody removed the files or the whole folder: without the socket nobody could
    /// see or end the limits any more. A new listener if there had to be one.
    ///
    /// # Errors
    /// [`Moved::Out`] when another owner has the folder by now.
    pub fn look_after(&mut self) -> Result<Option<UnixListener>, Moved> {
        let socket_is_ours = self.bound.is_some() && identity(&self.runtime.socket()) == self.bound;
        if socket_is_ours && self.lock.is_in_place() {
            return Ok(None);
        }
        let runtime = Runtime::create(self.runtime.path())?;
        if !self.lock.is_in_place() {
            self.lock = runtime.lock()?.ok_or(Moved::Out)?;
        }
        if self.logs {
            nix::unistd::dup2_stderr(runtime.open_log()?).context("write to the log")?;
        }
        tracing::warn!("somebody removed files from {}; made again", runtime.path().display());
        self.journal.borrow_mut().restore()?;
        // Whoever listens there without the lock is no owner.
        self.listen().map(Some).map_err(Moved::from)
    }
}

/// Why the owner could not move in again.
pub(super) enum Moved {
    /// Another owner lives there.
    Out,
    /// It may work next time.
    NotYet(Error),
}

impl From<Error> for Moved {
    fn from(error: Error) -> Self {
        Self::NotYet(error)
    }
}

impl Drop for Premises {
    fn drop(&mut self) {
        if let Some(refuge) = self.refuge.take() {
            refuge.leave(&mut self.journal.borrow_mut());
        }
        let path = self.runtime.socket();
        let removed = match identity(&path) {
            // Another file of that name is another owner's.
            there if there.is_some() && there == self.bound => match fs::remove_file(&path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    Err(cause).context(format!("remove {}", path.display()))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        };
        if let Err(error) = removed.and_then(|()| self.journal.borrow_mut().done(&self.socket)) {
            tracing::error!("{error}");
        }
        if self.lock.is_in_place() {
            self.runtime.drop_empty_log();
        }
    }
}
