//! The limit dialog: what is typed, what it means, and why it can't be.

use ratatui::crossterm::event::{Event as TerminalEvent, KeyCode, KeyEvent, KeyModifiers};
use tui_input::{Input, backend::crossterm::EventHandler};

use super::{
    keymap::Action,
    order::{Rates, rates_of},
    subject::{Choice, is_narrow, is_same},
};
use crate::{
    cli::resolve,
    model::{Direction, LimitReport, PerDirection, Rate, Scope, Target},
    output::number,
};

/// Scopes, and what the dialog calls them.
const SCOPES: [(Scope, &str); 3] = [
    (Scope::All, "all of it"),
    (Scope::Internet, "with the internet (not with local addresses)"),
    (Scope::Local, "with local addresses (private, link-local, loopback …)"),
];

/// Letters of a rate or a time that is pasted.
const LONGEST_PASTE: usize = 40;

/// A field of the dialog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Rate of download.
    Download,
    /// Rate of upload.
    Upload,
    /// What it applies to.
    Target,
    /// Which remote addresses.
    Scope,
    /// For how long.
    Duration,
}

impl Field {
    /// From top to bottom.
    pub const ALL: [Self; 5] = [Self::Download, Self::Upload, Self::Target, Self::Scope, Self::Duration];

    /// What stands before it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Download => "Download",
            Self::Upload => "Upload",
            Self::Target => "Applies to",
            Self::Scope => "Traffic",
            Self::Duration => "For",
        }
    }
}

/// What becomes of what was typed.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It is still being typed.
    Typing,
    /// It was ordered, under this number.
    Applying(u64),
    /// It could not be had.
    Refused(String),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Whose traffic.
    pub targets: Vec<Target>,
    /// Of that, which remote addresses.
    pub scope: Scope,
    /// At least one.
    pub rates: Rates,
    /// Seconds.
    pub duration: Option<f64>,
    /// Whether targets, scope and duration are those of the limit that is changed.
    pub only_rates: bool,
}

/// The dialog.
#[derive(Clone, Debug)]
pub struct LimitDialog {
    /// Whom it is about.
    pub title: String,
    /// The limit that is changed.
    pub changes: Option<LimitReport>,
    /// What it can apply to.
    pub choices: Vec<Choice>,
    /// To which of these it does.
    pub chosen: usize,
    /// Which remote addresses.
    pub scope: Scope,
    /// The field that is typed into.
    pub field: Field,
    /// How far it is.
    pub state: State,
    download: Input,
    upload: Input,
    duration: Input,
    /// What is in the field goes when something else is typed.
    untouched: bool,
}

impl LimitDialog {
    /// For one of `choices` (not empty), or to change a limit.
    pub fn new(
        title: String,
        mut choices: Vec<Choice>,
        preferred: usize,
        changes: Option<LimitReport>,
    ) -> Self {
        let scope = changes.as_ref().map(|report| report.scope).unwrap_or_default();
        let mut chosen = preferred.min(choices.len().saturating_sub(1));
        if let Some(report) = &changes {
            let same = choices.iter().position(|choice| is_same(&choice.targets, &report.targets));
            chosen = same.unwrap_or_else(|| {
                choices.insert(0, Choice { label: report.subject(), targets: report.targets.clone() });
                0
            });
        }
        let rates = changes.as_ref().map(rates_of).unwrap_or_default();
        let shown = |direction| rates.get(direction).map(plain).unwrap_or_default().into();
        Self {
            title,
            choices,
            chosen,
            scope,
            field: Field::Download,
            state: State::Typing,
            download: shown(Direction::Download),
            upload: shown(Direction::Upload),
            duration: Input::default(),
            untouched: true,
            changes,
        }
    }

    /// What is in a text field.
    pub fn input(&self, field: Field) -> &Input {
        match field {
            Field::Upload => &self.upload,
            Field::Duration => &self.duration,
            _ => &self.download,
        }
    }

    fn input_mut(&mut self) -> Option<&mut Input> {
        match self.field {
            Field::Download => Some(&mut self.download),
            Field::Upload => Some(&mut self.upload),
            Field::Duration => Some(&mut self.duration),
            Field::Target | Field::Scope => None,
        }
    }

    /// Moves on, or changes the choice. Left and right mean letters where there are any.
    pub fn act(&mut self, action: Action, event: KeyEvent) {
        match action {
            Action::NextField => self.go(1),
            Action::PreviousField => self.go(Field::ALL.len() - 1),
            Action::PreviousChoice if self.is_choice() => self.choose(false),
            Action::NextChoice if self.is_choice() => self.choose(true),
            _ => self.type_in(event),
        }
    }

