//! Limits as this program knows them: what it set, what it suspended, what it can undo, and what it knows
//! before the next snapshot does.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    app::{Message, Tone},
    order::{Answer, News, Order, Outcome, Rates, Step, rates_of},
};
use crate::{
    error::Error,
    model::{Direction, LimitId, LimitReport, PerDirection, Rate, Scope, Snapshot, Target},
    output::{escape, limits},
    owner::protocol::{EndReason, LimitRequest},
};

/// After so many snapshots they are believed, whatever they say.
const PATIENCE: u8 = 3;

/// A limit that was taken away for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Suspended {
    /// As it was.
    pub report: LimitReport,
}

/// How to undo a change.
#[derive(Clone, Debug)]
enum Undo {
    /// A limit was set.
    Set(Box<LimitReport>),
    /// A limit was changed, or replaced: before, and now.
    Changed(Box<LimitReport>, Box<LimitReport>),
    /// A limit was ended.
    Removed(Box<LimitReport>),
}

/// Why something was ordered.
#[derive(Clone, Debug)]
enum Purpose {
    Set,
    Change { before: Box<LimitReport> },
    Move,
    Remove { before: Box<LimitReport>, suspend: bool },
    Resume { before: Box<LimitReport> },
    Undo(Undo),
    Keep,
    Probe,
}

/// Something a snapshot may not know yet.
#[derive(Clone, Debug)]
struct Ahead {
    /// `None`: it is over.
    report: Option<LimitReport>,
    patience: u8,
}

/// What came of an answer.
pub enum Settled {
    /// Something about limits; whether it went well.
    Limits(Message, bool),
    /// All limits stay, or why they don't.
    Kept(Result<(), Error>),
    /// What backends there are, or why nobody knows.
    Backends(Result<Outcome, Error>),
}

/// The book.
#[derive(Debug)]
pub struct Book {
    /// What every request begins with.
    template: LimitRequest,
    own: BTreeMap<LimitId, LimitReport>,
    suspended: Vec<Suspended>,
    undo: Vec<Undo>,
    ahead: HashMap<LimitId, Ahead>,
    /// Rates that are on their way.
    wanted: HashMap<LimitId, Rates>,
    pending: BTreeMap<u64, Purpose>,
    number: u64,
    /// What the owner had to tell with limits.
    told: HashSet<String>,
}

impl Book {
    /// An empty one; `template` has the backends, the place, and what to accept.
    pub fn new(template: LimitRequest) -> Self {
        Self {
            template,
            own: BTreeMap::new(),
            suspended: Vec::new(),
            undo: Vec::new(),
            ahead: HashMap::new(),
            wanted: HashMap::new(),
            pending: BTreeMap::new(),
            number: 0,
            told: HashSet::new(),
        }
    }

    fn order(&mut self, step: Step, purpose: Purpose) -> Order {
        self.number += 1;
        self.pending.insert(self.number, purpose);
        Order { number: self.number, owner: None, step }
    }

    /// A step that names this limit.
    fn order_about(&mut self, report: &LimitReport, step: Step, purpose: Purpose) -> Order {
        Order { owner: Some(report.owner_pid), ..self.order(step, purpose) }
    }

    /// A request for a limit.
    pub fn request(
        &self,
        targets: Vec<Target>,
        scope: Scope,
        rates: Rates,
        duration: Option<f64>,
    ) -> LimitRequest {
        LimitRequest { targets, scope, rates, duration, ..self.template.clone() }
    }

    /// Backends that limits are asked for with; `None`: the best that works.
    pub fn backends(&self) -> &PerDirection<Option<String>> {
        &self.template.backends
    }

    /// From now on limits are asked for with that backend.
    pub fn choose(&mut self, direction: Direction, backend: Option<String>) {
        *self.template.backends.get_mut(direction) = backend;
    }

    fn request_again(&self, report: &LimitReport) -> LimitRequest {
        let request = self.request(report.targets.clone(), report.scope, rates_of(report), report.remaining);
        LimitRequest { detach: report.detached, ..request }
    }

    /// Orders a limit.
    pub fn set(&mut self, request: LimitRequest) -> Order {
        self.order(Step::Set(request), Purpose::Set)
    }

    /// Orders other rates for a limit: without a gap, also when a direction becomes free.
    pub fn change(&mut self, report: &LimitReport, rates: Rates) -> Order {
        let step = self.step_to(report, rates);
        if let Step::Change { id, rates } = &step {
            self.wanted.insert(*id, *rates);
        }
        self.order_about(report, step, Purpose::Change { before: Box::new(report.clone()) })
    }

