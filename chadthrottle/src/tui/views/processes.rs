//! The start screen: who moves how much.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::Style,
    text::{Line, Span},
    widgets::{Block, BorderType, Cell, Paragraph, Row, Sparkline, Wrap},
};

use super::{View, amount, bars::reason, table};
use crate::{
    model::{Direction, group::row_limit},
    output::escape,
    tui::{
        app::{Feed, processes::Entry},
        columns::{self, Column, Placed},
        fit::Place,
        format,
        history::Rates,
    },
};

/// Seconds that the sparklines show.
const SPARK: f64 = 60.0;
/// Heights of a bar in a line, from nothing to all.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How a row stands with limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    None,
    Ended,
    Limited,
    /// Traffic gets past the limit.
    Escaping,
    Suspended,
}

fn mark(view: &View, entry: &Entry) -> Mark {
    let shown = &view.app.shown;
    let row = &entry.row;
    if !row.alive {
        return Mark::Ended;
    }
    if row.limited {
        let held = |id| row.members.iter().any(|index| shown.processes[*index].limits.contains(&id));
        let escaping = shown.limits.iter().any(|limit| !limit.escapes.is_empty() && held(limit.id));
        return if escaping { Mark::Escaping } else { Mark::Limited };
    }
    match view.app.suspended_of(&row.key, &row.members) {
        Some(_) => Mark::Suspended,
        None => Mark::None,
    }
}

/// The table.
pub fn draw(view: &View, frame: &mut Frame, area: Rect) {
    let app = view.app;
    let placed = columns::place(area.width);
    let heading = placed.iter().map(|placed| heading(view, placed));
    let heading = Row::new(heading.collect::<Vec<_>>()).style(view.theme.heading);
    let cursor = app.processes.cursor;
    let seen = usize::from(area.height.saturating_sub(1));
    let entries = app.processes.entries.iter().skip(cursor.offset).take(seen);
    let rows: Vec<Row> = entries.map(|entry| row(view, entry, &placed)).collect();
    let is_empty = rows.is_empty();
    let places: Vec<Place> =
        placed.iter().map(|placed| Place { index: 0, x: placed.x, width: placed.width }).collect();
    table::put(view, frame, area, rows, heading, &places, Some(cursor));
    if is_empty && app.feed != Feed::Waiting {
        let text = match &app.processes.filter_error {
            _ if app.processes.filter_text.is_empty() => "No process has a connection right now.".into(),
            None => "Nothing matches the filter; Esc drops it.".into(),
            Some(error) => format!("This is no filter yet: {}. Esc drops it.", reason(error)),
        };
        let area = Rect { x: area.x + 1, y: area.y + 2, width: area.width - 1, height: area.height - 2 };
        frame.render_widget(Paragraph::new(text).style(view.theme.dim).wrap(Wrap { trim: true }), area);
    }
}

fn heading<'a>(view: &View, placed: &Placed) -> Cell<'a> {
    let table = &view.app.processes;
    let column = placed.column;
    let is_sorted = column.sort() == table.sort;
    let arrow = match is_sorted {
        true if table.sort.is_descending() == table.reversed => "▲",
        true => "▼",
        false => "",
    };
    let style = if is_sorted { view.theme.sorted } else { view.theme.heading };
    let side = if column.is_number() { Alignment::Right } else { Alignment::Left };
    Cell::from(Line::styled(format!("{}{arrow}", column.heading()), style).alignment(side))
}

fn row<'a>(view: &View, entry: &Entry, placed: &[Placed]) -> Row<'a> {
    let mark = mark(view, entry);
    let cells = placed.iter().map(|placed| {
        let (text, style) = cell(view, entry, mark, placed);
        let side = if placed.column.is_number() { Alignment::Right } else { Alignment::Left };
        let text = format::cut(&text, usize::from(placed.width));
        Cell::from(Line::from(Span::styled(text, style)).alignment(side))
    });
    let row = Row::new(cells.collect::<Vec<_>>());
    if mark == Mark::Ended { row.style(view.theme.dim) } else { row }
}

