//! What is in the kernel, once for both directions.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    os::fd::RawFd,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use chadthrottle_common::{
    abi::{
        ActiveFlows, BucketChange, CgroupThrottleConfig, EVENT_ACCEPTED, EVENT_CHANGED, EVENT_DEVICE, Lost,
        MAX_NESTED, NARROW, ProcessEntry, RECORD_LISTENER, RECORD_LOWERED, RECORD_SHARED, SocketRecord,
        State, ThrottleStats, TokenBucket,
    },
    pacing,
    remote::{LISTED_ONLY, Remotes},
    rules::PROCESS_OVERFULL,
};

use super::{
    check::{FRESH, Look},
    members,
    queue::{QUEUE_US, Queue},
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
const BUCKETS: &str = "CGROUP_BUCKETS";
pub(super) const STATS: &str = "CGROUP_STATS";
const FLOWS: &str = "CGROUP_FLOWS";
const REMOTES: &str = "REMOTES";

/// How long the programs go on holding without a word from the owner.
const LEASE: Duration = Duration::from_secs(3);

/// Credit that an idle limit saves up, as time at its rate. Download: a sender tries again 200 ms and more after
/// it lost all that was in flight, and must find what it missed; more than that only makes for larger losses
/// afterwards (measured: 300 ms, 500 ms, 1 s). Upload is paced, may run
/// [`BURST_TICKS`](chadthrottle_common::pacing::BURST_TICKS) into debt beside this, and what its level was too low
/// by must not be forgotten before the next looks.
const CREDIT: Duration = Duration::from_millis(300);

/// And never less than a GSO buffer, in bytes: at 100 KB/s that is 650 ms, and what TCP sends at a time
/// (measured: 0.96 of the limit against 0.82 without).
const MIN_CREDIT: u64 = 65_536;

/// So many flows are expected to share a limit at first, at most; many connections may be idle.
const MOST_FLOWS: u64 = 8;

/// Above so many processes one walk over the whole host is cheaper than one for each.
const WALK_EACH: usize = 16;

/// How long to wait until all connections in use have advertised their smaller windows, and these have
/// arrived. Over a long line that takes longer; but there what is under way is little compared with what a
/// queue may hold.
const LEAST_SHRINK: Duration = Duration::from_millis(10);
const MOST_SHRINK: Duration = Duration::from_millis(100);
const SHRINK_STEP: Duration = Duration::from_millis(5);

/// A map element is given back to the map only when no program can be at work on it any more.
const GRACE: Duration = Duration::from_secs(1);

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
    pub held: BTreeMap<LimitId, Held>,
    retired: Vec<(Instant, u64)>,
    /// Limits that are over, whose processes still name them.
    leaving: HashSet<u64>,
    /// The programs that limit are attached.
    equipped: bool,
    pub look: Option<Look>,
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
            loaded,
            events,
            site: site.clone(),
            cgroup_id: cgroup::get_cgroup_id(&cgroup)?,
            cgroup,
            mount: cgroup::mount()?,
            epoch_ns: clock::monotonic_ns(),
            state: State { epoch: 1, lease_deadline_ns: 0 },
            unsettled: false,
            held: BTreeMap::new(),
            retired: Vec::new(),
            leaving: HashSet::new(),
            equipped: false,
            look: None,
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

    /// Gives a direction its rate (0: none), in place, while packets pass.
    fn set_rate(&mut self, id: LimitId, direction: Direction, rate: u64) -> Result<()> {
        let held = self.held.get(&id).ok_or_else(|| unknown(id))?;
        let key = held.key;
        let pid = held.targets.first().and_then(Target::pid).unwrap_or(0);
        let held_before = *held.rates.get(direction);
        let lower = held_before.is_none_or(|old| rate < old);
        let capacity = capacity(rate);
        let mut config = CgroupThrottleConfig {
            cgroup_id: key,
            rate_bps: rate,
            burst_size: capacity,
            pid,
            ..CgroupThrottleConfig::default()
        };
        if direction == Direction::Download && rate != 0 {
            let mut records = self.walk_those(&self.processes_of(id)?)?;
            let class_id = self.queue.set(key, rate);
            self.queue.see(&mut self.loaded, &records);
            if let Some(held) = self.held.get(&id) {
                records.retain(|record| held.narrowing.covers(record.remote, record.remote_port as u16));
            }
            config.queue_us = QUEUE_US;
            if held_before.is_none() {
                self.expect_flows(key, &records)?;
            }
            if lower && records.iter().any(|record| self.queue.is_equipped(record)) {
                // First the senders learn how little they may send, then it is held: or all that they were
                // promised before comes at once, more than a queue should take.
                config.class_id = self.config(key)?[direction.index()].class_id;
                self.write_config(direction, config)?;
                self.await_lower_windows(&records);
            }
            config.class_id = class_id;
        }
        self.write_config(direction, config)?;
        if direction == Direction::Download {
            // The sockets tell where their packets arrive.
            self.bump()?;
        }
        let old = self.bucket(key, direction)?;
        let now = clock::monotonic_ns();
        let mut bucket = TokenBucket {
            class_id: config.class_id,
            ..TokenBucket::empty(rate, capacity, self.epoch_ns, now)
        };
        if direction == Direction::Upload && rate != 0 {
            bucket.level = match old.level {
                // A little more than each one's share: TCP does not quite reach its cap.
                0 => rate / self.coming_flows(key).clamp(1, MOST_FLOWS) / 8 * 9,
                // At another rate the flows are as many as before.
                level => (u128::from(level) * u128::from(rate) / u128::from(old.rate_bps.max(1))) as u64,
            }
            .clamp(1, rate);
            bucket.level_period_ns = pacing::period_ns(rate, bucket.level);
        }
        let shift = old.shift_to(rate, now);
        self.loaded.change_bucket(&BucketChange {
            id: key,
            direction: direction.index() as u64,
            shift,
            bucket,
        })?;
        if direction == Direction::Download && rate == 0 {
            // After the configuration, which named it no more.
            self.queue.release(key);
        }
        let held = self.held.get_mut(&id).ok_or_else(|| unknown(id))?;
        *held.rates.get_mut(direction) = (rate != 0).then_some(rate);
        *held.judge.get_mut(direction) = super::check::Judge::default();
        Ok(())
    }

    /// Counts the connections of a download limit that is about to begin, before they count themselves: or the
    /// first that acknowledges takes a window for itself alone, and where windows go by large units it can't be
    /// taken back.
    fn expect_flows(&mut self, key: u64, records: &[SocketRecord]) -> Result<()> {
        let flow = |record: &&SocketRecord| {
            record.protocol == libc::IPPROTO_TCP as u32
                && record.flags & RECORD_LISTENER == 0
                && record.bytes_received > 0
        };
        let flows: HashSet<u64> = records.iter().filter(flow).map(|record| record.socket).collect();
        let mut active = ActiveFlows::default();
        active.expect(flows.len().min(MOST_FLOWS as usize) as u32, clock::monotonic_ns());
        self.loaded
            .hash::<u64, ActiveFlows>(FLOWS)?
            .insert(key, active, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write the eBPF map {FLOWS}"), &cause))
    }

    fn config(&mut self, key: u64) -> Result<[CgroupThrottleConfig; 2]> {
        self.loaded
            .hash::<u64, [CgroupThrottleConfig; 2]>(CONFIGS)?
            .get(&key, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("read the eBPF map {CONFIGS}"), &cause))
    }

    fn write_config(&mut self, direction: Direction, config: CgroupThrottleConfig) -> Result<()> {
        let key = config.cgroup_id;
        let mut pair = self.config(key)?;
        pair[direction.index()] = config;
        self.loaded
            .hash::<u64, [CgroupThrottleConfig; 2]>(CONFIGS)?
            .insert(key, pair, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write the eBPF map {CONFIGS}"), &cause))
    }

    /// Waits until every connection of the limit at which something still arrives has advertised its smaller
    /// window.
    fn await_lower_windows(&self, before: &[SocketRecord]) {
        let received: HashMap<u64, u64> =
            before.iter().map(|record| (record.socket, record.bytes_received)).collect();
        let pids = before.iter().map(|record| record.tgid).collect();
        let start = Instant::now();
        while start.elapsed() < MOST_SHRINK {
            thread::sleep(SHRINK_STEP);
            let late = |record: &SocketRecord| {
                record.flags & RECORD_LOWERED == 0
                    && self.queue.is_equipped(record)
                    && received.get(&record.socket).is_some_and(|before| *before != record.bytes_received)
            };
            let now = self.walk_those(&pids).unwrap_or_default();
            if !now.iter().any(late) && start.elapsed() >= LEAST_SHRINK {
                break;
            }
        }
    }

    fn bucket(&mut self, key: u64, direction: Direction) -> Result<TokenBucket> {
        let pair =
            self.loaded.hash::<u64, [TokenBucket; 2]>(BUCKETS)?.get(&key, 0).map_err(|cause| {
                Error::caused(Kind::Failed, format!("read the eBPF map {BUCKETS}"), &cause)
            })?;
        Ok(pair[direction.index()])
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
        self.write_rules(key, targets)?;
        // Whoever became something else during the first look is met by the second, or saw the rules itself.
        let mut overfull = Vec::new();
        for _ in 0..2 {
            let records = self.loaded.review(None)?;
            overfull.extend(records.into_iter().filter(|record| record.flags & PROCESS_OVERFULL != 0));
        }
        for record in overfull {
            let entry: Result<ProcessEntry> = self.loaded.entry("PROCESSES", &record.tgid);
            if entry.is_ok_and(|entry| !entry.limits.contains(&key)) {
                return Err(Error::failed(format!(
                    "limit process {}: it already has {MAX_NESTED} limits, clear one of them first",
                    record.tgid
                )));
            }
        }
        Ok(())
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

    /// Reads back what the kernel has.
    fn verify(&mut self, id: LimitId, direction: Direction, rate: u64) -> Result<()> {
        let key = self.held.get(&id).ok_or_else(|| unknown(id))?.key;
        let bucket = self.bucket(key, direction)?;
        if bucket.rate_bps != rate {
            return Err(Error::failed(format!(
                "verify limit {id}: the kernel's bucket has {} bytes/s",
                bucket.rate_bps
            )));
        }
        match self.loaded.dead_links()?.first() {
            Some(dead) => {
                Err(Error::failed(format!("verify limit {id}: somebody detached {dead} from the cgroup")))
            }
            None => Ok(()),
        }
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
        }
        Ok(())
    }

    /// Takes the processes out of the limits that are over, with one look at all. What is not done yet does
    /// no harm: their entries name limits that are not there.
    fn let_leave(&mut self) -> Result<()> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        members::leave(&mut self.loaded, &self.leaving)?;
        self.leaving.clear();
        if !self.book.is_empty() {
            // A program may have written an entry meanwhile that was written over now.
            self.loaded.review(None)?;
        }
        self.state.epoch += 1;
        Ok(())
    }

    /// Deletes the map elements of limits that ended a while ago.
    fn purge_retired(&mut self) {
        let (due, wait): (Vec<_>, Vec<_>) =
            self.retired.drain(..).partition(|(since, _)| since.elapsed() >= GRACE);
        self.retired = wait;
        for (_, key) in due {
            // Each may be missing when making them failed halfway.
            let _ =
                self.loaded.hash::<u64, [CgroupThrottleConfig; 2]>(CONFIGS).map(|mut map| map.remove(&key));
            let _ = self.loaded.hash::<u64, [TokenBucket; 2]>(BUCKETS).map(|mut map| map.remove(&key));
            let _ = self.loaded.hash::<u64, [ThrottleStats; 2]>(STATS).map(|mut map| map.remove(&key));
            let _ = self.loaded.hash::<u64, ActiveFlows>(FLOWS).map(|mut map| map.remove(&key));
            let _ = self.loaded.hash::<u64, Remotes>(REMOTES).map(|mut map| map.remove(&key));
        }
    }

    pub fn stats(&mut self, id: LimitId, direction: Direction) -> Result<Counters> {
        let key = self.held.get(&id).ok_or_else(|| unknown(id))?.key;
        let pair = self
            .loaded
            .hash::<u64, [ThrottleStats; 2]>(STATS)?
            .get(&key, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("read the eBPF map {STATS}"), &cause))?;
        let stats = pair[direction.index()];
        let load = if direction == Direction::Download { self.queue.load(key) } else { None };
        let refused = load.map_or(0, |(refused, _)| refused);
        Ok(Counters {
            passed_packets: stats.packets_passed,
            passed_bytes: stats.bytes_passed,
            dropped_packets: stats.packets_dropped + refused,
            dropped_bytes: stats.bytes_dropped,
            delayed_packets: stats.packets_delayed,
            marked_packets: stats.packets_marked,
            queue_us: load.map(|(_, delay)| delay),
        })
    }

    pub fn renew(&mut self) -> Result<()> {
        let now = clock::monotonic_ns();
        if self.state.lease_deadline_ns != 0 && now > self.state.lease_deadline_ns && !self.held.is_empty() {
            self.held.values_mut().for_each(|held| held.lapsed = true);
        }
        self.state.lease_deadline_ns = now + LEASE.as_nanos() as u64;
        if std::mem::take(&mut self.unsettled) {
            self.state.epoch += 1;
        }
        self.let_leave()?;
        if !self.queue.look_after() {
            // The sockets tell again where their packets arrive.
            self.state.epoch += 1;
        }
        self.write_state()?;
        self.purge_retired();
        Ok(())
    }

    pub fn ended(&mut self) -> Result<Vec<LimitId>> {
        let events = self.events.drain();
        // These first: they are told once, and what follows may fail.
        for event in events.iter().filter(|event| event.kind == EVENT_DEVICE) {
            self.queue.equip(&mut self.loaded, event.tgid, None, event.device);
        }
        // Connections accepted from a shared listener: whoever of the limited ones holds them owns them. And what
        // those have open who have just come under a limit.
        let of_kind = |kinds: &[u32]| -> HashSet<u32> {
            events.iter().filter(|event| kinds.contains(&event.kind)).map(|event| event.tgid).collect()
        };
        let records = self.walk_those(&of_kind(&[EVENT_ACCEPTED, EVENT_CHANGED]))?;
        self.queue.see(&mut self.loaded, &records);
        self.unpace_free(of_kind(&[EVENT_CHANGED]));
        if !records.is_empty() {
            // Before their limit has refused them much, which they recover from only slowly.
            if let Some(look) = &mut self.look {
                look.learn(records);
            }
            self.follow()?;
        }
        let census = members::census(&self.loaded)?;
        let over = |held: &Held| !Target::are_standing(&held.targets) && !census.contains_key(&held.key);
        Ok(self.held.iter().filter(|(_, held)| over(held)).map(|(id, _)| *id).collect())
    }

    /// The processes of every limit.
    pub fn members(&self) -> Result<Vec<(LimitId, Vec<u32>)>> {
        let mut census = members::census(&self.loaded)?;
        let of = |(id, held): (&LimitId, &Held)| Some((*id, census.remove(&held.key)?));
        Ok(self.held.iter().filter_map(of).collect())
    }

    /// The sockets of these processes.
    pub fn walk_those(&self, pids: &HashSet<u32>) -> Result<Vec<SocketRecord>> {
        if pids.len() > WALK_EACH {
            return self.loaded.walk_sockets(None);
        }
        let mut records = Vec::new();
        for pid in pids {
            // Of a process that has ended it finds none.
            records.extend(self.walk_one(*pid)?);
        }
        Ok(records)
    }

    /// The sockets of one process; the whole host where the kernel can't narrow it down (before 6.1).
    pub fn walk_one(&self, tgid: u32) -> Result<Vec<SocketRecord>> {
        self.loaded.walk_sockets(Some(tgid)).or_else(|_| self.loaded.walk_sockets(None))
    }

    pub fn wake_fd(&self) -> RawFd {
        self.events.fd()
    }

    pub fn clear(&mut self, direction: Direction) -> Result<()> {
        let ids: Vec<_> = self.held.keys().copied().collect();
        ids.into_iter().try_for_each(|id| self.remove(id, direction))
    }
}

/// Bytes of credit at `rate` bytes/s.
fn capacity(rate: u64) -> u64 {
    ((u128::from(rate) * CREDIT.as_millis() / 1_000) as u64).max(MIN_CREDIT)
}

pub(super) fn unknown(id: LimitId) -> Error {
    Error::new(Kind::NotFound, format!("no limit {id} in the eBPF backend"))
}
