//! What becomes of the limits.

use ratatui::{
    Frame,
    layout::{Margin, Rect, Size},
    text::Line,
    widgets::{Block, BorderType, Paragraph},
};

use super::{View, clear, hints_line};
use crate::{
    output::{limits, number},
    tui::{format, keymap::Context},
};

/// Limits that are named.
const NAMED: usize = 5;

/// Draws the question.
pub fn draw(view: &View, frame: &mut Frame) {
    let theme = view.theme;
    let session: Vec<_> = view.app.book.session().map(limits::subject).collect();
    let count = number::count(session.len() as u32, "limit was", "limits were");
    let mut lines =
        vec![Line::styled(format!("{count} set here. Let them end, or stay without us?"), theme.text)];
    let named = session.iter().take(NAMED).map(|subject| format!("  ⚡ {}", format::cut(subject, 48)));
    lines.extend(named.map(|text| Line::styled(text, theme.limit)));
    if session.len() > NAMED {
        lines.push(Line::styled(format!("  and {} more", session.len() - NAMED), theme.dim));
    }
    lines.push(Line::styled("What stays holds until `chadthrottle clear`.", theme.dim));
    let inner = frame_in(view, frame, " Quit ", view.size, lines.len() as u16 + 2);
    lines.push(Line::default());
    lines.push(hints_line(view, Context::Leaving, inner.width));
    frame.render_widget(Paragraph::new(lines), inner);
}

/// A framed box in the middle, as wide as the smallest screen; what is inside.
pub fn frame_in(view: &View, frame: &mut Frame, title: &str, size: Size, lines: u16) -> Rect {
    let area = middle(size, 58, lines + 2);
    clear(frame, area);
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(view.theme.frame)
        .title(Line::styled(title.to_owned(), view.theme.title));
    frame.render_widget(block.style(view.theme.text), area);
    area.inner(Margin::new(2, 1))
}

/// A rectangle in the middle of the screen, at most as large as it.
pub fn middle(size: Size, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(size.width), height.min(size.height));
    Rect::new((size.width - width) / 2, (size.height - height) / 2, width, height)
}