    /// Orders a limit that takes the place of another.
    pub fn replace(&mut self, old: &LimitReport, request: LimitRequest) -> Order {
        let purpose = Purpose::Change { before: Box::new(old.clone()) };
        self.order_about(old, Step::Replace { old: old.id, request }, purpose)
    }

    fn step_to(&self, report: &LimitReport, rates: Rates) -> Step {
        let freed = |direction: Direction| {
            report.directions.get(direction).is_some() && rates.get(direction).is_none()
        };
        if Direction::ALL.into_iter().any(freed) {
            let request = LimitRequest { rates, ..self.request_again(report) };
            Step::Replace { old: report.id, request }
        } else {
            Step::Change { id: report.id, rates }
        }
    }

    /// Orders rates that are `percent` of those of now, also of those that are only on their way.
    pub fn scale(&mut self, report: &LimitReport, percent: u64) -> Order {
        let now = self.wanted.get(&report.id).copied().unwrap_or_else(|| rates_of(report));
        let scaled = |rate: Rate| {
            let bytes = rate.bytes_per_second().saturating_mul(percent) / 100;
            Rate::new(bytes.clamp(crate::model::MIN_RATE, crate::model::MAX_RATE))
        };
        self.change(report, PerDirection::from_fn(|direction| now.get(direction).and_then(scaled)))
    }

    /// Orders that another backend holds a direction of a limit.
    pub fn move_over(&mut self, report: &LimitReport, direction: Direction, backend: String) -> Order {
        self.order_about(report, Step::Move { id: report.id, direction, backend }, Purpose::Move)
    }

    /// Orders the end of a limit.
    pub fn remove(&mut self, report: &LimitReport) -> Order {
        let purpose = Purpose::Remove { before: Box::new(report.clone()), suspend: false };
        self.order_about(report, Step::Remove { id: report.id }, purpose)
    }

    /// Orders the end of a limit, until it is resumed.
    pub fn suspend(&mut self, report: &LimitReport) -> Order {
        let purpose = Purpose::Remove { before: Box::new(report.clone()), suspend: true };
        self.order_about(report, Step::Remove { id: report.id }, purpose)
    }

    /// Orders a suspended limit back.
    pub fn resume(&mut self, report: &LimitReport) -> Order {
        let request = self.request_again(report);
        self.order(Step::Set(request), Purpose::Resume { before: Box::new(report.clone()) })
    }

    /// Forgets a suspended limit.
    pub fn forget(&mut self, id: LimitId) {
        self.suspended.retain(|suspended| suspended.report.id != id);
    }

    /// Orders the last change undone; `None`: there is none.
    pub fn undo(&mut self) -> Option<Order> {
        let undo = self.undo.pop()?;
        let owner = match &undo {
            Undo::Set(report) | Undo::Changed(_, report) => Some(report.owner_pid),
            Undo::Removed(_) => None,
        };
        let step = match &undo {
            Undo::Set(report) => Step::Remove { id: report.id },
            Undo::Changed(before, now) if before.targets == now.targets => {
                self.step_to(now, rates_of(before))
            }
            Undo::Changed(before, now) => Step::Replace { old: now.id, request: self.request_again(before) },
            Undo::Removed(report) => Step::Set(self.request_again(report)),
        };
        Some(Order { owner, ..self.order(step, Purpose::Undo(undo)) })
    }

    /// Orders that the limits set here stay when this program goes.
    pub fn keep(&mut self) -> Order {
        let requests =
            self.session().map(|report| LimitRequest { detach: true, ..self.request_again(report) });
        let step = Step::Keep(requests.collect());
        self.order(step, Purpose::Keep)
    }

    /// Orders a look at the backends.
    pub fn probe(&mut self) -> Order {
        self.order(Step::Probe, Purpose::Probe)
    }

    /// Limits that end with this program.
    pub fn session(&self) -> impl Iterator<Item = &LimitReport> {
        self.own.values().filter(|report| !report.detached)
    }

    /// Whether a limit was set here.
    pub fn is_own(&self, id: LimitId) -> bool {
        self.own.contains_key(&id)
    }

    /// Limits that are taken away for a while.
    pub fn suspended(&self) -> &[Suspended] {
        &self.suspended
    }

