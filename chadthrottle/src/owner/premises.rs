//! The owner's files in the runtime folder.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use super::runtime::{Lock, Runtime};
use crate::{
    error::{Context, Result},
    kernel::{
        fault,
        journal::{self, Journal, Object},
    },
};

/// The files in the runtime folder, which are removed with this.
pub(super) struct Premises {
    socket: Object,
    runtime: Runtime,
    journal: journal::Shared,
    _lock: Lock,
}

impl Premises {
    /// Cleans up after the owners before us, and begins the journal.
    pub fn enter(runtime: Runtime, lock: Lock) -> Result<Self> {
        let swept = journal::sweep(runtime.path())?;
        for removed in swept.removed {
            tracing::info!("removed the {removed} that was left here");
        }
        for error in swept.failed {
            tracing::warn!("{error}");
        }
        let journal = journal::share(Journal::create(runtime.path())?);
        let socket = Object::File { path: runtime.socket() };
        Ok(Self { socket, runtime, journal, _lock: lock })
    }

    /// Opens the socket, which is written down first.
    pub fn listen(&mut self) -> Result<UnixListener> {
        self.journal.borrow_mut().record(self.socket.clone())?;
        fault::point("owner.journal");
        self.runtime.remove_socket()?;
        let path = self.runtime.socket();
        let doing = || format!("listen at {}", path.display());
        let listener = UnixListener::bind(&path).context(doing())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context(doing())?;
        listener.set_nonblocking(true).context(doing())?;
        Ok(listener)
    }
}

impl Drop for Premises {
    fn drop(&mut self) {
        let removed = self.runtime.remove_socket();
        if let Err(error) = removed.and_then(|_| self.journal.borrow_mut().done(&self.socket)) {
            tracing::error!("{error}");
        }
        self.runtime.drop_empty_log();
    }
}
