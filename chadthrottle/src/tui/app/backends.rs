//! Which backends are asked for, and what becomes of the limits that others hold.

use super::{App, Tone};
use crate::{
    backend::Probe,
    model::{Direction, LimitReport},
    tui::event::Effect,
};

impl App {
    /// Limits in force whose direction is held by another backend than the chosen one.
    pub fn elsewhere(&self, direction: Direction) -> impl Iterator<Item = &LimitReport> {
        let chosen = self.book.backends().get(direction).as_deref();
        self.shown.limits.iter().filter(move |limit| {
            let held = limit.directions.get(direction).as_ref();
            chosen.is_some_and(|chosen| held.is_some_and(|held| held.backend != chosen))
        })
    }

    /// The next backend that can hold a direction here; after the last, whichever is the best.
    pub(super) fn choose_backend(&mut self, direction: Direction) {
        if !self.may_limit() {
            return;
        }
        let Some(Ok(reports)) = &self.backends else {
            return self.say(Tone::Plain, "it is not known yet which backends work here");
        };
        let works = reports.iter().filter(|report| {
            report.directions.contains(&direction) && !matches!(report.available, Probe::Unavailable { .. })
        });
        let mut names = works.map(|report| report.name);
        let next = match self.book.backends().get(direction).as_deref() {
            None => names.next(),
            Some(chosen) => {
                names.find(|name| *name == chosen);
                names.next()
            }
        };
        self.book.choose(direction, next.map(str::to_owned));
    }

    /// Moves limits in force to the chosen backends.
    pub(super) fn move_limits(&mut self) -> Vec<Effect> {
        if !self.may_limit() {
            return Vec::new();
        }
        let mut moves = Vec::new();
        for direction in Direction::ALL {
            let Some(chosen) = self.book.backends().get(direction).clone() else { continue };
            moves.extend(self.elsewhere(direction).map(|limit| (limit.clone(), direction, chosen.clone())));
        }
        if moves.is_empty() {
            self.say(Tone::Plain, "no limit is held by another backend than the chosen ones");
        }
        let order =
            |(limit, direction, backend)| Effect::Order(self.book.move_over(&limit, direction, backend));
        moves.into_iter().map(order).collect()
    }
}
