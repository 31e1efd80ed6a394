//! Every limit in force on this host, and those that are suspended.

use ratatui::{
    Frame,
    layout::Rect,
    widgets::{Paragraph, Wrap},
};

use super::{
    View,
    table::{self, Column, Text, column},
};
use crate::{
    model::{Direction, DirectionReport},
    output::{escape, limits, number},
    tui::{app::LimitLine, format},
};

const COLUMNS: [Column; 15] = [
    column("", 2, 2, 0, false),
    column("TARGET", 21, 44, 0, false),
    column("↓/s", 8, 9, 0, true),
    column("↓ LIMIT", 8, 9, 0, true),
    column("↑/s", 8, 9, 0, true),
    column("↑ LIMIT", 8, 9, 0, true),
    column("PROCS", 5, 6, 7, true),
    column("SOCKS", 5, 6, 8, true),
    column("DROPPED", 7, 9, 3, true),
    column("DELAYED", 7, 9, 4, true),
    column("MARKED", 7, 9, 9, true),
    column("BACKEND", 8, 16, 5, false),
    column("AGE", 6, 7, 2, true),
    column("LEFT", 6, 7, 6, true),
    column("SET BY", 8, 14, 1, false),
];
const TARGET: usize = 1;

/// The table.
pub fn draw(view: &View, frame: &mut Frame, area: Rect) {
    let lines = view.app.limit_lines();
    let cells = |index: usize| cells(view, lines[index]);
    let cursor = Some(view.app.limits);
    table::draw(view, frame, area, (&COLUMNS, TARGET), (cursor, lines.len()), cells);
    if lines.is_empty() {
        let text = "No limits are in force. Choose a process on screen 1 and press t.";
        let area = Rect { x: area.x + 1, y: area.y + 2, width: area.width - 1, height: area.height - 2 };
        frame.render_widget(Paragraph::new(text).style(view.theme.dim).wrap(Wrap { trim: true }), area);
    }
}

fn cells(view: &View, line: LimitLine) -> Vec<Text> {
    let theme = view.theme;
    let report = line.report();
    let directions = &report.directions;
    let both: Vec<&DirectionReport> =
        [&directions.download, &directions.upload].into_iter().flatten().collect();
    let sum = |of: fn(&DirectionReport) -> u64| both.iter().map(|held| of(held)).sum::<u64>();
    let mut backends: Vec<_> = both.iter().map(|held| escape(&held.backend)).collect();
    backends.dedup();
    let (sign, sign_style, is_live) = match line {
        LimitLine::Suspended(_) => ("○", theme.dim, false),
        LimitLine::Live(_) if !report.escapes.is_empty() => ("!!", theme.alarm, true),
        LimitLine::Live(_) => {
            let (sign, style) = view.holds();
            (sign, style, true)
        }
    };
    let style = |style| if is_live { style } else { theme.dim };
    let rates = |direction: Direction, color| {
        let held = directions.get(direction).as_ref();
        let measured = held.and_then(|held| held.measured).filter(|_| is_live);
        let measured = measured.map(format::bytes).unwrap_or_default();
        let rate = held.map(|held| format::bytes(held.rate.bytes_per_second()));
        [(measured, style(color)), (rate.unwrap_or_else(|| "·".into()), style(theme.limit))]
    };
    let [down, down_limit] = rates(Direction::Download, theme.download);
    let [up, up_limit] = rates(Direction::Upload, theme.upload);
    let set_by = match line {
        LimitLine::Suspended(_) => "suspended".to_owned(),
        _ if report.detached => "detached".to_owned(),
        _ if view.app.book.is_own(report.id) => "here".to_owned(),
        _ => format!("pid {}", report.client_pid),
    };
    let dim = |text: String| (text, theme.dim);
    vec![
        (sign.to_owned(), sign_style),
        (limits::subject(report), style(theme.text)),
        down,
        down_limit,
        up,
        up_limit,
        dim(report.processes.to_string()),
        dim(report.sockets.to_string()),
        dim(sum(|held| held.counters.dropped_packets).to_string()),
        dim(sum(|held| held.counters.delayed_packets).to_string()),
        dim(sum(|held| held.counters.marked_packets).to_string()),
        dim(backends.join(" + ")),
        dim(number::time(report.age)),
        dim(report.remaining.map(number::time).unwrap_or_default()),
        dim(set_by),
    ]
}
