//! The owner: one thread and one poll loop over the listener, the clients, signals, the backends and the
//! janitor. Nothing in it waits for anybody but `poll`.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigHandler, SigSet, Signal, signal},
        signalfd::{SfdFlags, SignalFd},
        stat::{Mode, umask},
    },
};

use super::{
    connection::Connection,
    desk::Desk,
    janitor::Janitor,
    premises::{Moved, Premises},
    protocol::{EndReason, Reply, Request},
    runtime::Runtime,
    start::{NICENESS, Startup},
};
use crate::{
    backend::{DRIVERS, Driver, Site},
    engine::{ClientId, Engine, Event, What},
    error::{Context, Error, Result},
    kernel::fault,
};

/// How often leases are renewed; they last three seconds.
const RENEW_PERIOD: Duration = Duration::from_millis(500);
/// How often it is made sure that clients can still find us.
const PREMISES_PERIOD: Duration = Duration::from_millis(500);
/// How long an owner without limits stays while there are clients, or before the first has come.
const IDLE: Duration = Duration::from_secs(2);
/// How long it stays after the last client.
const LINGER: Duration = Duration::from_millis(100);
/// How long clients may take for the last words.
const FAREWELL: Duration = Duration::from_millis(250);
/// After the system had no descriptor for a client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The hidden subcommand: is the owner until the last limit is gone. How the start went is written to
/// `ready_fd`, which is closed then. It belongs into a process of its own: signals, umask and the limit
/// of open files are changed for all of it.
pub fn main(dir: &Path, site: &Site, ready_fd: Option<RawFd>) -> Result<()> {
    main_with(dir, site, ready_fd, DRIVERS)
}

/// As [`main`], with another table of backends.
pub fn main_with(dir: &Path, site: &Site, ready_fd: Option<RawFd>, drivers: &'static [Driver]) -> Result<()> {
    // SAFETY: whoever starts the owner gives it this descriptor; nothing else in the process uses it.
    let mut ready = Ready(ready_fd.map(|fd| unsafe { File::from_raw_fd(fd) }));
    let work = AssertUnwindSafe(|| {
        settle_in()?;
        open(dir, site, drivers, &mut ready)?.map_or(Ok(()), Server::run)
    });
    // What had been made by then was undone while the panic passed.
    let result = catch_unwind(work).unwrap_or_else(|_| Err(Error::failed("the owner panicked")));
    if let Err(error) = &result {
        ready.tell(&Startup::Failed { error: error.clone() });
    }
    result
}

/// Where the start's outcome is written, once.
struct Ready(Option<File>);

impl Ready {
    fn tell(&mut self, startup: &Startup) {
        let Some(mut file) = self.0.take() else { return };
        // A client that has gone meanwhile does not matter.
        if let Ok(text) = serde_json::to_vec(startup) {
            let _ = file.write_all(&text);
        }
    }
}

/// What is changed for the whole process. What is only helpful may fail.
fn settle_in() -> Result<()> {
    let _ = nix::sys::prctl::set_name(c"chadt-owner");
    lift_inherited_limits();
    come_first();
    umask(Mode::from_bits_truncate(0o077));
    // SAFETY: ignoring a signal installs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.context("ignore SIGPIPE")?;
    // Losing the owner loses every limit; others can be spared more easily.
    if let Err(cause) = fs::write("/proc/self/oom_score_adj", "-500") {
        tracing::debug!("lower the owner's OOM score: {cause}");
    }
    Ok(())
}

/// The client that happened to start us may live under limits that are not meant for the limits of all
/// others: `ulimit`. Raising them needs a right that may be missing; then as far as they go.
fn lift_inherited_limits() {
    /// What the kernel lets a process have at most, unless its administrator raised it.
    const MOST_FILES: u64 = 1 << 20;
    let resources = [
        (Resource::RLIMIT_NOFILE, MOST_FILES),
        (Resource::RLIMIT_CPU, libc::RLIM_INFINITY),
        (Resource::RLIMIT_FSIZE, libc::RLIM_INFINITY),
        (Resource::RLIMIT_AS, libc::RLIM_INFINITY),
        (Resource::RLIMIT_DATA, libc::RLIM_INFINITY),
    ];
    for (resource, wanted) in resources {
        let Ok((_, hard)) = getrlimit(resource) else { continue };
        let wanted = wanted.max(hard);
        if setrlimit(resource, wanted, wanted).is_err() {
            let _ = setrlimit(resource, hard, hard);
        }
    }
}

