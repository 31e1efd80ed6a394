//! Pacing of connections that were open before their limit. New ones follow the level by themselves, in the
//! kernel; a connection whose establishment no program saw gets no callbacks, and is set from here.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use chadthrottle_common::{
    abi::{Flow, ProcessEntry, RECORD_FOLLOWS, RECORD_LISTENER, SocketRecord, Tag, TokenBucket},
    pacing::{self, payload_rate},
};

use super::{holder::Holder, members};
use crate::{
    error::{Context, Result},
    kernel::{
        bpf::{FlowMap, Loaded, fitter::Fitter, sys},
        cgroup,
        matching::Census,
        netns::Namespace,
        process::{self, Process},
        sockets,
    },
    model::{Direction, LimitId, Narrowing, Target},
};

const IPPROTO_TCP: u32 = 6;

/// A level that moved by less than this fraction is not worth a system call; one at which turns are told has to be closer.
const TOLERANCE: u64 = 32;
const TOLERANCE_IN_TURN: u64 = 128;

/// Up to so many connections are told their turns: each has to be asked what it found, every time.
const MOST_IN_TURN: usize = 64;

/// How often the owner looks whether a level has moved, while it has connections to set itself.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

/// How often it looks whether round trips allow another window meanwhile: a line that was full when the limit was set empties.
const WINDOWS_EVERY: Duration = Duration::from_secs(1);

impl Holder {
    /// Lets the connections that can't do so themselves follow the levels of their limits. Returns when to
    /// call again; `None`: there are none now.
    pub fn follow(&mut self) -> Result<Option<Duration>> {
        if !self.held.values().any(|held| held.rates.get(Direction::Upload).is_some()) {
            return Ok(None);
        }
        let buckets = self.loaded.entries::<u64, [TokenBucket; 2]>("CGROUP_BUCKETS")?;
        let uploads: HashMap<u64, TokenBucket> =
            buckets.into_iter().map(|(key, pair)| (key, pair[Direction::Upload.index()])).collect();
        // The last look will do, as long as checks renew it.
        if self.look.is_none() {
            self.look()?;
        }
        let Some(look) = &mut self.look else { return Ok(None) };
        let mut wanted = HashMap::<u32, Vec<(TokenBucket, &Narrowing)>>::new();
        for held in self.held.values() {
            // One that is for downloads alone counts, too: several limits tell no turn.
            let Some(bucket) = uploads.get(&held.key) else { continue };
            for pid in look.members.get(&held.key).into_iter().flatten() {
                wanted.entry(*pid).or_default().push((*bucket, &held.narrowing));
            }
        }
        let mut ours =
            |pid: &u32| look.sockets_of_process(*pid).iter().filter(|it| is_ours_to_pace(it)).count();
        let few = wanted.keys().map(&mut ours).sum::<usize>() <= MOST_IN_TURN;
        let anew = few && self.windows_at.is_none_or(|at| at.elapsed() >= WINDOWS_EVERY);
        if anew {
            self.windows_at = Some(Instant::now());
        }
        let mut due = Vec::new();
        let mut any = false;
        for (pid, limits) in wanted {
            let turns = matches!(limits[..], [(TokenBucket { rate_bps: ..pacing::FAST, .. }, _)]);
            for record in look.sockets_of_process(pid).iter_mut().filter(|record| is_ours_to_pace(record)) {
                let covers =
                    |narrowing: &Narrowing| narrowing.covers(record.remote, record.remote_port as u16);
                let levels = limits.iter().filter(|(_, narrowing)| covers(narrowing)).map(|(it, _)| it.level);
                let Some(level) = levels.filter(|level| *level != 0).min() else { continue };
                any = true;
                let (level, tolerance) = if few && turns && level <= pacing::TURNS {
                    // Gone meanwhile, or not ours to look into.
                    let Ok(tag) = tag_of(&self.loaded, record) else { continue };
                    (pacing::in_turn(level, tag.found_ticks), TOLERANCE_IN_TURN)
                } else {
                    (level, TOLERANCE)
                };
                if differs(record.level, level, tolerance) || anew && level <= pacing::HELD {
                    record.level = level;
                    due.push((*record, level));
                }
            }
        }
        let mut pacer = self.pacer()?;
        for (record, level) in due {
            // A connection that was closed meanwhile, or may not be touched: the bucket holds it all the same.
            if let Err(error) = pace(&mut pacer, &record, level) {
                tracing::debug!("{error}");
            }
        }
        pacer.finish();
        Ok(any.then_some(FOLLOW_EVERY))
    }

