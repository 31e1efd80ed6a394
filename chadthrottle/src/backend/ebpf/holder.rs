//! What is in the kernel, once for both directions.

mod rates;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    os::fd::RawFd,
    path::PathBuf,
    time::Instant,
};

use chadthrottle_common::{
    abi::{
        ActiveFlows, CgroupThrottleConfig, Lost, MAX_NESTED, NARROW, ProcessEntry, RECORD_SHARED, State,
        ThrottleStats, TokenBucket,
    },
    remote::{LISTED_ONLY, Remotes},
    rules::PROCESS_OVERFULL,
};

use super::{
    check::{FRESH, Look},
    departures::Departures,
    members,
    queue::Queue,
    rules::{self, Book},
};
use crate::{
    backend::{Applied, Site},
    error::{Error, Kind, Result},
    kernel::{
        bpf::{self, Events, Loaded, counters::Taps},
        cgroup, clock, fault, process,
    },
    model::{Counters, Direction, Escape, Limit, LimitId, Narrowing, Notice, PerDirection, Target},
};

const CONFIGS: &str = "CGROUP_CONFIGS";
pub(super) const BUCKETS: &str = "CGROUP_BUCKETS";
pub(super) const STATS: &str = "CGROUP_STATS";
const FLOWS: &str = "CGROUP_FLOWS";
const REMOTES: &str = "REMOTES";

/// A limit in force, in one direction or both.
pub(super) struct Held {
    pub key: u64,
    pub rates: PerDirection<Option<u64>>,
    pub targets: Vec<Target>,
    /// Which packets of their processes it is about.
    pub narrowing: Narrowing,
    /// When its processes were entered, and what that found.
    brought_in: Option<(Instant, Applied)>,
    /// What the last check saw.
    pub seen: Option<super::check::Seen>,
    pub judge: PerDirection<super::check::Judge>,
    /// What looks have found and no check has told yet.
    pub found: Vec<Escape>,
    pub foreign: PerDirection<super::check::Foreign>,
    /// The lease ran out before it was renewed, at least once.
    pub lapsed: bool,
    /// What the programs had lost before.
    pub lost: Lost,
}

/// The programs, and every limit they hold.
pub(super) struct Holder {
    /// Before the programs: as long as a queue stands, they know it.
    pub queue: Queue,
    pub departures: Departures,
    pub loaded: Loaded,
    events: Events,
    site: Site,
    /// Where the programs are attached.
    pub cgroup: PathBuf,
    pub cgroup_id: u64,
    /// Root of the cgroup2 mount.
    pub mount: PathBuf,
    /// Zero of every bucket's virtual time.
    epoch_ns: u64,
    state: State,
    /// One more change of epoch at the next renewal: a tag that two processors resolved at the same time,
    /// one from the old entry, may have kept the old limits under the new epoch.
    unsettled: bool,
    /// Connections that only processes without a limit hold may have a cap of ours.
    pub(super) strays: bool,
    pub held: BTreeMap<LimitId, Held>,
    retired: Vec<(Instant, u64)>,
    /// Limits that are over, whose processes still name them.
    leaving: HashSet<u64>,
    /// The programs that limit are attached.
    equipped: bool,
    pub look: Option<Look>,
    /// When windows were looked at, whether levels had moved or not.
    pub(super) windows_at: Option<Instant>,
    pub book: Book,
}

impl Holder {
    /// Loads and attaches everything that limits take. Nothing is limited yet.
    pub fn open(site: &Site) -> Result<Self> {
        let mut holder = Self::open_bare(site)?;
        holder.equip()?;
        Ok(holder)
    }

    /// Without the programs that limit: enough to count.
    pub fn open_bare(site: &Site) -> Result<Self> {
        if !process::in_initial_pid_namespace()? {
            return Err(Error::new(
                Kind::NoBackend,
                "this is a PID namespace of its own (a container?), whose process ids the kernel side does not \
                 know: run it on the host",
            ));
        }
        let cgroup = cgroup::attach_point(site.cgroup_root.as_deref())?;
        let mut loaded = bpf::load_maps()?;
        let events = loaded.take_events()?;
        let mut holder = Self {
            queue: Queue::default(),
            departures: Departures::default(),
            loaded,
            events,
            site: site.clone(),
            cgroup_id: cgroup::get_cgroup_id(&cgroup)?,
            cgroup,
            mount: cgroup::mount()?,
            epoch_ns: clock::monotonic_ns(),
            state: State { epoch: 1, lease_deadline_ns: 0 },
            unsettled: false,
            strays: false,
            held: BTreeMap::new(),
            retired: Vec::new(),
            leaving: HashSet::new(),
            equipped: false,
            look: None,
            windows_at: None,
            book: Book::default(),
        };
        holder.renew()?;
        Ok(holder)
    }