    fn go(&mut self, steps: usize) {
        let at = Field::ALL.iter().position(|field| *field == self.field).unwrap_or(0);
        self.field = Field::ALL[(at + steps) % Field::ALL.len()];
        self.untouched = true;
        self.calm();
    }

    /// Whether the field offers something to choose from.
    fn is_choice(&self) -> bool {
        matches!(self.field, Field::Target | Field::Scope)
    }

    fn choose(&mut self, forward: bool) {
        let step = |at: usize, count: usize| (at + if forward { 1 } else { count - 1 }) % count;
        if self.field == Field::Scope {
            let at = SCOPES.iter().position(|(scope, _)| *scope == self.scope).unwrap_or(0);
            self.scope = SCOPES[step(at, SCOPES.len())].0;
        } else {
            self.chosen = step(self.chosen, self.choices.len().max(1));
        }
        self.calm();
    }

    /// What is chosen in a field that offers something.
    pub fn choice(&self, field: Field) -> &str {
        if field == Field::Scope {
            return SCOPES.iter().find(|(scope, _)| *scope == self.scope).map_or("", |(_, label)| label);
        }
        self.choices.get(self.chosen).map_or("", |choice| choice.label.as_str())
    }

    /// Whether it is to apply to traffic with some far ends only.
    pub fn is_narrow(&self) -> bool {
        self.choices.get(self.chosen).is_some_and(|choice| is_narrow(&choice.targets))
    }

    /// What was refused is being changed.
    fn calm(&mut self) {
        if matches!(self.state, State::Refused(_)) {
            self.state = State::Typing;
        }
    }

    /// Goes to a field that was clicked at.
    pub fn focus(&mut self, field: Field) {
        self.field = field;
        self.untouched = true;
    }

    /// A key for the field.
    pub fn type_in(&mut self, event: KeyEvent) {
        if matches!(self.state, State::Applying(_)) {
            return;
        }
        self.calm();
        let plain = !event.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT);
        let replaces = self.untouched && plain && matches!(event.code, KeyCode::Char(_) | KeyCode::Backspace);
        self.untouched = false;
        if self.is_choice() && event.code == KeyCode::Char(' ') {
            return self.choose(true);
        }
        if let Some(input) = self.input_mut() {
            if replaces {
                input.reset();
            }
            input.handle_event(&TerminalEvent::Key(event));
        }
    }

    /// The limit that was to be changed is over: what is asked for now is a new one.
    pub fn lose_limit(&mut self) {
        if self.changes.take().is_some() && self.state == State::Typing {
            self.state = State::Refused("this limit is over; Enter sets a new one".into());
        }
    }

    /// Text that was pasted. A long one was not meant for here, and nothing of it is taken.
    pub fn paste(&mut self, text: &str) {
        let count = text.chars().count();
        if count > LONGEST_PASTE && !matches!(self.state, State::Applying(_)) {
            self.state = State::Refused(format!(
                "{count} letters were pasted, which can be nothing that belongs here"
            ));
            return;
        }
        for letter in text.chars().filter(|letter| !letter.is_control()) {
            self.type_in(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::NONE));
        }
    }

    /// What a field means, or why it means nothing.
    pub fn meaning(&self, field: Field) -> Result<String, String> {
        let text = self.input(field).value();
        match field {
            Field::Target | Field::Scope => Ok(String::new()),
            Field::Duration => match self.duration()? {
                Some(seconds) => Ok(number::time(seconds)),
                None if self.changes.as_ref().is_some_and(|limit| limit.remaining.is_some()) => {
                    Ok("as it is".into())
                }
                None if self.changes.as_ref().is_some_and(|limit| limit.detached) => {
                    Ok("until it is removed".into())
                }
                None => Ok("until you quit".into()),
            },
            Field::Download | Field::Upload => Ok(match rate(text)? {
                Some(rate) => format!("= {rate}"),
                None => "no limit".into(),
            }),
        }
    }

    fn duration(&self) -> Result<Option<f64>, String> {
        let text = self.duration.value().trim();
        if text.is_empty() {
            return Ok(None);
        }
        resolve::seconds(text).map(Some).map_err(|why| format!("{why}; accepted are 30, 0.5, 30s, 5m, 1h"))
    }

    /// What is asked for, or which field is wrong and why.
    pub fn wish(&self) -> Result<Wish, (Field, String)> {
        let read = |field: Field| rate(self.input(field).value()).map_err(|why| (field, why));
        let rates = PerDirection { download: read(Field::Download)?, upload: read(Field::Upload)? };
        let duration = self.duration().map_err(|why| (Field::Duration, why))?;
        if rates.iter().all(|(_, rate)| rate.is_none()) {
            let why = "nothing to limit: give a rate for download (1M), upload (500K) or both";
            return Err((Field::Download, why.into()));
        }
        let targets = self.choices.get(self.chosen).map(|choice| choice.targets.clone()).unwrap_or_default();
        let as_before =
            |report: &LimitReport| is_same(&report.targets, &targets) && report.scope == self.scope;
        let same = self.changes.as_ref().is_some_and(as_before);
        let remaining = self.changes.as_ref().and_then(|report| report.remaining);
        let only_rates = same && duration.is_none();
        Ok(Wish { targets, scope: self.scope, rates, duration: duration.or(remaining), only_rates })
    }
}

