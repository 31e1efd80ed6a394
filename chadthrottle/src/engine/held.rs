//! A limit in force, as the engine remembers it.

use std::time::Instant;

use super::{ClientId, meter::Meter};
use crate::{
    backend::{Applied, Checked},
    model::{
        Counters, DirectionReport, Escape, Limit, LimitId, LimitReport, PerDirection, Rate, Rung, Scope,
        Target,
    },
};

/// One direction that a backend holds.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    /// As it was applied.
    pub limit: Limit,
    /// Index of the opened backend.
    pub opened: usize,
    /// That backend's name.
    pub backend: &'static str,
    /// The last that was read.
    pub counters: Counters,
    pub meter: Meter,
    /// Processes and sockets at the last look.
    pub processes: u32,
    pub sockets: u32,
    /// How it is held, at the last look.
    pub rungs: Vec<Rung>,
}

impl Placed {
    pub fn rate(&self) -> Rate {
        self.limit.rate
    }

    pub fn saw(&mut self, applied: &Applied) {
        (self.processes, self.sockets) = (applied.processes, applied.sockets);
    }

    pub fn checked(&mut self, checked: &Checked) {
        self.rungs.clone_from(&checked.rungs);
        (self.processes, self.sockets) = (checked.processes, checked.sockets);
    }
}

/// Both directions of a limit, and whose it is.
#[derive(Debug)]
pub(super) struct Held {
    pub id: LimitId,
    pub targets: Vec<Target>,
    pub scope: Scope,
    pub name: String,
    pub directions: PerDirection<Option<Placed>>,
    pub detached: bool,
    /// Who is told of it; nobody for a detached one.
    pub client: Option<ClientId>,
    pub client_pid: u32,
    pub set_at: Instant,
    pub ends_at: Option<Instant>,
    pub next_check: Instant,
    pub escapes: Vec<Escape>,
    /// Checks in a row that failed.
    pub failed_checks: u32,
}

impl Held {
    /// Takes note of an escape, and of the latest of its kind; true at the first sight of that.
    pub fn note(&mut self, escape: &Escape) -> bool {
        match self.escapes.iter_mut().find(|known| known.kind == escape.kind) {
            Some(known) => {
                known.message.clone_from(&escape.message);
                false
            }
            None => {
                self.escapes.push(escape.clone());
                true
            }
        }
    }

    pub fn report(&self, now: Instant) -> LimitReport {
        let placed = || self.directions.iter().filter_map(|(_, placed)| placed.as_ref());
        LimitReport {
            id: self.id,
            targets: self.targets.clone(),
            scope: self.scope,
            name: self.name.clone(),
            processes: placed().map(|placed| placed.processes).max().unwrap_or(0),
            sockets: placed().map(|placed| placed.sockets).max().unwrap_or(0),
            directions: PerDirection::from_fn(|direction| {
                self.directions.get(direction).as_ref().map(|placed| DirectionReport {
                    rate: placed.rate(),
                    measured: placed.meter.measured(),
                    backend: placed.backend.to_owned(),
                    counters: placed.counters,
                    rungs: placed.rungs.clone(),
                })
            }),
            detached: self.detached,
            client_pid: self.client_pid,
            owner_pid: std::process::id(),
            age: now.saturating_duration_since(self.set_at).as_secs_f64(),
            remaining: self.ends_at.map(|end| end.saturating_duration_since(now).as_secs_f64()),
            escapes: self.escapes.clone(),
        }
    }
}