    /// Loads and attaches the programs that limit, if that is not done yet.
    pub fn equip(&mut self) -> Result<()> {
        if !self.equipped {
            self.loaded.load_programs()?;
            self.loaded.attach(&self.cgroup)?;
            self.equipped = true;
        }
        Ok(())
    }

    pub fn is_equipped(&self) -> bool {
        self.equipped
    }

    pub fn start_counting(&mut self) -> Result<(Taps, Vec<Notice>)> {
        self.loaded.start_counting(&self.cgroup)
    }

    /// Whether all processes' packets pass where the programs are attached.
    pub fn sees_all(&self) -> bool {
        self.cgroup == self.mount
    }

    pub fn is_at(&self, site: &Site) -> bool {
        self.site == *site
    }

    pub fn apply(&mut self, limit: &Limit) -> Result<Applied> {
        let rate = limit.rate.bytes_per_second();
        let first = !self.held.contains_key(&limit.id);
        if first {
            if Target::are_standing(&limit.targets) {
                // On a slow machine that takes longer than a lease; this limit does not hold yet, and has not lapsed.
                self.loaded.prepare_rules()?;
                self.renew()?;
            }
            let held = Held {
                key: NARROW | limit.narrowing().bits() | limit.id.0,
                narrowing: limit.narrowing(),
                rates: PerDirection::default(),
                targets: limit.targets.clone(),
                brought_in: None,
                seen: None,
                judge: PerDirection::default(),
                found: Vec::new(),
                foreign: PerDirection::default(),
                lapsed: false,
                lost: self.lost()?,
            };
            self.make_elements(held.key, &held.narrowing)?;
            self.held.insert(limit.id, held);
        }
        let done = self.set(limit, rate, first);
        if done.is_err() && first {
            self.remove(limit.id, limit.direction)?;
            if !self.book.is_empty() {
                // What it had pushed out holds again at once.
                self.loaded.review(None)?;
                self.bump()?;
            }
        }
        done
    }

    fn set(&mut self, limit: &Limit, rate: u64, first: bool) -> Result<Applied> {
        let applied = match limit.direction {
            // The rate first: a process that is entered is held from then on.
            Direction::Upload => {
                self.set_rate(limit.id, limit.direction, rate)?;
                if first {
                    self.pace_ahead(limit.id)?;
                }
                fault::point("ebpf.limit-written");
                if first { self.bring_in(limit.id)? } else { self.present(limit.id)? }
            }
            // Processes and sockets first: a queue has to stand where their packets arrive when the rate begins
            // to hold, and until then nothing is refused.
            Direction::Download => {
                let applied = if first { self.bring_in(limit.id)? } else { self.present(limit.id)? };
                self.set_rate(limit.id, limit.direction, rate)?;
                fault::point("ebpf.limit-written");
                applied
            }
        };
        self.verify(limit.id, limit.direction, rate)?;
        Ok(applied)
    }