    /// The map of all paced flows, for [`lift_all`].
    pub fn estate(&self) -> Result<OwnedFd> {
        self.loaded.flows()?.0.try_clone_to_owned().context("keep the map of paced connections")
    }

    /// Descriptors that are sockets, of the processes that are to be under a limit. Read from /proc: they are
    /// not in the map yet, so the walk would not list them.
    fn coming(&self, key: u64) -> Vec<(u32, u32)> {
        let Some(held) = self.held.values().find(|held| held.key == key) else { return Vec::new() };
        let sockets_of = |pid| process::sockets(Path::new("/proc"), pid).into_iter().map(move |fd| (pid, fd));
        let mut sockets: Vec<_> = self.targeted(&held.targets).into_iter().flat_map(sockets_of).collect();
        if !held.narrowing.is_everything() {
            sockets.retain(|(pid, fd)| {
                let peer = Process::open(*pid)
                    .and_then(|process| sockets::borrow(&process, *fd))
                    .ok()
                    .and_then(|socket| sockets::peer(socket.as_fd()));
                peer.is_some_and(|peer| held.narrowing.holds(peer))
            });
        }
        sockets
    }

    /// The processes that targets name, with their descendants where those are meant. None whose packets the programs
    /// do not see.
    fn targeted(&self, targets: &[Target]) -> Vec<u32> {
        let mut pids = targeted(targets);
        if self.cgroup != self.mount {
            pids.retain(|pid| cgroup::is_below(&self.mount, self.cgroup_id, *pid).unwrap_or(false));
        }
        pids
    }

    /// How many flows a new limit will hold, at a guess.
    pub fn coming_flows(&self, key: u64) -> u64 {
        self.coming(key).len() as u64
    }

    /// Paces the open connections of a limit before it begins to refuse anything: a flow that is refused with
    /// nothing in flight waits for its probe timer, which backs off.
    pub fn pace_ahead(&self, id: LimitId) -> Result<()> {
        let Some(held) = self.held.get(&id) else { return Ok(()) };
        let level = self.level_of(id)?;
        let mut pacer = self.pacer()?;
        for (pid, fd) in self.coming(held.key) {
            let paced = Process::open(pid).and_then(|process| {
                let socket = sockets::borrow(&process, fd)?;
                if sockets::is_tcp_flow(socket.as_fd()) { pacer.apply(socket.as_fd(), level) } else { Ok(()) }
            });
            if let Err(error) = paced {
                tracing::debug!("{error}");
            }
        }
        pacer.finish();
        Ok(())
    }