    /// Whether something was ordered and has not come yet.
    pub fn is_busy(&self) -> bool {
        self.pending.values().any(|purpose| !matches!(purpose, Purpose::Probe))
    }

    /// Whether this very order has not come yet.
    pub fn waits_for(&self, number: u64) -> bool {
        self.pending.contains_key(&number)
    }

    /// Writes down how an order went; `None`: nobody asked for it.
    pub fn answered(&mut self, answer: Answer) -> Option<Settled> {
        let purpose = self.pending.remove(&answer.number)?;
        match (purpose, answer.result) {
            (Purpose::Probe, result) => Some(Settled::Backends(result)),
            (Purpose::Keep, result) => Some(Settled::Kept(result.map(drop))),
            (purpose, Ok(outcome)) => Some(Settled::Limits(self.succeeded(purpose, outcome), true)),
            (purpose, Err(error)) => Some(Settled::Limits(self.failed(purpose, &error), false)),
        }
    }

    fn succeeded(&mut self, purpose: Purpose, outcome: Outcome) -> Message {
        let (report, notices) = match outcome {
            Outcome::Limited(report, notices) => (Some(report), notices),
            Outcome::Done | Outcome::Backends(_) => (None, Vec::new()),
        };
        if let Some(report) = &report {
            self.own_or_foreign(report);
        }
        let mut said = report.as_deref().map(limits::limited).unwrap_or_default();
        match (purpose, report) {
            (Purpose::Set, Some(report)) => self.undo.push(Undo::Set(report)),
            (Purpose::Change { before }, Some(report)) => {
                self.wanted.remove(&before.id);
                if before.id != report.id {
                    self.gone(before.id);
                }
                self.undo.push(Undo::Changed(before, report));
            }
            (Purpose::Remove { before, suspend }, _) => {
                self.gone(before.id);
                said = if suspend {
                    self.suspended.push(Suspended { report: LimitReport::clone(&before) });
                    format!("suspended the limit on {}; p brings it back", limits::subject(&before))
                } else {
                    format!("removed the limit on {}; u brings it back", limits::subject(&before))
                };
                self.undo.push(Undo::Removed(before));
            }
            (Purpose::Resume { before }, Some(report)) => {
                self.forget(before.id);
                self.rename(before.id, &report);
                self.undo.push(Undo::Set(report));
            }
            (Purpose::Undo(undo), report) => said = self.undone(undo, report, said),
            _ => {}
        }
        // What was not as wished comes first: the line may be cut. What was told before comes last.
        let text =
            |notices: &[String]| notices.iter().map(|notice| escape(notice)).collect::<Vec<_>>().join("; ");
        let (new, known): (Vec<_>, Vec<_>) =
            notices.into_iter().partition(|notice| self.told.insert(notice.clone()));
        let tone = if new.is_empty() { Tone::Good } else { Tone::Warning };
        let parts = [text(&new), said, text(&known)];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        Message::new(tone, parts.join("; "))
    }

    fn undone(&mut self, undo: Undo, report: Option<Box<LimitReport>>, said: String) -> String {
        match (undo, report) {
            (Undo::Set(before), _) => {
                self.gone(before.id);
                format!("undone: {} has no limit any more", limits::subject(&before))
            }
            (Undo::Changed(before, now), Some(report)) => {
                if now.id != report.id {
                    self.gone(now.id);
                    self.rename(now.id, &report);
                }
                self.rename(before.id, &report);
                format!("undone: {said}")
            }
            (Undo::Removed(before), Some(report)) => {
                self.forget(before.id);
                self.rename(before.id, &report);
                format!("undone: {said}")
            }
            _ => said,
        }
    }

    fn failed(&mut self, purpose: Purpose, error: &Error) -> Message {
        match purpose {
            Purpose::Change { before } => {
                self.wanted.remove(&before.id);
            }
            // It can be tried again.
            Purpose::Undo(undo) if error.kind != crate::error::Kind::NotFound => self.undo.push(undo),
            Purpose::Undo(Undo::Set(report) | Undo::Changed(_, report)) => {
                let text = format!("nothing to undo: the limit on {} is gone", limits::subject(&report));
                return Message::new(Tone::Warning, text);
            }
            _ => {}
        }
        Message::new(Tone::Alarm, escape(&error.to_string()))
    }

