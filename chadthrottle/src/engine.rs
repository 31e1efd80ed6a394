//! Requests become limits, limits go to backends; the engine is the only owner of that state.
//!
//! It knows neither sockets nor screens: whoever runs it calls [`Engine::set`] and its siblings for
//! clients, [`Engine::tick`] when [`Engine::next_due`] has come, [`Engine::renew`] at least once a
//! second and [`Engine::collect_ended`] when a [`Engine::wake_fds`] descriptor is readable, and passes on
//! the [`Event`]s that these return.

mod held;
mod meter;
mod place;
mod subject;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use self::{
    held::Held,
    place::{Manner, Want},
};
use crate::{
    backend::{self, Backend, Driver, Site, select::Known},
    error::{Error, Kind, Result},
    kernel::fault,
    model::{
        Direction, Escape, LimitId, LimitReport, Narrowing, PerDirection, Rate, Scope, StatusReport, Target,
    },
    monitor::assemble::Limits,
    owner::protocol::{EndReason, LimitRequest},
};

/// How often a limit is looked at.
const CHECK_PERIOD: Duration = Duration::from_secs(1);
/// Longest duration of a limit.
const MAX_DURATION: f64 = 10.0 * 365.0 * 86_400.0;

/// A client of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// The limits end with this client, unless detached.
    pub client: ClientId,
    /// Its process.
    pub pid: u32,
}

/// Something happened to a limit.
#[derive(Debug)]
pub struct Event {
    /// Whose limit it is; `None`: a detached one.
    pub client: Option<ClientId>,
    /// Which.
    pub id: LimitId,
    /// What.
    pub what: What,
}

/// What happened to a limit.
#[derive(Debug)]
pub enum What {
    /// Traffic got past it; the first of this kind.
    Escaped(Escape),
    /// It is over.
    Ended {
        /// Why.
        reason: EndReason,
        /// As it was.
        last: Box<LimitReport>,
    },
}

/// A backend that holds limits of one direction, or did.
struct Opened {
    driver: &'static Driver,
    direction: Direction,
    backend: Box<dyn Backend>,
    /// When [`Backend::follow`] wants to be called.
    follow_at: Option<Instant>,
}

/// All limits of the host. Dropping it ends them.
pub struct Engine {
    site: Site,
    drivers: &'static [Driver],
    /// Gets what [`Backend::estate`] gives, before a limit is applied.
    heir: Box<dyn FnMut(OwnedFd) -> Result<()>>,
    known: Known,
    opened: Vec<Opened>,
    limits: BTreeMap<LimitId, Held>,
    /// When limits are to be looked at, and when they end.
    checks: BTreeSet<(Instant, LimitId)>,
    ends: BTreeSet<(Instant, LimitId)>,
    /// Limits that are over but that a backend failed to remove; tried again with every renewal.
    leftovers: Vec<(usize, LimitId)>,
    last_id: u64,
}

impl Engine {
    /// Without limits; backends are opened when the first limit wants them.
    /// `heir` is given what the janitor needs to undo a backend's work when this process is killed.
    pub fn new(
        site: Site,
        drivers: &'static [Driver],
        heir: impl FnMut(OwnedFd) -> Result<()> + 'static,
    ) -> Self {
        Self {
            site,
            drivers,
            heir: Box::new(heir),
            known: Known::default(),
            opened: Vec::new(),
            limits: BTreeMap::new(),
            checks: BTreeSet::new(),
            ends: BTreeSet::new(),
            leftovers: Vec::new(),
            last_id: 0,
        }
    }

    /// Whether no limit is in force.
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Brings a limit into force; when this returns, it is verified. The report, and what the user
    /// should know: backends that failed, a direction that could not be had. After an error nothing has
    /// changed. A detached limit of the very same targets and scope is changed to what is asked for now.
    pub fn set(&mut self, request: &LimitRequest, asker: Asker) -> Result<(LimitReport, Vec<String>)> {
        validate(&request.rates)?;
        let duration = request.duration.map(valid_duration).transpose()?;
        let mut seen = HashSet::new();
        let targets: Vec<Target> =
            request.targets.iter().filter(|target| seen.insert(*target)).cloned().collect();
        let name = subject::look(&targets, request.wait)?;
        self.move_to(&request.site)?;
        let wanted = PerDirection::from_fn(|direction| match request.rates.get(direction) {
            Some(rate) => Want::Rate(*rate, request.backends.get(direction).clone()),
            None => Want::Nothing,
        });
        let manner = Manner { no_fallback: request.no_fallback, partial: request.partial };

        Narrowing::new(request.scope, &targets).listed()?;
        let twin = request.detach.then(|| self.detached_twin(&targets, request.scope)).flatten();
        let (mut held, is_new) = match twin.and_then(|id| self.take(id)) {
            Some(held) => (held, false),
            None => (self.fresh(targets, name, asker, request), true),
        };
        let result = self.establish(&mut held, &wanted, manner);
        match result {
            Ok(notices) => {
                fault::point("owner.limited");
                let now = Instant::now();
                if is_new {
                    held.set_at = now;
                    held.next_check = now + CHECK_PERIOD;
                }
                held.client_pid = asker.pid;
                held.ends_at = duration.map(|duration| now + duration);
                let report = held.report(now);
                self.put(held);
                Ok((report, notices))
            }
            Err(error) => {
                if !is_new {
                    self.put(held);
                }
                Err(error)
            }
        }
    }

