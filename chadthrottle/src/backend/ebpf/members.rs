//! Which processes are under which limit: the map `PROCESSES`. The programs add children and remove what
//! ended; this side adds and removes limits.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use aya::maps::MapError;
use chadthrottle_common::{
    abi::{MAX_NESTED, MAX_PROCESSES, ProcessEntry},
    rules::Limits,
};

use crate::{
    error::{Error, Kind, Result},
    kernel::{bpf::Loaded, cgroup, clock, process, process::Process},
    model::Target,
};

const PROCESSES: &str = "PROCESSES";
/// What of a process's limits no rule gave it.
const PINNED: &str = "PINNED";

/// bpf_map_update_elem: only make, only change.
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// A scan for descendants finds no new one after a few rounds, unless somebody forks faster than we scan;
/// their children then inherit, having been entered.
const MAX_SCANS: usize = 20;

/// Enters the processes of the targets into limit `key` and returns them. `live` tells limits in force from
/// ids left over, `within` processes whose packets the programs see.
///
/// # Errors
/// [`Kind::NotFound`] when a target is not alive (any more) or not within; [`Kind::Failed`] when a process already
/// has [`MAX_NESTED`] limits or the map is full. Then none is under the limit.
pub fn enter(
    loaded: &mut Loaded,
    targets: &[Target],
    key: u64,
    live: &HashSet<u64>,
    within: &Within,
) -> Result<HashSet<u32>> {
    let mut entered = HashSet::new();
    let done = targets.iter().try_for_each(|target| {
        let Some(pid) = target.pid() else { return Ok(()) };
        within.require(pid)?;
        entered.insert(pid);
        enter_one(loaded, pid, key, live)?;
        match target {
            Target::Tree(_) => enter_descendants(loaded, pid, key, live, within, &mut entered),
            _ => Ok(()),
        }
    });
    match done {
        Ok(()) => Ok(entered),
        Err(error) => {
            leave(loaded, &HashSet::from([key]))?;
            Err(error)
        }
    }
}

/// The cgroup at which the programs are attached.
pub struct Within<'a> {
    /// Root of the cgroup2 mount.
    pub mount: &'a Path,
    /// Where they are attached, for messages.
    pub path: &'a Path,
    /// The same, as the kernel names it.
    pub id: u64,
}

impl Within<'_> {
    fn holds(&self, pid: u32) -> Result<bool> {
        cgroup::is_below(self.mount, self.id, pid)
    }

    fn require(&self, pid: u32) -> Result<()> {
        if self.holds(pid)? {
            return Ok(());
        }
        Err(Error::new(
            Kind::NotFound,
            format!(
                "process {pid} is not below the cgroup root {}: it can't be limited from here",
                self.path.display()
            ),
        ))
    }
}

