//! `--list-backends` and `doctor`: what could hold a limit here, found out by trying.

use serde::Serialize;

use super::{
    args::{Global, Json},
    resolve,
};
use crate::{
    backend::{DRIVERS, Driver, Probe, Site},
    error::Result,
    monitor::health::{self, Health},
    output::{self, backends::BackendReport},
};

/// `chadthrottle --list-backends`.
pub fn list(global: &Global) -> Result<u8> {
    let site = resolve::site(global)?;
    let reports = look_at_all(&site, false);
    output::result(&output::backends::list(&reports))?;
    Ok(0)
}

/// `chadthrottle doctor`. An answer is a success, also when it is no.
pub fn doctor(global: &Global, args: &Json) -> Result<u8> {
    #[derive(Serialize)]
    struct Report {
        backends: Vec<BackendReport>,
        monitor: Health,
    }

    let site = resolve::site(global)?;
    let backends = look_at_all(&site, true);
    let monitor = health::look(&site);
    if args.json {
        output::json("doctor", &Report { backends, monitor })?;
    } else {
        output::result(&output::backends::doctor(&backends, &monitor))?;
    }
    Ok(0)
}

/// Tries every backend; `in_detail`: also what each needs.
pub(crate) fn look_at_all(site: &Site, in_detail: bool) -> Vec<BackendReport> {
    DRIVERS.iter().map(|driver| look(driver, site, in_detail)).collect()
}

fn look(driver: &Driver, site: &Site, in_detail: bool) -> BackendReport {
    let available: Probe = (driver.probe)(site);
    let requirements = if in_detail { (driver.requirements)(site) } else { Vec::new() };
    let &Driver { name, priority, directions, .. } = driver;
    BackendReport { name, priority, directions, available, requirements }
}
