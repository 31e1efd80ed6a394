//! Which key does what, on which screen. Keys are looked up here, and help and footer are made from the same
//! table, so that no key is told of that does nothing, and none works that is not told of.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::app::Screen;
use crate::model::Direction;

/// What a key can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Leave the program.
    Quit,
    /// Leave it without asking anything.
    Interrupt,
    /// Show the help of this screen.
    Help,
    /// Go to a screen.
    Show(Screen),
    /// Go to the next screen.
    NextScreen,
    /// Go to the screen before.
    PreviousScreen,
    /// Close what is open.
    Close,
    /// A line up.
    Up,
    /// A line down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the first line.
    First,
    /// To the last line.
    Last,
    /// Show more of the selected row.
    Open,
    /// Show what is below the selected row.
    Expand,
    /// Hide it.
    Collapse,
    /// Type a filter.
    Filter,
    /// Put processes together in another way.
    Group,
    /// Order by the next column.
    SortNext,
    /// Order by the column before.
    SortPrevious,
    /// Turn the order round.
    Reverse,
    /// Limit the selected row, or change its limit.
    Limit,
    /// Limit the traffic of the selected connection, or change its limit.
    LimitConnection,
    /// Raise the limit.
    Raise,
    /// Lower the limit.
    Lower,
    /// End the limit.
    Remove,
    /// Suspend the limit, or bring it back.
    Suspend,
    /// On the screen of backends: the next one for that direction.
    Choose(Direction),
    /// There: let the chosen ones hold the limits in force, too.
    MoveLimits,
    /// Undo the last change of a limit.
    Undo,
    /// Let the picture stand still, or go on.
    Freeze,
    /// The next theme.
    Theme,
    /// In the limit dialog: to the next field.
    NextField,
    /// To the field before.
    PreviousField,
    /// The choice before.
    PreviousChoice,
    /// The next choice.
    NextChoice,
    /// Apply what was typed.
    Accept,
    /// When leaving: let the limits end.
    EndLimits,
    /// When leaving: let the limits stay.
    KeepLimits,
}

/// Where keys mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// On a screen, with nothing open above it.
    On(Screen),
    /// While the filter is typed.
    Filter,
    /// In the limit dialog.
    Dialog,
    /// While asking what becomes of the limits.
    Leaving,
}

/// Where a binding holds.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// On all screens.
    Everywhere,
    /// On these.
    Screens(&'static [Screen]),
    /// Only there.
    Only(Context),
}

impl Place {
    fn holds(self, context: Context) -> bool {
        match (self, context) {
            (Self::Everywhere, Context::On(_)) => true,
            (Self::Screens(screens), Context::On(screen)) => screens.contains(&screen),
            (Self::Only(only), context) => only == context,
            _ => false,
        }
    }
}

/// A key and its modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(KeyCode, KeyModifiers);

impl Key {
    fn matches(self, event: &KeyEvent) -> bool {
        // Terminals tell of Shift with letters, or not; the letter itself says it.
        let wanted = match event.code {
            KeyCode::Char(_) | KeyCode::BackTab => event.modifiers - KeyModifiers::SHIFT,
            _ => event.modifiers,
        };
        self.0 == event.code && self.1 == wanted
    }

    fn name(self) -> String {
        let name = match self.0 {
            KeyCode::Char(' ') => "Space".to_owned(),
            KeyCode::Char(letter) => letter.to_string(),
            KeyCode::Up => "↑".into(),
            KeyCode::Down => "↓".into(),
            KeyCode::Left => "←".into(),
            KeyCode::Right => "→".into(),
            KeyCode::PageUp => "PgUp".into(),
            KeyCode::PageDown => "PgDn".into(),
            KeyCode::BackTab => "Shift-Tab".into(),
            other => format!("{other:?}"),
        };
        if self.1.contains(KeyModifiers::CONTROL) { format!("Ctrl-{name}") } else { name }
    }
}

const fn letter(letter: char) -> Key {
    Key(KeyCode::Char(letter), KeyModifiers::NONE)
}

const fn control(letter: char) -> Key {
    Key(KeyCode::Char(letter), KeyModifiers::CONTROL)
}

const fn key(code: KeyCode) -> Key {
    Key(code, KeyModifiers::NONE)
}

/// Keys that do one thing.
pub struct Binding {
    keys: &'static [Key],
    action: Action,
    place: Place,
    /// For the help.
    pub help: &'static str,
    /// For the footer; empty: not there.
    pub hint: &'static str,
}

impl Binding {
    /// Whether it is for those only who may set limits.
    pub fn needs_limits(&self) -> bool {
        use Action::{Choose, Limit, LimitConnection, Lower, MoveLimits, Raise, Remove, Suspend, Undo};
        matches!(
            self.action,
            Limit | LimitConnection | Raise | Lower | Remove | Suspend | Undo | Choose(_) | MoveLimits
        )
    }

