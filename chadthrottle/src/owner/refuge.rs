//! The owner's own cgroup.
//!
//! The client that happened to start the owner may live in a service, and whoever stops that service ends every
//! process in its cgroup; the limits of all others would end with it. And what must outlive the owner and its
//! janitor, when both are killed, is kept by this cgroup. Where it can't be made the owner stays where it is.

use std::{fs, os::fd::BorrowedFd, path::PathBuf};

use crate::{
    backend::Site,
    error::{Context, Error, Result},
    kernel::{
        bpf::keeper,
        cgroup,
        journal::{self, Journal, Object},
        process,
    },
};

/// A cgroup with the owner in it, and the janitor, its child.
pub(super) struct Refuge {
    path: PathBuf,
    /// Where the owner was before.
    before: PathBuf,
}

impl Refuge {
    /// Makes the cgroup, which is written down first, and goes there.
    pub fn enter(site: &Site, journal: &mut Journal) -> Result<Self> {
        // In another one the cgroup's name, and the journal's, would tell others of the wrong process.
        if !process::in_initial_pid_namespace()? {
            return Err(Error::failed("it is in a PID namespace of its own"));
        }
        let pid = std::process::id();
        let before = cgroup::get_cgroup_path(pid)?;
        let above = cgroup::attach_point(site.cgroup_root.as_deref())?;
        let path = above.join(format!("{}owner-{pid}-{}", journal::PREFIX, process::start_time(pid)?));
        journal.record(Object::Cgroup { path: path.clone() })?;
        let refuge = Self { path, before };
        let entered = fs::create_dir(&refuge.path)
            .context(format!("make the cgroup {}", refuge.path.display()))
            .and_then(|()| cgroup::enter(&refuge.path));
        match entered {
            Ok(()) => Ok(refuge),
            Err(error) => {
                refuge.leave(journal);
                Err(error)
            }
        }
    }

    /// Keeps an eBPF map that is to survive this process, until the cgroup is removed.
    pub fn keep(&self, map: BorrowedFd<'_>) -> Result<()> {
        keeper::keep(&self.path, map)
    }

    /// Goes back, and removes the cgroup. What can't be removed stays written down.
    pub fn leave(&self, journal: &mut Journal) {
        if !self.path.exists() {
            let _ = journal.done(&Object::Cgroup { path: self.path.clone() });
            return;
        }
        // The place before may be gone.
        let left = cgroup::enter(&self.before).or_else(|_| cgroup::leave(&self.path)).and_then(|()| {
            journal::remove_cgroup(&self.path).context(format!("remove the cgroup {}", self.path.display()))
        });
        let done = left.and_then(|_| journal.done(&Object::Cgroup { path: self.path.clone() }));
        if let Err(error) = done {
            tracing::error!("{error}");
        }
    }
}
