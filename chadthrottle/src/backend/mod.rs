//! How a limit is held. Each backend implements [`Backend`]; the table [`DRIVERS`] feeds selection,
//! the flags, `--list-backends` and `doctor`.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    model::{Counters, Direction, Escape, Limit, LimitId, Rate, Rung},
};

pub mod addresses;
mod basics;
pub mod crowd;
mod crowded;
pub mod ebpf;
mod gate;
pub mod htb;
mod made;
pub mod nftables;
mod old;
pub mod select;
mod tables;
mod tree;

/// How good a backend is; auto-selection takes the best that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Better than nothing.
    Fallback = 1,
    /// Holds, with a queue's delay.
    Good = 2,
    /// Holds, by dropping.
    Better = 3,
    /// Holds, cheaply and exactly.
    Best = 4,
}

/// Whether a backend can be used here. Found out by trying.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Probe {
    /// A limit set with it on this host would hold.
    Ready,
    /// It can't be used.
    Unavailable {
        /// What is missing.
        reason: String,
        /// The command or kernel option that would mend it, if there is one.
        mend: Option<String>,
    },
    /// The probe could not decide.
    Unknown {
        /// Why not.
        reason: String,
    },
}

/// Where backends work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Where the eBPF programs attach; `None`: the root of the cgroup2 mount.
    pub cgroup_root: Option<PathBuf>,
}

/// What [`Backend::apply`] did, read back from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Processes the limit holds now.
    pub processes: u32,
    /// Open IPv4 and IPv6 sockets of these processes, all of them under the limit.
    pub sockets: u32,
}

/// What [`Backend::check`] saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Processes the limit holds now; 0: the target has ended.
    pub processes: u32,
    /// Their open IPv4 and IPv6 sockets.
    pub sockets: u32,
    /// Ways in which traffic got past the limit since the last check.
    pub escapes: Vec<Escape>,
    /// See [`crate::model::DirectionReport::rungs`].
    pub rungs: Vec<Rung>,
}

/// Holds limits of one direction.
///
/// Between calls every applied limit holds; the implementer keeps no wish that the kernel does not
/// know. An error from `apply` leaves nothing of that limit behind.
pub trait Backend {
    /// Brings `limit` into force and verifies it; when this returns, traffic is held.
    /// A limit of the same id that is already in force in this direction changes to the new rate
    /// without a gap.
    fn apply(&mut self, limit: &Limit) -> Result<Applied>;

    /// Whether [`Backend::apply`] honours [`Limit::narrowing`]. Limits that are about some remote addresses or ports
    /// only are not given to one that does not.
    fn narrows(&self) -> bool {
        false
    }

    /// Ends a limit in this direction; unknown ids are no error.
    fn remove(&mut self, id: LimitId) -> Result<()>;

    /// Counters since the limit was applied.
    fn stats(&mut self, id: LimitId) -> Result<Counters>;

    /// The live check, called about once a second: compares what passed with what the target's
    /// sockets moved, and the kernel objects with what they should be.
    fn check(&mut self, id: LimitId) -> Result<Checked>;

    /// Bytes that a limit of this rate lets through at once after a pause.
    fn credit(&self, rate: Rate) -> u64 {
        rate.bytes_per_second() * 3 / 10 + 65_536
    }

    /// Extends the lease of everything applied; called at least once a second.
    fn renew(&mut self) -> Result<()>;

    /// Work between two renewals: what the kernel side can't follow by itself. Returns when to call it again;
    /// `None`: not before the next limit is applied or renewed.
    fn follow(&mut self) -> Result<Option<Duration>> {
        Ok(None)
    }

    /// Ids of limits whose last process has ended since the last call. Cheap: called whenever
    /// [`Backend::wake_fd`] is readable, and once a second.
    fn ended(&mut self) -> Result<Vec<LimitId>>;

    /// Becomes readable when [`Backend::ended`] may have something to say.
    fn wake_fd(&self) -> Option<std::os::fd::RawFd>;

    /// Processes that limits hold by name, for the monitor; those of a limit that is held otherwise are missing.
    fn members(&mut self) -> Result<Vec<(LimitId, Vec<u32>)>> {
        Ok(Vec::new())
    }

    /// A descriptor by which [`settle`] can undo what would outlive this process; asked for once, right after
    /// opening. `None`: nothing would.
    fn estate(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// Ends all limits and removes every kernel object.
    fn clear(&mut self) -> Result<()>;
}

/// One thing a backend needs, for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// Short name: "kernel BTF", "CAP_BPF", "cgroup2 mount" …
    pub name: String,
    /// What there is: a version, a path …; empty when the name says it all.
    pub found: String,
    /// Whether it is there.
    pub state: Probe,
}

/// A backend's line in the table.
pub struct Driver {
    /// As users write it.
    pub name: &'static str,
    /// For auto-selection.
    pub priority: Priority,
    /// What it can limit.
    pub directions: &'static [Direction],
    /// Tries whether it would hold here; leaves nothing behind.
    pub probe: fn(&Site) -> Probe,
    /// Everything it needs, each looked at by itself.
    pub requirements: fn(&Site) -> Vec<Requirement>,
    /// Opens it for one direction.
    pub open: fn(&Site, Direction) -> Result<Box<dyn Backend>>,
}

/// Undoes what a killed owner's backend left in other processes' sockets; how many things that were. Only the
/// eBPF backend leaves any: pacing caps.
pub fn settle(estate: BorrowedFd<'_>) -> Result<usize> {
    ebpf::pacing::lift_all(estate)
}

/// Takes away what was still in use when its limit ended; waits up to two seconds for it. For the end of the owner.
pub fn tidy_up() {
    crowd::tidy_up(Duration::from_secs(2));
}

/// All backends, best first.
pub static DRIVERS: &[Driver] = &[ebpf::DRIVER, nftables::DRIVER, htb::TC_HTB, htb::IFB_TC, htb::TC_POLICE];

/// The driver of that name which can limit that direction.
pub fn find(name: &str, direction: Direction) -> Result<&'static Driver, Error> {
    select::by_name(DRIVERS, name, direction)
}
