//! The table of one network namespace.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use nix::sys::socket::{setsockopt, sockopt};

use super::plan::{self, BucketId, Drain, Nowhere, State};
use crate::{
    backend::{addresses::Sockets, crowd::Leaf, crowded::Place, old::OldSockets},
    error::{Context, Error, Kind, Result},
    kernel::{
        fault,
        netns::Namespace,
        nft::{Count, Nft, Part, Step, Verdict},
        sock_diag::{Protocol, SockDiag, Socket},
    },
    model::{Counters, Direction, LimitId},
};

/// How long the table holds anybody without a sign of life, milliseconds.
const LEASE_MS: u64 = 3_000;

/// A queue at which nobody listens.
const QUEUE: u16 = 0xc4ad;

/// Marks our packets that empty a bucket.
const MARK: u32 = 0xc4ad_d4a1;
/// The largest datagram, and what it is charged as.
const DATAGRAM: usize = 65_507;
const CHARGED: u64 = 65_535;
/// Most bytes that are spent on emptying a bucket: more would take too long.
const MOST_DRAINED: u64 = 256_000_000;

/// A network namespace where limited processes have sockets.
pub(super) struct Table {
    namespace: Namespace,
    nft: Nft,
    diag: SockDiag,
    direction: Direction,
    state: State,
    nowhere: Nowhere,
    old: OldSockets,
    versions: u32,
}

impl Table {
    /// Makes a bucket with this rate, and empties it: a new one is full, and would pass a second's worth at once.
    fn make_bucket(&mut self, limit: LimitId, rate: u64) -> Result<BucketId> {
        self.versions += 1;
        let bucket = BucketId { limit, version: self.versions };
        let mut state = self.state.clone();
        state.buckets.insert(bucket, rate);
        state.drain = Some(Drain { mark: MARK, bucket });
        self.become_state(state)?;
        let size = rate + u64::from(plan::BURST);
        let spent = self.namespace.run(|| drain(size.min(MOST_DRAINED)));
        if let Err(error) = spent {
            tracing::debug!("the bucket of limit {limit} begins full: {error}");
        }
        let mut state = self.state.clone();
        state.drain = None;
        self.become_state(state)?;
        Ok(bucket)
    }

    /// Gives a limit this bucket.
    fn set(&mut self, bucket: BucketId) -> Result<()> {
        let mut state = self.state.clone();
        state.buckets.retain(|id, _| id.limit != bucket.limit || *id == bucket);
        state.limits.insert(bucket.limit, bucket.version);
        self.become_state(state)
    }

    fn become_state(&mut self, state: State) -> Result<()> {
        let steps = plan::change(self.direction, &self.state, &state, &self.nowhere);
        self.nft.change(&steps).map_err(about_us)?;
        self.state = state;
        Ok(())
    }
}

impl Place for Table {
    const NESTS: bool = true;

