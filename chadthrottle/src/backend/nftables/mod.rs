//! The nftables backend: a token bucket of nf_tables that drops, for the sockets of a cgroup of the limit's own.
//!
//! - `plan`: what the table holds, as data.
//! - `place`: the table of one network namespace.
//! - `requirements`: what it needs, for the probe and `doctor`.
//!
//! The processes are moved to a leaf below their cgroup ([`super::crowd`]); sockets that are older than the limit are
//! known by their addresses ([`super::addresses`]). The table vanishes with this process, and holds nobody without a
//! sign of life. Processes in several network namespaces are held in each of them by itself.

mod place;
mod plan;
mod requirements;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::RawFd,
    path::Path,
    time::{Duration, Instant},
};

use place::Place;

use super::{Applied, Backend, Checked, Driver, Priority, Probe, Site, crowd};
use crate::{
    error::{Error, Kind, Result},
    kernel::{caps, fault, netns::Namespace, process},
    model::{Counters, Direction, Escape, EscapeKind, Limit, LimitId, Rate},
};

/// This backend's line in the table.
pub const DRIVER: Driver = Driver {
    name: "nftables",
    priority: Priority::Better,
    directions: &Direction::ALL,
    probe: requirements::probe,
    requirements: requirements::list,
    open: |site, direction| Ok(Box::new(Nftables::open(site, direction)?)),
};

/// How often sockets are looked for while old ones may get an address.
const FOLLOW: Duration = Duration::from_millis(100);
/// One count serves all limits of a tick.
const FRESH: Duration = Duration::from_millis(400);

/// One direction of a limit.
struct Held {
    crowd: crowd::Shared,
    rate: u64,
    /// What passed in places that are gone.
    before: Counters,
    /// Old sockets may get an address.
    unsettled: bool,
    /// Processes have been moved out of their leaf.
    moved: usize,
}

/// Holds the limits of one direction.
struct Nftables {
    site: Site,
    direction: Direction,
    places: BTreeMap<u64, Place>,
    held: BTreeMap<LimitId, Held>,
    counts: Option<(Instant, BTreeMap<LimitId, Counters>)>,
    lapsed: HashSet<LimitId>,
}

/// A limit's processes and what they have open.
struct Look {
    processes: HashSet<u32>,
    /// Inodes of sockets of all kinds.
    inodes: HashSet<u32>,
    /// Network namespaces, each with one process in it.
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
            if let Some(inode) = process::network_namespace(proc, pid) {
                look.namespaces.entry(inode).or_insert(pid);
            }
        }
        look
    }
}

fn unknown(id: LimitId) -> Error {
    Error::new(Kind::NotFound, format!("nftables holds no limit {id}"))
}

impl Nftables {
    fn open(site: &Site, direction: Direction) -> Result<Self> {
        caps::require("limiting with nftables", &caps::FOR_CROWDS)?;
        if let Probe::Unavailable { reason, mend } = requirements::probe(site) {
            let mend = mend.map(|mend| format!(" (mend: {mend})")).unwrap_or_default();
            return Err(Error::new(Kind::NoBackend, format!("{reason}{mend}")));
        }
        Ok(Self {
            site: site.clone(),
            direction,
            places: BTreeMap::new(),
            held: BTreeMap::new(),
            counts: None,
            lapsed: HashSet::new(),
        })
    }

    fn place(&mut self, inode: u64, pid: u32) -> Result<&mut Place> {
        if !self.places.contains_key(&inode) {
            let namespace = Namespace::of_process(pid)?;
            if namespace.inode()? != inode {
                return Err(Error::new(
                    Kind::NotFound,
                    format!("process {pid} has moved to another network namespace"),
                ));
            }
            self.places.insert(inode, Place::open(namespace, self.direction)?);
        }
        self.places.get_mut(&inode).ok_or_else(|| Error::failed("no place"))
    }

    fn bring_in(&mut self, limit: &Limit) -> Result<Applied> {
        let crowd = crowd::join(limit, &self.site)?;
        let rate = limit.rate.bytes_per_second();
        let pids = crowd.borrow().processes();
        let held = Held { crowd, rate, before: Counters::default(), unsettled: false, moved: 0 };
        self.held.insert(limit.id, held);
        let look = Look::new(&pids);
        let sockets = self.hold(limit.id, &look)?;
        // What was on its way from one table to another when it was looked at.
        let again = Look::new(&pids);
        let sockets = if again.inodes == look.inodes { sockets } else { self.hold(limit.id, &again)? };
        fault::point("nft.applied");
        for place in self.places.values_mut() {
            place.verify()?;
        }
        Ok(Applied { processes: pids.len() as u32, sockets })
    }