    /// `j ↓`.
    pub fn keys(&self) -> String {
        self.keys.iter().map(|key| key.name()).collect::<Vec<_>>().join(" ")
    }

    /// The first of the keys, for the footer.
    pub fn key(&self) -> String {
        self.keys.first().map(|key| key.name()).unwrap_or_default()
    }
}

const fn bind(
    keys: &'static [Key],
    action: Action,
    place: Place,
    help: &'static str,
    hint: &'static str,
) -> Binding {
    Binding { keys, action, place, help, hint }
}

use Action as A;
use Context::{Dialog, Filter, Leaving};
use Place::{Everywhere, Only, Screens};
use Screen as S;

/// Screens whose rows can be limited.
const ROWS: Place = Screens(&[S::Processes, S::Detail]);
/// Screens that show limits.
const LIMITED: Place = Screens(&[S::Processes, S::Detail, S::Limits]);
const BACKENDS: Place = Screens(&[S::Backends]);
const PROCESSES: Place = Screens(&[S::Processes]);
const DETAIL: Place = Screens(&[S::Detail]);

/// In the order of the help; the footer shows as many as there is room for, in this order.
static BINDINGS: &[Binding] = &[
    bind(&[letter('t')], A::Limit, ROWS, "limit it, or change its limit", "limit"),
    bind(&[letter('t'), key(KeyCode::Enter)], A::Limit, Screens(&[S::Limits]), "change the limit", "change"),
    bind(&[letter('+'), letter('=')], A::Raise, LIMITED, "raise its limit by 10 %", "more"),
    bind(&[letter('-')], A::Lower, LIMITED, "lower its limit by 10 %", "less"),
    bind(&[letter('r'), key(KeyCode::Delete)], A::Remove, LIMITED, "remove its limit", "remove"),
    bind(&[letter('u')], A::Undo, LIMITED, "undo the last change of a limit", "undo"),
    bind(&[letter('p')], A::Suspend, LIMITED, "suspend its limit, or bring it back", "suspend"),
    bind(&[letter('c')], A::LimitConnection, DETAIL, "limit what goes on with this far end", "connection"),
    bind(&[key(KeyCode::Enter)], A::Open, PROCESSES, "show everything about it", "detail"),
    bind(&[letter('/')], A::Filter, PROCESSES, "filter: text, port:443, user:alice, rate:>1M …", "filter"),
    bind(&[letter('v')], A::Group, PROCESSES, "view by process, tree, unit, user or name", "view"),
    bind(&[letter('s'), letter('>')], A::SortNext, PROCESSES, "order by the next column", "sort"),
    bind(&[letter('S'), letter('<')], A::SortPrevious, PROCESSES, "order by the column before", ""),
    bind(&[letter('R')], A::Reverse, PROCESSES, "turn the order round", ""),
    bind(&[letter('l'), key(KeyCode::Right)], A::Expand, PROCESSES, "show what is below a row", ""),
    bind(&[letter('h'), key(KeyCode::Left)], A::Collapse, PROCESSES, "hide what is below a row", ""),
    bind(
        &[letter('d')],
        A::Choose(Direction::Download),
        BACKENDS,
        "another backend for download",
        "download",
    ),
    bind(&[letter('u')], A::Choose(Direction::Upload), BACKENDS, "another backend for upload", "upload"),
    bind(&[key(KeyCode::Enter)], A::MoveLimits, BACKENDS, "move limits in force to these", "move limits"),
    bind(&[letter('j'), key(KeyCode::Down)], A::Down, Everywhere, "a line down", ""),
    bind(&[letter('k'), key(KeyCode::Up)], A::Up, Everywhere, "a line up", ""),
    bind(&[key(KeyCode::PageDown), control('d')], A::PageDown, Everywhere, "a page down", ""),
    bind(&[key(KeyCode::PageUp), control('u')], A::PageUp, Everywhere, "a page up", ""),
    bind(&[letter('g'), key(KeyCode::Home)], A::First, Everywhere, "to the first line", ""),
    bind(&[letter('G'), key(KeyCode::End)], A::Last, Everywhere, "to the last line", ""),
    bind(&[letter('1')], A::Show(S::Processes), Everywhere, "processes", ""),
    bind(&[letter('2')], A::Show(S::Detail), Everywhere, "everything about the selected row", ""),
    bind(&[letter('3')], A::Show(S::Limits), Everywhere, "limits", ""),
    bind(&[letter('4')], A::Show(S::Interfaces), Everywhere, "interfaces", ""),
    bind(&[letter('5')], A::Show(S::Backends), Everywhere, "backends", ""),
    bind(&[letter('?'), letter('6'), key(KeyCode::F(1))], A::Help, Everywhere, "this help", "help"),
    bind(&[key(KeyCode::Tab)], A::NextScreen, Everywhere, "the next screen", ""),
    bind(&[key(KeyCode::BackTab)], A::PreviousScreen, Everywhere, "the screen before", ""),
    bind(&[key(KeyCode::Esc)], A::Close, Everywhere, "close what is open; never quits", ""),
    bind(&[letter(' ')], A::Freeze, Everywhere, "let the picture stand still, or go on", "freeze"),
    bind(&[letter('T')], A::Theme, Everywhere, "the next theme", ""),
    bind(&[letter('q')], A::Quit, Everywhere, "quit; asks what becomes of limits set here", "quit"),
    bind(&[control('c')], A::Interrupt, Everywhere, "quit at once; limits set here end", ""),
    bind(&[key(KeyCode::Enter)], A::Accept, Only(Dialog), "apply", "apply"),
    bind(&[key(KeyCode::Tab), key(KeyCode::Down)], A::NextField, Only(Dialog), "next field", "next"),
    bind(&[key(KeyCode::BackTab), key(KeyCode::Up)], A::PreviousField, Only(Dialog), "field before", ""),
    bind(&[key(KeyCode::Left)], A::PreviousChoice, Only(Dialog), "choice before", ""),
    bind(&[key(KeyCode::Right)], A::NextChoice, Only(Dialog), "next choice", "choose"),
    bind(&[key(KeyCode::Esc)], A::Close, Only(Dialog), "close", "close"),
    bind(&[control('c')], A::Interrupt, Only(Dialog), "quit at once", ""),
    bind(&[key(KeyCode::Enter)], A::Accept, Only(Filter), "keep the filter", "keep"),
    bind(&[key(KeyCode::Down)], A::Down, Only(Filter), "a line down", ""),
    bind(&[key(KeyCode::Up)], A::Up, Only(Filter), "a line up", ""),
    bind(&[key(KeyCode::Esc)], A::Close, Only(Filter), "drop the filter", "drop"),
    bind(&[control('c')], A::Interrupt, Only(Filter), "quit at once", ""),
    bind(&[letter('e')], A::EndLimits, Only(Leaving), "let them end", "end them"),
    bind(&[letter('k')], A::KeepLimits, Only(Leaving), "let them stay", "keep them"),
    bind(&[key(KeyCode::Esc)], A::Close, Only(Leaving), "do not quit", "stay here"),
    bind(&[control('c')], A::Interrupt, Only(Leaving), "quit at once; they end", ""),
];

