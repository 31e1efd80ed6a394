//! What keys do about limits: each becomes an order for the owner, or a message that says why not.

use ratatui::crossterm::event::KeyEvent;

use super::{App, Screen, Tone};
use crate::{
    model::{Connection, LimitReport, Process, RowKey, Snapshot},
    output::{escape, limits},
    tui::{
        book::{Book, Suspended},
        dialog::{LimitDialog, State},
        event::Effect,
        keymap::Action,
        order::rates_of,
        subject,
    },
};

/// A line of the table of limits.
#[derive(Clone, Copy, Debug)]
pub enum LimitLine<'a> {
    /// In force.
    Live(&'a LimitReport),
    /// Taken away for a while.
    Suspended(&'a LimitReport),
}

impl<'a> LimitLine<'a> {
    /// As it is, or was.
    pub fn report(self) -> &'a LimitReport {
        match self {
            Self::Live(report) | Self::Suspended(report) => report,
        }
    }
}

impl App {
    /// All limits: those in force as they were set, then those that are suspended.
    pub fn limit_lines(&self) -> Vec<LimitLine<'_>> {
        let live = self.shown.limits.iter().map(LimitLine::Live);
        let suspended = self.book.suspended().iter().map(|suspended| LimitLine::Suspended(&suspended.report));
        live.chain(suspended).collect()
    }

    /// A suspended limit of a row.
    pub fn suspended_of(&self, key: &RowKey, members: &[usize]) -> Option<&Suspended> {
        suspended_of(&self.book, &self.shown, key, members)
    }

    /// From now on the selection on the screen of limits follows the limit it is on.
    pub(super) fn follow_limit(&mut self) {
        let selected = self.limit_lines().get(self.limits.selected).map(|line| line.report().clone());
        self.followed_limit = selected;
    }

    /// Moves the selection to the limit it follows, or to what has taken its place: a limit that was suspended,
    /// brought back or replaced has another number.
    pub(super) fn find_followed_limit(&mut self, height: usize) {
        let lines = self.limit_lines();
        let found = self.followed_limit.as_ref().and_then(|followed| {
            let same = |line: &LimitLine| line.report().id == followed.id;
            let alike = |line: &LimitLine| subject::is_same(&line.report().targets, &followed.targets);
            lines.iter().position(same).or_else(|| lines.iter().rposition(alike))
        });
        let (place, length) = (found.unwrap_or(self.limits.selected), lines.len());
        self.limits.to(place, length, height);
        if found.is_some() || self.followed_limit.is_none() {
            self.follow_limit();
        }
    }

    /// Whether what was selected has left, so that keys would mean whatever stands in its place.
    pub fn is_lost(&self) -> bool {
        match self.screen {
            Screen::Processes => self.processes.is_lost(),
            Screen::Limits => match (&self.followed_limit, self.limit_lines().get(self.limits.selected)) {
                (Some(followed), Some(selected)) => selected.report().id != followed.id,
                _ => false,
            },
            _ => false,
        }
    }

    /// The limit that keys are about.
    fn limit_here(&self) -> Option<LimitReport> {
        if self.is_lost() {
            return None;
        }
        if self.screen == Screen::Limits {
            return match self.limit_lines().get(self.limits.selected) {
                Some(LimitLine::Live(report)) => Some((*report).clone()),
                _ => None,
            };
        }
        let (key, members, _) = self.row()?;
        subject::limit_of(&self.shown, &key, &members).cloned()
    }

    /// The suspended limit that keys are about.
    fn suspended_here(&self) -> Option<LimitReport> {
        if self.is_lost() {
            return None;
        }
        if self.screen == Screen::Limits {
            return match self.limit_lines().get(self.limits.selected) {
                Some(LimitLine::Suspended(report)) => Some((*report).clone()),
                _ => None,
            };
        }
        let (key, members, _) = self.row()?;
        self.suspended_of(&key, &members).map(|suspended| suspended.report.clone())
    }

    /// Whether limits can be set at all; says why not.
    pub(super) fn may_limit(&mut self) -> bool {
        match self.read_only.clone() {
            Some(why) => {
                self.say(Tone::Warning, why);
                false
            }
            None => true,
        }
    }

    /// Whether what is selected was chosen; says so if not.
    fn is_chosen(&mut self) -> bool {
        let is_lost = self.is_lost();
        if is_lost {
            let what = if self.screen == Screen::Limits { "limit" } else { "row" };
            self.say(Tone::Warning, format!("the selected {what} is gone: choose another with ↑ ↓"));
        }
        !is_lost
    }

    /// The limit that keys are about, or a message that there is none.
    fn limit_or_say(&mut self) -> Option<LimitReport> {
        if !self.may_limit() || !self.is_chosen() {
            return None;
        }
        let limit = self.limit_here();
        if limit.is_none() {
            let text = match (self.suspended_here(), self.screen) {
                (Some(_), _) => "it is suspended; p brings it back",
                (None, Screen::Limits) => "there is no limit here",
                (None, _) => "it has no limit; t sets one",
            };
            self.say(Tone::Plain, text);
        }
        limit
    }

    pub(super) fn open_dialog(&mut self) {
        if !self.may_limit() || !self.is_chosen() {
            return;
        }
        if self.screen == Screen::Limits {
            if let Some(report) = self.limit_or_say() {
                let title = limits::subject(&report);
                self.dialog = Some(LimitDialog::new(title, Vec::new(), 0, Some(report)));
            }
            return;
        }
        let Some((key, members, label)) = self.row() else {
            return self.say(Tone::Plain, "there is nothing to limit");
        };
        let mut choices = subject::choices(&self.shown, &key, &members);
        if choices.is_empty() {
            let ended = members.iter().all(|index| !self.shown.processes[*index].alive);
            let why = if ended { "it has ended" } else { "no process is known for this traffic" };
            return self.say(Tone::Warning, format!("{}: {why}", escape(&label)));
        }
        // In a tree what is below a row belongs to it.
        let preferred = usize::from(matches!(key, RowKey::Process(_)) && members.len() > 1);
        let title = match &key {
            RowKey::Process(process) => format!("{} ({})", escape(&label), process.pid),
            _ => escape(&label),
        };
        // A limit on some of its traffic is no limit on the row; that is changed by its connection, or on screen 3.
        let changes = subject::limit_of(&self.shown, &key, &members);
        let changes = changes.filter(|limit| !subject::is_narrow(&limit.targets)).cloned();
        if self.screen == Screen::Detail {
            let selected = self.selected_connection();
            choices.extend(selected.and_then(|one| subject::connection_choice(&self.shown, one).ok()));
        }
        self.dialog = Some(LimitDialog::new(title, choices, preferred, changes));
        self.processes.follow();
    }

    /// The connection that is selected on the detail screen.
    fn selected_connection(&self) -> Option<&Connection> {
        let subject = self.subject.as_ref()?;
        subject.connections(&self.shown).get(self.connections.selected).copied()
    }

    pub(super) fn open_connection_dialog(&mut self) {
        if !self.may_limit() {
            return;
        }
        let Some(connection) = self.selected_connection() else {
            return self.say(Tone::Plain, "there is no connection to limit; t limits the process");
        };
        let choice = match subject::connection_choice(&self.shown, connection) {
            Ok(choice) => choice,
            Err(why) => return self.say(Tone::Warning, why),
        };
        let owner = self.shown.process(connection.owner);
        let title =
            owner.map_or_else(String::new, |owner| format!("{} ({})", escape(&owner.name), owner.pid));
        let same = |limit: &&LimitReport| subject::is_same(&limit.targets, &choice.targets);
        let changes = self.shown.limits.iter().rfind(same).cloned();
        // Then its process, and whatever else that belongs to.
        let mut choices = subject::choices(&self.shown, &RowKey::Process(connection.owner), &[]);
        choices.insert(0, choice);
        self.dialog = Some(LimitDialog::new(title, choices, 0, changes));
    }

    pub(super) fn dialog_key(&mut self, action: Option<Action>, key: KeyEvent) -> Vec<Effect> {
        let Some(dialog) = &mut self.dialog else { return Vec::new() };
        match action {
            Some(Action::Interrupt) => return vec![Effect::Leave],
            Some(Action::Close) => self.dialog = None,
            Some(Action::Accept) => return self.accept(),
            Some(action) => dialog.act(action, key),
            None => dialog.type_in(key),
        }
        Vec::new()
    }

    fn accept(&mut self) -> Vec<Effect> {
        let Some(dialog) = &mut self.dialog else { return Vec::new() };
        if matches!(dialog.state, State::Applying(_)) {
            return Vec::new();
        }
        let wish = match dialog.wish() {
            Ok(wish) => wish,
            Err((field, why)) => {
                dialog.focus(field);
                dialog.state = State::Refused(why);
                return Vec::new();
            }
        };
        let order = match &dialog.changes {
            Some(report) if wish.only_rates && rates_of(report) == wish.rates => {
                self.dialog = None;
                return Vec::new();
            }
            Some(report) if wish.only_rates => self.book.change(report, wish.rates),
            changes => {
                let mut request = self.book.request(wish.targets, wish.scope, wish.rates, wish.duration);
                match changes {
                    Some(report) => {
                        request.detach = report.detached;
                        self.book.replace(report, request)
                    }
                    None => self.book.set(request),
                }
            }
        };
        dialog.state = State::Applying(order.number);
        vec![Effect::Order(order)]
    }

    pub(super) fn scale(&mut self, percent: u64) -> Vec<Effect> {
        let limit = self.limit_or_say();
        limit.map(|report| Effect::Order(self.book.scale(&report, percent))).into_iter().collect()
    }

    pub(super) fn remove(&mut self) -> Vec<Effect> {
        if let (None, Some(suspended)) = (self.limit_here(), self.suspended_here()) {
            self.book.forget(suspended.id);
            self.say(Tone::Good, format!("forgot the suspended limit on {}", limits::subject(&suspended)));
            self.rebuild();
            return Vec::new();
        }
        let limit = self.limit_or_say();
        limit.map(|report| Effect::Order(self.book.remove(&report))).into_iter().collect()
    }

    pub(super) fn suspend(&mut self) -> Vec<Effect> {
        if let (None, Some(suspended)) = (self.limit_here(), self.suspended_here()) {
            return vec![Effect::Order(self.book.resume(&suspended))];
        }
        let limit = self.limit_or_say();
        limit.map(|report| Effect::Order(self.book.suspend(&report))).into_iter().collect()
    }

    pub(super) fn undo(&mut self) -> Vec<Effect> {
        if !self.may_limit() {
            return Vec::new();
        }
        match self.book.undo() {
            Some(order) => vec![Effect::Order(order)],
            None => {
                self.say(Tone::Plain, "there is nothing to undo");
                Vec::new()
            }
        }
    }
}

/// A suspended limit of a row.
fn suspended_of<'a>(
    book: &'a Book,
    shown: &Snapshot,
    key: &RowKey,
    members: &[usize],
) -> Option<&'a Suspended> {
    if book.suspended().is_empty() {
        return None;
    }
    let choices = subject::choices(shown, key, members);
    book.suspended().iter().rev().find(|suspended| {
        choices.iter().any(|choice| subject::is_same(&choice.targets, &suspended.report.targets))
    })
}

/// Whom a filter takes for limited: also whose limit will be brought back.
pub(super) fn is_limited(book: &Book, shown: &Snapshot, process: &Process) -> bool {
    !process.limits.is_empty() || suspended_of(book, shown, &RowKey::Process(process.key()), &[]).is_some()
}
