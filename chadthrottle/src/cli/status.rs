//! `status`: the limits in force on this host.

use super::{
    args::{Global, Json},
    session,
};
use crate::{
    error::Result,
    model::StatusReport,
    output::{self, limits},
    owner::{
        client::Client,
        protocol::{Reply, Request},
    },
};

/// `chadthrottle status`. Where no owner runs there is no limit.
pub fn status(global: &Global, args: &Json) -> Result<u8> {
    let report = match Client::connect(global.runtime_dir())? {
        Some(mut client) => match client.request(&Request::Status)? {
            Reply::Status(report) => report,
            _ => return Err(session::mismatch("status")),
        },
        None => StatusReport::default(),
    };
    if args.json {
        output::json("status", &report)?;
    } else if report.limits.is_empty() {
        output::message("no limits in force");
    } else {
        output::result(&limits::status(&report))?;
    }
    Ok(0)
}
