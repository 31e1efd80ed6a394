//! What every backend without eBPF needs, for the probes and `doctor`.

use super::{Probe, Requirement, Site, crowd::Leaf};
use crate::{
    error::{Error, Kind, Result},
    kernel::{
        caps, cgroup,
        netns::Namespace,
        process,
        sock_diag::{Protocol, SockDiag},
    },
};

/// The state of the first that is missing, or ready.
pub(super) fn first_missing(all: &[Requirement]) -> Probe {
    all.iter()
        .map(|requirement| &requirement.state)
        .find(|state| **state != Probe::Ready)
        .cloned()
        .unwrap_or(Probe::Ready)
}

/// A requirement whose name says it all.
pub(super) fn one(name: &str, state: Probe) -> Requirement {
    Requirement { name: name.into(), found: String::new(), state }
}

/// What can be looked at without making anything.
pub(super) fn list(site: &Site) -> Vec<Requirement> {
    let mount = cgroup::attach_point(site.cgroup_root.as_deref());
    vec![
        one(&caps::names(&caps::FOR_CROWDS), capabilities()),
        one("/proc of this PID namespace", judge(own_proc(), Some("mount -t proc proc /proc"))),
        Requirement {
            name: "cgroup2 mount".into(),
            found: mount.as_ref().map_or_else(|_| String::new(), |path| path.display().to_string()),
            state: judge(mount.map(drop), None),
        },
    ]
}

/// Whether sockets can be listed in a namespace.
pub(super) fn lists_of_sockets(namespace: &Namespace) -> Requirement {
    let listed = SockDiag::open_in(namespace).and_then(|mut diag| diag.list(&Protocol::ALL, false));
    let mend = "modprobe -a tcp_diag udp_diag (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)";
    one("lists of sockets", judge(listed.map(drop), Some(mend)))
}

/// The cgroup of this very process, as if it were a limit's.
pub(super) fn own_leaf() -> Result<Leaf> {
    let mount = cgroup::mount()?;
    let path = cgroup::path_below(&mount, std::process::id())?;
    Ok(Leaf { level: cgroup::depth(&mount, &path), id: cgroup::get_cgroup_id(&path)?, path })
}

/// An answer; what is not permitted says nothing about the kernel.
pub(super) fn judge(result: Result<()>, mend: Option<&str>) -> Probe {
    match result {
        Ok(()) => Probe::Ready,
        Err(error) if error.kind == Kind::NotPermitted => Probe::Unknown { reason: error.to_string() },
        Err(error) => Probe::Unavailable { reason: error.to_string(), mend: mend.map(Into::into) },
    }
}

/// Processes are looked for there, and moved by the ids they have here.
fn own_proc() -> Result<()> {
    if process::proc_is_ours()? {
        return Ok(());
    }
    Err(Error::new(Kind::NoBackend, "/proc shows the ids of another PID namespace"))
}

fn capabilities() -> Probe {
    let missing = caps::missing(&caps::FOR_CROWDS);
    if missing.is_empty() {
        return Probe::Ready;
    }
    Probe::Unknown {
        reason: format!(
            "can't be tried without {}: {}",
            caps::names(&missing),
            caps::mend(&caps::FOR_CROWDS)
        ),
    }
}
