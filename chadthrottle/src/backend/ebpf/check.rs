//! The live check: does what the limit's sockets move really pass the hook, and is the hook still there?

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use chadthrottle_common::abi::{
    Lost, RECORD_SHARED, RECORD_WAS_UNTAGGED, SocketRecord, ThrottleStats, TokenBucket,
};

use super::{
    holder::{BUCKETS, Held, Holder, STATS, unknown},
    members,
    queue::Use,
};
use crate::{
    backend::Checked,
    error::{Error, Kind, Result},
    kernel::{
        bpf::{CgroupHook, sys},
        cgroup,
    },
    model::{Direction, Escape, EscapeKind, LimitId, Rung, RungKind, Target},
};

/// One look serves all limits of a tick.
pub(super) const FRESH: Duration = Duration::from_millis(400);

/// How often others' programs are looked for.
const FOREIGN_EVERY: Duration = Duration::from_secs(2);

/// When one that was seen is looked for again: what is there only for a moment, as when somebody asks for the
/// backends, is nothing to tell.
const FOREIGN_AGAIN: Duration = Duration::from_millis(500);

/// Bytes that an untagged socket may have moved without being called an escape: what was accepted, or
/// passed on, but not used yet.
const UNUSED_BYTES: u64 = 64 * 1024;

/// What the sockets moved may exceed what passed by half a second of the limit, within these bounds in bytes (what
/// was in flight, or came between two counters' reading), and by a tenth.
const BYPASS_SLACK: std::ops::RangeInclusive<u64> = 128 * 1024..=1024 * 1024;

/// Ticks in a row that must look like a bypass.
const BYPASS_TICKS: u32 = 2;

/// Processes and sockets of all limits at one moment.
pub(super) struct Look {
    at: Instant,
    /// Processes by key of their limit.
    pub members: BTreeMap<u64, Vec<u32>>,
    /// Open sockets by process.
    sockets: HashMap<u32, Vec<SocketRecord>>,
    /// Bytes that passed until then, by key of the limit.
    passed: HashMap<u64, [u64; 2]>,
    /// Devices by which too much leaves that nothing paces, by key of the limit, with what the programs know of them.
    departures: BTreeMap<u64, Vec<(u32, u32)>>,
}

impl Look {
    pub fn new(
        members: BTreeMap<u64, Vec<u32>>,
        records: Vec<SocketRecord>,
        passed: HashMap<u64, [u64; 2]>,
        departures: BTreeMap<u64, Vec<(u32, u32)>>,
    ) -> Self {
        let mut sockets = HashMap::<u32, Vec<SocketRecord>>::new();
        for record in records {
            sockets.entry(record.tgid).or_default().push(record);
        }
        Self { at: Instant::now(), members, sockets, passed, departures }
    }

    /// Takes in what these processes have open now.
    pub fn learn(&mut self, records: Vec<SocketRecord>) {
        for record in &records {
            self.sockets.remove(&record.tgid);
        }
        for record in records {
            self.sockets.entry(record.tgid).or_default().push(record);
        }
    }

    /// Records of a limit, each socket once.
    fn records(&self, key: u64) -> HashMap<u64, SocketRecord> {
        let pids = self.members.get(&key).into_iter().flatten();
        pids.filter_map(|pid| self.sockets.get(pid))
            .flatten()
            .map(|record| (record.socket, *record))
            .collect()
    }

    /// Open sockets of a process.
    pub fn sockets_of_process(&mut self, pid: u32) -> &mut [SocketRecord] {
        self.sockets.get_mut(&pid).map_or(&mut [], Vec::as_mut_slice)
    }

    /// Open IPv4 and IPv6 sockets of a limit's processes.
    pub fn sockets_of(&self, key: u64) -> u32 {
        self.records(key).len() as u32
    }
}

/// What an earlier look saw of a limit.
pub(super) struct Seen {
    at: Instant,
    passed: [u64; 2],
    /// By the kernel's address of the socket.
    sockets: HashMap<u64, SocketRecord>,
}

