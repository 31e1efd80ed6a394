//! What holds limits with HTB in one network namespace: on upload a tree on each device, on download one on an IFB
//! of ours, to which what arrives at the devices is sent.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use super::{
    devices::{Arrival, Planted},
    means::{Means, branches},
    plan::{self, State},
};
use crate::{
    backend::{
        addresses::{self, Address, Sockets},
        crowd::Leaf,
        crowded::{Place, add},
        old::OldSockets,
        tables,
        tree::RELEASED,
    },
    error::{Error, Kind, Result},
    kernel::{
        fault,
        netns::Namespace,
        nft::Nft,
        sock_diag::{Protocol, SockDiag, Socket},
        tc::Tc,
    },
    model::{Counters, Direction, LimitId},
};

/// How long anybody is held without a sign of life, milliseconds.
const LEASE_MS: u64 = 3_000;

/// What may wait: this part of a second's worth, within bounds, bytes.
const PART_UPLOAD: u64 = 4;
/// A download's sender takes what waits for a part of the line: the longer, the later it learns of a loss. With a
/// quarter of a second eight connections of which much was lost at once sent up to 7 % twice: their timers did not
/// wait for what was in the queue.
const PART_DOWNLOAD: u64 = 8;
const LEAST_UPLOAD: u64 = 256 * 1024;
const LEAST_DOWNLOAD: u64 = 96 * 1024;
const MOST_BYTES: u64 = 8 * 1024 * 1024;

/// How long what waits has to leave when its limit is over.
const DRAIN: Duration = Duration::from_millis(200);
const DRAIN_PAUSE: Duration = Duration::from_millis(2);

/// A network namespace.
pub(super) struct Room<M: Means> {
    pub(super) inode: u64,
    pub(super) namespace: Namespace,
    pub(super) nft: Nft,
    pub(super) tc: Tc,
    pub(super) diag: SockDiag,
    pub(super) direction: Direction,
    pub(super) state: State,
    pub(super) rates: BTreeMap<LimitId, u64>,
    pub(super) old: OldSockets,
    pub(super) trees: BTreeMap<u32, Planted<M>>,
    pub(super) arrival: Option<Arrival>,
    /// Numbers of chains at devices that were given so far.
    pub(super) chains: u32,
    /// Limited sockets talk over loopback.
    pub(super) loopback: bool,
}

impl<M: Means> Room<M> {
    fn become_state(&mut self, state: State) -> Result<()> {
        let steps = plan::change(self.direction, &self.state, &state);
        self.nft.change(&steps).map_err(about_us)?;
        self.state = state;
        Ok(())
    }

    fn set_branch(&mut self, limit: LimitId, rate: u64) -> Result<()> {
        let room = room(self.direction, rate);
        self.in_all(|tree, tc| tree.set_branch(tc, plan::branch(limit), rate, room))
    }

    /// Does it to every tree; the first failure, after all have been tried. A tree that is gone is none: `equip` makes
    /// it anew, or forgets it with its device.
    fn in_all(&mut self, act: impl Fn(M, &mut Tc) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        for planted in self.trees.values() {
            match act(planted.tree, &mut self.tc) {
                Err(error) if error.kind == Kind::NotFound => {
                    tracing::debug!("{} of {}: {error}", M::WHAT, planted.name);
                }
                done => result = result.and(done),
            }
        }
        result
    }

    /// Which limit holds an address of older sockets: the first that does. What arrives is met before it is routed, where
    /// a port alone may be that of another host behind this one: there it stands for this host's own addresses.
    fn held_addresses(&mut self) -> Result<BTreeMap<Address, LimitId>> {
        let holders = self.old.by_address();
        let holders = holders.into_iter().filter_map(|(address, ids)| Some((address, *ids.first()?)));
        if self.direction == Direction::Upload {
            return Ok(holders.collect());
        }
        let (mut held, mut ports) = (BTreeMap::new(), Vec::new());
        for (address, id) in holders {
            match address {
                Address::Port { protocol, port } => ports.push((protocol, port, id)),
                _ => drop(held.insert(address, id)),
            }
        }
        if !ports.is_empty() {
            let mut own = self.tc.own_addresses()?;
            own.push(Ipv4Addr::BROADCAST.into());
            for (protocol, port, id) in ports {
                let here =
                    own.iter().map(|own| Address::Bind { protocol, local: SocketAddr::new(*own, port) });
                for address in here {
                    held.entry(address).or_insert(id);
                }
            }
        }
        Ok(held)
    }

