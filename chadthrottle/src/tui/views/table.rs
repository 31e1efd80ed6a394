//! Tables of the smaller screens: columns that leave in order of importance.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Rect},
    style::Style,
    text::{Line, Span},
    widgets::{Cell, Row, StatefulWidget, Table, TableState},
};

use super::View;
use crate::tui::{
    app::list::Cursor,
    fit::{GAP, Need, Place, fit},
    format,
};

/// A column.
pub struct Column {
    /// What stands above it.
    pub heading: &'static str,
    /// How wide.
    pub need: Need,
    /// Whether it stands at the right.
    pub is_number: bool,
}

/// A column of numbers, or of text.
pub const fn column(heading: &'static str, least: u16, most: u16, rank: u8, is_number: bool) -> Column {
    Column { heading, need: Need { least, most, rank }, is_number }
}

/// Text of a cell, escaped, with its style.
pub type Text = (String, Style);

/// Draws the lines that are seen: `cells` gives all cells of a line. `main` is the column that gets what
/// width is left; without a cursor nothing is selected.
pub fn draw(
    view: &View,
    frame: &mut Frame,
    area: Rect,
    (columns, main): (&[Column], usize),
    (cursor, length): (Option<Cursor>, usize),
    cells: impl Fn(usize) -> Vec<Text>,
) {
    let needs: Vec<_> = columns.iter().map(|column| column.need).collect();
    let places = fit(&needs, main, area.width);
    let aligned = |place: &Place, text: String, style: Style| {
        let text = format::cut(&text, usize::from(place.width));
        let side = if columns[place.index].is_number { Alignment::Right } else { Alignment::Left };
        Cell::from(Line::from(Span::styled(text, style)).alignment(side))
    };
    let heading = places
        .iter()
        .map(|place| aligned(place, columns[place.index].heading.to_owned(), view.theme.heading));
    let heading = Row::new(heading.collect::<Vec<_>>()).style(view.theme.heading);
    let seen = usize::from(area.height.saturating_sub(1));
    let offset = cursor.map_or(0, |cursor| cursor.offset);
    let rows = (offset..length.min(offset + seen)).map(|line| {
        let cells = cells(line);
        let row = places.iter().map(|place| {
            let (text, style) = cells.get(place.index).cloned().unwrap_or_default();
            aligned(place, text, style)
        });
        Row::new(row.collect::<Vec<_>>())
    });
    put(view, frame, area, rows.collect(), heading, &places, cursor);
}

/// Draws rows that are made already.
pub fn put(
    view: &View,
    frame: &mut Frame,
    area: Rect,
    rows: Vec<Row>,
    heading: Row,
    places: &[Place],
    cursor: Option<Cursor>,
) {
    let widths = places.iter().map(|place| Constraint::Length(place.width));
    let table =
        Table::new(rows, widths).header(heading).column_spacing(GAP).row_highlight_style(view.theme.selected);
    // Only what is seen is drawn, so the place of the selection is counted from there.
    // What has taken the place of the selected row is not what keys are about.
    let cursor = cursor.filter(|_| !view.app.is_lost());
    let selected = cursor.map(|cursor| cursor.selected.saturating_sub(cursor.offset));
    let mut state = TableState::new().with_selected(selected);
    table.render(area, frame.buffer_mut(), &mut state);
}
