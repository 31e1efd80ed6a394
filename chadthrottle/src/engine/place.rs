//! Brings the directions of a limit into force, all or none.

use std::time::Instant;

use super::{
    Engine, Opened,
    held::{Held, Placed},
    meter::Meter,
};
use crate::{
    backend::{
        Applied, Backend, Probe,
        select::{self, Next},
    },
    error::{Error, Kind, Result},
    model::{Counters, Direction, Limit, LimitId, PerDirection, Rate},
};

/// What is wanted in one direction.
#[derive(Clone, Debug)]
pub(super) enum Want {
    /// As it is.
    Keep,
    /// No limit.
    Nothing,
    /// A limit, by the named backend or the best.
    Rate(Rate, Option<String>),
}

/// How to get there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manner {
    pub no_fallback: bool,
    pub partial: bool,
}

/// Steps back.
enum Undo {
    Apply(usize, Limit),
    Remove(usize, LimitId),
}

/// A direction that is newly in force.
struct Done {
    limit: Limit,
    opened: usize,
    applied: Applied,
    /// From then on, for the other direction may take a second.
    meter: Meter,
}

impl Engine {
    /// Changes the directions of `held` to what is wanted and returns what the user should know. After
    /// an error everything is as before. What it holds in one direction changes in place, without a gap.
    pub(super) fn establish(
        &mut self,
        held: &mut Held,
        wanted: &PerDirection<Want>,
        manner: Manner,
    ) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        let mut undo = Vec::new();
        let result = self.try_establish(held, wanted, manner, &mut notices, &mut undo);
        match result {
            Ok(done) => {
                self.settle(held, wanted, done);
                Ok(notices)
            }
            Err(error) => {
                for step in undo.into_iter().rev() {
                    self.step_back(step);
                }
                Err(error)
            }
        }
    }

    fn try_establish(
        &mut self,
        held: &Held,
        wanted: &PerDirection<Want>,
        manner: Manner,
        notices: &mut Vec<String>,
        undo: &mut Vec<Undo>,
    ) -> Result<Vec<Done>> {
        // What was missing when it was last asked for may have been mended since.
        self.known.probes.retain(|_, probe| *probe == Probe::Ready);
        let mut done = Vec::new();
        let mut refused = Vec::new();
        for (direction, want) in wanted.iter() {
            let Want::Rate(rate, wish) = want else { continue };
            let (id, targets) = (held.id, held.targets.clone());
            let limit = Limit { id, direction, rate: *rate, targets, scope: held.scope };
            let current = held.directions.get(direction).as_ref();
            let in_place = current.filter(|placed| wish.as_deref().is_none_or(|wish| wish == placed.backend));
            if let Some(placed) = in_place {
                // Before: a change that fails half-way is taken back as well.
                undo.push(Undo::Apply(placed.opened, placed.limit.clone()));
                let applied = self.opened[placed.opened].backend.apply(&limit)?;
                let meter = self.begin(placed.opened, limit.id, placed.counters.passed_bytes);
                done.push(Done { limit, opened: placed.opened, applied, meter });
                continue;
            }
            match self.place(&limit, wish.as_deref(), manner.no_fallback, notices) {
                Ok((opened, applied)) => {
                    undo.push(Undo::Remove(opened, limit.id));
                    let meter = self.begin(opened, limit.id, 0);
                    done.push(Done { limit, opened, applied, meter });
                }
                Err(error) if is_about_the_target(&error) || current.is_some() => return Err(error),
                Err(error) => refused.push((direction, error)),
            }
        }
        if let Some(error) = judge(&done, refused, manner.partial, notices) { Err(error) } else { Ok(done) }
    }

    /// Begins to measure what passes under a rate that has just come into force. `known`: what had passed, if that can't
    /// be told now.
    fn begin(&mut self, opened: usize, id: LimitId, known: u64) -> Meter {
        let passed = self.opened[opened].backend.stats(id).map_or(known, |counters| counters.passed_bytes);
        Meter::new(Instant::now(), passed)
    }

    /// Sets one direction with the best backend that will have it.
    fn place(
        &mut self,
        limit: &Limit,
        wish: Option<&str>,
        no_fallback: bool,
        notices: &mut Vec<String>,
    ) -> Result<(usize, Applied)> {
        let direction = limit.direction;
        let mut failures: Vec<(&'static str, Error)> = Vec::new();
        loop {
            let tried: Vec<_> = failures.iter().map(|(name, _)| *name).collect();
            match select::next(self.drivers, direction, wish, &self.known, &tried)? {
                Next::Probe(driver) => {
                    let probe = (driver.probe)(&self.site);
                    tracing::debug!("probe of {}: {probe:?}", driver.name);
                    self.known.probes.insert(driver.name, probe);
                }
                Next::Try(driver) => {
                    let opened = match self.open(driver, direction) {
                        Ok(opened) => opened,
                        Err(error) if wish.is_some() => {
                            return Err(insisted(
                                error,
                                &format!("{direction} backend {} is unavailable", driver.name),
                            ));
                        }
                        Err(error) => {
                            failures.push((driver.name, error));
                            if no_fallback { break } else { continue }
                        }
                    };
                    let backend = &mut self.opened[opened].backend;
                    match narrows(&**backend, limit).and_then(|()| backend.apply(limit)) {
                        Ok(applied) => {
                            if wish.is_none() {
                                let passed_over =
                                    select::passed_over(self.drivers, driver, direction, &self.known);
                                // One reason may be that of both directions.
                                notices.extend(
                                    passed_over.filter(|text| !notices.contains(text)).collect::<Vec<_>>(),
                                );
                            }
                            notices.extend(failures.iter().map(|(name, error)| {
                                format!(
                                    "{direction}: {name} failed ({error}); {} holds it instead",
                                    driver.name
                                )
                            }));
                            return Ok((opened, applied));
                        }
                        Err(error) if is_about_the_target(&error) => return Err(error),
                        Err(error) if wish.is_some() => {
                            let message = format!("{direction} backend {} can't hold the limit", driver.name);
                            return Err(insisted(error, &message));
                        }
                        Err(error) => failures.push((driver.name, error)),
                    }
                    if no_fallback {
                        break;
                    }
                }
                Next::Nobody => break,
            }
        }
        Err(select::nobody(self.drivers, direction, &self.known, &failures))
    }

    /// Index of the backend, which is opened if it was not yet.
    fn open(&mut self, driver: &'static crate::backend::Driver, direction: Direction) -> Result<usize> {
        let known = self
            .opened
            .iter()
            .position(|opened| opened.driver.name == driver.name && opened.direction == direction);
        if let Some(index) = known {
            return Ok(index);
        }
        let mut backend = (driver.open)(&self.site, direction)?;
        backend.renew()?;
        if let Some(estate) = backend.estate()? {
            (self.heir)(estate)?;
        }
        tracing::info!("opened {} for {direction}", driver.name);
        self.opened.push(Opened { driver, direction, backend, follow_at: None });
        Ok(self.opened.len() - 1)
    }

    /// Writes down what is in force now, and ends what it has replaced.
    fn settle(&mut self, held: &mut Held, wanted: &PerDirection<Want>, done: Vec<Done>) {
        for Done { limit, opened, applied, meter } in done {
            self.leftovers.retain(|leftover| *leftover != (opened, held.id));
            let slot = held.directions.get_mut(limit.direction);
            match slot {
                Some(placed) if placed.opened == opened => {
                    placed.meter = meter;
                    placed.limit = limit;
                    placed.saw(&applied);
                }
                _ => {
                    let mut placed = Placed {
                        limit,
                        opened,
                        backend: self.opened[opened].driver.name,
                        counters: Counters::default(),
                        meter,
                        processes: 0,
                        sockets: 0,
                        rungs: Vec::new(),
                    };
                    placed.saw(&applied);
                    if let Some(old) = slot.replace(placed) {
                        self.lift(old.opened, held.id);
                    }
                }
            }
        }
        for (direction, want) in wanted.iter() {
            if matches!(want, Want::Nothing)
                && let Some(old) = held.directions.get_mut(direction).take()
            {
                self.lift(old.opened, held.id);
            }
        }
    }

    fn step_back(&mut self, step: Undo) {
        match step {
            Undo::Apply(opened, limit) => {
                if let Err(error) = self.opened[opened].backend.apply(&limit) {
                    tracing::error!(
                        "limit {} can't go back to its old {} rate: {error}",
                        limit.id,
                        limit.direction
                    );
                }
            }
            Undo::Remove(opened, id) => self.lift(opened, id),
        }
    }
}

