//! What the backends without eBPF have in common: limits hold crowds ([`super::crowd`]) and sockets older than they
//! ([`super::addresses`]), in each network namespace by itself. What holds them there is the backend's own
//! ([`Place`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    os::fd::{AsFd, RawFd},
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    Applied, Backend, Checked, Probe, Site,
    addresses::Sockets,
    crowd::{self, Leaf},
};
use crate::{
    error::{Error, Kind, Result},
    kernel::{
        caps, fault,
        netns::Namespace,
        process::{self, Process},
        sock_diag::Socket,
        sockets,
    },
    model::{Counters, Direction, Escape, EscapeKind, Limit, LimitId, Rate},
};

/// How often sockets are looked for while old ones may get an address.
const FOLLOW: Duration = Duration::from_millis(100);
/// One count serves all limits of a tick.
const FRESH: Duration = Duration::from_millis(400);

/// What holds limits in one network namespace, in one direction.
pub(super) trait Place: Sized {
    /// Whether several limits can hold one process.
    const NESTS: bool;

    /// The backend's name in that direction.
    fn name(direction: Direction) -> &'static str;

    /// Makes it; it holds nobody yet.
    fn open(namespace: Namespace, direction: Direction) -> Result<Self>;

    /// Whether any limit is here.
    fn is_empty(&self) -> bool;

    /// Whether the limit is in force here.
    fn holds(&self, limit: LimitId) -> bool;

    /// Brings a limit into force, which holds nobody yet, or changes its rate (bytes/s).
    fn set_rate(&mut self, limit: LimitId, rate: u64) -> Result<()>;

    /// The limit's processes are in these leaves now.
    fn set_leaves(&mut self, limit: LimitId, leaves: &[Leaf]) -> Result<()>;

    /// All sockets of the namespace.
    fn sockets(&mut self) -> Result<Vec<Socket>>;

    /// Holds the limit's sockets that are not known by their cgroup. `all` are the namespace's, `inodes` those of the
    /// limit's processes (`pids`), `knows` says which cgroups are known by themselves.
    fn hold_old(
        &mut self,
        limit: LimitId,
        all: &[Socket],
        inodes: &HashSet<u32>,
        pids: &HashSet<u32>,
        knows: &dyn Fn(Option<u64>) -> bool,
    ) -> Result<Sockets>;

    /// The limit ends here.
    fn remove(&mut self, limit: LimitId) -> Result<()>;

    /// Extends the lease. True when it had run out.
    fn renew(&mut self) -> Result<bool>;

    /// Fails when the kernel does not have what should hold the limits.
    fn verify(&mut self) -> Result<()>;

    /// What every limit let through and refused here.
    fn counts(&mut self) -> Result<BTreeMap<LimitId, Counters>>;

    /// Bytes that a limit of this rate (bytes/s) lets through at once after a pause.
    fn credit(rate: u64) -> u64;
}

/// One direction of a limit.
struct Held {
    crowd: crowd::Shared,
    rate: u64,
    /// Old sockets may get an address.
    unsettled: bool,
    /// Processes have been moved out of their leaf.
    moved: usize,
    /// By inode, the sockets that were in no list of the processes' namespaces, and where they are; `None`: they are
    /// none of IP.
    abroad: HashMap<u32, Option<u64>>,
}

/// Holds the limits of one direction.
pub(super) struct Crowded<P> {
    site: Site,
    direction: Direction,
    places: BTreeMap<u64, P>,
    held: BTreeMap<LimitId, Held>,
    counts: Option<(Instant, BTreeMap<LimitId, Counters>)>,
    /// What was found in each place when it was looked at last.
    seen: BTreeMap<u64, Seen>,
    lapsed: HashSet<LimitId>,
}

/// A look at one place, which serves all limits of a tick: with one for each, many limits would take all the time there
/// is.
struct Seen {
    at: Instant,
    sockets: Rc<[Socket]>,
    /// What the kernel lacks of what should hold the limits.
    fault: Option<String>,
}