fn enter_descendants(
    loaded: &mut Loaded,
    root: u32,
    key: u64,
    live: &HashSet<u64>,
    within: &Within,
    entered: &mut HashSet<u32>,
) -> Result<()> {
    for _ in 0..MAX_SCANS {
        let mut new = process::descendants(Path::new("/proc"), root)?;
        // One that ended since the scan is within nothing.
        new.retain(|pid| !entered.contains(pid) && within.holds(*pid).unwrap_or(false));
        entered.extend(&new);
        if new.is_empty() {
            break;
        }
        for pid in new {
            match enter_one(loaded, pid, key, live) {
                // Ended since the scan.
                Err(error) if error.kind == Kind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn enter_one(loaded: &mut Loaded, pid: u32, key: u64, live: &HashSet<u64>) -> Result<()> {
    // Opened before the entry is made, looked at after: the entry then is this very process's, or is
    // taken back.
    let process = Process::open(pid)?;
    pin(loaded, pid, key, live)?;
    let mut processes = loaded.hash::<u32, ProcessEntry>(PROCESSES)?;
    // The programs may make or remove the entry between the look and the change; then look again.
    for _ in 0..8 {
        let old = processes.get(&pid, 0).ok();
        let mut entry = old.unwrap_or(ProcessEntry { born: clock::monotonic_ns(), limits: [0; MAX_NESTED] });
        if !add(&mut entry, key, live) {
            return Err(Error::failed(format!(
                "limit process {pid}: it already has {MAX_NESTED} limits, clear one of them first"
            )));
        }
        let how = if old.is_some() { BPF_EXIST } else { BPF_NOEXIST };
        match processes.insert(pid, entry, how) {
            Ok(()) => break,
            Err(MapError::SyscallError(cause)) if cause.io_error.raw_os_error() == Some(libc::E2BIG) => {
                return Err(Error::failed(format!(
                    "limit process {pid}: {MAX_PROCESSES} processes are limited already, which is all there is room for"
                )));
            }
            Err(_) if !process.alive() => break,
            Err(cause) => tracing::debug!("enter process {pid}: {cause}"),
        }
    }
    let holds = processes.get(&pid, 0).is_ok_and(|entry| entry.limits.contains(&key));
    if process.is_ending() {
        // The exit hook may have run before the entry was made. Ids come back only after all others.
        let _ = processes.remove(&pid);
        let _ = loaded.hash::<u32, Limits>(PINNED)?.remove(&pid);
        return Err(Error::new(Kind::NotFound, format!("process {pid} ended")));
    }
    if holds {
        Ok(())
    } else {
        Err(Error::failed(format!("enter process {pid} into the eBPF map {PROCESSES}")))
    }
}

/// Keeps a limit on a process whatever the rules say.
fn pin(loaded: &mut Loaded, pid: u32, key: u64, live: &HashSet<u64>) -> Result<()> {
    let mut pinned = loaded.hash::<u32, Limits>(PINNED)?;
    let mut entry = ProcessEntry { born: 0, limits: pinned.get(&pid, 0).unwrap_or_default() };
    // When there is no room, there is none among all its limits either, which is what is told.
    add(&mut entry, key, live);
    pinned
        .insert(pid, entry.limits, 0)
        .map_err(|cause| Error::caused(Kind::Failed, format!("write the eBPF map {PINNED}"), &cause))
}

/// Adds a limit to an entry; false when there is no room. Ids of limits that are over give way.
fn add(entry: &mut ProcessEntry, key: u64, live: &HashSet<u64>) -> bool {
    let mut limits: Vec<u64> =
        entry.limits.iter().copied().filter(|id| live.contains(id) && *id != key).collect();
    if limits.len() == MAX_NESTED {
        return false;
    }
    limits.push(key);
    limits.resize(MAX_NESTED, 0);
    entry.limits.copy_from_slice(&limits);
    true
}

/// Takes every process out of these limits. Their entries stay, so that a later limit finds the same
/// `born`, by which their sockets know them.
pub fn leave(loaded: &mut Loaded, keys: &HashSet<u64>) -> Result<()> {
    let census = census(loaded)?;
    let pids: HashSet<u32> = keys.iter().filter_map(|key| census.get(key)).flatten().copied().collect();
    let mut processes = loaded.hash::<u32, ProcessEntry>(PROCESSES)?;
    for pid in pids {
        let Ok(mut entry) = processes.get(&pid, 0) else { continue };
        entry.limits = without(entry.limits, keys);
        // Fails when it ended meanwhile.
        let _ = processes.insert(pid, entry, BPF_EXIST);
    }
    let pinned = loaded.entries::<u32, Limits>(PINNED)?;
    let mut map = loaded.hash::<u32, Limits>(PINNED)?;
    for (pid, limits) in pinned {
        let left = without(limits, keys);
        if left == limits {
            continue;
        }
        let _ = if left[0] == 0 { map.remove(&pid) } else { map.insert(pid, left, BPF_EXIST) };
    }
    Ok(())
}

fn without(limits: Limits, keys: &HashSet<u64>) -> Limits {
    let mut limits = limits.map(|id| if keys.contains(&id) { 0 } else { id });
    // Zero ends the list.
    limits.sort_by_key(|id| *id == 0);
    limits
}

/// The processes of every limit.
pub fn census(loaded: &Loaded) -> Result<BTreeMap<u64, Vec<u32>>> {
    let mut members = BTreeMap::<u64, Vec<u32>>::new();
    for (pid, entry) in loaded.entries::<u32, ProcessEntry>(PROCESSES)? {
        for id in entry.limits.into_iter().take_while(|id| *id != 0) {
            members.entry(id).or_default().push(pid);
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_limits_fit_and_dead_ones_give_way() {
        let mut entry = ProcessEntry::default();
        let mut live: HashSet<u64> = (1..=5).collect();
        for key in 1..=4 {
            assert!(add(&mut entry, key, &live));
        }
        assert_eq!(entry.limits, [1, 2, 3, 4]);
        assert!(!add(&mut entry, 5, &live));
        assert!(add(&mut entry, 3, &live), "again is no second limit");
        live.remove(&2);
        assert!(add(&mut entry, 5, &live));
        assert_eq!(entry.limits, [1, 4, 3, 5]);
    }
}
