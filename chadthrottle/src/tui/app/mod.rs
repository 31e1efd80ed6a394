//! The state of the screens. It is changed only here, by [`App::handle`]; drawing looks at it and changes
//! nothing, and whatever takes time is given out as an [`Effect`].

use std::sync::Arc;

use ratatui::{
    crossterm::event::{Event as TerminalEvent, KeyEvent, KeyEventKind},
    layout::Size,
};
use tui_input::{Input, backend::crossterm::EventHandler};

use super::{
    book::{Book, Settled},
    columns,
    detail::Subject,
    dialog::{LimitDialog, State as DialogState},
    event::{Effect, Event},
    history::History,
    keymap::{self, Action, Context},
    layout,
    order::{News, Outcome},
    theme::ThemeName,
};
use crate::{
    error::Error,
    model::{Connection, LimitReport, Process, RowKey, Snapshot},
    output::{backends::BackendReport, escape},
    owner::protocol::LimitRequest,
};

mod backends;
mod limits;
pub mod list;
mod mouse;
pub mod processes;

pub use limits::LimitLine;
use list::Cursor;
use processes::ProcessTable;

/// A screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Screen {
    /// Every process.
    #[default]
    Processes,
    /// One process or group.
    Detail,
    /// Every limit.
    Limits,
    /// Every network interface.
    Interfaces,
    /// How limits can be held here.
    Backends,
    /// Keys.
    Help,
}

impl Screen {
    /// In the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Processes, Self::Detail, Self::Limits, Self::Interfaces, Self::Backends, Self::Help];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Processes => "Processes",
            Self::Detail => "Detail",
            Self::Limits => "Limits",
            Self::Interfaces => "Interfaces",
            Self::Backends => "Backends",
            Self::Help => "Help",
        }
    }

    /// Its name where there is little room.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Processes => "Proc",
            Self::Interfaces => "Ifaces",
            other => other.name(),
        }
    }

    fn after(self, steps: usize) -> Self {
        let at = Self::ALL.iter().position(|screen| *screen == self).unwrap_or(0);
        Self::ALL[(at + steps) % Self::ALL.len()]
    }
}

/// How a message is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Done.
    Good,
    /// Just to know.
    Plain,
    /// Not quite as wished.
    Warning,
    /// Failed.
    Alarm,
}

/// A line for the user; stays until the next key.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// How it is meant.
    pub tone: Tone,
    /// Escaped.
    pub text: String,
}

impl Message {
    /// `text` is escaped already.
    pub fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { tone, text: text.into() }
    }
}

/// Whether snapshots come.
#[derive(Clone, Debug, PartialEq)]
pub enum Feed {
    /// None has come yet.
    Waiting,
    /// They come.
    Live,
    /// They came, and have not for a while; why, escaped. What is shown is old.
    Silent(String),
    /// There are no more.
    Over,
    /// They can't be had; escaped.
    Failed(String),
}

/// How to begin.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Size of the terminal.
    pub size: Size,
    /// Colours.
    pub theme: ThemeName,
    /// Only characters that every terminal has.
    pub ascii: bool,
    /// What every request for a limit begins with.
    pub template: LimitRequest,
    /// Why nothing can be limited, when that is known; lower case.
    pub read_only: Option<String>,
}

/// The state.
#[derive(Debug)]
pub struct App {
    /// Size of the terminal.
    pub size: Size,
    /// Colours.
    pub theme: ThemeName,
    /// Only characters that every terminal has.
    pub ascii: bool,
    /// The screen shown.
    pub screen: Screen,
    /// The screen that help is about.
    pub help_about: Screen,
    /// What is shown: rates smoothed, with what is known of limits already.
    pub shown: Snapshot,
    /// Whether snapshots come.
    pub feed: Feed,
    /// Processes.
    pub processes: ProcessTable,
    /// Limits of this program.
    pub book: Book,
    /// Where we are among the limits.
    pub limits: Cursor,
    /// Where we are among the interfaces.
    pub interfaces: Cursor,
    /// How far the text of help or backends is scrolled.
    pub text: Cursor,
    /// What the detail screen is about.
    pub subject: Option<Subject>,
    /// Where we are among its connections.
    pub connections: Cursor,
    /// The connection that the cursor was moved to, by its id: it stays there when their order changes.
    connection: Option<u64>,
    /// What backends there are; `None`: nobody knows yet.
    pub backends: Option<Result<Vec<BackendReport>, Error>>,
    /// The filter while it is typed.
    pub filter: Option<Input>,
    /// The limit dialog.
    pub dialog: Option<LimitDialog>,
    /// Whether it is asked what becomes of the limits.
    pub leaving: bool,
    /// The last message.
    pub message: Option<Message>,
    /// Why nothing can be limited.
    pub read_only: Option<String>,
    history: History,
    /// What it was when the picture was told to stand still.
    frozen: Option<History>,
    latest: Option<Arc<Snapshot>>,
    /// What the selection on the screen of limits follows.
    followed_limit: Option<LimitReport>,
}

