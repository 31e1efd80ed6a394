//! Network interfaces.

use ratatui::{Frame, layout::Rect};

use super::{
    View, amount,
    table::{self, Column, column},
};
use crate::output::escape;

const COLUMNS: [Column; 6] = [
    column("INTERFACE", 12, 30, 0, false),
    column("STATE", 5, 6, 1, false),
    column("↓/s", 8, 12, 0, true),
    column("↑/s", 8, 12, 0, true),
    column("↓ TOTAL", 8, 12, 0, true),
    column("↑ TOTAL", 8, 12, 0, true),
];

/// The table.
pub fn draw(view: &View, frame: &mut Frame, area: Rect) {
    let theme = view.theme;
    let interfaces = &view.app.shown.interfaces;
    let cells = |index: usize| {
        let interface = &interfaces[index];
        let style = |style| if interface.up { style } else { theme.dim };
        let state = if interface.up { ("up".to_owned(), theme.good) } else { ("down".to_owned(), theme.dim) };
        vec![
            (escape(&interface.name), style(theme.text)),
            state,
            (amount(interface.rx_rate), style(theme.download)),
            (amount(interface.tx_rate), style(theme.upload)),
            (amount(interface.rx_bytes), style(theme.text)),
            (amount(interface.tx_bytes), style(theme.text)),
        ]
    };
    let cursor = (Some(view.app.interfaces), interfaces.len());
    table::draw(view, frame, area, (&COLUMNS, 0), cursor, cells);
}
