//! `clear`: ends limits, whoever set them, and removes what a killed owner or a killed self-test left.

use std::path::Path;

use super::{
    args::{Clear, Global},
    resolve, session,
};
use crate::{
    error::{Error, Result},
    model::Target,
    output::{self, number},
    owner::{
        self,
        client::Client,
        protocol::{Reply, Request},
    },
    selftest::workplace,
};

/// The error to tell when one of the targets shares a limit with others that were not named, so that it stays.
fn still_limited(client: &mut Client, targets: &[Target]) -> Result<Option<Error>> {
    if targets.is_empty() {
        return Ok(None);
    }
    let Reply::Status(report) = client.request(&Request::Status)? else {
        return Err(session::mismatch("status"));
    };
    let shared = report.limits.iter().find(|limit| {
        let named = |target: &Target| targets.contains(target);
        limit.targets.iter().any(named) && !limit.targets.iter().all(named)
    });
    Ok(shared.map(|limit| {
        let all: Vec<_> = limit.targets.iter().map(ToString::to_string).collect();
        let all = all.join(" ");
        Error::failed(format!("a limit on all of {all} is still in force: `clear {all}` ends it"))
    }))
}

fn removed(what: &str) {
    output::message(&format!("removed {}", output::escape(what)));
}

/// `chadthrottle clear`. Nothing to clear is no failure: what was asked for is so.
pub fn clear(global: &Global, args: &Clear) -> Result<u8> {
    let targets = resolve::targets(&args.targets)?;
    let names: Vec<_> = targets.iter().map(ToString::to_string).collect();
    let (mut ended, mut shared) = (0, None);
    match Client::connect(global.runtime_dir())? {
        Some(mut client) => {
            match client.request(&Request::Clear { targets: targets.clone() })? {
                Reply::Cleared { ended: ids } => ended = ids.len(),
                _ => return Err(session::mismatch("clear")),
            }
            shared = still_limited(&mut client, &targets)?;
        }
        // A living owner cleans up after itself.
        None => {
            for line in owner::sweep(global.runtime_dir())? {
                removed(&line);
            }
        }
    }
    let parents = [Some(Path::new(workplace::PARENT)), global.runtime_dir.as_deref()];
    for parent in parents.into_iter().flatten() {
        for line in workplace::sweep(parent)? {
            removed(&line);
        }
    }
    match (ended, names.is_empty()) {
        (0, true) => output::message("no limits in force"),
        (0, false) if shared.is_some() => {}
        (0, false) => output::message(&format!("no limit in force on {}", names.join(" "))),
        (ended, _) => {
            output::message(&format!("cleared {}", number::count(ended as u32, "limit", "limits")));
        }
    }
    shared.map_or(Ok(0), Err)
}
