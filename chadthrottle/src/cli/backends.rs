//! `--list-backends` and `doctor`: what could hold a limit here, found out by trying.

use serde::Serialize;

use super::{
    args::{Global, Json},
    resolve,
};
use crate::{
    backend::{DRIVERS, Driver, Probe, Site},
    error::Result,
    output::{self, backends::BackendReport},
};

/// `chadthrottle --list-backends`.
pub fn list(global: &Global) -> Result<u8> {
    let site = resolve::site(global)?;
    let reports: Vec<_> = DRIVERS.iter().map(|driver| look(driver, &site, false)).collect();
    output::result(&output::backends::list(&reports))?;
    Ok(0)
}

/// `chadthrottle doctor`. An answer is a success, also when it is no.
pub fn doctor(global: &Global, args: &Json) -> Result<u8> {
    #[derive(Serialize)]
    struct Report {
        backends: Vec<BackendReport>,
    }

    let site = resolve::site(global)?;
    let backends: Vec<_> = DRIVERS.iter().map(|driver| look(driver, &site, true)).collect();
    if args.json {
        output::json("doctor", &Report { backends })?;
    } else {
        output::result(&output::backends::doctor(&backends))?;
    }
    Ok(0)
}

fn look(driver: &Driver, site: &Site, in_detail: bool) -> BackendReport {
    let available: Probe = (driver.probe)(site);
    let requirements = if in_detail { (driver.requirements)(site) } else { Vec::new() };
    let &Driver { name, priority, directions, .. } = driver;
    BackendReport { name, priority, directions, available, requirements }
}
