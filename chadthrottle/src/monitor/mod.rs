//! Watches which process moves how many bytes.
//!
//! - [`feed`]: where snapshots come from, live or recorded.
//! - [`recording`]: snapshots in a file.

pub mod feed;
pub mod recording;
