//! What the mouse does: it chooses screens, rows, orders and fields, and scrolls.

use ratatui::{
    crossterm::event::{MouseButton, MouseEvent, MouseEventKind},
    layout::Position,
};

use super::{App, Screen};
use crate::tui::{columns, detail, dialog::Field, event::Effect, keymap::Context, layout, views};

/// Lines that a turn of the wheel scrolls.
const WHEEL: isize = 3;

impl App {
    pub(super) fn mouse(&mut self, mouse: MouseEvent) -> Vec<Effect> {
        let at = Position::new(mouse.column, mouse.row);
        match (self.context(), mouse.kind) {
            (Context::On(_) | Context::Filter, MouseEventKind::ScrollDown) => self.step(WHEEL),
            (Context::On(_) | Context::Filter, MouseEventKind::ScrollUp) => self.step(-WHEEL),
            (Context::On(_) | Context::Filter, MouseEventKind::Down(MouseButton::Left)) => {
                self.message = None;
                return self.click(at);
            }
            (Context::Dialog, MouseEventKind::Down(MouseButton::Left)) => {
                let field = Field::ALL
                    .into_iter()
                    .find(|field| views::dialog::field_area(self.size, *field).contains(at));
                if let (Some(dialog), Some(field)) = (&mut self.dialog, field) {
                    dialog.focus(field);
                }
            }
            _ => {}
        }
        Vec::new()
    }

    fn click(&mut self, at: Position) -> Vec<Effect> {
        if let Some((screen, _, _)) =
            layout::tabs(self.size.width).iter().find(|(_, _, area)| area.contains(at))
        {
            return self.go_to(*screen);
        }
        let body = layout::areas(self.size, self.screen).body;
        if !body.contains(at) {
            return Vec::new();
        }
        let line = usize::from(at.y - body.y);
        match (self.screen, line) {
            (Screen::Processes, 0) => {
                let placed = columns::place(self.size.width);
                let clicked =
                    placed.iter().find(|placed| (placed.x..placed.x + placed.width).contains(&at.x));
                if let Some(placed) = clicked {
                    let sort = placed.column.sort();
                    self.change_table(|table| table.order_by(sort));
                }
            }
            (Screen::Processes, line) => {
                let clicked = self.processes.cursor.offset + line - 1;
                if clicked < self.processes.entries.len() {
                    // The second click on a row opens it.
                    if clicked == self.processes.cursor.selected && self.processes.follows() {
                        return self.go_to(Screen::Detail);
                    }
                    let height = self.rows_seen();
                    self.processes.to(clicked, height);
                }
            }
            (Screen::Limits, 1..) => {
                let (length, height) = (self.limit_lines().len(), self.rows_seen());
                self.limits.to(self.limits.offset + line - 1, length, height);
                self.follow_limit();
            }
            (Screen::Detail, _) => {
                let area = detail::areas(self.size).connections;
                if let Some(line) = at.y.checked_sub(area.y + 1) {
                    self.go_to_connection(self.connections.offset + usize::from(line));
                }
            }
            (Screen::Interfaces, 1..) => {
                let (length, height) = (self.shown.interfaces.len(), self.rows_seen());
                self.interfaces.to(self.interfaces.offset + line - 1, length, height);
            }
            _ => {}
        }
        Vec::new()
    }
}
