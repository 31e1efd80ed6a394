//! Where clients that monitor are served. What takes time, reading the kernel's counts and /proc and writing JSON,
//! is done on a thread of its own: the owner's loop never waits for it.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, BorrowedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::protocol::{MonitorRequest, Reply};
use crate::{
    backend::{Site, ebpf},
    engine::ClientId,
    error::{Context, Error, Kind, Result},
    kernel::cgroup,
    monitor::{
        assemble::{Assembler, Limits},
        diag::Diag,
        live::{self, FIRST_TICK},
        reading::{Count, Reading},
        wire,
    },
};

/// A reading that is no older serves the next client, too.
const FRESH: Duration = Duration::from_millis(20);
/// A client that can't take one of its first two snapshots is asked again after so long.
const SOON: Duration = Duration::from_millis(20);
/// Seconds between two snapshots.
const INTERVALS: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

/// A client that monitors.
struct Watcher {
    interval: Duration,
    connections: bool,
    /// Its second comes soon after the first.
    eager: bool,
    /// How many it was given.
    got: u32,
    /// How often in turn it could not take one.
    missed: u32,
    next_at: Instant,
    /// A snapshot is being made.
    waits: bool,
}

impl Watcher {
    /// When to ask again one that can't take a snapshot. At first it is only the line before that has not left yet; one
    /// that never reads is asked less and less often.
    fn pause(&self) -> Duration {
        if self.got < 2 { self.interval.min(SOON * (1 << self.missed.min(16))) } else { self.interval }
    }
}

/// For the thread.
struct Order {
    client: ClientId,
    connections: bool,
    limits: Limits,
}

enum Message {
    Sample(Order),
    Forget(ClientId),
}

/// What the thread has made: lines, or why there are none.
type Made = Vec<(ClientId, Result<Vec<u8>>)>;

/// The thread, and what keeps the count going.
struct Counting {
    site: Site,
    orders: Option<Sender<Message>>,
    made: Arc<Mutex<Made>>,
    ready: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    /// Programs are attached as long as this lives; `None`: none are.
    _programs: Option<ebpf::Counting>,
}

/// All clients that monitor.
#[derive(Default)]
pub(super) struct Desk {
    watchers: BTreeMap<ClientId, Watcher>,
    counting: Option<Counting>,
}

impl Desk {
    /// Whether nobody monitors.
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// Begins to serve a client, or serves it otherwise from now on.
    pub fn serve(&mut self, client: ClientId, request: &MonitorRequest, now: Instant) -> Result<()> {
        // Not a number is in no range.
        if !INTERVALS.contains(&request.interval) {
            let message = format!("an interval of {} s is out of range", request.interval);
            return Err(Error::new(Kind::Usage, message));
        }
        match &self.counting {
            Some(counting) if counting.site != request.site => {
                return Err(Error::new(
                    Kind::Usage,
                    "the owner that runs here counts at another cgroup root: use the same, or another --runtime-dir",
                ));
            }
            Some(_) => {}
            None => self.counting = Some(Counting::start(&request.site)?),
        }
        let interval = Duration::from_secs_f64(request.interval);
        let waits = self.watchers.get(&client).is_some_and(|watcher| watcher.waits);
        let &MonitorRequest { connections, eager, .. } = request;
        let watcher = Watcher { interval, connections, eager, got: 0, missed: 0, next_at: now, waits };
        self.watchers.insert(client, watcher);
        Ok(())
    }

    /// A client is gone.
    pub fn leave(&mut self, client: ClientId) {
        if self.watchers.remove(&client).is_none() {
            return;
        }
        if self.watchers.is_empty() {
            self.counting = None;
        } else if let Some(counting) = &self.counting {
            counting.send(Message::Forget(client));
        }
    }

    /// When the next snapshot is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.watchers.values().filter(|watcher| !watcher.waits).map(|watcher| watcher.next_at).min()
    }

    /// Has snapshots made for those whose time has come and who `can_take` one; the others' time comes again.
    pub fn order(
        &mut self,
        now: Instant,
        can_take: impl Fn(ClientId) -> bool,
        limits: impl FnOnce() -> Limits,
    ) {
        let Some(counting) = &self.counting else { return };
        let due: Vec<_> = self
            .watchers
            .iter_mut()
            .filter(|(_, watcher)| !watcher.waits && watcher.next_at <= now)
            .filter_map(|(client, watcher)| {
                if !can_take(*client) {
                    watcher.next_at = now + watcher.pause();
                    watcher.missed = watcher.missed.saturating_add(1);
                    return None;
                }
                watcher.missed = 0;
                watcher.next_at = if watcher.eager && watcher.got == 0 {
                    // Beginning to count may have taken longer than this.
                    now + watcher.interval.min(FIRST_TICK)
                } else {
                    // A tick that was missed is left out.
                    (watcher.next_at + watcher.interval).max(now)
                };
                watcher.got = watcher.got.saturating_add(1);
                watcher.waits = true;
                Some((*client, watcher.connections))
            })
            .collect();
        if due.is_empty() {
            return;
        }
        let limits = limits();
        for (client, connections) in due {
            counting.send(Message::Sample(Order { client, connections, limits: limits.clone() }));
        }
    }

    /// Lines for clients that have been made since the last call.
    pub fn collect(&mut self) -> Made {
        let Some(counting) = &self.counting else { return Vec::new() };
        // Emptied before the list is looked at; an empty one is no error.
        let _ = counting.ready.read();
        let made = std::mem::take(&mut *counting.made.lock().unwrap_or_else(PoisonError::into_inner));
        for (client, _) in &made {
            if let Some(watcher) = self.watchers.get_mut(client) {
                watcher.waits = false;
            }
        }
        made
    }

    /// Readable when there are lines.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.counting.as_ref().map(|counting| counting.ready.as_fd())
    }
}

