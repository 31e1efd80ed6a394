//! Which backend holds a limit: a pure decision over probes.

use std::collections::HashMap;

use super::{Driver, Probe};
use crate::{
    error::{Error, Kind},
    model::Direction,
};

/// The driver of that name which can limit that direction; else an error that lists those there are.
pub fn by_name(
    drivers: &'static [Driver],
    name: &str,
    direction: Direction,
) -> Result<&'static Driver, Error> {
    of_direction(drivers, direction).find(|driver| driver.name == name).ok_or_else(|| {
        let known: Vec<_> = of_direction(drivers, direction).map(|driver| driver.name).collect();
        Error::new(
            Kind::Usage,
            format!("unknown {direction} backend '{}': there are {}", name.escape_debug(), known.join(", ")),
        )
    })
}

fn of_direction(drivers: &'static [Driver], direction: Direction) -> impl Iterator<Item = &'static Driver> {
    drivers.iter().filter(move |driver| driver.directions.contains(&direction))
}

/// What is known of the backends so far.
#[derive(Debug, Default)]
pub struct Known {
    /// By driver name.
    pub probes: HashMap<&'static str, Probe>,
}

/// What to do next to find a backend.
#[derive(Clone, Copy)]
pub enum Next {
    /// Its state is not known and would decide: probe it.
    Probe(&'static Driver),
    /// Set the limit with it.
    Try(&'static Driver),
    /// No other can do it.
    Nobody,
}

/// The next step towards a backend for `direction`, given those that were tried in vain.
///
/// A backend wished for by name is tried without a probe, since trying tells as much, and nothing else
/// is. Otherwise the best that is ready; those whose probe could not decide come after all that are
/// ready; the unavailable never. Probes are asked for only as far down as the decision needs them.
pub fn next(
    drivers: &'static [Driver],
    direction: Direction,
    wish: Option<&str>,
    known: &Known,
    tried: &[&str],
) -> Result<Next, Error> {
    if let Some(name) = wish {
        let driver = by_name(drivers, name, direction)?;
        return Ok(if tried.contains(&name) { Next::Nobody } else { Next::Try(driver) });
    }
    let mut open: Vec<_> =
        of_direction(drivers, direction).filter(|driver| !tried.contains(&driver.name)).collect();
    // Stable: among equals the table's order decides.
    open.sort_by_key(|driver| std::cmp::Reverse(driver.priority));
    for driver in &open {
        match known.probes.get(driver.name) {
            None => return Ok(Next::Probe(driver)),
            Some(Probe::Ready) => return Ok(Next::Try(driver)),
            Some(Probe::Unavailable { .. } | Probe::Unknown { .. }) => {}
        }
    }
    let undecided = |driver: &&&Driver| matches!(known.probes.get(driver.name), Some(Probe::Unknown { .. }));
    Ok(open.iter().find(undecided).map_or(Next::Nobody, |driver| Next::Try(driver)))
}

/// Which backends are better than the one that took a limit, and why they did not; one line each.
pub fn passed_over(
    drivers: &'static [Driver],
    taker: &'static Driver,
    direction: Direction,
    known: &Known,
) -> impl Iterator<Item = String> {
    let better = of_direction(drivers, direction).filter(|driver| driver.priority > taker.priority);
    better.filter_map(|driver| {
        let reason = match known.probes.get(driver.name)? {
            Probe::Ready => return None,
            Probe::Unavailable { reason, .. } => format!("is unavailable ({reason})"),
            Probe::Unknown { reason } => format!("may not work here ({reason})"),
        };
        Some(format!("{} {reason}; {} limits instead", driver.name, taker.name))
    })
}

/// Why nobody can limit `direction`: the reason of each backend, `failures` being those that were tried.
pub fn nobody(
    drivers: &'static [Driver],
    direction: Direction,
    known: &Known,
    failures: &[(&'static str, Error)],
) -> Error {
    let reasons: Vec<_> = of_direction(drivers, direction)
        .filter_map(|driver| {
            let failure = failures.iter().find(|(name, _)| *name == driver.name);
            let reason = match (failure, known.probes.get(driver.name)?) {
                (Some((_, error)), _) => error.to_string(),
                (None, Probe::Unavailable { reason, mend: Some(mend) }) => format!("{reason} (mend: {mend})"),
                (None, Probe::Unavailable { reason, mend: None }) => reason.clone(),
                (None, Probe::Unknown { reason }) => format!("unknown: {reason}"),
                (None, Probe::Ready) => "not tried".to_owned(),
            };
            Some(format!("{}: {reason}", driver.name))
        })
        .collect();
    let right_is_missing =
        !failures.is_empty() && failures.iter().all(|(_, error)| error.kind == Kind::NotPermitted);
    let kind = if right_is_missing { Kind::NotPermitted } else { Kind::NoBackend };
    Error::new(kind, nobody_can(direction) + &reasons.join("; "))
}

/// How the message of [`nobody`] begins; the reasons follow.
pub fn nobody_can(direction: impl std::fmt::Display) -> String {
    format!("no backend can limit {direction}: ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Priority, Site};

    const fn driver(name: &'static str, priority: Priority, directions: &'static [Direction]) -> Driver {
        Driver {
            name,
            priority,
            directions,
            probe: |_: &Site| Probe::Ready,
            requirements: |_| Vec::new(),
            open: |_, _| Err(Error::failed("never opened")),
        }
    }

    static TABLE: &[Driver] = &[
        driver("low", Priority::Fallback, &[Direction::Download]),
        driver("good", Priority::Good, &Direction::ALL),
        driver("best", Priority::Best, &Direction::ALL),
        driver("good2", Priority::Good, &Direction::ALL),
    ];

    /// The whole way down the table when everything that is tried fails: "?x" probed, "x" tried.
    fn walk(direction: Direction, wish: Option<&str>, state: impl Fn(&str) -> Probe) -> Vec<String> {
        let mut known = Known::default();
        let mut tried = Vec::new();
        let mut log = Vec::new();
        loop {
            match next(TABLE, direction, wish, &known, &tried).unwrap() {
                Next::Probe(driver) => {
                    log.push(format!("?{}", driver.name));
                    assert!(known.probes.insert(driver.name, state(driver.name)).is_none(), "probed twice");
                }
                Next::Try(driver) => {
                    log.push(driver.name.to_owned());
                    tried.push(driver.name);
                }
                Next::Nobody => return log,
            }
        }
    }

    fn unavailable() -> Probe {
        Probe::Unavailable { reason: "no kernel".into(), mend: Some("modprobe kernel".into()) }
    }

    fn unknown() -> Probe {
        Probe::Unknown { reason: "no rights".into() }
    }

    #[test]
    fn the_better_ones_are_told_with_their_reasons() {
        let gone = Probe::Unavailable { reason: "no such kernel".into(), mend: None };
        let known = Known { probes: [("best", gone), ("good", Probe::Ready)].into_iter().collect() };
        let told = |taker: &str| {
            let taker = TABLE.iter().find(|driver| driver.name == taker).unwrap();
            passed_over(TABLE, taker, Direction::Download, &known).collect::<Vec<_>>()
        };
        assert_eq!(told("good"), ["best is unavailable (no such kernel); good limits instead"]);
        assert_eq!(told("low"), ["best is unavailable (no such kernel); low limits instead"]);
        assert!(told("best").is_empty());
    }

    #[test]
    fn the_best_first_and_probes_only_as_needed() {
        let log = walk(Direction::Upload, None, |_| Probe::Ready);
        assert_eq!(log, ["?best", "best", "?good", "good", "?good2", "good2"]);
        let log = walk(Direction::Download, None, |_| unavailable());
        assert_eq!(log, ["?best", "?good", "?good2", "?low"]);
    }

    #[test]
    fn the_undecided_come_last() {
        let state = |name: &str| if name == "low" { Probe::Ready } else { unknown() };
        let log = walk(Direction::Download, None, state);
        assert_eq!(log, ["?best", "?good", "?good2", "?low", "low", "best", "good", "good2"]);
    }

    #[test]
    fn a_name_is_tried_unprobed_and_alone() {
        assert_eq!(walk(Direction::Upload, Some("good"), |_| unavailable()), ["good"]);
    }

    #[test]
    fn an_unknown_name_lists_those_of_the_direction() {
        let error = next(TABLE, Direction::Upload, Some("low"), &Known::default(), &[]).err().unwrap();
        assert_eq!(error.kind, Kind::Usage);
        assert_eq!(error.message, "unknown upload backend 'low': there are good, best, good2");
    }

    #[test]
    fn everybodys_reason_is_told() {
        let probes = [("best", Probe::Ready), ("good", unavailable()), ("good2", unknown())];
        let known = Known { probes: probes.into() };
        let failures = [("best", Error::failed("the verifier said no"))];
        let error = nobody(TABLE, Direction::Upload, &known, &failures);
        assert_eq!(error.kind, Kind::NoBackend);
        let expected = "no backend can limit upload: good: no kernel (mend: modprobe kernel); \
                        best: the verifier said no; good2: unknown: no rights";
        assert_eq!(error.message, expected);
        let failures = [("best", Error::new(Kind::NotPermitted, "CAP_BPF is missing"))];
        assert_eq!(nobody(TABLE, Direction::Upload, &known, &failures).kind, Kind::NotPermitted);
    }
}
