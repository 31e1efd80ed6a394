//! One process or group: who it is, its limits, its rates over time, its connections.

use ratatui::{
    Frame,
    layout::{Alignment, Rect},
    style::Style,
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph},
};

use super::{
    View, amount, note,
    table::{self, Column, column},
};
use crate::{
    model::{Connection, Direction, LimitReport, Process, Traffic},
    output::{escape, number},
    tui::{
        detail::{self, Subject},
        format,
        history::Rates,
        layout,
        subject::{is_about, is_narrow},
    },
};

/// Seconds that the chart shows.
const CHART: f64 = 120.0;

const COLUMNS: [Column; 10] = [
    column("", 2, 2, 0, false),
    column("REMOTE", 21, 48, 0, false),
    column("PROTO", 5, 7, 0, false),
    column("STATE", 11, 11, 3, false),
    column("↓/s", 8, 9, 0, true),
    column("↑/s", 8, 9, 0, true),
    column("RTT", 8, 8, 1, true),
    column("RESENT", 6, 7, 2, true),
    column("↓ TOTAL", 8, 9, 4, true),
    column("LOCAL", 21, 40, 5, false),
];

/// Draws the screen.
pub fn draw(view: &View, frame: &mut Frame) {
    let shown = &view.app.shown;
    let Some(subject) = &view.app.subject else {
        let body = layout::areas(view.size, view.app.screen).body;
        return note(
            frame,
            body,
            Line::from("Nothing is selected. Choose a row on screen 1 and press Enter."),
        );
    };
    let members: Vec<&Process> =
        subject.members(shown).into_iter().map(|index| &shown.processes[index]).collect();
    let areas = detail::areas(view.size);
    let status = layout::areas(view.size, view.app.screen).status;
    frame.render_widget(title(view, subject, &members), status);
    let Some(first) = members.first() else {
        return note(
            frame,
            areas.facts,
            Line::from("It is gone, and the monitor has forgotten it. Esc goes back."),
        );
    };
    facts(view, frame, areas.facts, first, &members);
    limits(view, frame, areas.limits, &members);
    if areas.chart.height > 3 {
        chart(view, frame, areas.chart, &members);
    }
    connections(view, frame, areas.connections, subject);
}

fn title(view: &View, subject: &Subject, members: &[&Process]) -> Line<'static> {
    let theme = view.theme;
    let mut sum = Traffic::default();
    members.iter().for_each(|process| sum += process.traffic());
    let pid = match members {
        [one] if one.pid > 0 => format!(" ({})", one.pid),
        [_] | [] => String::new(),
        many => format!(" ×{}", many.len()),
    };
    let mut line = Line::from(vec![
        Span::styled(format!(" {}{pid}", escape(&subject.label)), theme.title),
        Span::styled(format!("  ↓ {}/s", format::bytes(sum.rx_rate)), theme.download),
        Span::styled(format!("  ↑ {}/s", format::bytes(sum.tx_rate)), theme.upload),
        Span::styled(
            format!("  total ↓ {} ↑ {}", format::bytes(sum.rx_bytes), format::bytes(sum.tx_bytes)),
            theme.dim,
        ),
    ]);
    if members.iter().all(|process| !process.alive) {
        line.push_span(Span::styled("  has ended", theme.warning));
    }
    line
}