/// What a key asks for there.
pub fn action(context: Context, event: &KeyEvent) -> Option<Action> {
    let bindings = BINDINGS.iter().filter(|binding| binding.place.holds(context));
    bindings
        .into_iter()
        .find(|binding| binding.keys.iter().any(|key| key.matches(event)))
        .map(|binding| binding.action)
}

/// Everything that keys do there.
pub fn bindings(context: Context) -> impl Iterator<Item = &'static Binding> {
    BINDINGS.iter().filter(move |binding| binding.place.holds(context))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn contexts() -> impl Iterator<Item = Context> {
        S::ALL.into_iter().map(Context::On).chain([Dialog, Filter, Leaving])
    }

    #[test]
    fn a_key_means_one_thing() {
        for context in contexts() {
            let mut seen = HashSet::new();
            for binding in bindings(context) {
                assert!(!binding.keys.is_empty() && !binding.help.is_empty());
                for key in binding.keys {
                    assert!(seen.insert(*key), "{context:?}: {} means two things", key.name());
                }
            }
        }
    }

    #[test]
    fn shift_is_in_the_letter() {
        let event = |code, modifiers| KeyEvent::new(code, modifiers);
        let on = Context::On(S::Processes);
        for modifiers in [KeyModifiers::NONE, KeyModifiers::SHIFT] {
            assert_eq!(action(on, &event(KeyCode::Char('G'), modifiers)), Some(A::Last));
            assert_eq!(action(on, &event(KeyCode::BackTab, modifiers)), Some(A::PreviousScreen));
        }
        assert_eq!(action(on, &event(KeyCode::Char('g'), KeyModifiers::CONTROL)), None);
        assert_eq!(action(on, &event(KeyCode::Char('d'), KeyModifiers::CONTROL)), Some(A::PageDown));
        assert_eq!(action(Dialog, &event(KeyCode::Char('q'), KeyModifiers::NONE)), None);
        assert_eq!(
            action(Context::On(S::Limits), &event(KeyCode::Enter, KeyModifiers::NONE)),
            Some(A::Limit)
        );
    }

    #[test]
    fn everybody_can_leave() {
        for context in contexts() {
            let event = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
            assert_eq!(action(context, &event), Some(A::Interrupt), "{context:?}");
        }
    }
}