impl App {
    /// Nothing is known yet.
    pub fn new(setup: Setup) -> Self {
        Self {
            size: setup.size,
            theme: setup.theme,
            ascii: setup.ascii,
            screen: Screen::default(),
            help_about: Screen::default(),
            shown: Snapshot::default(),
            feed: Feed::Waiting,
            processes: ProcessTable::default(),
            book: Book::new(setup.template),
            limits: Cursor::default(),
            followed_limit: None,
            interfaces: Cursor::default(),
            text: Cursor::default(),
            subject: None,
            connections: Cursor::default(),
            connection: None,
            backends: None,
            filter: None,
            dialog: None,
            leaving: false,
            message: None,
            read_only: setup.read_only,
            history: History::default(),
            frozen: None,
            latest: None,
        }
    }

    /// Whether the picture stands still.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Rates of the last minutes.
    pub fn history(&self) -> &History {
        self.frozen.as_ref().unwrap_or(&self.history)
    }

    /// Where keys mean what they mean now.
    pub fn context(&self) -> Context {
        match self {
            _ if self.leaving => Context::Leaving,
            Self { dialog: Some(_), .. } => Context::Dialog,
            Self { filter: Some(_), .. } => Context::Filter,
            _ => Context::On(self.screen),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Terminal(TerminalEvent::Key(key)) if key.kind != KeyEventKind::Release => {
                self.message = None;
                return self.key(key);
            }
            Event::Terminal(TerminalEvent::Mouse(mouse)) => return self.mouse(mouse),
            Event::Terminal(TerminalEvent::Resize(width, height)) => {
                self.size = Size::new(width, height);
                self.rebuild();
            }
            Event::Terminal(TerminalEvent::Paste(text)) => self.paste(&text),
            Event::Terminal(_) | Event::Suspend | Event::Continue => {}
            Event::Snapshot(snapshot) => self.take_in(snapshot),
            Event::FeedSilent(error) | Event::FeedOver(Some(error)) => {
                let why = escape(&error.to_string());
                // Without a first snapshot there is nothing old to look at.
                self.feed = if self.latest.is_some() { Feed::Silent(why) } else { Feed::Failed(why) };
            }
            Event::FeedOver(None) => self.feed = Feed::Over,
            Event::Answer(answer) => {
                let number = answer.number;
                if let Some(settled) = self.book.answered(answer) {
                    return self.settled(number, settled);
                }
            }
            Event::News(news) => {
                if matches!(news, News::OwnerGone)
                    && let Some(dialog) = &mut self.dialog
                {
                    dialog.lose_limit();
                }
                if let Some(message) = self.book.news(news) {
                    self.message = Some(message);
                }
                self.refresh();
            }
            Event::Stop => return vec![Effect::Leave],
        }
        Vec::new()
    }

    fn take_in(&mut self, snapshot: Arc<Snapshot>) {
        self.feed = Feed::Live;
        self.history.add(&snapshot);
        self.book.compare(&snapshot);
        self.latest = Some(snapshot);
        if !self.is_frozen() {
            self.refresh();
        }
    }

    fn settled(&mut self, number: u64, settled: Settled) -> Vec<Effect> {
        match settled {
            Settled::Limits(message, went_well) => {
                let asked =
                    self.dialog.as_mut().filter(|dialog| dialog.state == DialogState::Applying(number));
                match asked {
                    Some(dialog) if !went_well => dialog.state = DialogState::Refused(message.text),
                    asked => {
                        if asked.is_some() {
                            self.dialog = None;
                        }
                        // What failed is not hidden by what went well beside it.
                        let failed = matches!(&self.message, Some(before) if before.tone == Tone::Alarm);
                        if !(failed && went_well) {
                            self.message = Some(message);
                        }
                    }
                }
                self.refresh();
            }
            Settled::Kept(Ok(())) => return vec![Effect::Leave],
            Settled::Kept(Err(error)) => {
                let text = format!("they can't stay: {}", escape(&error.to_string()));
                self.message = Some(Message::new(Tone::Alarm, text));
            }
            Settled::Backends(result) => {
                let reports = result.map(|outcome| match outcome {
                    Outcome::Backends(reports) => reports,
                    _ => Vec::new(),
                });
                self.backends = Some(reports);
            }
        }
        Vec::new()
    }