    /// Gives a limit new rates without a gap; a direction without a rate stays as it is.
    /// [`Kind::NotFound`] for an unknown id. After an error nothing has changed.
    pub fn change(
        &mut self,
        id: LimitId,
        rates: &PerDirection<Option<Rate>>,
    ) -> Result<(LimitReport, Vec<String>)> {
        validate(rates)?;
        self.alter(id, |_, direction| match rates.get(direction) {
            Some(rate) => Want::Rate(*rate, None),
            None => Want::Keep,
        })
    }

    /// Moves one direction of a limit to the backend of that name: it holds there before the old one lets go.
    /// [`Kind::NotFound`] for an unknown id or a direction without a limit. After an error nothing has changed.
    pub fn hand_over(
        &mut self,
        id: LimitId,
        direction: Direction,
        backend: &str,
    ) -> Result<(LimitReport, Vec<String>)> {
        let held = self.limits.get(&id).ok_or_else(|| unknown(id))?;
        if held.directions.get(direction).is_none() {
            return Err(Error::new(Kind::NotFound, format!("limit {id} has no {direction} rate")));
        }
        self.alter(id, |held, other| match held.directions.get(other) {
            Some(placed) if other == direction => Want::Rate(placed.limit.rate, Some(backend.to_owned())),
            _ => Want::Keep,
        })
    }

    fn alter(
        &mut self,
        id: LimitId,
        want: impl Fn(&Held, Direction) -> Want,
    ) -> Result<(LimitReport, Vec<String>)> {
        let mut held = self.take(id).ok_or_else(|| unknown(id))?;
        let wanted = PerDirection::from_fn(|direction| want(&held, direction));
        let result = self.establish(&mut held, &wanted, Manner::default());
        let report = held.report(Instant::now());
        self.put(held);
        result.map(|notices| (report, notices))
    }

    /// All limits in force, with the counters of this moment.
    pub fn status(&mut self, now: Instant) -> StatusReport {
        for held in self.limits.values_mut() {
            read_counters(&mut self.opened, held);
        }
        StatusReport { limits: self.limits.values().map(|held| held.report(now)).collect() }
    }

    /// Ends the limits whose targets are all in the list, or all limits if it is empty.
    pub fn clear(&mut self, targets: &[Target], now: Instant) -> Vec<Event> {
        let named = |held: &&Held| held.targets.iter().all(|target| targets.contains(target));
        let ids: Vec<_> = self
            .limits
            .values()
            .filter(|held| targets.is_empty() || named(held))
            .map(|held| held.id)
            .collect();
        self.end_each(ids, EndReason::Cleared, now)
    }

    /// Ends one limit. [`Kind::NotFound`] for an unknown id.
    pub fn remove(&mut self, id: LimitId, now: Instant) -> Result<Vec<Event>> {
        match self.limits.contains_key(&id) {
            true => Ok(self.end_each(vec![id], EndReason::Cleared, now)),
            false => Err(unknown(id)),
        }
    }

    /// Ends a client's limits that are not detached; how many there were.
    pub fn client_gone(&mut self, client: ClientId) -> usize {
        let ids: Vec<_> =
            self.limits.values().filter(|held| held.client == Some(client)).map(|held| held.id).collect();
        ids.into_iter().filter_map(|id| self.end(id)).count()
    }

    /// Ends everything because the owner stops.
    pub fn stop(&mut self, now: Instant) -> Vec<Event> {
        let ids = self.limits.keys().copied().collect();
        self.end_each(ids, EndReason::OwnerStopped, now)
    }

    /// [`Engine::status`], and which processes each limit holds, as far as the backends know.
    pub fn limits(&mut self, now: Instant) -> Limits {
        let mut members = Vec::new();
        for opened in &mut self.opened {
            match opened.backend.members() {
                Ok(found) => members.extend(found),
                Err(error) => tracing::warn!("ask {} whom it limits: {error}", opened.driver.name),
            }
        }
        // Both directions of a limit hold the same processes.
        members.sort_by_key(|(id, _): &(LimitId, Vec<u32>)| *id);
        members.dedup_by_key(|(id, _)| *id);
        Limits { reports: self.status(now).limits, members }
    }

    /// Where a client wants to work must be where limits are in force, if any are.
    pub fn work_at(&mut self, wanted: &Site) -> Result<()> {
        self.move_to(wanted)
    }