impl Counting {
    fn start(site: &Site) -> Result<Self> {
        let (count, programs): (Box<dyn Count>, _) = match wire::open(site) {
            Ok((count, programs)) => (Box::new(count), Some(programs)),
            Err(error) if error.kind == Kind::Usage => return Err(error),
            Err(error) => {
                tracing::warn!("count by eBPF: {error}");
                (Box::new(Diag::open(live::lesser(&error))?), None)
            }
        };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = Arc::new(EventFd::from_flags(flags).context("make an event descriptor")?);
        let made = Arc::new(Mutex::new(Made::new()));
        let (orders, inbox) = channel();
        let mut worker = Worker {
            count,
            last: None,
            assemblers: HashMap::new(),
            made: Arc::clone(&made),
            ready: Arc::clone(&ready),
        };
        let thread = thread::Builder::new()
            .name("monitor".into())
            .spawn(move || worker.work(&inbox))
            .context("start a thread that counts")?;
        Ok(Self {
            site: site.clone(),
            orders: Some(orders),
            made,
            ready,
            thread: Some(thread),
            _programs: programs,
        })
    }

    fn send(&self, message: Message) {
        // The thread ends only when this is dropped.
        if self.orders.as_ref().is_none_or(|orders| orders.send(message).is_err()) {
            tracing::error!("the thread that counts is gone");
        }
    }
}

impl Drop for Counting {
    /// Waits until the thread has stopped reading; only then the programs go.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    count: Box<dyn Count>,
    /// The last reading, and whether it has the sockets.
    last: Option<(Reading, bool)>,
    assemblers: HashMap<ClientId, Assembler>,
    made: Arc<Mutex<Made>>,
    ready: Arc<EventFd>,
}

impl Worker {
    fn work(&mut self, inbox: &Receiver<Message>) {
        for message in inbox {
            match message {
                Message::Forget(client) => drop(self.assemblers.remove(&client)),
                Message::Sample(order) => {
                    let client = order.client;
                    let line = catch_unwind(AssertUnwindSafe(|| self.sample(order)))
                        .unwrap_or_else(|_| Err(Error::failed("panicked while a snapshot was made")));
                    self.made.lock().unwrap_or_else(PoisonError::into_inner).push((client, line));
                    // Full it would be readable all the same.
                    let _ = self.ready.write(1);
                }
            }
        }
    }

    fn sample(&mut self, order: Order) -> Result<Vec<u8>> {
        let serves = |(reading, sockets): &(Reading, bool)| {
            reading.at.elapsed() <= FRESH && (*sockets || !order.connections)
        };
        if !self.last.as_ref().is_some_and(serves) {
            self.last = None;
        }
        let (reading, _) = match self.last.take() {
            Some(last) => self.last.insert(last),
            None => self.last.insert((self.count.read(order.connections)?, order.connections)),
        };
        let assembler =
            self.assemblers.entry(order.client).or_insert_with(|| Assembler::new(cgroup::mount().ok()));
        let snapshot = assembler.snapshot(reading, order.limits, order.connections);
        let mut line = serde_json::to_vec(&Reply::Snapshot(Arc::new(snapshot)))
            .map_err(|cause| Error::failed(format!("write a snapshot: {cause}")))?;
        line.push(b'\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_never_reads_is_asked_less_and_less_often() {
        let interval = Duration::from_secs(1);
        let mut watcher = Watcher {
            interval,
            connections: false,
            eager: true,
            got: 0,
            missed: 0,
            next_at: Instant::now(),
            waits: false,
        };
        let mut pauses = Vec::new();
        for missed in [0, 1, 5, 6, 1_000] {
            watcher.missed = missed;
            pauses.push(watcher.pause().as_millis());
        }
        assert_eq!(pauses, [20, 40, 640, 1_000, 1_000]);
        (watcher.got, watcher.missed) = (2, 0);
        assert_eq!(watcher.pause(), interval);
    }
}
