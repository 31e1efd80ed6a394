//! Proves on this machine that each backend holds its limits: real transfers between two private network
//! namespaces, limited by the very command that users call, measured at the receiver.
//!
//! Nothing of it touches anybody else's traffic: the programs are attached to a cgroup made for the
//! purpose, the owner is one of its own in a runtime folder of its own, the namespaces have no name and
//! vanish with the last process in them.

pub mod cgroup;
pub mod interrupt;
pub mod lab;
pub mod meter;
pub mod process;
pub mod report;
pub mod row;
pub mod traffic;
pub mod workplace;

use std::{
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use report::{Report, Skipped};
use row::{Row, Scenario, Stage};
use workplace::Workplace;

use crate::{
    backend::{DRIVERS, Driver, Probe, Site},
    error::{Context, Error, Kind, Result},
    kernel,
    model::Direction,
};

/// What the best backend has to hold, round by round.
const IN_FULL: &[&[Scenario]] =
    &[&[Scenario::Tcp], &[Scenario::TcpEight], &[Scenario::Udp], &[Scenario::TcpV6]];
/// And the others, so that it takes no minute: both protocols and both IPs.
const IN_BRIEF: &[&[Scenario]] = &[&[Scenario::TcpV6, Scenario::Udp]];

/// How to run the self-test.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Print JSON instead of a table.
    pub json: bool,
    /// Where to make the own runtime folder; `None`: [`workplace::PARENT`].
    pub runtime_dir: Option<PathBuf>,
    /// Where to make the own cgroup; `None`: the root of the cgroup2 mount.
    pub cgroup_root: Option<PathBuf>,
}

/// Runs the self-test and prints its report. `false`: a limit did not hold. Fails with
/// [`Kind::NotPermitted`] without the rights for namespaces and cgroups, and with [`Kind::NoBackend`] when no
/// backend is available.
pub fn main(options: &Options) -> Result<bool> {
    // What our caller left open, a connection for example, would be open in what is limited.
    crate::kernel::process::keep_descriptors();
    interrupt::listen()?;
    let report = run(options).map_err(with_advice)?;
    report.print(options.json)?;
    if report.rows.is_empty() {
        let reasons: Vec<_> = report.skipped.iter().map(ToString::to_string).collect();
        return Err(Error::new(Kind::NoBackend, format!("no backend is available: {}", reasons.join("; "))));
    }
    Ok(report.held)
}

fn with_advice(error: Error) -> Error {
    if error.kind != Kind::NotPermitted {
        return error;
    }
    let message = "the self-test makes network namespaces and a cgroup, for which it needs root \
                   (CAP_SYS_ADMIN and CAP_NET_ADMIN); try: sudo chadthrottle selftest";
    Error::caused(Kind::NotPermitted, message, &error)
}

fn run(options: &Options) -> Result<Report> {
    let start = Instant::now();
    let root = kernel::cgroup::attach_point(options.cgroup_root.as_deref())?;
    let parent = options.runtime_dir.as_deref().unwrap_or(Path::new(workplace::PARENT));
    let workplace = Workplace::new(parent, &root)?;
    let program = std::env::current_exe().context("find the own program")?;

    let site = Site { cgroup_root: Some(workplace.cgroup().to_owned()) };
    let mut report = Report::new();
    for driver in DRIVERS {
        let usable = usable_directions(driver, &site, &mut report.skipped);
        let rounds = if report.rows.is_empty() { IN_FULL } else { IN_BRIEF };
        for scenarios in rounds {
            let stages: Vec<_> = scenarios
                .iter()
                .map(|&scenario| Stage { program: &program, workplace: &workplace, scenario })
                .collect();
            report.rows.extend(at_once(&stages, driver, &usable)?);
        }
    }
    workplace.wait_for_owner();
    report.finish(start.elapsed());
    Ok(report)
}

/// The directions in which `driver` works here; the others go to `skipped`.
fn usable_directions(driver: &Driver, site: &Site, skipped: &mut Vec<Skipped>) -> Vec<Direction> {
    let probe = (driver.probe)(site);
    match probe {
        // What could not be decided is decided by trying.
        Probe::Ready | Probe::Unknown { .. } => driver.directions.to_vec(),
        Probe::Unavailable { reason, mend } => {
            skipped.extend(driver.directions.iter().map(|&direction| Skipped {
                backend: driver.name,
                direction,
                reason: reason.clone(),
                mend: mend.clone(),
            }));
            Vec::new()
        }
    }
}

/// Each scenario in each direction, at the same time: limits of several callers, which also shows that they are
/// independent.
fn at_once(stages: &[Stage<'_>], driver: &Driver, directions: &[Direction]) -> Result<Vec<Row>> {
    let rows: Result<Vec<_>> = thread::scope(|scope| {
        let runs: Vec<_> = stages
            .iter()
            .flat_map(|stage| directions.iter().map(move |&direction| (stage, direction)))
            .map(|(stage, direction)| scope.spawn(move || row::measure(stage, driver.name, direction)))
            .collect();
        runs.into_iter()
            .map(|run| run.join().unwrap_or_else(|_| Err(Error::failed("a measurement panicked"))))
            .collect()
    });
    for row in rows.iter().flatten() {
        eprintln!("{row}");
    }
    rows
}