    /// An owner works at one place. Without limits it goes where a client wants it; else that client has
    /// to be told.
    fn move_to(&mut self, wanted: &Site) -> Result<()> {
        let place = |site: &Site| site.cgroup_root.as_deref().map(resolved);
        if place(&self.site) == place(wanted) {
            return Ok(());
        }
        if self.limits.is_empty() {
            self.clear_backends();
            self.opened.clear();
            self.leftovers.clear();
            self.known = Known::default();
            self.site = wanted.clone();
            return Ok(());
        }
        let name = |site: &Site| match &site.cgroup_root {
            Some(path) => format!("cgroup root {}", path.display()),
            None => "the root of the cgroup2 mount".to_owned(),
        };
        Err(Error::failed(format!(
            "the owner that runs here works at {}, not at {}: end its limits first, or use another --runtime-dir",
            name(&self.site),
            name(wanted)
        )))
    }

    fn detached_twin(&self, targets: &[Target], scope: Scope) -> Option<LimitId> {
        let twin = |held: &&Held| {
            held.detached
                && held.scope == scope
                && held.targets.len() == targets.len()
                && held.targets.iter().all(|target| targets.contains(target))
        };
        self.limits.values().find(twin).map(|held| held.id)
    }

    fn fresh(&mut self, targets: Vec<Target>, name: String, asker: Asker, request: &LimitRequest) -> Held {
        let detached = request.detach;
        self.last_id += 1;
        let now = Instant::now();
        Held {
            id: LimitId(self.last_id),
            targets,
            scope: request.scope,
            name,
            directions: PerDirection::default(),
            detached,
            client: (!detached).then_some(asker.client),
            client_pid: asker.pid,
            set_at: now,
            ends_at: None,
            next_check: now + CHECK_PERIOD,
            escapes: Vec::new(),
            failed_checks: 0,
        }
    }

    /// Out of the books; the kernel does not notice.
    fn take(&mut self, id: LimitId) -> Option<Held> {
        let held = self.limits.remove(&id)?;
        self.checks.remove(&(held.next_check, id));
        if let Some(end) = held.ends_at {
            self.ends.remove(&(end, id));
        }
        Some(held)
    }

    fn put(&mut self, held: Held) {
        self.checks.insert((held.next_check, held.id));
        if let Some(end) = held.ends_at {
            self.ends.insert((end, held.id));
        }
        self.limits.insert(held.id, held);
    }

    /// Removes a limit from a backend, and remembers it if that fails.
    fn lift(&mut self, opened: usize, id: LimitId) {
        let Opened { driver, direction, backend, .. } = &mut self.opened[opened];
        if let Err(error) = backend.remove(id) {
            tracing::error!("remove limit {id} from {} ({direction}): {error}", driver.name);
            self.leftovers.push((opened, id));
        }
    }

    /// Ends a limit and returns it with its last counters.
    fn end(&mut self, id: LimitId) -> Option<Held> {
        let mut held = self.take(id)?;
        read_counters(&mut self.opened, &mut held);
        for (_, placed) in held.directions.iter() {
            if let Some(placed) = placed {
                self.lift(placed.opened, id);
            }
        }
        Some(held)
    }

    fn clear_backends(&mut self) {
        for opened in self.opened.iter_mut().rev() {
            if let Err(error) = opened.backend.clear() {
                tracing::error!("clear {} ({}): {error}", opened.driver.name, opened.direction);
            }
        }
    }

    fn end_each(&mut self, ids: Vec<LimitId>, reason: EndReason, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for id in ids {
            if let Some(held) = self.end(id) {
                tracing::info!("limit {id} ended: {reason:?}");
                let last = Box::new(held.report(now));
                events.push(Event { client: held.client, id, what: What::Ended { reason, last } });
            }
        }
        events
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.clear_backends();
        backend::tidy_up();
    }
}

/// Old counters are better than none: an error only goes to the log.
fn read_counters(opened: &mut [Opened], held: &mut Held) {
    for direction in Direction::ALL {
        let Some(placed) = held.directions.get_mut(direction) else { continue };
        match opened[placed.opened].backend.stats(held.id) {
            Ok(counters) => placed.counters = counters,
            Err(error) => tracing::warn!("read the {direction} counters of limit {}: {error}", held.id),
        }
    }
}

fn unknown(id: LimitId) -> Error {
    Error::new(Kind::NotFound, format!("no limit has the id {id}"))
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, message)
}

fn validate(rates: &PerDirection<Option<Rate>>) -> Result<()> {
    let some = rates.iter().any(|(_, rate)| rate.is_some());
    if some { Ok(()) } else { Err(usage("a limit needs a rate in at least one direction")) }
}

fn valid_duration(seconds: f64) -> Result<Duration> {
    // Not a number fails the comparison, too.
    if seconds > 0.0 && seconds <= MAX_DURATION {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(usage(format!("a duration of {seconds} s is out of range")))
    }
}

/// The place a path means; one that can't be found means itself.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
