//! The live check: does what the limit's sockets move really pass the hook, and is the hook still there?

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use chadthrottle_common::abi::{Lost, RECORD_SHARED, RECORD_WAS_UNTAGGED, SocketRecord};

use super::{
    holder::{Holder, unknown},
    members,
};
use crate::{
    backend::Checked,
    error::{Error, Kind, Result},
    kernel::{
        bpf::{CgroupHook, sys},
        cgroup,
    },
    model::{Direction, Escape, EscapeKind, LimitId},
};

/// One look serves all limits of a tick.
const FRESH: Duration = Duration::from_millis(400);

/// Above so many processes one walk over the whole host is cheaper than one for each.
pub(super) const WALK_EACH: usize = 16;

/// How often others' programs are looked for.
const FOREIGN_EVERY: Duration = Duration::from_secs(3);

/// Bytes that an untagged socket may have moved without being called an escape: what was accepted, or
/// passed on, but not used yet.
const UNUSED_BYTES: u64 = 64 * 1024;

/// What the sockets moved may exceed what passed by so many bytes (what was in flight, or in the hands of
/// two counters at different moments), and by a tenth.
const BYPASS_SLACK: u64 = 1024 * 1024;

/// Ticks in a row that must look like a bypass.
const BYPASS_TICKS: u32 = 2;

/// Processes and sockets of all limits at one moment.
pub(super) struct Look {
    at: Instant,
    /// Processes by key of their limit.
    pub members: BTreeMap<u64, Vec<u32>>,
    /// Open sockets by process.
    sockets: HashMap<u32, Vec<SocketRecord>>,
    /// Programs whose link was found dead.
    dead: Vec<&'static str>,
}

impl Look {
    pub fn new(
        members: BTreeMap<u64, Vec<u32>>,
        records: Vec<SocketRecord>,
        dead: Vec<&'static str>,
    ) -> Self {
        let mut sockets = HashMap::<u32, Vec<SocketRecord>>::new();
        for record in records {
            sockets.entry(record.tgid).or_default().push(record);
        }
        Self { at: Instant::now(), members, sockets, dead }
    }

    /// Records of a limit, each socket once.
    pub fn records(&self, key: u64) -> HashMap<u64, SocketRecord> {
        let pids = self.members.get(&key).into_iter().flatten();
        pids.filter_map(|pid| self.sockets.get(pid))
            .flatten()
            .map(|record| (record.socket, *record))
            .collect()
    }

    /// Open IPv4 and IPv6 sockets of a limit's processes.
    pub fn sockets_of(&self, key: u64) -> u32 {
        self.records(key).len() as u32
    }
}

/// What the check remembers of one direction of a limit.
#[derive(Default)]
pub(super) struct Judge {
    passed: Option<u64>,
    suspicious: u32,
    ticks: u32,
}

impl Judge {
    /// Takes in one tick: bytes that the sockets moved and that passed the hook since the limit was set.
    /// True when more moved than passed, for some time, by more than two counters can differ.
    fn bypassed(&mut self, moved: u64, passed_total: u64) -> bool {
        let passed = self.passed.replace(passed_total).map(|before| passed_total.saturating_sub(before));
        self.ticks += 1;
        // In the first ticks what was in flight before is acknowledged.
        let Some(passed) = passed.filter(|_| self.ticks > 3) else { return false };
        if moved > passed + passed / 10 + BYPASS_SLACK {
            self.suspicious += 1;
        } else {
            self.suspicious = 0;
        }
        self.suspicious >= BYPASS_TICKS
    }
}

impl Holder {
    /// What all limits' processes and sockets look like now; walks at most every [`FRESH`].
    pub fn look(&mut self) -> Result<&mut Look> {
        if self.look.as_ref().is_none_or(|look| look.at.elapsed() > FRESH) {
            let members = members::census(&self.loaded)?;
            let pids: HashSet<u32> = members.values().flatten().copied().collect();
            let records = if pids.len() <= WALK_EACH {
                let mut records = Vec::new();
                for pid in pids {
                    // A process that ended since the census has none.
                    records.extend(self.walk_one(pid).unwrap_or_default());
                }
                records
            } else {
                self.loaded.walk_sockets(None)?
            };
            if records.iter().any(|record| record.flags & RECORD_SHARED != 0) {
                self.loaded.watch_shared_sockets()?;
            }
            let dead = self.loaded.dead_links()?;
            if !dead.is_empty() {
                self.loaded.attach_again(&self.cgroup)?;
            }
            self.queue.see(&mut self.loaded, &records);
            self.look = Some(Look::new(members, records, dead));
        }
        self.look.as_mut().ok_or_else(|| Error::failed("look at the limited processes"))
    }

    pub fn check(&mut self, id: LimitId, direction: Direction) -> Result<Checked> {
        let key = self.held.get(&id).ok_or_else(|| unknown(id))?.key;
        let look = self.look()?;
        let processes = look.members.get(&key).map_or(0, Vec::len) as u32;
        let first = look.members.get(&key).and_then(|pids| pids.first()).copied();
        let records = look.records(key);
        let dead = look.dead.clone();
        let mut escapes = Vec::new();
        if !dead.is_empty() {
            escapes.push(Escape {
                kind: EscapeKind::DeadLink,
                message: format!(
                    "somebody detached {} from {}; attached again",
                    dead.join(", "),
                    self.cgroup.display()
                ),
            });
        }
        escapes.extend(untagged(&records));
        escapes.extend(self.lost()?);
        if self.lapsed {
            escapes.push(Escape {
                kind: EscapeKind::LeaseExpired,
                message: "the owner was stopped or too busy for three seconds, in which nothing was limited"
                    .into(),
            });
        }
        if let Some(pid) = first {
            escapes.extend(self.foreign(id, pid, direction));
        }
        let passed = self.stats(id, direction)?.passed_bytes;
        let held = self.held.get_mut(&id).ok_or_else(|| unknown(id))?;
        let moved = moved(&held.sockets, &records, direction);
        if held.judge.get_mut(direction).bypassed(moved, passed) {
            escapes.push(Escape {
                kind: EscapeKind::Bypass,
                message: format!(
                    "its sockets moved {moved} bytes of {direction} in a second, more than passed the limit: something \
                     carries them past the socket's hook (sockmap? a kernel module?)"
                ),
            });
        }
        let sockets = records.len() as u32;
        // Both directions compare with the same earlier look: whoever checks last replaces it.
        let last = Direction::ALL.into_iter().rfind(|each| held.rates.get(*each).is_some());
        if last == Some(direction) {
            held.sockets = records;
        }
        Ok(Checked { processes, sockets, escapes })
    }