impl Seen {
    fn new(place: &mut impl Place) -> Result<Self> {
        let sockets = place.sockets()?.into();
        let fault = place.verify().err().map(|error| error.to_string());
        Ok(Self { at: Instant::now(), sockets, fault })
    }
}

/// A limit's processes and what they have open.
struct Look {
    processes: HashSet<u32>,
    /// Inodes of sockets of all kinds.
    inodes: HashSet<u32>,
    /// Network namespaces, each with one thread in it.
    namespaces: HashMap<u64, u32>,
}

impl Look {
    fn new(pids: &[u32]) -> Self {
        let proc = Path::new(process::PROC);
        let mut look = Self {
            processes: pids.iter().copied().collect(),
            inodes: HashSet::new(),
            namespaces: HashMap::new(),
        };
        for &pid in pids {
            look.inodes.extend(process::socket_inodes(proc, pid));
            look.namespaces.extend(process::network_namespaces(proc, pid));
        }
        look
    }

    /// Where these sockets are; `None`: they are none of IP, or can't be asked.
    fn find(&self, inodes: &HashSet<u32>) -> HashMap<u32, Option<Namespace>> {
        let mut found = HashMap::new();
        if inodes.is_empty() {
            return found;
        }
        for &pid in &self.processes {
            let Ok(process) = Process::open(pid) else { continue };
            for (descriptor, inode) in process::socket_descriptors(Path::new(process::PROC), pid) {
                let inode = inode as u32;
                if inodes.contains(&inode) {
                    found.entry(inode).or_insert_with(|| {
                        where_is(&process, descriptor).unwrap_or_else(|error| {
                            tracing::debug!("socket {inode} of process {pid}: {error}");
                            None
                        })
                    });
                }
            }
        }
        found
    }
}

impl<P: Place> Crowded<P> {
    /// Opens it, unless `probe` knows a reason against it.
    pub fn open(site: &Site, direction: Direction, probe: fn(&Site) -> Probe) -> Result<Self> {
        caps::require(&format!("limiting with {}", P::name(direction)), &caps::FOR_CROWDS)?;
        if let Probe::Unavailable { reason, mend } = probe(site) {
            let mend = mend.map(|mend| format!(" (mend: {mend})")).unwrap_or_default();
            return Err(Error::new(Kind::NoBackend, format!("{reason}{mend}")));
        }
        Ok(Self {
            site: site.clone(),
            direction,
            places: BTreeMap::new(),
            held: BTreeMap::new(),
            counts: None,
            seen: BTreeMap::new(),
            lapsed: HashSet::new(),
        })
    }

    fn unknown(id: LimitId) -> Error {
        Error::new(Kind::NotFound, format!("this backend holds no limit {id}"))
    }

    /// The place in a namespace, which is opened by a thread in it.
    fn open_place(&mut self, inode: u64, thread: u32) -> Result<()> {
        if self.places.contains_key(&inode) {
            return Ok(());
        }
        let namespace = Namespace::of_process(thread)?;
        if namespace.inode()? != inode {
            return Err(Error::new(
                Kind::NotFound,
                format!("process {thread} has moved to another network namespace"),
            ));
        }
        self.places.insert(inode, P::open(namespace, self.direction)?);
        Ok(())
    }

    /// Opens the places where sockets are that no list of the processes' namespaces had (`unlisted`): a socket stays
    /// in the namespace it was made in, wherever its process goes. Which these are; each socket is asked once.
    fn look_abroad(&mut self, id: LimitId, look: &Look, unlisted: &HashSet<u32>) -> Result<HashSet<u64>> {
        let held = self.held.get_mut(&id).ok_or_else(|| Self::unknown(id))?;
        held.abroad.retain(|inode, _| look.inodes.contains(inode));
        let new: HashSet<u32> =
            unlisted.iter().copied().filter(|inode| !held.abroad.contains_key(inode)).collect();
        for (inode, namespace) in look.find(&new) {
            let Some(namespace) = namespace else {
                held.abroad.insert(inode, None);
                continue;
            };
            let number = namespace.inode()?;
            if let Entry::Vacant(vacant) = self.places.entry(number) {
                vacant.insert(P::open(namespace, self.direction)?);
            }
            held.abroad.insert(inode, Some(number));
        }
        let found = held.abroad.values().flatten().copied();
        Ok(found.filter(|inode| !look.namespaces.contains_key(inode)).collect())
    }