/// Whether a backend can tell apart the packets that a limit is about.
fn narrows(backend: &dyn Backend, limit: &Limit) -> Result<()> {
    if backend.narrows() || limit.narrowing().is_everything() {
        return Ok(());
    }
    Err(Error::new(Kind::NoBackend, "it can't narrow a limit to some remote addresses or ports"))
}

/// Another backend would say the same.
fn is_about_the_target(error: &Error) -> bool {
    matches!(error.kind, Kind::NotFound | Kind::Usage)
}

/// The user insisted on a backend that can't do it.
fn insisted(error: Error, message: &str) -> Error {
    let kind = if error.kind == Kind::NotPermitted { Kind::NotPermitted } else { Kind::NoBackend };
    Error::caused(kind, message, &error)
}

/// Whether what could be done is enough; if not, the error to tell.
fn judge(
    done: &[Done],
    mut refused: Vec<(Direction, Error)>,
    partial: bool,
    notices: &mut Vec<String>,
) -> Option<Error> {
    let (direction, mut first) = if refused.is_empty() { return None } else { refused.remove(0) };
    if let Some(Done { limit, .. }) = done.first() {
        if partial {
            notices.push(format!("only {} is limited: {first}", limit.direction));
            return None;
        }
        first.causes.push(format!(
            "{} alone could be limited; --partial accepts that ({direction} would not be)",
            limit.direction
        ));
        return Some(first);
    }
    for (other, error) in refused {
        // Of a target that can't be limited at all both directions say the same.
        let reason = error.message.strip_prefix(&select::nobody_can(other));
        if reason.is_some() && reason == first.message.strip_prefix(&select::nobody_can(direction)) {
            let both = select::nobody_can(format_args!("{direction} or {other}"));
            first.message = both + reason.unwrap_or_default();
        } else {
            first.causes.push(error.to_string());
        }
    }
    Some(first)
}
