//! The one process per host that holds the kernel objects: what it says to its clients, how they find
//! and start it, and who cleans up after it.

use std::path::Path;

use crate::{
    backend,
    error::{Error, Result},
    kernel::journal,
};

pub mod client;
mod connection;
mod desk;
pub mod janitor;
mod lines;
mod premises;
pub mod protocol;
mod refuge;
mod runtime;
pub mod server;
mod start;

use runtime::Runtime;

/// Removes what makers that no longer live have left: the objects of their journals, and the files of a
/// killed owner. Says what was removed. Touches nothing of an owner that runs. An error if something
/// could not be removed; the next sweep tries again.
pub fn sweep(dir: &Path) -> Result<Vec<String>> {
    let Some(runtime) = Runtime::find(dir)? else { return Ok(Vec::new()) };
    // Whoever has the lock looks after socket and log; dropping ours removes the lock's file.
    let lock = runtime.lock()?;
    let mut swept = journal::sweep(runtime.path(), backend::settle)?;
    if lock.is_some() {
        if runtime.remove_socket()? {
            swept.removed.push(format!("file {}", runtime.socket().display()));
        }
        runtime.drop_empty_log();
    }
    match swept.failed.split_first_mut() {
        None => Ok(swept.removed),
        Some((first, others)) => {
            first.causes.extend(others.iter().map(Error::to_string));
            Err(swept.failed.swap_remove(0))
        }
    }
}