/// Others' programs at one hook, when they were looked for last.
#[derive(Clone, Default)]
pub(super) struct Foreign {
    at: Option<Instant>,
    ids: Vec<u32>,
}

/// What the check remembers of one direction of a limit.
#[derive(Default)]
pub(super) struct Judge {
    suspicious: u32,
    ticks: u32,
}

impl Judge {
    /// Takes in what moved at the sockets and what passed the hook between two looks, in bytes.
    /// True when more moved than passed, for some time, by more than two counters can differ.
    fn bypassed(&mut self, moved: u64, passed: u64, rate: u64) -> bool {
        self.ticks += 1;
        // In the first second what was in flight before is acknowledged.
        if self.ticks == 1 {
            return false;
        }
        let slack = (rate / 2).clamp(*BYPASS_SLACK.start(), *BYPASS_SLACK.end());
        if moved > passed + passed / 10 + slack {
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
            self.keep_rules()?;
            let members = members::census(&self.loaded)?;
            let pids: HashSet<u32> = members.values().flatten().copied().collect();
            let records = self.walk_those(&pids)?;
            if records.iter().any(|record| record.flags & RECORD_SHARED != 0) {
                self.loaded.watch_shared_sockets()?;
            }
            let dead = self.loaded.dead_links()?;
            if !dead.is_empty() {
                self.loaded.attach_again(&self.cgroup)?;
            }
            self.queue.see(&mut self.loaded, &records);
            // After the sockets: what is under way between the two readings has passed, and not moved.
            let buckets = self.loaded.entries::<u64, [TokenBucket; 2]>(BUCKETS)?;
            self.look_at_queue(&buckets)?;
            let passed = buckets
                .into_iter()
                .map(|(key, pair)| (key, pair.map(|bucket| bucket.bytes_passed)))
                .collect();
            let look = Look::new(members, records, passed, self.asked_departures()?);
            // Looking mends what it finds, so the next look does not find it: it is kept until it is told.
            let detached = (!dead.is_empty()).then(|| Escape {
                kind: EscapeKind::DeadLink,
                message: format!(
                    "somebody detached {} from {}; attached again",
                    dead.join(", "),
                    self.cgroup.display()
                ),
            });
            let mut otherwise = Vec::new();
            for held in self.held.values_mut() {
                let records = look.records(held.key);
                held.found.extend(detached.clone());
                held.found.extend(untagged(&records));
                let covered =
                    |record: &&SocketRecord| held.narrowing.covers(record.remote, record.remote_port as u16);
                if self.queue.settle(held.key, records.values().filter(covered)) {
                    otherwise.push(held.key);
                }
            }
            self.look = Some(look);
            for key in otherwise {
                self.write_class(key)?;
            }
        }
        self.look.as_mut().ok_or_else(|| Error::failed("look at the limited processes"))
    }

    /// Sees to it that the rules still mean what the targets mean, and that every process is where they put it: one
    /// can become another user's without the programs' seeing it.
    fn keep_rules(&mut self) -> Result<()> {
        let standing: Vec<_> =
            self.held.values().filter(|held| Target::are_standing(&held.targets)).collect();
        if standing.is_empty() {
            return Ok(());
        }
        let changing: Vec<_> = standing
            .iter()
            .filter(|held| {
                held.targets
                    .iter()
                    .any(|target| matches!(target, Target::Exe(_) | Target::Cgroup(_) | Target::Container(_)))
            })
            .map(|held| (held.key, held.targets.clone()))
            .collect();
        for (key, targets) in changing {
            self.write_rules(key, &targets)?;
        }
        let changed = self.loaded.review(None)?.into_iter().map(|record| record.tgid).collect();
        self.unpace_free(changed);
        Ok(())
    }