    fn pacer(&self) -> Result<Pacer<'_>> {
        Ok(Pacer::new(self.loaded.flows()?, self.loaded.fitter()))
    }

    fn level_of(&self, id: LimitId) -> Result<u64> {
        let Some(held) = self.held.get(&id) else { return Ok(0) };
        let pair: [TokenBucket; 2] = self.loaded.entry("CGROUP_BUCKETS", &held.key)?;
        Ok(pair[Direction::Upload.index()].level)
    }

    /// Everybody whose connections a limit may have paced: its members, and its targets, which set-up paces
    /// before they become members.
    pub fn processes_of(&self, id: LimitId) -> Result<HashSet<u32>> {
        let Some(held) = self.held.get(&id) else { return Ok(HashSet::new()) };
        // Children younger than the last look follow the level by themselves, also down to none.
        let mut pids: HashSet<u32> = match &self.look {
            Some(look) => look.members.get(&held.key).into_iter().flatten().copied().collect(),
            None => members::census(&self.loaded)?.remove(&held.key).into_iter().flatten().collect(),
        };
        pids.extend(self.targeted(&held.targets));
        Ok(pids)
    }

    /// Gives back the caps of those processes that no upload limit holds any more.
    pub fn unpace_free(&self, mut pids: HashSet<u32>) {
        let limited = self.limited_uploads();
        pids.retain(|pid| {
            let entry: Result<ProcessEntry> = self.loaded.entry("PROCESSES", pid);
            // Of a process that has ended nothing is left to give back.
            entry.is_ok_and(|entry| !entry.limits.iter().any(|key| limited.contains(key)))
        });
        self.unpace(&pids);
    }

    /// Gives back the caps of connections that were a limited process's, and are only others' now: it passed them on, or left
    /// them to a child that is older than the limit. Looks at every process of the host.
    pub fn unpace_strays(&mut self) {
        self.strays = false;
        let (Ok(mut pacer), Ok(all)) = (self.pacer(), process::all(Path::new(process::PROC))) else {
            return;
        };
        let limited = self.limited_uploads();
        let (limited, free): (Vec<u32>, Vec<u32>) =
            all.into_iter().partition(|pid| self.is_under(*pid, &limited));
        let kept: HashSet<u32> =
            limited.iter().flat_map(|pid| process::socket_inodes(Path::new(process::PROC), *pid)).collect();
        for pid in free {
            if let Err(error) = pacer.lift(pid, &kept) {
                tracing::debug!("{error}");
            }
        }
        pacer.finish();
    }

    /// Keys of all upload limits.
    fn limited_uploads(&self) -> HashSet<u64> {
        let uploads = self.held.values().filter(|held| held.rates.get(Direction::Upload).is_some());
        uploads.map(|held| held.key).collect()
    }

    /// Whether a process is under one of these limits.
    fn is_under(&self, pid: u32, limits: &HashSet<u64>) -> bool {
        let entry: Result<ProcessEntry> = self.loaded.entry("PROCESSES", &pid);
        entry.is_ok_and(|entry| entry.limits.iter().any(|key| limits.contains(key)))
    }

    /// Gives back the caps of all connections of these processes.
    pub fn unpace(&self, pids: &HashSet<u32>) {
        let Ok(mut pacer) = self.pacer() else { return };
        for pid in pids {
            if let Err(error) = pacer.lift(*pid, &HashSet::new()) {
                tracing::warn!("{error}");
            }
        }
        pacer.finish();
    }
}

fn targeted(targets: &[Target]) -> Vec<u32> {
    let mut pids = Vec::new();
    for target in targets {
        match *target {
            Target::Pid(pid) => pids.push(pid),
            Target::Tree(pid) => {
                pids.push(pid);
                pids.extend(process::descendants(Path::new("/proc"), pid).unwrap_or_default());
            }
            _ => {}
        }
    }
    if Target::are_standing(targets)
        && let Ok(census) = Census::take(Path::new(process::PROC))
    {
        pids.extend(census.matches(targets).iter().map(|found| found.pid));
        pids.sort_unstable();
        pids.dedup();
    }
    pids
}

fn is_ours_to_pace(record: &SocketRecord) -> bool {
    record.protocol == IPPROTO_TCP && record.flags & (RECORD_LISTENER | RECORD_FOLLOWS) == 0
}

fn differs(have: u64, want: u64, tolerance: u64) -> bool {
    have.abs_diff(want) > want / tolerance
}

fn tag_of(loaded: &Loaded, record: &SocketRecord) -> Result<Tag> {
    let process = Process::open(record.tgid)?;
    let socket = sockets::borrow(&process, record.fd)?;
    loaded.tag_of(socket.as_fd()).map(Option::unwrap_or_default)
}

/// Applies a level to one connection; 0: gives back the cap that it had.
fn pace(pacer: &mut Pacer<'_>, record: &SocketRecord, level: u64) -> Result<()> {
    let process = Process::open(record.tgid)?;
    let socket = sockets::borrow(&process, record.fd)?;
    pacer.apply(socket.as_fd(), level)
}

/// Sets caps, and has windows set where some have changed.
struct Pacer<'a> {
    flows: FlowMap<'a>,
    /// `None`: windows are not held, or only given back.
    fitter: Option<&'a Fitter>,
    /// Network namespaces with connections whose wish is not granted yet, by their inodes.
    unfit: HashMap<u64, Namespace>,
}

impl<'a> Pacer<'a> {
    fn new(flows: FlowMap<'a>, fitter: Option<&'a Fitter>) -> Self {
        Self { flows, fitter, unfit: HashMap::new() }
    }