    /// Lets what waits in a limit's classes leave, and removes them everywhere.
    fn cut(&mut self, limit: LimitId) -> Result<()> {
        let branch = plan::branch(limit);
        if !M::QUEUES {
            return self.in_all(|police, tc| police.cut_branch(tc, branch));
        }
        let released = self.set_branch(limit, RELEASED);
        let deadline = Instant::now() + DRAIN;
        let drained = self.in_all(|tree, tc| {
            let waits = |tc: &mut Tc| -> Result<bool> {
                let counts = tree.counts(tc)?;
                Ok(counts.iter().any(|(class, count)| {
                    (*class == branch.bulk || *class == branch.urgent) && count.waiting > 0
                }))
            };
            while waits(tc)? && Instant::now() < deadline {
                thread::sleep(DRAIN_PAUSE);
            }
            Ok(())
        });
        let cut = self.in_all(|tree, tc| tree.cut_branch(tc, branch));
        if let Err(error) = released.and(drained) {
            tracing::debug!("what waits under limit {limit} is dropped: {error}");
        }
        cut
    }
}

/// Bytes that may wait.
pub(super) fn room(direction: Direction, rate: u64) -> u32 {
    let (part, least) = match direction {
        Direction::Upload => (PART_UPLOAD, LEAST_UPLOAD),
        Direction::Download => (PART_DOWNLOAD, LEAST_DOWNLOAD),
    };
    (rate / part).clamp(least, MOST_BYTES) as u32
}

/// Whether both ends of a socket are on this host, or may be, as far as its addresses tell: UDP that is not connected
/// speaks with anybody. What a listener accepts has an address of its own.
fn is_local(address: Address) -> bool {
    const UDP: u8 = libc::IPPROTO_UDP as u8;
    match address {
        Address::Flow { local, remote, .. } => local.ip().is_loopback() || local.ip() == remote.ip(),
        Address::Bind { protocol, local } => protocol == UDP || local.ip().is_loopback(),
        Address::Port { protocol, .. } => protocol == UDP,
    }
}

/// What nf_tables and tc do not find is not the target.
pub(super) fn about_us(error: Error) -> Error {
    if error.kind == Kind::NotFound { Error { kind: Kind::NoBackend, ..error } } else { error }
}

impl<M: Means> Place for Room<M> {
    const NESTS: bool = false;

