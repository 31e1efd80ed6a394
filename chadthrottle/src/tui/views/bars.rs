//! The lines above and below every screen.

use std::collections::BTreeSet;

use ratatui::{
    Frame,
    layout::{Alignment, Position, Rect},
    text::{Line, Span},
};

use super::{View, hints_line, text};
use crate::{
    model::Source,
    output::{escape, limits, number},
    tui::{
        app::{Feed, LimitLine, Screen, Tone},
        columns::Column,
        format, layout,
    },
};

/// Names of the screens.
pub fn tabs(view: &View, frame: &mut Frame, area: Rect) {
    let theme = view.theme;
    let tabs = layout::tabs(area.width);
    if tabs.first().is_some_and(|(_, _, first)| first.x > 0) {
        frame.render_widget(Span::styled(" ChadThrottle", theme.title), area);
    }
    for (screen, text, area) in tabs {
        let style = if screen == view.app.screen { theme.tab } else { theme.dim };
        frame.render_widget(Span::styled(text, style), area);
    }
    if let Some(state) = state(view).filter(|state| fits_beside_tabs(state, area.width)) {
        frame.render_widget(Line::from(state).alignment(Alignment::Right), area);
    }
}

/// Why the figures are not those of this moment.
fn state(view: &View) -> Option<Span<'static>> {
    let theme = view.theme;
    Some(match &view.app.feed {
        Feed::Silent(_) => Span::styled(" OLD FIGURES ", theme.alarm),
        _ if view.app.is_frozen() => Span::styled(" FROZEN ", theme.warning),
        Feed::Over => Span::styled(" end of recording ", theme.warning),
        Feed::Failed(_) => Span::styled(" not watching ", theme.alarm),
        _ => return None,
    })
}

/// Where it does not, it stands in the footer.
fn fits_beside_tabs(state: &Span, width: u16) -> bool {
    let end = layout::tabs(width).last().map_or(0, |(_, _, area)| area.right());
    state.width() <= usize::from(width.saturating_sub(end))
}

/// What the screen shows, and how.
pub fn status(view: &View, frame: &mut Frame, area: Rect) {
    match view.app.screen {
        Screen::Processes => processes(view, frame, area),
        Screen::Limits => frame.render_widget(limit(view, area.width), area),
        Screen::Interfaces => {
            let text = " Bytes of the link layer since ChadThrottle began to watch";
            frame.render_widget(Span::styled(text, view.theme.dim), area);
        }
        Screen::Backends => scrolled(view, frame, area, " How limits can be held here, found out by trying"),
        Screen::Help => {
            scrolled(view, frame, area, &format!(" Keys of the screen {}", view.app.help_about.name()));
        }
        // It has its own.
        Screen::Detail => {}
    }
}

/// Of a text that may be longer than the screen: which of its lines are seen.
fn scrolled(view: &View, frame: &mut Frame, area: Rect, about: &str) {
    let (all, first) = (text(view).len(), view.app.text.offset);
    let last = all.min(first + usize::from(layout::areas(view.size, view.app.screen).body.height));
    let place = match (first > 0, last < all) {
        (false, false) => String::new(),
        (false, true) => format!(" {}-{last} of {all} ↓ ", first + 1),
        (true, false) => format!(" {}-{last} of {all} ↑ ", first + 1),
        (true, true) => format!(" {}-{last} of {all} ↕ ", first + 1),
    };
    let room = usize::from(area.width).saturating_sub(place.chars().count());
    frame.render_widget(Span::styled(format::cut(about, room), view.theme.dim), area);
    frame.render_widget(Line::styled(place, view.theme.key).alignment(Alignment::Right), area);
}

fn processes(view: &View, frame: &mut Frame, area: Rect) {
    let (theme, table) = (view.theme, &view.app.processes);
    let column = Column::of(table.sort);
    let arrow = if table.sort.is_descending() == table.reversed { "▲" } else { "▼" };
    let order = match column {
        Some(Column::Spark) | None => "rate",
        Some(Column::Mark) => "limited",
        Some(column) => column.heading(),
    };
    let how = format!("by {} · {order} {arrow} ", table.grouping);
    let how_width = format::cut(&how, usize::from(area.width)).chars().count() as u16;
    let left = Rect { width: area.width.saturating_sub(how_width + 1), ..area };
    let line = match (&view.app.filter, &table.filter_error) {
        (None, None) if table.filter_text.is_empty() => {
            let count = table.entries.len() as u32;
            let what = match table.grouping {
                crate::model::Grouping::Process => number::count(count, "process", "processes"),
                _ => number::count(count, "row", "rows"),
            };
            Line::from(Span::styled(format!(" {what}"), theme.dim))
        }
        (typed, error) => {
            let mut line = Line::from(Span::styled(" /", theme.key));
            let text = format::outside(&table.filter_text, usize::from(left.width.saturating_sub(4)));
            line.push_span(Span::styled(text, if typed.is_some() { theme.field } else { theme.limit }));
            match error {
                Some(error) => {
                    let room = usize::from(left.width).saturating_sub(line.width() + 2);
                    let why = format::cut(&reason(error), room);
                    line.push_span(Span::styled(format!("  {why}"), theme.alarm));
                }
                None => line.push_span(Span::styled(format!("  hides {}", table.hidden), theme.dim)),
            }
            line
        }
    };
    frame.render_widget(line, left);
    frame.render_widget(Line::styled(how, theme.dim).alignment(Alignment::Right), area);
    if let Some(input) = &view.app.filter
        && !view.app.leaving
    {
        let x = (input.visual_cursor() as u16).saturating_add(2).min(left.width.saturating_sub(1));
        frame.set_cursor_position(Position::new(x, area.y));
    }
}