    fn bring_in(&mut self, limit: &Limit) -> Result<Applied> {
        let crowd = crowd::join(limit, &self.site)?;
        let rate = limit.rate.bytes_per_second();
        let pids = crowd.borrow().processes();
        if !P::NESTS {
            self.require_free(&pids)?;
        }
        let held = Held { crowd, rate, unsettled: false, moved: 0, abroad: HashMap::new() };
        self.held.insert(limit.id, held);
        let look = Look::new(&pids);
        let sockets = self.hold(limit.id, &look, Fresh::Now)?;
        // What was on its way from one table to another when it was looked at.
        let again = Look::new(&pids);
        let sockets =
            if again.inodes == look.inodes { sockets } else { self.hold(limit.id, &again, Fresh::Now)? };
        fault::point("crowd.applied");
        for place in self.places.values_mut() {
            place.verify()?;
        }
        Ok(Applied { processes: pids.len() as u32, sockets })
    }

    /// Fails when another limit holds one of these processes.
    fn require_free(&self, pids: &[u32]) -> Result<()> {
        for (id, held) in &self.held {
            let others = held.crowd.borrow().processes();
            if let Some(pid) = others.iter().find(|pid| pids.contains(pid)) {
                let name = P::name(self.direction);
                let message =
                    format!("process {pid} is under limit {id}, and {name} has one limit for a process");
                return Err(Error::new(Kind::NoBackend, message));
            }
        }
        Ok(())
    }

    /// Holds the limit's processes in every namespace they are in, and their sockets there; how many these are.
    fn hold(&mut self, id: LimitId, look: &Look, fresh: Fresh) -> Result<u32> {
        let held = self.held.get(&id).ok_or_else(|| Self::unknown(id))?;
        let (crowd, rate) = (held.crowd.clone(), held.rate);
        let mut sockets = Found::default();
        let mut unlisted = look.inodes.clone();
        for (&inode, &thread) in &look.namespaces {
            match self.open_place(inode, thread) {
                Ok(()) => {}
                // Ended meanwhile.
                Err(error) if error.kind == Kind::NotFound && look.namespaces.len() > 1 => continue,
                Err(error) => return Err(error),
            }
            sockets.add(self.hold_in(inode, id, rate, &crowd, look, &mut unlisted, fresh)?);
        }
        for inode in self.look_abroad(id, look, &unlisted)? {
            sockets.add(self.hold_in(inode, id, rate, &crowd, look, &mut unlisted, fresh)?);
        }
        if let Some(held) = self.held.get_mut(&id) {
            held.unsettled = sockets.unsettled;
        }
        Ok(sockets.sockets)
    }

    /// Holds a limit in a place, and strikes the sockets that are there out of `unlisted`.
    #[expect(clippy::too_many_arguments, reason = "all of it is what `hold` knows")]
    fn hold_in(
        &mut self,
        inode: u64,
        id: LimitId,
        rate: u64,
        crowd: &crowd::Shared,
        look: &Look,
        unlisted: &mut HashSet<u32>,
        fresh: Fresh,
    ) -> Result<Found> {
        let Some(place) = self.places.get_mut(&inode) else { return Ok(Found::default()) };
        if !place.holds(id) {
            place.set_rate(id, rate)?;
            place.set_leaves(id, crowd.borrow().leaves())?;
        }
        let all = match fresh {
            Fresh::Now => place.sockets()?.into(),
            Fresh::Lately => seen(&mut self.seen, inode, place)?.sockets.clone(),
        };
        for socket in all.iter() {
            unlisted.remove(&socket.inode);
        }
        let knows = |cgroup| crowd.borrow().knows_by_cgroup(cgroup);
        let found = place.hold_old(id, &all, &look.inodes, &look.processes, &knows)?;
        Ok(Found { sockets: found.count, unsettled: found.unsettled })
    }

