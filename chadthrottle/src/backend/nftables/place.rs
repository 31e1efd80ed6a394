//! The table of one network namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::Path,
};

use nix::sys::socket::{setsockopt, sockopt};

use super::plan::{self, BucketId, Drain, Nowhere, State};
use crate::{
    backend::addresses::{self, Address, Sockets},
    error::{Context, Error, Kind, Result},
    kernel::{
        fault,
        netns::Namespace,
        nft::{Count, Nft, Part, Step, Verdict},
        process,
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
pub(super) struct Place {
    namespace: Namespace,
    nft: Nft,
    diag: SockDiag,
    direction: Direction,
    state: State,
    nowhere: Nowhere,
    /// The limits' sockets that are older than they.
    old: BTreeMap<LimitId, BTreeSet<Address>>,
    /// Inodes of old sockets that are open to all, and whether others hold them.
    shared: HashMap<u32, bool>,
    versions: u32,
}

impl Place {
    /// Makes the table, which holds nobody yet.
    pub fn open(namespace: Namespace, direction: Direction) -> Result<Self> {
        let suffix = format!("{}-{direction}", std::process::id());
        let mut nft = Nft::open_in(&namespace, &suffix)?;
        nft.change(&plan::begin(direction, LEASE_MS)).map_err(about_us)?;
        let nowhere = match direction {
            Direction::Upload => nowhere(&namespace, &mut nft),
            Direction::Download => None,
        };
        fault::point("nft.table");
        let diag = SockDiag::open_in(&namespace)?;
        Ok(Self {
            namespace,
            nft,
            diag,
            direction,
            state: State::default(),
            nowhere,
            old: BTreeMap::new(),
            shared: HashMap::new(),
            versions: 0,
        })
    }

    /// Whether any limit is here.
    pub fn is_empty(&self) -> bool {
        self.state.limits.is_empty()
    }

    /// All sockets of the namespace.
    pub fn sockets(&mut self) -> Result<Vec<Socket>> {
        self.diag.list(&Protocol::ALL, false)
    }

    /// Makes a bucket with this rate, and empties it: a new one is full, and would pass a second's worth at once.
    pub fn make_bucket(&mut self, limit: LimitId, rate: u64) -> Result<BucketId> {
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
    pub fn set(&mut self, bucket: BucketId) -> Result<()> {
        let mut state = self.state.clone();
        state.buckets.retain(|id, _| id.limit != bucket.limit || *id == bucket);
        state.limits.insert(bucket.limit, bucket.version);
        self.become_state(state)
    }

    /// The limit's processes are in these leaves now.
    pub fn set_leaves(&mut self, limit: LimitId, leaves: impl Iterator<Item = plan::Place>) -> Result<()> {
        let mut state = self.state.clone();
        state.cgroups.retain(|_, id| *id != limit);
        state.cgroups.extend(leaves.map(|place| (place, limit)));
        self.become_state(state)
    }

    /// The limit ends here.
    pub fn remove(&mut self, limit: LimitId) -> Result<()> {
        self.old.remove(&limit);
        let mut state = self.state.clone();
        state.buckets.retain(|id, _| id.limit != limit);
        state.limits.remove(&limit);
        state.cgroups.retain(|_, id| *id != limit);
        state.addresses = addresses::by_address(&self.old);
        self.become_state(state)
    }

    /// Whether the limit is in force here.
    pub fn holds(&self, limit: LimitId) -> bool {
        self.state.limits.contains_key(&limit)
    }

    /// Looks for the limit's sockets that are older than it among those of the namespace (`all`), and holds them.
    /// `inodes` are those of its processes (`pids`), `knows` says which cgroups are known by themselves.
    pub fn hold_old(
        &mut self,
        limit: LimitId,
        all: &[Socket],
        inodes: &HashSet<u32>,
        pids: &HashSet<u32>,
        knows: &dyn Fn(Option<u64>) -> bool,
    ) -> Result<Sockets> {
        let open: HashSet<u32> = addresses::open_to_all(all, inodes, knows).collect();
        self.find_sharers(&open, pids)?;
        let elsewhere = open.iter().copied().filter(|inode| self.shared.get(inode) == Some(&true)).collect();
        let none = BTreeSet::new();
        let before = self.old.get(&limit).unwrap_or(&none);
        let found = addresses::addresses(all, inodes, knows, &elsewhere, before);
        if found.addresses != *before {
            self.old.insert(limit, found.addresses.clone());
            let mut state = self.state.clone();
            state.addresses = addresses::by_address(&self.old);
            state.slots = state.addresses.values().map(Vec::len).max().unwrap_or(0).max(state.slots);
            self.become_state(state)?;
        }
        Ok(found)
    }

    /// Looks which of these others hold too, once for each.
    fn find_sharers(&mut self, open: &HashSet<u32>, pids: &HashSet<u32>) -> Result<()> {
        let new: HashSet<u32> =
            open.iter().copied().filter(|inode| !self.shared.contains_key(inode)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let proc = Path::new(process::PROC);
        let mut elsewhere = HashSet::<u32>::new();
        for pid in process::all(proc)?.into_iter().filter(|pid| !pids.contains(pid)) {
            elsewhere.extend(process::socket_inodes(proc, pid).intersection(&new));
        }
        self.shared.extend(new.into_iter().map(|inode| (inode, elsewhere.contains(&inode))));
        Ok(())
    }

    fn become_state(&mut self, state: State) -> Result<()> {
        let steps = plan::change(self.direction, &self.state, &state, &self.nowhere);
        self.nft.change(&steps).map_err(about_us)?;
        self.state = state;
        Ok(())
    }

    /// Extends the lease. True when it had run out.
    pub fn renew(&mut self) -> Result<bool> {
        match self.nft.change(&plan::renew(LEASE_MS)) {
            Ok(()) => Ok(false),
            Err(error) if error.kind == Kind::NotFound => {
                self.nft.change(&[plan::add_lease(LEASE_MS)])?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Fails when the kernel does not have what should hold the limits.
    pub fn verify(&mut self) -> Result<()> {
        let rules = self.nft.rules()?;
        for id in self.state.limits.keys() {
            let chain = format!("limit-{id}");
            if !rules.contains(&chain) {
                return Err(Error::failed(format!("table {} has no rules for limit {id}", self.nft.table())));
            }
        }
        Ok(())
    }

    /// What every limit let through and refused here.
    pub fn counts(&mut self) -> Result<BTreeMap<LimitId, Counters>> {
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