/// What comes after "… is no filter: ", which can be seen anyway.
pub fn reason(error: &str) -> String {
    escape(error.split_once(" is no filter: ").map_or(error, |(_, why)| why))
}

/// The selected limit in words.
fn limit(view: &View, width: u16) -> Line<'static> {
    let lines = view.app.limit_lines();
    let cut = |text: String| format::cut(&format!(" {text}"), usize::from(width));
    match lines.get(view.app.limits.selected) {
        Some(LimitLine::Live(report)) => match report.escapes.last() {
            Some(how) => Line::styled(cut(escape(&how.message)), view.theme.alarm),
            None => Line::styled(cut(limits::limited(report)), view.theme.dim),
        },
        Some(LimitLine::Suspended(_)) => {
            Line::styled(cut("suspended; p brings it back".into()), view.theme.dim)
        }
        None => Line::default(),
    }
}

/// Totals, limits, backends in use, and what is degraded.
pub fn footer(view: &View, frame: &mut Frame, area: Rect) {
    let (theme, shown) = (view.theme, &view.app.shown);
    let traffic = shown.interface_traffic();
    let mut line = Line::from(vec![
        Span::styled(format!(" ↓ {}/s", format::bytes(traffic.rx_rate)), theme.download),
        Span::styled(format!("  ↑ {}/s", format::bytes(traffic.tx_rate)), theme.upload),
    ]);
    let count = shown.limits.len() as u32;
    if count > 0 {
        let (sign, style) = view.holds();
        line.push_span(Span::styled(format!("  {sign} {}", number::count(count, "limit", "limits")), style));
    }
    let backends: BTreeSet<&str> = shown
        .limits
        .iter()
        .flat_map(|limit| limit.directions.iter())
        .filter_map(|(_, held)| held.as_ref().map(|held| held.backend.as_str()))
        .collect();
    if !backends.is_empty() {
        let names: Vec<_> = backends.into_iter().map(escape).collect();
        line.push_span(Span::styled(format!(" by {}", names.join(", ")), theme.dim));
    }
    // Then nothing of the rest is known to be so.
    if let Feed::Silent(why) = &view.app.feed {
        let held = if count > 0 && view.app.read_only.is_none() { ", limits may not hold" } else { "" };
        let text = format!(" ! Old figures{held} (key 5): {why}");
        return frame
            .render_widget(Span::styled(format::cut(&text, usize::from(area.width)), theme.alarm), area);
    }
    let state = state(view).filter(|state| !fits_beside_tabs(state, area.width));
    let taken = state.as_ref().map_or(0, Span::width);
    let left = usize::from(area.width).saturating_sub(line.width() + 4 + taken);
    if let Some(degraded) = degraded(view) {
        line.push_span(Span::styled(format!("  ! {}", format::cut(&degraded, left)), theme.warning));
    }
    frame.render_widget(line, area);
    if let Some(state) = state {
        frame.render_widget(Line::from(state).alignment(Alignment::Right), area);
    }
}

/// The first thing that is not as it could be; how many more there are.
fn degraded(view: &View) -> Option<String> {
    let shown = &view.app.shown;
    let escaping = shown.limits.iter().find_map(|limit| {
        let escape = limit.escapes.last()?;
        Some(format!("{}: {}", limits::subject(limit), escape.message))
    });
    if escaping.is_none() && shown.source == Source::SockDiag {
        return Some("only TCP is counted; why: key 5".to_owned());
    }
    let notices = shown.notices.iter().map(|notice| format!("{}: {}", notice.what, notice.why));
    let mut all = escaping.into_iter().chain(notices);
    let first = escape(&all.next()?);
    match all.count() {
        0 => Some(first),
        more => Some(format!("{} (key 5): {first}", more + 1)),
    }
}

/// The last message, or what keys do.
pub fn hints(view: &View, frame: &mut Frame, area: Rect) {
    let theme = view.theme;
    match &view.app.message {
        Some(message) => {
            let style = match message.tone {
                Tone::Good => theme.good,
                Tone::Plain => theme.text,
                Tone::Warning => theme.warning,
                Tone::Alarm => theme.alarm,
            };
            let text = format::cut(&message.text, usize::from(area.width.saturating_sub(2)));
            frame.render_widget(Span::styled(format!(" {text}"), style), area);
        }
        None if view.app.book.is_busy() => {
            frame.render_widget(Span::styled(" applying …", theme.warning), area);
        }
        None => frame.render_widget(hints_line(view, view.app.context(), area.width), area),
    }
}