    fn name(_: Direction) -> &'static str {
        "nftables"
    }

    fn open(namespace: Namespace, direction: Direction) -> Result<Self> {
        let suffix = format!("{}-{direction}", std::process::id());
        let mut nft = Nft::open_in(&namespace, &suffix)?;
        nft.change(&plan::begin(direction, LEASE_MS)).map_err(about_us)?;
        let nowhere = match direction {
            Direction::Upload => nowhere(&namespace, &mut nft),
            Direction::Download => None,
        };
        fault::point("crowd.table");
        let diag = SockDiag::open_in(&namespace)?;
        Ok(Self {
            namespace,
            nft,
            diag,
            direction,
            state: State::default(),
            nowhere,
            old: OldSockets::default(),
            versions: 0,
        })
    }

    fn is_empty(&self) -> bool {
        self.state.limits.is_empty()
    }

    fn sockets(&mut self) -> Result<Vec<Socket>> {
        self.diag.list(&Protocol::ALL, false)
    }

    fn set_rate(&mut self, limit: LimitId, rate: u64) -> Result<()> {
        let bucket = self.make_bucket(limit, rate)?;
        self.set(bucket)
    }

    fn set_leaves(&mut self, limit: LimitId, leaves: &[Leaf]) -> Result<()> {
        let mut state = self.state.clone();
        state.cgroups.retain(|_, id| *id != limit);
        let places = leaves.iter().map(|leaf| plan::Place { level: leaf.level, cgroup: leaf.id });
        state.cgroups.extend(places.map(|place| (place, limit)));
        self.become_state(state)
    }

    fn remove(&mut self, limit: LimitId) -> Result<()> {
        self.old.forget(limit);
        let mut state = self.state.clone();
        state.buckets.retain(|id, _| id.limit != limit);
        state.limits.remove(&limit);
        state.cgroups.retain(|_, id| *id != limit);
        state.addresses = self.old.by_address();
        self.become_state(state)
    }

    fn holds(&self, limit: LimitId) -> bool {
        self.state.limits.contains_key(&limit)
    }

    fn hold_old(
        &mut self,
        limit: LimitId,
        all: &[Socket],
        inodes: &HashSet<u32>,
        pids: &HashSet<u32>,
        knows: &dyn Fn(Option<u64>) -> bool,
    ) -> Result<Sockets> {
        let (found, changed) = self.old.look(limit, all, inodes, pids, knows)?;
        if changed {
            let mut state = self.state.clone();
            state.addresses = self.old.by_address();
            state.slots = state.addresses.values().map(Vec::len).max().unwrap_or(0).max(state.slots);
            self.become_state(state)?;
        }
        Ok(found)
    }

    fn renew(&mut self) -> Result<bool> {
        match self.nft.change(&plan::renew(LEASE_MS)) {
            Ok(()) => Ok(false),
            Err(error) if error.kind == Kind::NotFound => {
                self.nft.change(&[plan::add_lease(LEASE_MS)])?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn verify(&mut self) -> Result<()> {
        let rules = self.nft.rules()?;
        for id in self.state.limits.keys() {
            let chain = format!("limit-{id}");
            if !rules.contains(&chain) {
                return Err(Error::failed(format!("table {} has no rules for limit {id}", self.nft.table())));
            }
        }
        Ok(())
    }

    fn counts(&mut self) -> Result<BTreeMap<LimitId, Counters>> {
        let counts: HashMap<String, Count> = self.nft.counters()?.into_iter().collect();
        let of = |id: &LimitId| {
            let [passed, dropped] =
                plan::counters(*id).map(|name| counts.get(&name).copied().unwrap_or_default());
            let counters = Counters {
                passed_packets: passed.packets,
                passed_bytes: passed.bytes,
                dropped_packets: dropped.packets,
                dropped_bytes: dropped.bytes,
                ..Counters::default()
            };
            (*id, counters)
        };
        Ok(self.state.limits.keys().map(of).collect())
    }

    fn credit(rate: u64) -> u64 {
        rate + u64::from(plan::BURST)
    }
}

/// What nf_tables does not find is not the target.
fn about_us(error: Error) -> Error {
    if error.kind == Kind::NotFound { Error { kind: Kind::NoBackend, ..error } } else { error }
}

/// Where packets can vanish: into a queue without a listener. `None`: nowhere.
fn nowhere(namespace: &Namespace, nft: &mut Nft) -> Nowhere {
    const TRIAL: &str = "trial";
    let listeners = namespace.run(|| {
        Ok(fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue").unwrap_or_default())
    });
    let number = QUEUE.to_string();
    if !listeners.is_ok_and(|text| text.lines().all(|line| line.split_whitespace().next() != Some(&*number)))
    {
        return None;
    }
    [false, true].map(|xtables| Verdict::Vanish { queue: QUEUE, xtables }).into_iter().find(|verdict| {
        let chain = || TRIAL.to_owned();
        let steps = [Step::AddChain(chain(), None), Step::AddRule(chain(), vec![Part::Do(verdict.clone())])];
        let tried = nft.change(&steps);
        let taken = tried.is_ok();
        tracing::debug!("'{verdict}': {tried:?}");
        if taken && let Err(error) = nft.change(&[Step::FlushChain(chain()), Step::DeleteChain(chain())]) {
            tracing::debug!("{error}");
        }
        taken
    })
}

/// Sends packets that are charged `bytes` and go nowhere.
fn drain(bytes: u64) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("open a socket")?;
    setsockopt(&socket.as_fd(), sockopt::Mark, &MARK).context("mark a socket")?;
    // The discard port of nobody: the packets are dropped on their way out.
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let packet = vec![0; DATAGRAM];
    for _ in 0..bytes.div_ceil(CHARGED) {
        match socket.send_to(&packet, target) {
            // Dropped, as it should be.
            Err(cause) if cause.raw_os_error() == Some(libc::EPERM) => {}
            Ok(_) => return Err(Error::failed("a packet that should be dropped was sent")),
            Err(cause) => return Err(cause).context("send a packet"),
        }
    }
    Ok(())
}