fn cell(view: &View, entry: &Entry, mark: Mark, placed: &Placed) -> (String, Style) {
    let (theme, shown) = (view.theme, &view.app.shown);
    let row = &entry.row;
    let first = row.first(shown);
    let is_group = row.members.len() > 1 && view.app.processes.grouping != crate::model::Grouping::Tree;
    let moving = |rate: u64, style: Style| (amount(rate), if rate == 0 { theme.dim } else { style });
    let plain = |text: String| (text, theme.text);
    let (text, style) = match placed.column {
        Column::Mark => match mark {
            Mark::None => plain(String::new()),
            Mark::Ended => plain("✗".into()),
            Mark::Limited => {
                let (sign, style) = view.holds();
                (sign.into(), style)
            }
            Mark::Escaping => ("!!".into(), theme.alarm),
            Mark::Suspended => ("○".into(), theme.limit),
        },
        Column::Pid if is_group => (format!("×{}", row.members.len()), theme.dim),
        Column::Pid if first.pid == 0 => plain(String::new()),
        Column::Pid => (first.pid.to_string(), theme.dim),
        Column::Name => {
            let sign = match entry.open {
                Some(true) => "▾ ",
                Some(false) => "▸ ",
                None if entry.depth > 0 => "  ",
                None => "",
            };
            plain(format!("{}{sign}{}", "  ".repeat(entry.depth), escape(&row.label)))
        }
        Column::User => (escape(&first.user), theme.dim),
        Column::Down => moving(row.traffic.rx_rate, theme.download),
        Column::Up => moving(row.traffic.tx_rate, theme.upload),
        Column::Received => moving(row.traffic.rx_bytes, theme.text),
        Column::Sent => moving(row.traffic.tx_bytes, theme.text),
        Column::Connections => (row.connections.to_string(), theme.dim),
        Column::DownLimit => limit(view, entry, mark, Direction::Download),
        Column::UpLimit => limit(view, entry, mark, Direction::Upload),
        Column::Spark => {
            let keys = row.members.iter().map(|index| shown.processes[*index].key());
            let rates = view.app.history().of(keys, usize::from(placed.width), SPARK);
            let (down, up) =
                rates.iter().fold((0.0, 0.0), |(down, up), rates| (down + rates.down, up + rates.up));
            (spark(&rates), if up > down { theme.upload } else { theme.download })
        }
    };
    (text, if mark == Mark::Ended { theme.dim } else { style })
}

fn limit(view: &View, entry: &Entry, mark: Mark, direction: Direction) -> (String, Style) {
    let (theme, row) = (view.theme, &entry.row);
    let in_force = row_limit(row, &view.app.shown, direction);
    match (in_force, mark) {
        (Some(rate), Mark::Escaping) => (format::bytes(rate), theme.alarm),
        (Some(rate), _) => (format::bytes(rate), theme.limit),
        (None, Mark::Suspended) => {
            let suspended = view.app.suspended_of(&row.key, &row.members);
            let rate = suspended.and_then(|suspended| suspended.report.directions.get(direction).as_ref());
            let text = rate.map(|held| format::bytes(held.rate.bytes_per_second()));
            (text.unwrap_or_default(), theme.dim)
        }
        (None, _) => (String::new(), theme.dim),
    }
}

/// Rates as bars in one line; the highest is almost as high as the line.
fn spark(rates: &[Rates]) -> String {
    let sums: Vec<f32> = rates.iter().map(|rates| rates.down + rates.up).collect();
    let highest = sums.iter().copied().fold(0.0, f32::max);
    let bar = |sum: &f32| {
        // Whatever moves is seen, and rows do not touch each other.
        let height = if *sum > 0.0 { (sum / highest * 7.0).ceil().clamp(1.0, 7.0) } else { 0.0 };
        BARS[height as usize]
    };
    sums.iter().map(bar).collect()
}

/// All traffic over the last two minutes, each direction by itself.
pub fn chart(view: &View, frame: &mut Frame, area: Rect) {
    let theme = view.theme;
    let halves = Layout::horizontal([Constraint::Fill(1); 2]).split(area);
    let cells = usize::from(halves[0].width.saturating_sub(2));
    let rates = view.app.history().total(cells, 120.0);
    type Pick = fn(&Rates) -> f32;
    let sides: [(&str, Pick, Style); 2] =
        [("↓ download", |rates| rates.down, theme.download), ("↑ upload", |rates| rates.up, theme.upload)];
    for ((name, pick, style), half) in sides.into_iter().zip(halves.iter()) {
        let data: Vec<u64> = rates.iter().map(|rates| pick(rates).round() as u64).collect();
        let highest = data.iter().copied().max().unwrap_or(0);
        let now = data.last().copied().unwrap_or(0);
        let title = Line::from(vec![
            Span::styled(format!(" {name} "), theme.dim),
            Span::styled(format!("{}/s ", format::bytes(now)), style),
        ]);
        let scale = Line::styled(format!(" 2 min, up to {}/s ", format::bytes(highest)), theme.dim);
        let block = Block::bordered()
            .border_type(BorderType::Rounded)
            .border_style(theme.frame)
            .title(title)
            .title_top(scale.alignment(Alignment::Right));
        frame.render_widget(
            Sparkline::default().block(block).data(data).max(highest.max(1)).style(style),
            *half,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_relative_and_nothing_is_lost() {
        let rates = [0.0, 1.0, 400.0, 800.0].map(|down| Rates { down, up: 0.0 });
        assert_eq!(spark(&rates), " ▁▄▇");
        assert_eq!(spark(&[Rates::default()]), " ");
    }
}