fn facts(view: &View, frame: &mut Frame, area: Rect, first: &Process, members: &[&Process]) {
    let theme = view.theme;
    let unknown = || "unknown".to_owned();
    let or_unknown = |text: &str| if text.is_empty() { unknown() } else { escape(text) };
    let belongs = match (&first.container, &first.unit) {
        (Some(container), _) => format!(", container {}", escape(container)),
        (None, Some(unit)) => format!(", unit {}", escape(unit)),
        (None, None) => String::new(),
    };
    let started = view.app.shown.started(first);
    let running = view.app.shown.time.duration_since(started).unwrap_or_default();
    let user = format!("{}{belongs}", or_unknown(&first.user));
    let mut facts = vec![
        ("Command", or_unknown(&first.cmdline)),
        ("Program", first.exe.as_deref().map_or_else(unknown, escape)),
        ("User", user),
        (
            "Started",
            match format::moment(started) {
                Some(started) if first.pid != 0 => {
                    format!("{started} ({} ago)", number::time(running.as_secs_f64()))
                }
                _ => unknown(),
            },
        ),
        ("Cgroup", or_unknown(&first.cgroup)),
    ];
    if members.len() > 1 {
        let names: Vec<_> =
            members.iter().map(|process| format!("{} ({})", escape(&process.name), process.pid)).collect();
        facts.insert(0, ("Processes", names.join(", ")));
    }
    let width = usize::from(area.width.saturating_sub(12));
    let lines = facts.into_iter().take(usize::from(area.height)).map(|(name, text)| {
        Line::from(vec![
            Span::styled(format!(" {name:<10}"), theme.dim),
            Span::styled(format::cut(&text, width), theme.text),
        ])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}

/// The limits that hold any of them.
fn held<'a>(view: &View<'a>, members: &[&Process]) -> Vec<&'a LimitReport> {
    let holds = |limit: &&LimitReport| members.iter().any(|process| process.limits.contains(&limit.id));
    view.app.shown.limits.iter().filter(holds).collect()
}

fn limits(view: &View, frame: &mut Frame, area: Rect, members: &[&Process]) {
    let theme = view.theme;
    let mut lines = Vec::new();
    for limit in held(view, members) {
        let (sign, style) = view.holds();
        let mut line = Line::from(Span::styled(format!(" {sign} {}", limit.subject()), style));
        for (name, direction) in [("↓", Direction::Download), ("↑", Direction::Upload)] {
            let Some(held) = limit.directions.get(direction) else { continue };
            let measured =
                held.measured.map(|rate| format!("{} of ", format::bytes(rate))).unwrap_or_default();
            let counters = &held.counters;
            line.push_span(Span::styled(format!("  {name} {measured}{}", held.rate), theme.text));
            line.push_span(Span::styled(
                format!(
                    ", dropped {}, delayed {}, marked {}",
                    counters.dropped_packets, counters.delayed_packets, counters.marked_packets
                ),
                theme.dim,
            ));
        }
        lines.push(line);
        if let Some(how) = limit.escapes.last() {
            lines.push(Line::styled(format!(" !! {}", escape(&how.message)), theme.alarm));
        }
    }
    if lines.is_empty() {
        let text = match members.iter().any(|process| process.pid != 0) {
            true if view.app.read_only.is_some() => " No limit.",
            true => " No limit; t sets one.",
            false => " No process is known for this traffic: it can't be limited.",
        };
        lines.push(Line::styled(text, theme.dim));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn chart(view: &View, frame: &mut Frame, area: Rect, members: &[&Process]) {
    let theme = view.theme;
    let keys: Vec<_> = members.iter().map(|process| process.key()).collect();
    // Two dots a cell.
    let points = usize::from(area.width.saturating_sub(12)).max(10);
    let rates = view.app.history().of(keys, points, CHART);
    let step = CHART / points as f64;
    let series = |pick: fn(&Rates) -> f32| -> Vec<(f64, f64)> {
        let at = |index: usize| (index as f64 + 1.0) * step - CHART;
        rates.iter().enumerate().map(|(index, rates)| (at(index), f64::from(pick(rates)))).collect()
    };
    let (down, up) = (series(|rates| rates.down), series(|rates| rates.up));
    let limits = held(view, members);
    let line_at = |direction| {
        // The line is for what the curve shows: all of the traffic.
        let whole = limits.iter().filter(|limit| !is_narrow(&limit.targets));
        let rates = whole.filter_map(|limit| limit.directions.get(direction).as_ref());
        let lowest = rates.map(|held| held.rate.bytes_per_second()).min();
        lowest.map(|rate| [(-CHART, rate as f64), (0.0, rate as f64)])
    };
    let (down_limit, up_limit) = (line_at(Direction::Download), line_at(Direction::Upload));
    let limit_points = down_limit.iter().chain(&up_limit).flatten();
    let highest = down.iter().chain(&up).chain(limit_points).map(|(_, rate)| *rate).fold(1000.0, f64::max);
    let top = round_up(highest);
    fn set<'a>(data: &'a [(f64, f64)], style: Style, marker: Marker) -> Dataset<'a> {
        Dataset::default().data(data).style(style).marker(marker).graph_type(GraphType::Line)
    }
    let mut sets = Vec::new();
    for line in down_limit.iter().chain(&up_limit) {
        sets.push(set(line, theme.limit, Marker::Dot));
    }
    sets.push(set(&up, theme.upload, Marker::Braille));
    sets.push(set(&down, theme.download, Marker::Braille));
    let labels = [0.0, top / 2.0, top].map(|rate| Line::from(format::bytes(rate as u64)));
    let mut title =
        vec![Span::styled(" ↓ download", theme.download), Span::styled(" ↑ upload", theme.upload)];
    if !limits.is_empty() {
        title.push(Span::styled(" • limit", theme.limit));
    }
    title.push(Span::styled(", bytes/s over 2 minutes", theme.dim));
    let chart = Chart::new(sets)
        .block(Block::new().title(Line::from(title)))
        .legend_position(None)
        .x_axis(Axis::default().bounds([-CHART, 0.0]).style(theme.frame))
        .y_axis(
            Axis::default()
                .bounds([0.0, top])
                .labels(labels)
                .labels_alignment(Alignment::Right)
                .style(theme.frame),
        );
    frame.render_widget(chart, area);
}