    /// Shows the last snapshot, with what is known besides.
    fn refresh(&mut self) {
        let Some(latest) = &self.latest else { return };
        let mut shown = Snapshot::clone(latest);
        for process in &mut shown.processes {
            if let Some(rates) = self.history.smoothed(process.key()) {
                process.rx_rate = rates.down.round() as u64;
                process.tx_rate = rates.up.round() as u64;
            }
        }
        self.book.complete(&mut shown);
        self.shown = shown;
        self.rebuild();
    }

    /// Makes everything that follows from the state anew.
    fn rebuild(&mut self) {
        let height = self.rows_seen();
        let limited = |process: &Process| limits::is_limited(&self.book, &self.shown, process);
        self.processes.rebuild(&self.shown, height, &limited);
        self.find_followed_limit(height);
        self.interfaces.step(0, self.shown.interfaces.len(), height);
        if self.screen == Screen::Detail {
            self.follow_connection();
        }
    }

    fn follow_connection(&mut self) {
        let Some(subject) = &self.subject else { return };
        let connections = subject.connections(&self.shown);
        let is_it = |connection: &&Connection| Some(connection.id) == self.connection;
        let place = connections.iter().position(is_it).unwrap_or(self.connections.selected);
        self.connections.to(place, connections.len(), super::detail::connections_seen(self.size));
    }

    /// Goes to a line of the connections.
    fn go_to_connection(&mut self, line: usize) {
        let Some(subject) = &self.subject else { return };
        let connections = subject.connections(&self.shown);
        self.connections.to(line, connections.len(), super::detail::connections_seen(self.size));
        self.connection = connections.get(self.connections.selected).map(|connection| connection.id);
    }

    /// How many lines of a table with a heading are seen.
    pub fn rows_seen(&self) -> usize {
        usize::from(layout::areas(self.size, self.screen).body.height.saturating_sub(1))
    }

    fn key(&mut self, key: KeyEvent) -> Vec<Effect> {
        let context = self.context();
        let action = keymap::action(context, &key);
        match (context, action) {
            (Context::Filter, None) => {
                self.type_filter(key);
                Vec::new()
            }
            (Context::Dialog, action) => self.dialog_key(action, key),
            (_, Some(action)) => self.act(action),
            (_, None) => Vec::new(),
        }
    }

    fn type_filter(&mut self, key: KeyEvent) {
        let Some(input) = &mut self.filter else { return };
        input.handle_event(&TerminalEvent::Key(key));
        let text = input.value().to_owned();
        self.processes.set_filter(&text);
        self.rebuild();
    }

    fn paste(&mut self, text: &str) {
        let text: String = text.chars().filter(|letter| !letter.is_control()).collect();
        if let Some(dialog) = &mut self.dialog {
            dialog.paste(&text);
        } else if let Some(input) = self.filter.take() {
            let text = format!("{}{text}", input.value());
            self.processes.set_filter(&text);
            self.filter = Some(Input::new(text));
            self.rebuild();
        }
    }