/// Its client's `nice` or `chrt` was meant for the client.
fn come_first() {
    let usual = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives through the call; the other one takes integers.
    let failed = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const usual) < 0
            || libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) < 0
    };
    if failed {
        tracing::debug!("raise the owner's priority: {}", io::Error::last_os_error());
    }
}

/// Takes possession of the runtime folder; `None` if somebody else has it.
fn open(dir: &Path, site: &Site, drivers: &'static [Driver], ready: &mut Ready) -> Result<Option<Server>> {
    // Before anything is made, so that no signal can end us in between.
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block().context("block signals")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("make a descriptor for signals")?;

    let runtime = Runtime::create(dir)?;
    let Some(lock) = runtime.lock()? else {
        ready.tell(&Startup::Busy);
        return Ok(None);
    };
    fault::point("owner.locked");
    let mut premises = Premises::enter(runtime.clone(), lock, ready.0.is_some())?;
    premises.move_out(site);
    let listener = premises.listen()?;
    fault::point("owner.socket");
    // The janitor lives there, so it goes before.
    let premises = Rc::new(RefCell::new(premises));
    let janitor = Rc::new(RefCell::new(Janitor::start(&runtime)?));
    let (heir, keeper) = (Rc::clone(&janitor), Rc::clone(&premises));
    fault::point("owner.janitor");
    ready.tell(&Startup::Ready);
    let now = Instant::now();
    Ok(Some(Server {
        engine: Engine::new(site.clone(), drivers, move |estate| {
            keeper.borrow().keep(estate.as_fd());
            heir.borrow_mut().inherit(estate)
        }),
        desk: Desk::default(),
        connections: BTreeMap::new(),
        last_client: 0,
        signals,
        listener,
        janitor,
        premises,
        renew_at: now,
        premises_at: now + PREMISES_PERIOD,
        lost: false,
        accept_at: now,
        last_busy: now,
        served: false,
    }))
}

/// Whose descriptor it is that something happened to.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Janitor,
    Backend,
    Desk,
    Client(ClientId),
}

/// The owner at work. The order of the fields is the order in which things are undone.
struct Server {
    engine: Engine,
    desk: Desk,
    connections: BTreeMap<ClientId, Connection>,
    last_client: u64,
    signals: SignalFd,
    listener: UnixListener,
    janitor: Rc<RefCell<Janitor>>,
    /// Held until everything else is undone; the janitor lives there.
    premises: Rc<RefCell<Premises>>,
    renew_at: Instant,
    /// When the files are looked at.
    premises_at: Instant,
    /// They are gone, and could not be made again yet.
    lost: bool,
    accept_at: Instant,
    /// When a client last asked something, or a limit ended.
    last_busy: Instant,
    /// Whether anybody ever asked for more than a hello.
    served: bool,
}

impl Server {
    /// Works until there is nothing left to do or a signal comes; then ends everything.
    fn run(mut self) -> Result<()> {
        let result = catch_unwind(AssertUnwindSafe(|| self.work()));
        // After a panic the engine is asked to end what it knows; what it does not know ends when it is
        // dropped.
        if catch_unwind(AssertUnwindSafe(|| self.say_farewell())).is_err() {
            tracing::error!("panicked while the limits were ended");
        }
        result.unwrap_or_else(|_| Err(Error::failed("the owner panicked")))
    }

    fn work(&mut self) -> Result<()> {
        loop {
            let now = Instant::now();
            self.do_what_is_due(now);
            if !self.can_be_found(now) {
                tracing::error!("another owner has taken the runtime folder; ending");
                return Ok(());
            }
            if self.leaves_at().is_some_and(|time| time <= now) {
                return Ok(());
            }
            for (source, ready) in self.wait()? {
                let now = Instant::now();
                match source {
                    Source::Signals => {
                        if let Ok(Some(info)) = self.signals.read_signal() {
                            tracing::info!("signal {}", info.ssi_signo);
                            return Ok(());
                        }
                    }
                    Source::Listener => self.accept(now),
                    Source::Janitor => self.janitor.borrow_mut().look_after(now),
                    Source::Backend => {
                        let events = self.engine.collect_ended(now);
                        self.pass_on(events);
                    }
                    Source::Desk => self.hand_out(),
                    Source::Client(id) => {
                        if let Some(connection) = self.connections.get_mut(&id) {
                            connection.exchange(ready, now);
                        }
                    }
                }
            }
            self.serve();
        }
    }