/// The next number of the form 1, 2 or 5 times a power of ten.
fn round_up(number: f64) -> f64 {
    let power = 10f64.powf(number.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    // A line at the very top would lie on the frame.
    steps.into_iter().find(|step| *step >= number * 1.05).unwrap_or(20.0 * power)
}

fn connections(view: &View, frame: &mut Frame, area: Rect, subject: &Subject) {
    let theme = view.theme;
    let shown = &view.app.shown;
    let connections = subject.connections(shown);
    let is_held = |connection: &Connection| {
        let owner = shown.process(connection.owner);
        let holds = |limit: &&LimitReport| owner.is_some_and(|owner| owner.limits.contains(&limit.id));
        shown.limits.iter().filter(holds).any(|limit| is_about(limit, connection))
    };
    let cells = |index: usize| {
        let connection = connections[index];
        let remote = connection.remote.map_or_else(|| "–".to_owned(), |remote| remote.to_string());
        let rtt = connection.rtt_us.map(format::round_trip).unwrap_or_default();
        let resent = connection.retransmits.unwrap_or(0);
        let mark = if is_held(connection) { "⚡" } else { "" };
        vec![
            (mark.to_owned(), theme.limit),
            (remote, theme.text),
            (connection.protocol.to_string(), theme.dim),
            (connection.state.to_string(), theme.dim),
            (amount(connection.rx_rate), theme.download),
            (amount(connection.tx_rate), theme.upload),
            (rtt, theme.dim),
            (if resent == 0 { String::new() } else { resent.to_string() }, theme.warning),
            (amount(connection.rx_bytes), theme.text),
            (connection.local.to_string(), theme.dim),
        ]
    };
    let cursor = (Some(view.app.connections), connections.len());
    table::draw(view, frame, area, (&COLUMNS, 1), cursor, cells);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_round() {
        for (highest, top) in
            [(1000.0, 2000.0), (1900.0, 2000.0), (1950.0, 5000.0), (9.9e6, 2e7), (4.0e5, 5e5)]
        {
            assert!((round_up(highest) - top).abs() < 1e-6 * top, "{highest}: {}", round_up(highest));
        }
    }
}
