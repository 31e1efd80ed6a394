//! Where snapshots come from.

use std::sync::Arc;

use crate::{error::Result, model::Snapshot};

/// Gives a snapshot a tick. It may be moved to a thread of its own, and waits there.
pub trait Feed: Send {
    /// Waits for the next snapshot; `None`: there will be no more.
    fn next(&mut self) -> Result<Option<Arc<Snapshot>>>;

    /// Whether [`Feed::next`] is worth another try after it has failed.
    fn may_go_on(&self) -> bool {
        false
    }
}
