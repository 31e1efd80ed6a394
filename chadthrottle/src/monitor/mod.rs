//! Watches which process moves how many bytes.
//!
//! - [`feed`]: where snapshots come from, live or recorded.
//! - [`recording`]: snapshots in a file.
//! - [`reading`]: what was counted up to a moment, whoever counted.
//! - [`diag`]: counts by asking the kernel for its TCP sockets; takes no right.
//! - [`wire`]: counts by eBPF programs, every packet.
//! - [`rest`]: what no socket moved.
//! - [`census`]: what processes are called, who they belong to.
//! - [`assemble`]: readings become snapshots: totals, rates, rows that ended.
//! - [`live`]: the feed of this host.
//! - [`health`]: who would count here, for `doctor`.

pub mod assemble;
pub mod census;
pub mod diag;
pub mod feed;
pub mod health;
pub mod live;
pub mod reading;
pub mod recording;
pub mod rest;
pub mod wire;
