//! `clear`: ends limits, whoever set them, and removes what a killed owner left.

use super::{
    args::{Clear, Global},
    resolve, session,
};
use crate::{
    error::Result,
    output::{self, number},
    owner::{
        self,
        client::Client,
        protocol::{Reply, Request},
    },
};

/// `chadthrottle clear`. Nothing to clear is no failure: what was asked for is so.
pub fn clear(global: &Global, args: &Clear) -> Result<u8> {
    let targets = resolve::targets(&args.targets)?;
    let names: Vec<_> = targets.iter().map(ToString::to_string).collect();
    let mut ended = 0;
    match Client::connect(global.runtime_dir())? {
        Some(mut client) => match client.request(&Request::Clear { targets })? {
            Reply::Cleared { ended: ids } => ended = ids.len(),
            _ => return Err(session::mismatch("clear")),
        },
        // A living owner cleans up after itself.
        None => {
            for line in owner::sweep(global.runtime_dir())? {
                output::message(&format!("removed {}", output::escape(&line)));
            }
        }
    }
    output::message(&match (ended, names.is_empty()) {
        (0, true) => "no limits in force".to_owned(),
        (0, false) => format!("no limit in force on {}", names.join(" ")),
        (ended, _) => format!("cleared {}", number::count(ended as u32, "limit", "limits")),
    });
    Ok(0)
}
