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
pub(crate) mod log;
pub mod order;
mod run;
pub mod subject;
mod terminal;
pub mod theme;
mod views;
mod worker;

pub use app::{App, Setup};
pub use run::{OpenFeed, Options, run};
pub use views::draw;
