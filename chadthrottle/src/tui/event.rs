//! What the state is told, and what it wants done.

use std::sync::Arc;

use ratatui::crossterm::event::Event as TerminalEvent;

use super::order::{Answer, News, Order};
use crate::{error::Error, model::Snapshot};

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A key, the mouse, another size.
    Terminal(TerminalEvent),
    /// The next snapshot.
    Snapshot(Arc<Snapshot>),
    /// No snapshot comes, and why; there may be more later.
    FeedSilent(Error),
    /// There will be no more snapshots; why, if it should not be so.
    FeedOver(Option<Error>),
    /// An order was done, or failed.
    Answer(Answer),
    /// Something happened to limits.
    News(News),
    /// SIGTSTP: give the terminal back, and wait for SIGCONT.
    Suspend,
    /// SIGCONT: somebody else may have had the terminal.
    Continue,
    /// SIGTERM, SIGHUP, SIGINT, SIGQUIT.
    Stop,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// By the owner.
    Order(Order),
    /// Leave the program.
    Leave,
}
