//! The terminal UI: events in, a picture and orders out.
//!
//! [`App`] is the whole state and changes in [`App::handle`] only; [`draw`] turns it into a picture and
//! changes nothing. Threads feed it: the terminal, the monitor, and the owner, who carries out what
//! [`event::Effect`]s ask for. So no key ever waits.

pub mod app;
pub mod book;
pub mod columns;
pub mod detail;
pub mod dialog;
pub mod event;
pub mod fit;
pub mod format;
pub mod glyphs;
pub mod history;
pub mod keymap;
pub mod layout;
pub mod order;
pub mod subject;
pub mod theme;
mod views;

pub use app::{App, Setup};
pub use views::draw;