    pub fn check(&mut self, id: LimitId, direction: Direction) -> Result<Checked> {
        let &Held { key, lapsed, lost: lost_before, .. } = self.held.get(&id).ok_or_else(|| unknown(id))?;
        let look = self.look()?;
        let processes = look.members.get(&key).map_or(0, Vec::len) as u32;
        let first = look.members.get(&key).and_then(|pids| pids.first()).copied();
        let pids = look.members.get(&key).cloned().unwrap_or_default();
        let asked = look.departures.get(&key).cloned().unwrap_or_default();
        let mut records = look.records(key);
        let passed = look.passed.get(&key).copied().unwrap_or_default();
        let at = look.at;
        let mut escapes =
            self.held.get_mut(&id).map(|held| std::mem::take(&mut held.found)).unwrap_or_default();
        escapes.extend(untracked(lost_before, self.lost()?));
        if lapsed {
            escapes.push(Escape {
                kind: EscapeKind::LeaseExpired,
                message: "the owner was stopped or too busy for three seconds, in which nothing was limited"
                    .into(),
            });
        }
        if let Some(pid) = first {
            escapes.extend(self.foreign(id, pid, direction));
        }
        let rungs = match direction {
            Direction::Download => self.queue.rungs(key, records.values()),
            Direction::Upload => {
                let late = self.loaded.degraded.iter().find(|what| what.contains("paced"));
                let everywhere = Rung { device: None, kind: RungKind::PacingBucket, reason: late.cloned() };
                let mut rungs = self.review_departures(key, &pids, &asked)?;
                if rungs.is_empty() || everywhere.reason.is_some() {
                    rungs.push(everywhere);
                }
                rungs
            }
        };
        let sockets = records.len() as u32;
        let held = self.held.get_mut(&id).ok_or_else(|| unknown(id))?;
        // Of the others it is not known how much of what they moved the limit is about.
        records.retain(|_, record| held.narrowing.covers(record.remote, record.remote_port as u16));
        let now = Seen { at, passed, sockets: records };
        if let Some(before) = held.seen.as_ref().filter(|before| before.at != at) {
            let moved = moved(&before.sockets, &now.sockets, direction);
            let passed = now.passed[direction.index()].saturating_sub(before.passed[direction.index()]);
            let rate = held.rates.get(direction).unwrap_or_default();
            if held.judge.get_mut(direction).bypassed(moved, passed, rate) {
                escapes.push(Escape {
                    kind: EscapeKind::Bypass,
                    message: format!(
                        "its sockets moved {moved} bytes of {direction} in a second, but only {passed} passed the \
                         limit: something carries them past it (sockets that were made outside {}? a kernel module?)",
                        self.cgroup.display()
                    ),
                });
            }
        }
        // Both directions compare with the same earlier look: whoever checks last replaces it.
        let last = Direction::ALL.into_iter().rfind(|each| held.rates.get(*each).is_some());
        if last == Some(direction) {
            held.seen = Some(now);
        }
        Ok(Checked { processes, sockets, escapes, rungs })
    }

    /// Sees whether what is received comes through the queue.
    fn look_at_queue(&mut self, buckets: &[(u64, [TokenBucket; 2])]) -> Result<()> {
        if self.queue.is_idle() {
            return Ok(());
        }
        let download = Direction::Download.index();
        let queued: HashMap<u64, u64> =
            buckets.iter().map(|(key, pair)| (*key, pair[download].packets_delayed)).collect();
        let stats = self.loaded.entries::<u64, [ThrottleStats; 2]>(STATS)?;
        self.queue.observe(stats.into_iter().map(|(key, pair)| {
            let queued = queued.get(&key).copied().unwrap_or(0);
            (key, Use { lowered: pair[download].packets_marked, queued })
        }));
        Ok(())
    }

    /// How many children and sockets the programs had no room for, since they were loaded.
    pub fn lost(&mut self) -> Result<Lost> {
        self.loaded
            .array::<Lost>("LOST")?
            .get(&0, 0)
            .map_err(|cause| Error::caused(Kind::Failed, "read the eBPF map LOST", &cause))
    }

