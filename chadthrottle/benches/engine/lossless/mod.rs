//! Limits side by side over lines of several lengths: how near to the limit, and what is sent twice for it.

mod beside;
mod design;
mod page;

use std::path::Path;

use chadthrottle::{
    Result,
    model::Direction,
    selftest::{
        lab::Version,
        process::{Traffic, sleep_until},
        traffic::now,
    },
};

use self::design::Design;
use crate::{
    stats::median,
    support::{Scene, has_congestion_control, relay::Line},
};

/// What the line carries, as a multiple of the limit.
const LINE: u64 = 12;
/// And at most, bytes/s: more than this machine moves through it without taking part in the result.
const FASTEST_LINE: u64 = 150_000_000;

/// How long a transfer runs before the limit, and how long after it is measured, in seconds.
const BEFORE: f64 = 2.0;
const MEASURED: u32 = 8;

/// One cell of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    design: Design,
    direction: Direction,
    /// Bytes/s.
    rate: u64,
    flows: u32,
    congestion: &'static str,
    round_trip_ms: u64,
}

/// What it gave; shares of the limit.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    cell: Cell,
    /// Payload received from two seconds after the limit on.
    goodput: f64,
    /// Of the bytes sent from one second after the limit on, those that were sent again.
    again: f64,
    /// The same from the limit on.
    again_with_start: f64,
    /// The slowest connection's share of the fastest one's.
    fairness: f64,
    /// Payload received in the best second.
    most: f64,
    /// How long a packet waits in the limit's queue, milliseconds, median; `None`: it has none.
    wait: Option<f64>,
}

impl Outcome {
    /// Payload that a limit of IP bytes can carry at most, with full packets and the timestamp option.
    const CEILING: f64 = 1448.0 / 1500.0;

    /// Distance from what can be reached.
    fn distance(&self) -> f64 {
        (self.goodput / Self::CEILING - 1.0).abs()
    }
}

fn cells(full: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    let (rates, flows, trips): (&[u64], &[u32], &[u64]) = if full {
        (&[100_000, 1_000_000, 10_000_000, 100_000_000], &[1, 8, 64], &[0, 20, 80])
    } else {
        (&[1_000_000, 10_000_000], &[1, 8], &[0, 80])
    };
    for &rate in rates {
        for &round_trip_ms in trips {
            // What a window at that rate over that line is, no machine of this size buffers for many.
            if rate > 10_000_000 && round_trip_ms > 0 {
                continue;
            }
            for &flows in flows {
                for congestion in ["cubic", "bbr"] {
                    for direction in Direction::ALL {
                        for design in Design::ALL {
                            // Others' are for comparison: a part of the matrix is enough.
                            let compared = design == Design::Ours || (flows == 8 && rate <= 10_000_000);
                            if compared {
                                cells.push(Cell {
                                    design,
                                    direction,
                                    rate,
                                    flows,
                                    congestion,
                                    round_trip_ms,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
    cells.retain(|cell| has_congestion_control(cell.congestion));
    cells
}

/// Measures all cells, a few of them unless `full`, and writes the page and its plot into `folder`.
pub fn measure(full: bool, folder: Option<&Path>) -> Result<()> {
    let mut outcomes = Vec::new();
    let cells = cells(full);
    for (number, cell) in cells.iter().enumerate() {
        match run(cell) {
            Ok(outcome) => {
                eprintln!("{}/{}: {}", number + 1, cells.len(), page::row(&outcome));
                outcomes.push(outcome);
            }
            // One that fails (a tool is missing) does not end the others.
            Err(error) => eprintln!("{}/{}: {cell:?}: {error}", number + 1, cells.len()),
        }
        chadthrottle::selftest::interrupt::check()?;
    }
    let beside = beside::measure()?;
    page::write(&outcomes, &beside, folder)
}

/// Only what a limit costs traffic that has none.
pub fn measure_beside() -> Result<()> {
    print!("{}", page::beside(&beside::measure()?));
    Ok(())
}

fn run(cell: &Cell) -> Result<Outcome> {
    let scene = match cell.round_trip_ms {
        0 => Scene::new()?,
        ms => Scene::over(Line::new(ms, (cell.rate * LINE).min(FASTEST_LINE)))?,
    };
    let server = scene.server()?;
    let way = if cell.direction == Direction::Upload { "put" } else { "get" };
    let runs: Vec<u64> = (0..cell.flows).map(|_| scene.run()).collect();
    let connections: Vec<_> = runs
        .iter()
        .map(|run| format!("connect tcp {} {way} cc={} run={run}", scene.tcp(Version::V4), cell.congestion))
        .collect();
    let client = scene.client(&connections)?;
    sleep_until(now() + BEFORE)?;
    let (sender, receiver) =
        if cell.direction == Direction::Upload { (&client, &server) } else { (&server, &client) };
    let start = sent(sender, &runs, now())?;
    let limit = cell.design.set(&scene, cell.direction, cell.rate, client.pid())?;
    let since = limit.since();
    let second = sent(sender, &runs, since + 1.0)?;
    let end_time = since + 2.0 + f64::from(MEASURED);
    let mut waits = Vec::new();
    for second in 0..MEASURED {
        sleep_until(since + 2.5 + f64::from(second))?;
        if cell.design == Design::Ours && cell.direction == Direction::Download {
            let report = scene.report(&format!("pid:{}", client.pid()))?;
            waits.extend(report.directions.download.and_then(|held| held.counters.queue_us));
        }
    }
    let end = sent(sender, &runs, end_time)?;
    let meter = receiver.meter_at(end_time)?;
    let rates: Vec<f64> =
        runs.iter().map(|&run| meter.rate(run, since + 2.0, end_time, |totals| totals.rx)).collect();
    let rate = cell.rate as f64;
    let of_second = |second: u32| {
        let from = since + 2.0 + f64::from(second);
        runs.iter().map(|&run| meter.rate(run, from, from + 1.0, |totals| totals.rx)).sum::<f64>() / rate
    };
    let share = |from: (f64, f64)| (end.1 - from.1) / (end.0 - from.0).max(1.0);
    let outcome = Outcome {
        cell: *cell,
        goodput: rates.iter().sum::<f64>() / rate,
        again: share(second),
        again_with_start: share(start),
        fairness: rates.iter().copied().fold(f64::INFINITY, f64::min)
            / rates.iter().copied().fold(1.0, f64::max),
        most: (0..MEASURED).map(of_second).fold(0.0, f64::max),
        wait: (!waits.is_empty()).then(|| median(waits.into_iter().map(|us| us as f64 / 1e3))),
    };
    limit.end()?;
    Ok(outcome)
}

/// Bytes that TCP had sent at a time, and those of them that were sent again.
fn sent(sender: &Traffic, runs: &[u64], time: f64) -> Result<(f64, f64)> {
    let meter = sender.meter_at(time)?;
    let totals = runs.iter().map(|&run| meter.totals(run));
    Ok(totals
        .fold((0.0, 0.0), |sum, totals| (sum.0 + totals.sent as f64, sum.1 + totals.retransmitted as f64)))
}

/// The middle of a value over those outcomes for which `wanted` holds.
fn middle(
    outcomes: &[Outcome],
    wanted: impl Fn(&Cell) -> bool,
    value: impl Fn(&Outcome) -> f64,
) -> Option<f64> {
    let values: Vec<_> = outcomes.iter().filter(|outcome| wanted(&outcome.cell)).map(value).collect();
    (!values.is_empty()).then(|| median(values))
}
