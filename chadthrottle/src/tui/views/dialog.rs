//! The limit dialog.

use ratatui::{
    Frame,
    layout::{Margin, Position, Rect, Size},
    text::{Line, Span},
    widgets::{Block, BorderType, Paragraph, Wrap},
};

use super::{View, clear, hints_line, leaving::middle};
use crate::{
    output::escape,
    tui::{
        dialog::{Field, LimitDialog, State},
        format,
        keymap::Context,
    },
};

/// Lines inside the frame: the fields, a gap, what is to be said, keys.
const HEIGHT: u16 = 11;
/// Where the fields begin.
const LABELS: u16 = 12;
/// How wide the text fields are.
const FIELD: u16 = 14;

/// What there is in place of a limit on exactly one connection.
const NARROW: &str = "The nearest to one connection: all that the process, and what it starts from now on, has with this \
                      address and port, also in later connections. They share the rate.";

fn area(size: Size) -> Rect {
    middle(size, size.width.saturating_sub(2).min(76), HEIGHT + 2)
}

fn inside(size: Size) -> Rect {
    area(size).inner(Margin::new(2, 1))
}

/// Where a field stands in a terminal of that size.
pub fn field_area(size: Size, field: Field) -> Rect {
    let inner = inside(size);
    let line = Field::ALL.iter().position(|other| *other == field).unwrap_or(0) as u16;
    let y = (inner.y + line).min(inner.bottom().saturating_sub(1));
    Rect::new(inner.x, y, inner.width, 1.min(inner.height))
}

/// Draws it.
pub fn draw(view: &View, frame: &mut Frame, dialog: &LimitDialog) {
    let theme = view.theme;
    let whole = area(view.size);
    clear(frame, whole);
    let verb = if dialog.changes.is_some() { "Change the limit on" } else { "Limit" };
    let title = format::cut(&format!(" {verb} {}", dialog.title), usize::from(whole.width.saturating_sub(4)));
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(theme.frame)
        .style(theme.text)
        .title(Line::styled(format!("{title} "), theme.title));
    frame.render_widget(block, whole);
    for field in Field::ALL {
        draw_field(view, frame, dialog, field);
    }
    let inner = inside(view.size);
    let note = Rect::new(inner.x, inner.y + 6, inner.width, 4);
    frame.render_widget(Paragraph::new(self::note(view, dialog)).wrap(Wrap { trim: true }), note);
    let keys = Rect::new(inner.x, inner.bottom() - 1, inner.width, 1);
    frame.render_widget(hints_line(view, Context::Dialog, keys.width), keys);
}

fn draw_field(view: &View, frame: &mut Frame, dialog: &LimitDialog, field: Field) {
    let theme = view.theme;
    let line = field_area(view.size, field);
    let is_here = dialog.field == field;
    let style = if is_here { theme.key } else { theme.dim };
    frame.render_widget(Span::styled(field.label(), style), line);
    let rest = Rect { x: line.x + LABELS, width: line.width.saturating_sub(LABELS), ..line };
    if matches!(field, Field::Target | Field::Scope) {
        let text = format::cut(dialog.choice(field), usize::from(rest.width.saturating_sub(4)));
        let style = if is_here { theme.field } else { theme.text };
        let text =
            if field == Field::Scope || dialog.choices.len() > 1 { format!("◂ {text} ▸") } else { text };
        frame.render_widget(Span::styled(text, style), rest);
        return;
    }
    let input = dialog.input(field);
    let width = usize::from(FIELD - 1);
    let scroll = input.visual_scroll(width);
    let seen: String = input.value().chars().skip(scroll).take(width).collect();
    let style = if is_here { theme.field } else { theme.text };
    let boxed = Rect { width: FIELD.min(rest.width), ..rest };
    let shown = format!("{}{}", escape(&seen), "_".repeat(width.saturating_sub(seen.chars().count())));
    frame.render_widget(Span::styled(shown, style), boxed);
    if is_here {
        let x = boxed.x + (input.visual_cursor().saturating_sub(scroll) as u16).min(FIELD - 1);
        frame.set_cursor_position(Position::new(x, boxed.y));
    }
    let meaning = Rect { x: boxed.right() + 1, width: rest.width.saturating_sub(FIELD + 1), ..rest };
    let meaning_text = match dialog.meaning(field) {
        Ok(text) => Span::styled(format::cut(&text, usize::from(meaning.width)), theme.good),
        Err(_) => Span::styled("✗ see below", theme.alarm),
    };
    frame.render_widget(meaning_text, meaning);
}

/// What went wrong, or what can be typed.
fn note(view: &View, dialog: &LimitDialog) -> Line<'static> {
    let theme = view.theme;
    match (&dialog.state, dialog.meaning(dialog.field)) {
        (State::Applying(_), _) => Line::styled("applying …", theme.warning),
        (State::Refused(why), _) => Line::styled(escape(why), theme.alarm),
        (State::Typing, Err(why)) => Line::styled(escape(&why), theme.alarm),
        (State::Typing, Ok(_)) => Line::styled(
            match dialog.field {
                Field::Download | Field::Target if dialog.is_narrow() => NARROW,
                Field::Download | Field::Upload => {
                    "Bytes a second: 500K, 1.5MB, 512KiB. Bits: 800kbit, 10mbit. Nothing: no limit in that direction."
                }
                Field::Target => "Several processes share one rate.",
                Field::Scope => "By the address at the far end.",
                Field::Duration => {
                    "30s, 5m, 1h; nothing: it ends when you quit, unless you then let it stay."
                }
            },
            theme.dim,
        ),
    }
}