    /// Others' programs that stay at the same hook of the process's cgroup; not looked for at every tick.
    fn foreign(&mut self, id: LimitId, pid: u32, direction: Direction) -> Option<Escape> {
        let held = self.held.get(&id)?;
        let before = held.foreign.get(direction).clone();
        let wait = if before.ids.is_empty() { FOREIGN_EVERY } else { FOREIGN_AGAIN };
        if before.at.is_some_and(|at| at.elapsed() < wait) {
            return None;
        }
        let (path, ids) = self.foreign_programs(pid, direction).unwrap_or_default();
        let stay: Vec<_> = ids.iter().filter(|id| before.ids.contains(id)).map(ToString::to_string).collect();
        *self.held.get_mut(&id)?.foreign.get_mut(direction) = Foreign { at: Some(Instant::now()), ids };
        (!stay.is_empty()).then(|| Escape {
            kind: EscapeKind::ForeignProgram,
            message: format!(
                "other eBPF programs decide over the same {direction} packets in {} (program {}): they may drop more \
                 than the limit does",
                path.display(),
                stay.join(", ")
            ),
        })
    }

    /// The process's cgroup, and the ids of others' programs there.
    fn foreign_programs(&self, pid: u32, direction: Direction) -> Option<(PathBuf, Vec<u32>)> {
        let hook = match direction {
            Direction::Upload => CgroupHook::Egress,
            Direction::Download => CgroupHook::Ingress,
        };
        // A cgroup that is hidden from us, or gone: nothing can be said, and nothing is.
        let path = cgroup::path_below(&self.mount, pid).ok()?;
        let mut ids = sys::effective_programs(File::open(&path).ok()?.as_fd(), hook).ok()?;
        let ours = self.loaded.limiter_ids();
        ids.retain(|id| !ours.contains(id));
        Some((path, ids))
    }
}

/// What was lost since a limit was set: any of it may have been the limit's.
fn untracked(before: Lost, now: Lost) -> Option<Escape> {
    let processes = now.processes.saturating_sub(before.processes);
    let sockets = now.sockets.saturating_sub(before.sockets);
    (processes + sockets > 0).then(|| Escape {
        kind: EscapeKind::UntrackedProcess,
        message: format!(
            "{processes} children and {sockets} new sockets of limited processes could not be followed: too many at once"
        ),
    })
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
        message: format!(
            "it got {count} open socket{} from somewhere else, which no limit held before",
            if count == 1 { "" } else { "s" }
        ),
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
        let (rate, slack) = (1_000_000, 500_000);
        let much = 10 * slack;
        let answers: Vec<_> = (0..6).map(|_| judge.bypassed(much, 1_000, rate)).collect();
        assert_eq!(answers, [false, false, true, true, true, true]);
        assert!(!judge.bypassed(slack, 1_000, rate));
        assert!(!judge.bypassed(much, 1_000, rate));
        let mut slow = Judge::default();
        assert!(!slow.bypassed(900_000, 0, 100_000));
        assert!(!slow.bypassed(900_000, 0, 100_000));
        assert!(slow.bypassed(900_000, 0, 100_000), "nine times a low limit is seen too");
    }

    #[test]
    fn what_was_lost_before_a_limit_is_not_its_escape() {
        let lost = |processes, sockets| Lost { processes, sockets };
        assert!(untracked(lost(3, 4), lost(3, 4)).is_none());
        let escape = untracked(lost(3, 4), lost(5, 4)).unwrap();
        assert!(escape.message.starts_with("2 children and 0 new sockets"), "{}", escape.message);
    }

    #[test]
    fn an_unused_connection_is_no_escape() {
        let only = |bytes, flags| HashMap::from([(1, record(bytes, flags))]);
        assert!(untagged(&only(UNUSED_BYTES, RECORD_WAS_UNTAGGED)).is_some());
        assert!(untagged(&only(10, RECORD_WAS_UNTAGGED)).is_none());
        assert!(untagged(&only(UNUSED_BYTES, 0)).is_none());
    }
}