    /// A limit came back under another id.
    fn rename(&mut self, old: LimitId, now: &LimitReport) {
        for undo in &mut self.undo {
            let (Undo::Set(report) | Undo::Changed(_, report) | Undo::Removed(report)) = undo;
            if report.id == old {
                report.id = now.id;
            }
        }
    }

    fn own_or_foreign(&mut self, report: &LimitReport) {
        // Others' limits can be changed from here too; they stay theirs.
        if report.client_pid == std::process::id() || self.own.contains_key(&report.id) {
            self.own.insert(report.id, report.clone());
        }
        let ahead = Ahead { report: Some(report.clone()), patience: PATIENCE };
        self.ahead.insert(report.id, ahead);
    }

    fn gone(&mut self, id: LimitId) {
        self.own.remove(&id);
        self.wanted.remove(&id);
        self.ahead.insert(id, Ahead { report: None, patience: PATIENCE });
    }

    /// Writes down what happened to a limit, and says what the user should know of it.
    pub fn news(&mut self, news: News) -> Option<Message> {
        match news {
            News::Escaped(id, escape) => {
                let report = self.own.get(&id)?;
                let text = format!("{}: {}", limits::subject(report), crate::output::escape(&escape.message));
                Some(Message::new(Tone::Alarm, text))
            }
            News::Ended(reason, last) => {
                // What was ended from here is known, and has been told of.
                let known = self.own.contains_key(&last.id);
                let own_doing = self.pending.values().any(|purpose| {
                    matches!(purpose, Purpose::Remove { before, .. } | Purpose::Change { before } if before.id == last.id)
                        || matches!(purpose, Purpose::Undo(Undo::Set(report) | Undo::Changed(_, report)) if report.id == last.id)
                });
                self.gone(last.id);
                let why = match reason {
                    EndReason::TargetEnded => "its process has ended",
                    EndReason::Duration => "its time is up",
                    EndReason::Cleared => "somebody cleared it",
                    EndReason::OwnerStopped => "its owner has stopped",
                };
                (known && !own_doing).then(|| {
                    Message::new(
                        Tone::Warning,
                        format!("the limit on {} is over: {why}", limits::subject(&last)),
                    )
                })
            }
            News::OwnerGone => {
                let ids: Vec<_> = self.own.keys().copied().collect();
                let text = "the process that holds the limits is gone, and the limits with it";
                let lost = !ids.is_empty();
                ids.into_iter().for_each(|id| self.gone(id));
                // The next owner gives the same ids to other limits.
                self.wanted.clear();
                self.undo.retain(|undo| matches!(undo, Undo::Removed(_)));
                lost.then(|| Message::new(Tone::Alarm, text.to_owned()))
            }
        }
    }

    /// A new snapshot has come: what it knows needs not be known here any more.
    pub fn compare(&mut self, snapshot: &Snapshot) {
        let rates: HashMap<_, _> = snapshot.limits.iter().map(|limit| (limit.id, rates_of(limit))).collect();
        self.ahead.retain(|id, ahead| {
            ahead.patience = ahead.patience.saturating_sub(1);
            ahead.patience > 0 && rates.get(id).copied() != ahead.report.as_ref().map(rates_of)
        });
        for limit in &snapshot.limits {
            // Also what was given up because the owner was silent, and came all the same.
            let is_ours = limit.client_pid == std::process::id() && !self.ahead.contains_key(&limit.id);
            if let Some(own) = self.own.get_mut(&limit.id) {
                own.clone_from(limit);
            } else if is_ours && !self.is_busy() {
                self.own.insert(limit.id, limit.clone());
            }
        }
    }

    /// Puts into a snapshot what it does not know yet.
    pub fn complete(&self, snapshot: &mut Snapshot) {
        for (id, ahead) in &self.ahead {
            let Some(report) = &ahead.report else {
                snapshot.limits.retain(|limit| limit.id != *id);
                snapshot.processes.iter_mut().for_each(|process| process.limits.retain(|own| own != id));
                continue;
            };
            match snapshot.limits.iter_mut().find(|limit| limit.id == *id) {
                Some(limit) => limit.clone_from(report),
                None => snapshot.limits.push(report.clone()),
            }
            for process in &mut snapshot.processes {
                let named = |target: &Target| matches!(target, Target::Pid(pid) | Target::Tree(pid) if *pid == process.pid);
                if process.alive && !process.limits.contains(id) && report.targets.iter().any(named) {
                    process.limits.push(*id);
                }
            }
        }
        snapshot.limits.sort_by_key(|limit| limit.id);
    }
}