    fn do_what_is_due(&mut self, now: Instant) {
        if self.renew_at <= now {
            self.renew_at = now + RENEW_PERIOD;
            let events = self.engine.renew();
            self.pass_on(events);
            let events = self.engine.collect_ended(now);
            self.pass_on(events);
        }
        if self.engine.next_due().is_some_and(|due| due <= now) {
            let events = self.engine.tick(now);
            self.pass_on(events);
        }
        if self.desk.next_due().is_some_and(|due| due <= now) {
            let (engine, connections) = (&mut self.engine, &self.connections);
            let can_take = |id| connections.get(&id).is_some_and(|connection| !connection.has_output());
            self.desk.order(now, can_take, || engine.limits(now));
        }
        self.janitor.borrow_mut().look_after(now);
        for connection in self.connections.values_mut() {
            connection.flush(now);
            // Who is still being told something, of thousands of limits that ended, may want to ask, too.
            if connection.has_output() {
                self.last_busy = now;
            }
        }
        self.part();
    }

    /// Looks after the files in the runtime folder, from time to time. False when they can't be ours any
    /// more: limits that nobody could see or end must not stay.
    fn can_be_found(&mut self, now: Instant) -> bool {
        if now < self.premises_at {
            return true;
        }
        self.premises_at = now + PREMISES_PERIOD;
        let looked = self.premises.borrow_mut().look_after();
        match looked {
            Ok(listener) => {
                self.lost = false;
                if let Some(listener) = listener {
                    self.listener = listener;
                }
            }
            Err(Moved::NotYet(error)) => {
                // Said once: it is tried twice a second, maybe for years.
                if !std::mem::replace(&mut self.lost, true) {
                    tracing::error!("clients can't find this owner: {error}");
                }
            }
            Err(Moved::Out) => return false,
        }
        true
    }

    /// When there is nothing to stay for.
    fn leaves_at(&self) -> Option<Instant> {
        let stay = if self.connections.is_empty() && self.served { LINGER } else { IDLE };
        (self.engine.is_empty() && self.desk.is_empty()).then(|| self.last_busy + stay)
    }