/// A rate, or none where nothing stands.
fn rate(text: &str) -> Result<Option<Rate>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    Rate::parse_or_none(text).map_err(|error| error.message)
}

/// A rate as it can be typed.
fn plain(rate: Rate) -> String {
    let shown = rate.to_string();
    shown.split(" (").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::limit;

    fn dialog(changes: Option<LimitReport>) -> LimitDialog {
        let choice = |pid| Choice { label: format!("process {pid}"), targets: vec![Target::Pid(pid)] };
        LimitDialog::new("curl".into(), vec![choice(7), choice(1)], 0, changes)
    }

    fn press(dialog: &mut LimitDialog, keys: &str) {
        for letter in keys.chars() {
            let code = if letter == '\t' { KeyCode::Tab } else { KeyCode::Char(letter) };
            let event = KeyEvent::new(code, KeyModifiers::NONE);
            match letter {
                '\t' => dialog.act(Action::NextField, event),
                _ => dialog.type_in(event),
            }
        }
    }

    #[test]
    fn what_is_typed_is_said_back() {
        let mut dialog = dialog(None);
        press(&mut dialog, "1.5M\t10mbit\t \t \t5m");
        assert_eq!(dialog.meaning(Field::Download).unwrap(), "= 1.5 MB/s (12 Mbit/s)");
        assert_eq!(dialog.meaning(Field::Upload).unwrap(), "= 1.25 MB/s (10 Mbit/s)");
        let wish = dialog.wish().unwrap();
        assert_eq!((wish.targets, wish.duration), (vec![Target::Pid(1)], Some(300.0)));
        assert_eq!(wish.scope, Scope::Internet);
        assert_eq!(wish.rates.download, Rate::new(1_500_000));
    }

    #[test]
    fn what_is_wrong_is_told_in_its_place() {
        assert_eq!(dialog(None).wish().unwrap_err().0, Field::Download);
        for (keys, field, why) in [
            ("5Mb", Field::Download, "may mean bits or bytes"),
            ("0", Field::Download, "0 would stop"),
            ("\t10x", Field::Upload, "unknown unit"),
            ("1M\t\t\t\t5d", Field::Duration, "unknown unit 'd'"),
        ] {
            let mut dialog = dialog(None);
            press(&mut dialog, keys);
            let (at, message) = dialog.wish().unwrap_err();
            assert!(at == field && message.contains(why), "{keys}: {at:?} {message}");
            assert!(dialog.meaning(field).is_err());
        }
    }

    #[test]
    fn a_limit_is_changed_where_it_stands() {
        let mut dialog = dialog(Some(limit(3, Some(1_500_000), None)));
        assert_eq!((dialog.chosen, dialog.input(Field::Download).value()), (1, "1.5 MB/s"));
        assert_eq!(dialog.wish().unwrap().rates.download, Rate::new(1_500_000));
        // The first letter takes the place of what was there.
        press(&mut dialog, "2M");
        let wish = dialog.wish().unwrap();
        assert_eq!((wish.rates.download, wish.only_rates), (Rate::new(2_000_000), true));
        press(&mut dialog, "\tnone\t ");
        let wish = dialog.wish().unwrap();
        assert_eq!((wish.rates.upload, wish.only_rates), (None, false));
        press(&mut dialog, "\t\t\toff");
        assert!(dialog.wish().is_err());
    }

    #[test]
    fn another_scope_is_another_limit() {
        let mut report = limit(3, Some(1_500_000), None);
        report.scope = Scope::Local;
        let mut dialog = dialog(Some(report));
        assert_eq!(dialog.wish().map(|wish| (wish.scope, wish.only_rates)), Ok((Scope::Local, true)));
        press(&mut dialog, "\t\t\t ");
        assert_eq!(dialog.wish().map(|wish| (wish.scope, wish.only_rates)), Ok((Scope::All, false)));
    }
}