    /// Holds the limit's processes in every namespace they are in, and their sockets there; how many these are.
    fn hold(&mut self, id: LimitId, look: &Look) -> Result<u32> {
        let held = self.held.get(&id).ok_or_else(|| unknown(id))?;
        let (crowd, rate) = (held.crowd.clone(), held.rate);
        let mut sockets = 0;
        let mut unsettled = false;
        for (&inode, &pid) in &look.namespaces {
            let place = match self.place(inode, pid) {
                Ok(place) => place,
                // Ended meanwhile.
                Err(error) if error.kind == Kind::NotFound && look.namespaces.len() > 1 => continue,
                Err(error) => return Err(error),
            };
            if !place.holds(id) {
                let bucket = place.make_bucket(id, rate)?;
                place.set(bucket)?;
                place.set_leaves(id, leaves(&crowd.borrow()))?;
            }
            let all = place.sockets()?;
            let knows = |cgroup| crowd.borrow().knows_by_cgroup(cgroup);
            let found = place.hold_old(id, &all, &look.inodes, &look.processes, &knows)?;
            sockets += found.count;
            unsettled |= found.unsettled;
        }
        if let Some(held) = self.held.get_mut(&id) {
            held.unsettled = unsettled;
        }
        Ok(sockets)
    }

    fn change(&mut self, limit: &Limit) -> Result<Applied> {
        let held = self.held.get_mut(&limit.id).ok_or_else(|| unknown(limit.id))?;
        let rate = limit.rate.bytes_per_second();
        let crowd = held.crowd.clone();
        if held.rate != rate {
            held.rate = rate;
            for place in self.places.values_mut().filter(|place| place.holds(limit.id)) {
                let bucket = place.make_bucket(limit.id, rate)?;
                place.set(bucket)?;
            }
        }
        let pids = crowd.borrow().processes();
        let sockets = self.hold(limit.id, &Look::new(&pids))?;
        Ok(Applied { processes: pids.len() as u32, sockets })
    }

    fn drop_empty(&mut self) {
        self.places.retain(|_, place| !place.is_empty());
    }
}

fn leaves(crowd: &crowd::Crowd) -> impl Iterator<Item = plan::Place> + use<> {
    let places: Vec<_> =
        crowd.leaves().iter().map(|leaf| plan::Place { level: leaf.level, cgroup: leaf.id }).collect();
    places.into_iter()
}

impl Backend for Nftables {
    fn apply(&mut self, limit: &Limit) -> Result<Applied> {
        if self.held.contains_key(&limit.id) {
            return self.change(limit);
        }
        let applied = self.bring_in(limit);
        if applied.is_err() {
            self.remove(limit.id)?;
        }
        applied
    }

    fn remove(&mut self, id: LimitId) -> Result<()> {
        if self.held.remove(&id).is_none() {
            return Ok(());
        }
        for place in self.places.values_mut().filter(|place| place.holds(id)) {
            place.remove(id)?;
        }
        self.drop_empty();
        Ok(())
    }

    fn stats(&mut self, id: LimitId) -> Result<Counters> {
        let before = self.held.get(&id).ok_or_else(|| unknown(id))?.before;
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
        let now = self.counts.as_ref().and_then(|(_, counts)| counts.get(&id)).copied().unwrap_or_default();
        Ok(add(before, now))
    }

    fn check(&mut self, id: LimitId) -> Result<Checked> {
        let held = self.held.get_mut(&id).ok_or_else(|| unknown(id))?;
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
                place.set_leaves(id, leaves(&crowd.borrow()))?;
            }
        }
        let sockets = self.hold(id, &Look::new(&pids))?;
        for place in self.places.values_mut().filter(|place| place.holds(id)) {
            if let Err(error) = place.verify() {
                escapes.push(Escape { kind: EscapeKind::DeadLink, message: error.to_string() });
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
        rate.bytes_per_second() + u64::from(plan::BURST)
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
            self.hold(id, &Look::new(&pids))?;
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
        self.places.clear();
        Ok(())
    }
}

fn add(a: Counters, b: Counters) -> Counters {
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