    /// Empty elements in the maps; no program looks at them before a process is entered.
    fn make_elements(&mut self, key: u64, narrowing: &Narrowing) -> Result<()> {
        self.purge_retired();
        let unlimited = TokenBucket::empty(0, 0, self.epoch_ns, clock::monotonic_ns());
        let failed = |what: &str| {
            let what = what.to_owned();
            move |cause| Error::caused(Kind::Failed, format!("write the eBPF map {what}"), &cause)
        };
        self.loaded
            .hash::<u64, [ThrottleStats; 2]>(STATS)?
            .insert(key, [ThrottleStats::default(); 2], 0)
            .map_err(failed(STATS))?;
        self.loaded
            .hash::<u64, [TokenBucket; 2]>(BUCKETS)?
            .insert(key, [unlimited; 2], 0)
            .map_err(failed(BUCKETS))?;
        self.loaded
            .hash::<u64, ActiveFlows>(FLOWS)?
            .insert(key, ActiveFlows::default(), 0)
            .map_err(failed(FLOWS))?;
        if key & LISTED_ONLY != 0 {
            let remotes = narrowing.listed()?;
            self.loaded.hash::<u64, Remotes>(REMOTES)?.insert(key, remotes, 0).map_err(failed(REMOTES))?;
        }
        let config = CgroupThrottleConfig { cgroup_id: key, ..CgroupThrottleConfig::default() };
        self.loaded
            .hash::<u64, [CgroupThrottleConfig; 2]>(CONFIGS)?
            .insert(key, [config; 2], 0)
            .map_err(failed(CONFIGS))
    }

    /// Puts the processes and their open sockets under a limit.
    fn bring_in(&mut self, id: LimitId) -> Result<Applied> {
        let held = self.held.get(&id).ok_or_else(|| unknown(id))?;
        let (key, targets) = (held.key, held.targets.clone());
        let live: HashSet<u64> = self.held.values().map(|held| held.key).collect();
        let within = members::Within { mount: &self.mount, path: &self.cgroup, id: self.cgroup_id };
        let mut pids = members::enter(&mut self.loaded, &targets, key, &live, &within)?;
        if Target::are_standing(&targets) {
            self.bring_in_by_rules(key, &targets)?;
            pids = members::census(&self.loaded)?.remove(&key).into_iter().flatten().collect();
        } else if !self.book.is_empty() {
            // A program may have written over an entry what it had read before.
            self.loaded.review(None)?;
        }
        fault::point("ebpf.process-entered");
        self.bump()?;
        let open = self.walk_those(&pids)?;
        // The second walk meets what was on its way from one table to another in the first, and sees
        // which of the sockets tagged in the first are open elsewhere too.
        let mut records =
            if open.is_empty() { self.walk_those(&pids)? } else { self.loaded.walk_sockets(None)? };
        if records.iter().any(|record| record.flags & RECORD_SHARED != 0) {
            self.loaded.watch_shared_sockets()?;
        }
        self.bump()?;
        self.unsettled = true;
        fault::point("ebpf.sockets-tagged");
        records.retain(|record| pids.contains(&record.tgid));
        let sockets: HashSet<u64> = records.iter().map(|record| record.socket).collect();
        let applied = Applied { processes: pids.len() as u32, sockets: sockets.len() as u32 };
        let held = self.held.get_mut(&id).ok_or_else(|| unknown(id))?;
        held.brought_in = Some((Instant::now(), applied.clone()));
        Ok(applied)
    }

    /// Lets the kernel side put processes under a limit by what they are: those that are there, at once.
    fn bring_in_by_rules(&mut self, key: u64, targets: &[Target]) -> Result<()> {
        self.loaded.prepare_rules()?;
        let before = self.overfull()?;
        self.write_rules(key, targets)?;
        // Whoever became something else during the first look is met by the second, or saw the rules itself.
        let mut overfull = self.overfull()?;
        overfull.extend(self.overfull()?);
        for pid in overfull {
            let entry: Result<ProcessEntry> = self.loaded.entry("PROCESSES", &pid);
            // Rules come in their own order: what found no room may also be a limit that held until now.
            let (had_room, held) = (!before.contains(&pid), entry.map(|entry| entry.limits.contains(&key)));
            if held.is_ok_and(|held| held || had_room) {
                return Err(Error::failed(format!(
                    "limit process {pid}: it already has {MAX_NESTED} limits, clear one of them first"
                )));
            }
        }
        Ok(())
    }

    /// Puts every process where the rules have it; those that are under more limits than there is room for.
    fn overfull(&mut self) -> Result<HashSet<u32>> {
        let records = self.loaded.review(None)?;
        let overfull = records.iter().filter(|record| record.flags & PROCESS_OVERFULL != 0);
        Ok(overfull.map(|record| record.tgid).collect())
    }

