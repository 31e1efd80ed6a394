//! What happens to limits by themselves: time passes, targets end, traffic escapes.

use std::{
    collections::BTreeSet,
    os::fd::RawFd,
    time::{Duration, Instant},
};

use super::{CHECK_PERIOD, Engine, Event, What, held::Held};
use crate::{
    model::{Direction, Escape, EscapeKind, LimitId, Rate, Target},
    owner::protocol::EndReason,
};

/// How long one [`Engine::tick`] may check limits before others get their turn.
const CHECK_BUDGET: Duration = Duration::from_millis(5);
/// Checks in a row that must fail before that counts as an escape.
const CHECK_PATIENCE: u32 = 3;

impl Engine {
    /// When [`Engine::tick`] has something to do.
    pub fn next_due(&self) -> Option<Instant> {
        let first = |set: &BTreeSet<(Instant, LimitId)>| set.first().map(|(time, _)| *time);
        let follow = self.opened.iter().filter_map(|opened| opened.follow_at).min();
        [first(&self.ends), first(&self.checks), follow].into_iter().flatten().min()
    }

    /// Ends limits whose duration is over, then checks those that are due, a few milliseconds long: more
    /// may be due at once.
    pub fn tick(&mut self, now: Instant) -> Vec<Event> {
        let over: Vec<_> = self.ends.iter().take_while(|(end, _)| *end <= now).map(|(_, id)| *id).collect();
        let mut events = self.end_each(over, EndReason::Duration, now);
        self.follow(now);
        let begun = Instant::now();
        while let Some(&(due, id)) = self.checks.first()
            && due <= now
        {
            events.extend(self.check(id, now));
            if begun.elapsed() >= CHECK_BUDGET {
                break;
            }
        }
        events
    }

    /// Calls [`crate::backend::Backend::follow`] where it is due.
    fn follow(&mut self, now: Instant) {
        for opened in &mut self.opened {
            if opened.follow_at.is_some_and(|due| due <= now) {
                opened.follow_at = match opened.backend.follow() {
                    Ok(next) => next.map(|wait| now + wait),
                    Err(error) => {
                        tracing::error!("let {} follow its limits: {error}", opened.driver.name);
                        None
                    }
                };
            }
        }
    }

    /// Extends the leases of all backends. One that can't be extended is an escape of its limits.
    pub fn renew(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for index in 0..self.opened.len() {
            self.opened[index].follow_at.get_or_insert_with(Instant::now);
            let Err(error) = self.opened[index].backend.renew() else { continue };
            tracing::error!("renew the lease of {}: {error}", self.opened[index].driver.name);
            let message = format!("the limit runs out, its lease can't be renewed: {error}");
            let escape = Escape { kind: EscapeKind::DeadLink, message };
            for held in self.limits.values_mut() {
                let placed = held.directions.get(self.opened[index].direction);
                if placed.as_ref().is_some_and(|placed| placed.opened == index) && held.note(&escape) {
                    events.push(escaped(held, escape.clone()));
                }
            }
        }
        for (opened, id) in std::mem::take(&mut self.leftovers) {
            self.lift(opened, id);
        }
        events
    }

    /// Ends the limits whose target has ended.
    pub fn collect_ended(&mut self, now: Instant) -> Vec<Event> {
        let mut ids = BTreeSet::new();
        for opened in &mut self.opened {
            match opened.backend.ended() {
                Ok(ended) => ids.extend(ended),
                Err(error) => tracing::error!("ask {} which targets ended: {error}", opened.driver.name),
            }
        }
        self.end_each(ids.into_iter().collect(), EndReason::TargetEnded, now)
    }

    /// Descriptors that become readable when [`Engine::collect_ended`] may have something to say.
    pub fn wake_fds(&self) -> impl Iterator<Item = RawFd> {
        self.opened.iter().filter_map(|opened| opened.backend.wake_fd())
    }

    /// Looks at one limit: counters, escapes, and whether its target is still there.
    fn check(&mut self, id: LimitId, now: Instant) -> Vec<Event> {
        let Some(mut held) = self.take(id) else { return Vec::new() };
        held.next_check = now + CHECK_PERIOD;
        let mut seen = Vec::new();
        let mut failure = None;
        for direction in Direction::ALL {
            let Some(placed) = held.directions.get_mut(direction) else { continue };
            let backend = &mut self.opened[placed.opened].backend;
            let looked = backend.stats(id).and_then(|counters| {
                // Before the check, which may take its time: what it is measured over must not.
                let read_at = Instant::now().max(now);
                Ok((counters, read_at, backend.check(id)?))
            });
            match looked {
                Ok((counters, read_at, checked)) => {
                    placed.counters = counters;
                    placed.meter.record(read_at, counters.passed_bytes);
                    placed.checked(&checked);
                    seen.extend(checked.escapes);
                    seen.extend(placed.meter.above(placed.rate(), backend.credit(placed.rate())).map(|measured| Escape {
                        kind: EscapeKind::AboveLimit,
                        message: format!(
                            "{direction} ran at {} over three seconds, the last time that it was too fast; the limit is {}",
                            Rate::new(measured / 1_000 * 1_000).map_or_else(|| format!("{measured} bytes/s"), |rate| rate.to_string()),
                            placed.rate()
                        ),
                    }));
                }
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            None => held.failed_checks = 0,
            Some(error) => {
                tracing::warn!("check limit {id}: {error}");
                held.failed_checks += 1;
                if held.failed_checks == CHECK_PATIENCE {
                    let message =
                        format!("nobody can tell whether the limit holds: its check fails: {error}");
                    seen.push(Escape { kind: EscapeKind::Unchecked, message });
                }
            }
        }
        let mut events = Vec::new();
        for escape in seen {
            if held.note(&escape) {
                tracing::warn!("limit {id}: {escape}");
                events.push(escaped(&held, escape));
            }
        }
        let over = held.failed_checks == 0 && !Target::are_standing(&held.targets);
        let nobody_left = over && held.report(now).processes == 0;
        self.put(held);
        if nobody_left {
            events.extend(self.end_each(vec![id], EndReason::TargetEnded, now));
        }
        events
    }
}

fn escaped(held: &Held, escape: Escape) -> Event {
    Event { client: held.client, id: held.id, what: What::Escaped(escape) }
}