    /// Children or sockets that the programs had no room for.
    fn lost(&mut self) -> Result<Option<Escape>> {
        let lost = self
            .loaded
            .array::<Lost>("LOST")?
            .get(&0, 0)
            .map_err(|cause| Error::caused(Kind::Failed, "read the eBPF map LOST", &cause))?;
        Ok((lost != Lost::default()).then(|| Escape {
            kind: EscapeKind::UntrackedProcess,
            message: format!(
                "{} children and {} new sockets of limited processes could not be followed: too many at once",
                lost.processes, lost.sockets
            ),
        }))
    }

    /// [`Self::foreign_programs`], not at every tick.
    fn foreign(&mut self, id: LimitId, pid: u32, direction: Direction) -> Option<Escape> {
        if let Some((at, found)) = self.held.get(&id)?.foreign.get(direction)
            && at.elapsed() < FOREIGN_EVERY
        {
            return found.clone();
        }
        let found = self.foreign_programs(pid, direction);
        *self.held.get_mut(&id)?.foreign.get_mut(direction) = Some((Instant::now(), found.clone()));
        found
    }

    /// Others' programs at the same hook of the process's cgroup.
    fn foreign_programs(&self, pid: u32, direction: Direction) -> Option<Escape> {
        let hook = match direction {
            Direction::Upload => CgroupHook::Egress,
            Direction::Download => CgroupHook::Ingress,
        };
        // A cgroup that is hidden from us, or gone: nothing can be said, and nothing is.
        let path = cgroup::path_below(&self.mount, pid).ok()?;
        let ids = sys::effective_programs(File::open(&path).ok()?.as_fd(), hook).ok()?;
        let ours = self.loaded.limiter_ids();
        let foreign: Vec<_> = ids.iter().filter(|id| !ours.contains(id)).map(ToString::to_string).collect();
        (!foreign.is_empty()).then(|| Escape {
            kind: EscapeKind::ForeignProgram,
            message: format!(
                "other eBPF programs decide over the same {direction} packets in {} (program {}): they may drop more \
                 than the limit does",
                path.display(),
                foreign.join(", ")
            ),
        })
    }
}

fn untagged(records: &HashMap<u64, SocketRecord>) -> Option<Escape> {
    const IPPROTO_TCP: u32 = 6;
    let count = records
        .values()
        .filter(|record| record.flags & RECORD_WAS_UNTAGGED != 0)
        .filter(|record| {
            record.protocol != IPPROTO_TCP || record.bytes_acked + record.bytes_received > UNUSED_BYTES
        })
        .count();
    (count > 0).then(|| Escape {
        kind: EscapeKind::UntaggedSocket,
        message: format!("it got {count} open sockets from somewhere else, not limited until now"),
    })
}

/// Payload that the sockets present at both looks moved in between.
fn moved(before: &HashMap<u64, SocketRecord>, now: &HashMap<u64, SocketRecord>, direction: Direction) -> u64 {
    let bytes = |record: &SocketRecord| match direction {
        Direction::Upload => record.bytes_acked,
        Direction::Download => record.bytes_received,
    };
    now.iter()
        // An address that was used again: the counters start anew, and never count backwards.
        .filter_map(|(socket, record)| Some(bytes(record).saturating_sub(bytes(before.get(socket)?))))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: u64, flags: u32) -> SocketRecord {
        SocketRecord {
            bytes_acked: bytes,
            bytes_received: bytes * 2,
            protocol: 6,
            flags,
            ..SocketRecord::default()
        }
    }

    #[test]
    fn moved_counts_sockets_seen_twice() {
        let before = HashMap::from([(1, record(10, 0)), (2, record(100, 0))]);
        let now = HashMap::from([(1, record(15, 0)), (2, record(50, 0)), (3, record(1_000, 0))]);
        assert_eq!(moved(&before, &now, Direction::Upload), 5);
        assert_eq!(moved(&before, &now, Direction::Download), 10);
    }

    #[test]
    fn a_bypass_must_last_and_be_large() {
        let mut judge = Judge::default();
        let much = 10 * BYPASS_SLACK;
        let answers: Vec<_> = (0..6).map(|_| judge.bypassed(much, 1_000)).collect();
        assert_eq!(answers, [false, false, false, false, true, true]);
        assert!(!judge.bypassed(BYPASS_SLACK, 1_000));
        assert!(!judge.bypassed(much, 1_000));
    }

    #[test]
    fn an_unused_connection_is_no_escape() {
        let only = |bytes, flags| HashMap::from([(1, record(bytes, flags))]);
        assert!(untagged(&only(UNUSED_BYTES, RECORD_WAS_UNTAGGED)).is_some());
        assert!(untagged(&only(10, RECORD_WAS_UNTAGGED)).is_none());
        assert!(untagged(&only(UNUSED_BYTES, 0)).is_none());
    }
}