    fn change(&mut self, limit: &Limit) -> Result<Applied> {
        let held = self.held.get_mut(&limit.id).ok_or_else(|| Self::unknown(limit.id))?;
        let rate = limit.rate.bytes_per_second();
        let before = std::mem::replace(&mut held.rate, rate);
        let pids = held.crowd.borrow().processes();
        let changed = if before == rate { Ok(()) } else { self.set_rates(limit.id, rate) };
        let sockets = changed.and_then(|()| self.hold(limit.id, &Look::new(&pids), Fresh::Now));
        if sockets.is_err() && before != rate {
            if let Some(held) = self.held.get_mut(&limit.id) {
                held.rate = before;
            }
            if let Err(error) = self.set_rates(limit.id, before) {
                tracing::error!("limit {} can't go back to its old rate: {error}", limit.id);
            }
        }
        Ok(Applied { processes: pids.len() as u32, sockets: sockets? })
    }

    /// Changes the rate of a limit wherever it is in force; tries all places, also after one has failed.
    fn set_rates(&mut self, id: LimitId, rate: u64) -> Result<()> {
        self.in_all(id, |place| place.set_rate(id, rate))
    }

    /// Does it in every place that holds the limit. The first failure, after all have been tried.
    fn in_all(&mut self, id: LimitId, mut act: impl FnMut(&mut P) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        for place in self.places.values_mut().filter(|place| place.holds(id)) {
            result = result.and(act(place));
        }
        result
    }

    fn drop_empty(&mut self) {
        self.places.retain(|_, place| !place.is_empty());
        self.seen.retain(|inode, _| self.places.contains_key(inode));
    }
}

impl<P: Place> Backend for Crowded<P> {
    fn apply(&mut self, limit: &Limit) -> Result<Applied> {
        if self.held.contains_key(&limit.id) {
            return self.change(limit);
        }
        let applied = self.bring_in(limit);
        if applied.is_err()
            && let Err(error) = self.remove(limit.id)
        {
            tracing::error!("what limit {} has begun can't be taken back: {error}", limit.id);
        }
        applied
    }

    fn remove(&mut self, id: LimitId) -> Result<()> {
        if !self.held.contains_key(&id) {
            return Ok(());
        }
        // Until it is gone everywhere it is known, so that it can be tried again.
        let removed = self.in_all(id, |place| place.remove(id));
        self.drop_empty();
        if removed.is_ok() {
            self.held.remove(&id);
        }
        removed
    }

    fn stats(&mut self, id: LimitId) -> Result<Counters> {
        if !self.held.contains_key(&id) {
            return Err(Self::unknown(id));
        }
        if self.counts.as_ref().is_none_or(|(at, _)| at.elapsed() > FRESH) {
            let mut sums = BTreeMap::<LimitId, Counters>::new();
            for place in self.places.values_mut() {
                for (id, counters) in place.counts()? {
                    let sum = sums.entry(id).or_default();
                    *sum = add(*sum, counters);
                }
            }
            self.counts = Some((Instant::now(), sums));
        }
        Ok(self.counts.as_ref().and_then(|(_, counts)| counts.get(&id)).copied().unwrap_or_default())
    }