    /// Makes the rules of a limit what its targets mean now: files are replaced, cgroups come and go.
    pub fn write_rules(&mut self, key: u64, targets: &[Target]) -> Result<()> {
        let rules = rules::of_targets(&self.loaded, &self.mount, targets)?;
        let root = self.root();
        self.book.set(&mut self.loaded, key, &rules, root)
    }

    /// The cgroup that rules do not look out of; 0 when that is all of them.
    fn root(&self) -> u64 {
        if self.cgroup == self.mount { 0 } else { self.cgroup_id }
    }

    /// What a limit that is in force already holds.
    fn present(&mut self, id: LimitId) -> Result<Applied> {
        let held = self.held.get(&id).ok_or_else(|| unknown(id))?;
        // Usually the other direction of a limit that has just been set; the last look may be from before.
        if let Some((at, applied)) = &held.brought_in
            && at.elapsed() <= FRESH
        {
            return Ok(applied.clone());
        }
        let key = held.key;
        let look = self.look()?;
        let processes = look.members.get(&key).map_or(0, Vec::len) as u32;
        Ok(Applied { processes, sockets: look.sockets_of(key) })
    }

    fn bump(&mut self) -> Result<()> {
        self.state.epoch += 1;
        self.write_state()
    }

    fn write_state(&mut self) -> Result<()> {
        let state = self.state;
        self.loaded
            .array::<State>("STATE")?
            .set(0, state, 0)
            .map_err(|cause| Error::caused(Kind::Failed, "write the eBPF map STATE", &cause))
    }

    pub fn remove(&mut self, id: LimitId, direction: Direction) -> Result<()> {
        let Some(held) = self.held.get_mut(&id) else { return Ok(()) };
        let key = held.key;
        let paced = held.rates.upload.is_some() && direction == Direction::Upload;
        *held.rates.get_mut(direction) = None;
        let over = held.rates == PerDirection::default();
        let pids = if paced { self.processes_of(id)? } else { HashSet::new() };
        // First the rate, which frees the traffic at once; then the rest.
        match self.set_rate(id, direction, 0) {
            Err(error) if error.kind != Kind::NotFound => return Err(error),
            _ => {}
        }
        if over {
            let root = self.root();
            self.book.set(&mut self.loaded, key, &BTreeSet::new(), root)?;
            self.held.remove(&id);
            self.retired.push((Instant::now(), key));
            if let Some(look) = &mut self.look {
                look.members.remove(&key);
            }
            self.leaving.insert(key);
            self.bump()?;
        }
        if paced {
            // Other limits of theirs pace them again soon.
            self.unpace(&pids);
            if self.held.values().any(|held| held.rates.upload.is_some()) {
                self.strays = true;
            } else {
                self.unpace_strays();
            }
        }
        Ok(())
    }

    pub fn stats(&mut self, id: LimitId, direction: Direction) -> Result<Counters> {
        let key = self.held.get(&id).ok_or_else(|| unknown(id))?.key;
        let pair = self
            .loaded
            .hash::<u64, [ThrottleStats; 2]>(STATS)?
            .get(&key, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("read the eBPF map {STATS}"), &cause))?;
        let stats = pair[direction.index()];
        let bucket = self.bucket(key, direction)?;
        let ahead = -bucket.tokens(clock::monotonic_ns());
        let load =
            if direction == Direction::Download { self.queue.load(key, ahead.max(0) as u64) } else { None };
        let refused = load.map_or(0, |(refused, _)| refused);
        Ok(Counters {
            passed_packets: bucket.packets_passed,
            passed_bytes: bucket.bytes_passed,
            dropped_packets: stats.packets_dropped + refused,
            dropped_bytes: stats.bytes_dropped,
            delayed_packets: bucket.packets_delayed,
            marked_packets: stats.packets_marked,
            queue_us: load.map(|(_, delay)| delay),
        })
    }

    pub fn wake_fd(&self) -> RawFd {
        self.events.fd()
    }

    pub fn clear(&mut self, direction: Direction) -> Result<()> {
        let ids: Vec<_> = self.held.keys().copied().collect();
        ids.into_iter().try_for_each(|id| self.remove(id, direction))
    }
}

pub(super) fn unknown(id: LimitId) -> Error {
    Error::new(Kind::NotFound, format!("no limit {id} in the eBPF backend"))
}