    /// Sets a level on a socket, or with 0 what it had before; the record of it is written first.
    fn apply(&mut self, socket: BorrowedFd<'_>, level: u64) -> Result<()> {
        let known =
            sys::socket_value::<Flow>(self.flows.0, socket).context("read how a connection is paced")?;
        let mut flow = known.unwrap_or_default();
        // One that follows by itself is only touched when it may have no occasion to: before its first level, and at the
        // end. Two writers would take each other's caps for the application's.
        if flow.level == 0 && level == 0 && flow.window_set == 0
            || flow.level != 0 && level != 0 && flow.follows != 0
        {
            return Ok(());
        }
        flow.notice(sockets::max_pacing_rate(socket).context("read a connection's pacing cap")?);
        let six = sockets::is_ipv6(socket).context("read a connection's address family")?;
        let cap = flow.apply(level, payload_rate(level, six));
        let (min_rtt_us, rtt_us) = sockets::round_trips(socket).unwrap_or((u32::MAX, u32::MAX));
        let most = pacing::most_under_way(level, min_rtt_us, rtt_us, flow.window_set != 0);
        if (level == 0 || self.fitter.is_some()) && flow.wish(most) {
            self.will_fit(socket);
        }
        // Before the cap when it is set, after it when it is lifted: it is always known that a cap is ours.
        if level != 0 {
            sys::set_socket_value(self.flows.0, socket, &flow).context("note how a connection is paced")?;
        }
        sockets::set_max_pacing_rate(socket, cap).context("set a connection's pacing cap")?;
        if level == 0 {
            sys::set_socket_value(self.flows.0, socket, &flow)
                .context("note that a connection is not paced any more")?;
        }
        Ok(())
    }

    fn will_fit(&mut self, socket: BorrowedFd<'_>) {
        let namespace = Namespace::of_socket(socket).and_then(|it| Ok((it.inode()?, it)));
        match namespace {
            Ok((inode, namespace)) => drop(self.unfit.entry(inode).or_insert(namespace)),
            Err(error) => tracing::debug!("{error}"),
        }
    }

    /// Gives back every cap on a process's connections that the map knows of, but for the sockets of these inodes. Returns
    /// how many.
    fn lift(&mut self, pid: u32, kept: &HashSet<u32>) -> Result<usize> {
        // Ended meanwhile, or not ours to look into.
        let Ok(process) = Process::open(pid) else { return Ok(0) };
        let mut lifted = 0;
        for (fd, inode) in process::socket_descriptors(Path::new("/proc"), pid) {
            if kept.contains(&(inode as u32)) {
                continue;
            }
            let Ok(socket) = sockets::borrow(&process, fd) else { continue };
            let paced = sys::socket_value::<Flow>(self.flows.0, socket.as_fd()).ok().flatten();
            if paced.is_some_and(|flow| flow.level != 0 || flow.window_set != 0) {
                self.apply(socket.as_fd(), 0)?;
                lifted += 1;
            }
        }
        Ok(lifted)
    }

    /// Has the windows set.
    fn finish(self) {
        // Where that fails connections send as they do without: not worth a word when it is tried every second.
        if let Some(fitter) = self.fitter
            && let Err(error) = fit(fitter, &self.unfit)
        {
            tracing::debug!("{error}");
        }
    }
}

/// Goes on where it fails, and says so in the end.
fn fit(fitter: &Fitter, namespaces: &HashMap<u64, Namespace>) -> Result<()> {
    namespaces.values().map(|namespace| fitter.fit(namespace)).fold(Ok(()), Result::and)
}

/// For the janitor, when the owner is gone or stopped: gives back every cap of ours on the whole host.
pub fn lift_all(flows: BorrowedFd<'_>) -> Result<usize> {
    let flows = FlowMap(flows);
    let mut pacer = Pacer::new(flows, None);
    let (mut lifted, mut failed) = (0, Ok(()));
    for pid in process::all(Path::new("/proc"))? {
        match pacer.lift(pid, &HashSet::new()) {
            Ok(count) => lifted += count,
            Err(error) => failed = Err(error),
        }
    }
    // The caps first: to know the kernel's types takes a while.
    if !pacer.unfit.is_empty()
        && let Some(fitter) = Fitter::for_flows(flows)?
    {
        fit(&fitter, &pacer.unfit)?;
    }
    failed.map(|()| lifted)
}