    fn check(&mut self, id: LimitId) -> Result<Checked> {
        let held = self.held.get_mut(&id).ok_or_else(|| Self::unknown(id))?;
        let (pids, moved) = held.crowd.borrow_mut().look()?;
        held.moved += moved;
        let mut escapes = Vec::new();
        if moved > 0 {
            let message = format!(
                "{moved} of its processes had been moved out of their cgroup; they are back under the limit"
            );
            escapes.push(Escape { kind: EscapeKind::UntrackedProcess, message });
            let crowd = held.crowd.clone();
            for place in self.places.values_mut().filter(|place| place.holds(id)) {
                place.set_leaves(id, crowd.borrow().leaves())?;
            }
        }
        let sockets = self.hold(id, &Look::new(&pids), Fresh::Lately)?;
        for (inode, place) in self.places.iter_mut().filter(|(_, place)| place.holds(id)) {
            if let Some(message) = &seen(&mut self.seen, *inode, place)?.fault {
                escapes.push(Escape { kind: EscapeKind::DeadLink, message: message.clone() });
            }
        }
        if self.lapsed.remove(&id) {
            let message =
                "the owner was too slow to say that it lives; until it did, nothing was limited".to_owned();
            escapes.push(Escape { kind: EscapeKind::LeaseExpired, message });
        }
        Ok(Checked { processes: pids.len() as u32, sockets, escapes, rungs: Vec::new() })
    }

    fn credit(&self, rate: Rate) -> u64 {
        P::credit(rate.bytes_per_second())
    }

    fn renew(&mut self) -> Result<()> {
        crowd::tidy();
        let mut failure = None;
        let mut lapsed = false;
        for place in self.places.values_mut() {
            match place.renew() {
                Ok(late) => lapsed |= late,
                Err(error) => failure = Some(error),
            }
        }
        if lapsed {
            self.lapsed.extend(self.held.keys());
        }
        failure.map_or(Ok(()), Err)
    }

    fn follow(&mut self) -> Result<Option<Duration>> {
        let unsettled: Vec<_> =
            self.held.iter().filter(|(_, held)| held.unsettled).map(|(id, _)| *id).collect();
        for &id in &unsettled {
            let pids = self.held.get(&id).map(|held| held.crowd.borrow().processes()).unwrap_or_default();
            self.hold(id, &Look::new(&pids), Fresh::Now)?;
        }
        Ok((!unsettled.is_empty()).then_some(FOLLOW))
    }

    fn ended(&mut self) -> Result<Vec<LimitId>> {
        let over = |held: &Held| held.crowd.borrow().processes().is_empty();
        Ok(self.held.iter().filter(|(_, held)| over(held)).map(|(id, _)| *id).collect())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn clear(&mut self) -> Result<()> {
        self.held.clear();
        self.seen.clear();
        self.places.clear();
        Ok(())
    }
}

/// What a limit has in one place, or in all.
#[derive(Default)]
struct Found {
    sockets: u32,
    unsettled: bool,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.sockets += other.sockets;
        self.unsettled |= other.unsettled;
    }
}

/// How new a list of sockets has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fresh {
    /// Made now.
    Now,
    /// Of the same tick.
    Lately,
}

/// A look at a place that is not older than [`FRESH`].
fn seen<'a, P: Place>(all: &'a mut BTreeMap<u64, Seen>, inode: u64, place: &mut P) -> Result<&'a Seen> {
    Ok(match all.entry(inode) {
        Entry::Vacant(vacant) => vacant.insert(Seen::new(place)?),
        Entry::Occupied(occupied) => {
            let known = occupied.into_mut();
            if known.at.elapsed() > FRESH {
                *known = Seen::new(place)?;
            }
            known
        }
    })
}

/// The network namespace of a process's socket; `None`: it is none of IP.
fn where_is(process: &Process, descriptor: u32) -> Result<Option<Namespace>> {
    let socket = sockets::borrow(process, descriptor)?;
    match sockets::is_inet(socket.as_fd()) {
        Ok(true) => Namespace::of_socket(socket.as_fd()).map(Some),
        _ => Ok(None),
    }
}

pub(super) fn add(a: Counters, b: Counters) -> Counters {
    Counters {
        passed_packets: a.passed_packets + b.passed_packets,
        passed_bytes: a.passed_bytes + b.passed_bytes,
        dropped_packets: a.dropped_packets + b.dropped_packets,
        dropped_bytes: a.dropped_bytes + b.dropped_bytes,
        delayed_packets: a.delayed_packets + b.delayed_packets,
        marked_packets: a.marked_packets + b.marked_packets,
        queue_us: None,
    }
}