    fn act(&mut self, action: Action) -> Vec<Effect> {
        match action {
            Action::Quit if self.book.session().next().is_some() => self.leaving = true,
            Action::Quit | Action::Interrupt | Action::EndLimits => return vec![Effect::Leave],
            Action::KeepLimits => return vec![Effect::Order(self.book.keep())],
            Action::Close => self.close(),
            Action::Help => self.show(Screen::Help),
            Action::Show(screen) => return self.go_to(screen),
            Action::NextScreen => return self.go_to(self.screen.after(1)),
            Action::PreviousScreen => return self.go_to(self.screen.after(Screen::ALL.len() - 1)),
            Action::Open => return self.go_to(Screen::Detail),
            Action::Up => self.step(-1),
            Action::Down => self.step(1),
            Action::PageUp => self.step(-self.page()),
            Action::PageDown => self.step(self.page()),
            Action::First => self.step(isize::MIN / 2),
            Action::Last => self.step(isize::MAX / 2),
            Action::Filter => self.filter = Some(Input::new(self.processes.filter_text.clone())),
            Action::Accept => self.filter = None,
            Action::Group => self.change_table(ProcessTable::next_grouping),
            Action::Reverse => self.change_table(|table| table.reversed = !table.reversed),
            Action::SortNext | Action::SortPrevious => {
                let orders = columns::orders(self.size.width);
                self.change_table(|table| table.next_order(&orders, action == Action::SortNext));
            }
            Action::Expand | Action::Collapse => {
                let height = self.rows_seen();
                self.change_table(|table| table.open(action == Action::Expand, height));
            }
            Action::Freeze => {
                self.frozen = match self.frozen {
                    Some(_) => None,
                    None => Some(self.history.clone()),
                };
                self.refresh();
            }
            Action::Theme => {
                self.theme = self.theme.next();
                self.say(Tone::Plain, format!("theme: {}", self.theme.name()));
            }
            Action::Limit => self.open_dialog(),
            Action::LimitConnection => self.open_connection_dialog(),
            Action::Raise => return self.scale(110),
            Action::Lower => return self.scale(90),
            Action::Remove => return self.remove(),
            Action::Suspend => return self.suspend(),
            Action::Undo => return self.undo(),
            Action::Choose(direction) => self.choose_backend(direction),
            Action::MoveLimits => return self.move_limits(),
            // Of the dialog.
            Action::NextField | Action::PreviousField | Action::NextChoice | Action::PreviousChoice => {}
        }
        Vec::new()
    }

    fn change_table(&mut self, change: impl FnOnce(&mut ProcessTable)) {
        change(&mut self.processes);
        self.rebuild();
    }

    fn say(&mut self, tone: Tone, text: impl Into<String>) {
        self.message = Some(Message::new(tone, text));
    }

    fn close(&mut self) {
        if self.leaving {
            self.leaving = false;
        } else if self.filter.take().is_some() || (self.screen == Screen::Processes && self.has_filter()) {
            self.processes.set_filter("");
            self.rebuild();
        } else if self.screen == Screen::Help {
            self.show(self.help_about);
        } else if self.screen != Screen::Processes {
            self.show(Screen::Processes);
        }
    }

    fn has_filter(&self) -> bool {
        !self.processes.filter_text.is_empty()
    }

    /// Goes to a screen, with what it has to know.
    fn go_to(&mut self, screen: Screen) -> Vec<Effect> {
        if screen == Screen::Detail && self.screen != Screen::Detail {
            let selected = self.processes.selected();
            if let Some(entry) =
                selected.filter(|_| self.screen == Screen::Processes || self.subject.is_none())
            {
                self.subject = Some(Subject::of(entry, self.processes.grouping));
                (self.connections, self.connection) = (Cursor::default(), None);
                self.processes.follow();
            }
        }
        self.show(screen);
        if screen == Screen::Backends {
            // What was true a while ago may not be now.
            return vec![Effect::Order(self.book.probe())];
        }
        Vec::new()
    }

    fn show(&mut self, screen: Screen) {
        if screen == Screen::Help && self.screen != Screen::Help {
            self.help_about = self.screen;
        }
        if screen == Screen::Limits && self.screen != Screen::Limits {
            self.follow_limit();
        }
        self.screen = screen;
        self.text = Cursor::default();
        self.rebuild();
    }

    fn page(&self) -> isize {
        self.rows_seen().max(1) as isize
    }

    /// Moves by some lines in whatever list is shown.
    fn step(&mut self, lines: isize) {
        let height = self.rows_seen();
        match self.screen {
            Screen::Processes => self.processes.step(lines, height),
            Screen::Limits => {
                self.limits.step(lines, self.limit_lines().len(), height);
                self.follow_limit();
            }
            Screen::Interfaces => self.interfaces.step(lines, self.shown.interfaces.len(), height),
            Screen::Detail => {
                // At the ends it stops by itself.
                self.go_to_connection(self.connections.selected.saturating_add_signed(lines));
            }
            Screen::Backends | Screen::Help => {
                let length = super::views::text_length(self);
                self.text.scroll(lines, length, height + 1);
            }
        }
    }

    /// The row that keys are about, on the screens that have one.
    fn row(&self) -> Option<(RowKey, Vec<usize>, String)> {
        match self.screen {
            Screen::Detail => {
                let subject = self.subject.as_ref()?;
                Some((subject.key.clone(), subject.members(&self.shown), subject.label.clone()))
            }
            _ => {
                let row = &self.processes.selected()?.row;
                Some((row.key.clone(), row.members.clone(), row.label.clone()))
            }
        }
    }
}