    fn name(direction: Direction) -> &'static str {
        M::name(direction)
    }

    fn open(namespace: Namespace, direction: Direction) -> Result<Self> {
        let inode = namespace.inode()?;
        let suffix = format!("{}-{}", std::process::id(), M::table(direction));
        let mut nft = Nft::open_in(&namespace, &suffix)?;
        nft.change(&plan::begin(direction, LEASE_MS)).map_err(about_us)?;
        fault::point("crowd.table");
        let mut place = Self {
            inode,
            nft,
            tc: Tc::open_in(&namespace)?,
            diag: SockDiag::open_in(&namespace)?,
            namespace,
            direction,
            state: State::default(),
            rates: BTreeMap::new(),
            old: OldSockets::default(),
            trees: BTreeMap::new(),
            arrival: None,
            chains: 0,
            loopback: false,
        };
        place.equip().map_err(about_us)?;
        Ok(place)
    }

    fn is_empty(&self) -> bool {
        self.state.limits.is_empty()
    }

    fn holds(&self, limit: LimitId) -> bool {
        self.state.limits.contains(&limit)
    }

    fn set_rate(&mut self, limit: LimitId, rate: u64) -> Result<()> {
        if let Some(other) = plan::clash(&self.state.limits, limit) {
            let message =
                format!("limit {limit} would have the classes of limit {other}; a new one will not");
            return Err(Error::new(Kind::NoBackend, message));
        }
        self.set_branch(limit, rate).map_err(about_us)?;
        self.rates.insert(limit, rate);
        if self.holds(limit) {
            return Ok(());
        }
        if let Some(arrival) = &mut self.arrival {
            arrival.forwarder.change(&[plan::add_classes(limit)]).map_err(about_us)?;
        }
        let mut state = self.state.clone();
        state.limits.insert(limit);
        self.become_state(state)
    }

    fn set_leaves(&mut self, limit: LimitId, leaves: &[Leaf]) -> Result<()> {
        let mut state = self.state.clone();
        state.cgroups.retain(|_, id| *id != limit);
        let places = leaves.iter().map(|leaf| tables::Place { level: leaf.level, cgroup: leaf.id });
        state.cgroups.extend(places.map(|place| (place, limit)));
        self.become_state(state)
    }

    fn sockets(&mut self) -> Result<Vec<Socket>> {
        self.diag.list(&Protocol::ALL, false)
    }

    /// On download no socket is known by its cgroup to what only receives, so all are held by their addresses too.
    fn hold_old(
        &mut self,
        limit: LimitId,
        all: &[Socket],
        inodes: &HashSet<u32>,
        pids: &HashSet<u32>,
        knows: &dyn Fn(Option<u64>) -> bool,
    ) -> Result<Sockets> {
        let (found, _) = match self.direction {
            Direction::Upload => self.old.look(limit, all, inodes, pids, knows)?,
            Direction::Download => self.old.look(limit, all, inodes, pids, &|_| false)?,
        };
        let mine = all.iter().filter(|socket| inodes.contains(&socket.inode));
        self.loopback |= mine.filter_map(addresses::address).any(is_local);
        let equipped = self.equip().map_err(about_us);
        // The host's own addresses may have changed, too.
        let addresses = self.held_addresses()?;
        if addresses != self.state.addresses {
            self.become_state(State { addresses, ..self.state.clone() })?;
        }
        equipped?;
        Ok(found)
    }

    fn remove(&mut self, limit: LimitId) -> Result<()> {
        self.old.forget(limit);
        self.rates.remove(&limit);
        let mut state = self.state.clone();
        state.limits.remove(&limit);
        state.cgroups.retain(|_, id| *id != limit);
        // What the limit shared with another is that one's now.
        state.addresses = self.held_addresses()?;
        self.become_state(state)?;
        let told = match &mut self.arrival {
            Some(arrival) => arrival.forwarder.change(&[plan::delete_classes(limit)]),
            None => Ok(()),
        };
        self.cut(limit).and(told).map_err(about_us)
    }

    fn renew(&mut self) -> Result<bool> {
        match self.nft.change(&tables::renew(LEASE_MS)) {
            Ok(()) => Ok(false),
            Err(error) if error.kind == Kind::NotFound => {
                self.nft.change(&[tables::add_lease(LEASE_MS)])?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn verify(&mut self) -> Result<()> {
        let rules = self.nft.rules()?;
        for id in &self.state.limits {
            if !rules.contains(&plan::chain(*id)) {
                return Err(Error::failed(format!("table {} has no rules for limit {id}", self.nft.table())));
            }
        }
        if self.direction == Direction::Download && self.arrival.is_none() {
            return Err(Error::failed("the IFB is gone"));
        }
        for planted in self.trees.values() {
            if !planted.tree.stands(&mut self.tc, branches(self.rates.keys()))? {
                return Err(Error::failed(format!(
                    "network device {} has lost its {}",
                    planted.name,
                    M::WHAT
                )));
            }
        }
        Ok(())
    }

    fn counts(&mut self) -> Result<BTreeMap<LimitId, Counters>> {
        let mut sums: BTreeMap<LimitId, Counters> =
            self.state.limits.iter().map(|id| (*id, Counters::default())).collect();
        for planted in self.trees.values() {
            let counts: BTreeMap<u32, _> = planted.tree.counts(&mut self.tc)?.into_iter().collect();
            for (id, sum) in &mut sums {
                let branch = plan::branch(*id);
                for count in [branch.bulk, branch.urgent].iter().filter_map(|class| counts.get(class)) {
                    let packets = u64::from(count.packets);
                    let counters = Counters {
                        passed_packets: packets,
                        passed_bytes: count.bytes.saturating_sub(packets * planted.header),
                        dropped_packets: u64::from(count.dropped),
                        ..Counters::default()
                    };
                    *sum = add(*sum, counters);
                }
            }
        }
        Ok(sums)
    }

    fn credit(rate: u64) -> u64 {
        M::credit(rate)
    }
}

impl<M: Means> Drop for Room<M> {
    fn drop(&mut self) {
        // Before what it leads to.
        self.arrival = None;
        for limit in std::mem::take(&mut self.rates).into_keys() {
            if let Err(error) = self.cut(limit) {
                tracing::debug!("{error}");
            }
        }
        for planted in std::mem::take(&mut self.trees).into_values() {
            planted.unmake(&mut self.tc);
        }
    }
}