    /// Waits until something happens or is due.
    fn wait(&mut self) -> Result<Vec<(Source, PollFlags)>> {
        let now = Instant::now();
        let accepting = self.accept_at <= now;
        let mut due = vec![self.renew_at, self.premises_at];
        due.extend((!accepting).then_some(self.accept_at));
        due.extend(self.engine.next_due());
        due.extend(self.desk.next_due());
        due.extend(self.leaves_at());
        due.extend(self.janitor.borrow().restart_at());
        let mut interests = Vec::with_capacity(self.connections.len());
        for (id, connection) in &mut self.connections {
            due.extend(connection.due());
            if connection.has_request() {
                due.push(now);
            }
            interests.push((*id, connection.interest()));
        }
        let timeout = timeout_until(due.into_iter().min(), now);

        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut watch = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        if accepting {
            watch(Source::Listener, self.listener.as_fd(), PollFlags::POLLIN);
        }
        let janitor = self.janitor.borrow();
        if let Some(fd) = janitor.as_fd() {
            watch(Source::Janitor, fd, PollFlags::POLLIN);
        }
        if let Some(fd) = self.desk.as_fd() {
            watch(Source::Desk, fd, PollFlags::POLLIN);
        }
        for fd in self.engine.wake_fds() {
            // SAFETY: the backend keeps its descriptor open as long as it lives, and it outlives the poll.
            watch(Source::Backend, unsafe { BorrowedFd::borrow_raw(fd) }, PollFlags::POLLIN);
        }
        for (id, flags) in interests {
            watch(Source::Client(id), self.connections[&id].as_fd(), flags);
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(cause) => return Err(cause).context("wait for clients"),
        }
        let happened = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(sources.into_iter().zip(happened).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn accept(&mut self, now: Instant) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return,
                Err(cause) if cause.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(cause) => {
                    tracing::warn!("take a client in: {cause}");
                    self.accept_at = now + ACCEPT_PAUSE;
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, stream: UnixStream) {
        self.last_client += 1;
        let id = ClientId(self.last_client);
        self.connections.insert(id, Connection::new(stream, id));
    }

    /// Answers one request of each client, and lets those go that have left.
    fn serve(&mut self) {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if connection.has_request() {
                let request = connection.next_request();
                let asker = connection.asker;
                if connection.is_greeted() {
                    self.last_busy = Instant::now();
                }
                if let Some(request) = request {
                    self.served = true;
                    let reply = self.answer(request, asker);
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.tell(&reply);
                    }
                    self.last_busy = Instant::now();
                }
            }
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.flush(Instant::now());
            }
        }
        self.part();
    }

    /// Ends the limits of clients that have left, and closes what is done with.
    fn part(&mut self) {
        let left: Vec<_> =
            self.connections.iter_mut().filter_map(|(id, client)| client.has_left().then_some(*id)).collect();
        for id in left {
            self.desk.leave(id);
            if self.engine.client_gone(id) > 0 {
                self.last_busy = Instant::now();
            }
            // Closing tells the client that its limits are gone, so it comes after.
            let done = self.connections.get_mut(&id).is_some_and(|connection| connection.is_done());
            if done && self.connections.remove(&id).is_some_and(|connection| connection.is_greeted()) {
                self.last_busy = Instant::now();
            }
        }
    }

    fn answer(&mut self, request: Request, asker: crate::engine::Asker) -> Reply {
        let now = Instant::now();
        let limited = match request {
            Request::Hello { .. } => Err(Error::failed("hello has been said")),
            Request::Limit(request) => self.engine.set(&request, asker),
            Request::Change { id, rates } => self.engine.change(id, &rates),
            Request::Move { id, direction, backend } => self.engine.hand_over(id, direction, &backend),
            Request::Monitor(request) => {
                let served = self.engine.work_at(&request.site);
                return match served.and_then(|()| self.desk.serve(asker.client, &request, now)) {
                    Ok(()) => Reply::Monitoring,
                    Err(error) => Reply::Error(error),
                };
            }
            Request::Status => return Reply::Status(self.engine.status(now)),
            Request::Clear { targets } => {
                let events = self.engine.clear(&targets, now);
                return self.cleared(events);
            }
            Request::Remove { id } => match self.engine.remove(id, now) {
                Ok(events) => return self.cleared(events),
                Err(error) => Err(error),
            },
        };
        match limited {
            Ok((limit, notices)) => Reply::Limited { limit, notices },
            Err(error) => Reply::Error(error),
        }
    }

    /// Gives clients that monitor their snapshots.
    fn hand_out(&mut self) {
        for (id, line) in self.desk.collect() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            match line {
                Ok(line) => connection.tell_line(&line),
                Err(error) => {
                    connection.tell(&Reply::Error(error));
                    self.desk.leave(id);
                }
            }
        }
    }

    fn cleared(&mut self, events: Vec<Event>) -> Reply {
        let ended = events.iter().map(|event| event.id).collect();
        self.pass_on(events);
        Reply::Cleared { ended }
    }

    /// Tells clients what happened to their limits.
    fn pass_on(&mut self, events: Vec<Event>) {
        for event in events {
            let id = event.id;
            let reply = match event.what {
                What::Escaped(escape) => Reply::Escaped { id, escape },
                What::Ended { reason, last } => {
                    self.last_busy = Instant::now();
                    Reply::Ended { id, reason, last: *last }
                }
            };
            if let Some(connection) = event.client.and_then(|client| self.connections.get_mut(&client)) {
                connection.tell(&reply);
            }
        }
    }

    /// Ends all limits, tells their clients, and waits a moment for these to listen.
    fn say_farewell(&mut self) {
        let events = self.engine.stop(Instant::now());
        debug_assert!(
            events
                .iter()
                .all(|event| { matches!(&event.what, What::Ended { reason: EndReason::OwnerStopped, .. }) })
        );
        self.pass_on(events);
        let until = Instant::now() + FAREWELL;
        loop {
            let now = Instant::now();
            self.connections.retain(|_, connection| {
                connection.flush(now);
                connection.has_output()
            });
            if self.connections.is_empty() || now >= until {
                return;
            }
            let mut fds: Vec<_> = self
                .connections
                .values()
                .map(|connection| PollFd::new(connection.as_fd(), PollFlags::POLLOUT))
                .collect();
            let _ = poll(&mut fds, timeout_until(Some(until), now));
        }
    }
}

/// Rounded up to whole milliseconds, so that the time has come when it is over.
fn timeout_until(due: Option<Instant>, now: Instant) -> PollTimeout {
    let Some(due) = due else { return PollTimeout::NONE };
    let left = due.saturating_duration_since(now).as_micros().div_ceil(1000);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}
