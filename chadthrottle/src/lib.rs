//! ChadThrottle shows and limits what single processes move over the network.
//!
//! The house, from the user inwards (see ARCHITECTURE.md):
//!
//! - [`cli`]: arguments, one file a command; a client of the owner.
//! - [`output`]: tables and JSON, nothing else prints results.
//! - [`owner`]: the one process per host that holds the kernel objects: socket, protocol, start on
//!   demand, journal, janitor.
//! - [`engine`]: the only owner of state: requests become limits, limits go to backends; leases, verification.
//! - [`backend`]: how a limit is held. One trait, one table of drivers.
//! - [`kernel`]: the only code that touches the kernel.
//! - [`model`]: directions, rates, targets, limits, reports, snapshots and what is made of them. No I/O.
//! - [`monitor`]: which process moves how many bytes.
//! - [`tui`]: the screens; a client of the owner, and of the monitor.
//! - [`selftest`]: proves on this machine that each backend holds its limits.

pub mod backend;
pub mod cli;
pub mod engine;
pub mod error;
pub mod kernel;
pub mod model;
pub mod monitor;
pub mod output;
pub mod owner;
pub mod selftest;
pub mod tui;

pub use error::{Error, Kind, Result};
