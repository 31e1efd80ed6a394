//! Limits side by side over lines of several lengths: how near to the limit, and what is sent twice for it.

mod beside;
mod design;
mod page;

use std::path::Path;

use chadthrottle::{
    Result,
    kernel::{
        netns::Namespace,
        sock_diag::{Protocol, SockDiag},
    },
    model::Direction,
    selftest::{
        lab::Version,
        process::{Place, Traffic, sleep_until},
        traffic::now,
    },
};

use self::design::Design;
use crate::{
    ping::ECHO_PORT,
    stats::median,
    support::{Scene, has_congestion_control, relay::Line},
    worker::Worker,
};

/// What the line carries, as a multiple of the limit.
const LINE: u64 = 12;
/// And at most, bytes/s: more than this machine moves through it without taking part in the result.
const FASTEST_LINE: u64 = 150_000_000;

/// How long a transfer runs before the limit, in seconds.
const BEFORE: f64 = 2.0;
/// How long after the limit it is measured, and from when on: over a cable, and over a line with a length. There a
/// receiver has up to a second of the line's full speed waiting behind gaps when the limit comes, and is handed
/// that when they are filled: after the limit, but not through it.
const MEASURED: u32 = 8;
/// An upload at 100 KB/s, where a sender that hands over 64 KB at a time does so every 0.65 s.
const MEASURED_SLOW: u32 = 30;
const SETTLED: f64 = 2.0;
const SETTLED_LINE: f64 = 4.0;

/// How long pings are sent in every second of it, in ms.
const PINGING_MS: u32 = 500;

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
    /// Payload received while it was measured.
    goodput: f64,
    /// IP bytes that the limit let through in that time, as it counts them; `None`: it does not.
    passed: Option<f64>,
    /// Of the bytes sent from one second after the limit on, those that were sent again.
    again: f64,
    /// What was sent again from the limit on, beyond what the line itself had lost, as a share of what was sent.
    caused: f64,
    /// The slowest connection's share of the fastest one's.
    fairness: f64,
    /// Payload received in the best second.
    most: f64,
    /// How long a packet waits in the limit's queue, milliseconds, median; `None`: it has none.
    wait: Option<f64>,
    /// Round trip of the limited connections, as their senders see it, milliseconds, median.
    round_trip: f64,
    /// What a ping of a process without a limit takes longer than before all traffic, milliseconds, medians.
    ping: f64,
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
                            let compared = flows == 8 && rate <= 10_000_000 && round_trip_ms != 20;
                            if design == Design::Ours || compared {
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
    let mut neighbour = Neighbour::new(&scene)?;
    let alone = neighbour.ping()?;
    let server = scene.server()?;
    let way = if cell.direction == Direction::Upload { "put" } else { "get" };
    let runs: Vec<u64> = (0..cell.flows).map(|_| scene.run()).collect();
    let connections: Vec<_> = runs
        .iter()
        .map(|run| format!("connect tcp {} {way} cc={} run={run}", scene.tcp(Version::V4), cell.congestion))
        .collect();
    let client = scene.client(&connections)?;
    sleep_until(now() + BEFORE)?;
    let (sender, receiver, namespace) = match cell.direction {
        Direction::Upload => (&client, &server, &scene.lab.client),
        Direction::Download => (&server, &client, &scene.lab.server),
    };
    let target = format!("pid:{}", client.pid());
    let limit = cell.design.set(&scene, cell.direction, cell.rate, client.pid())?;
    let since = limit.since();
    let start = sent(sender, &runs, since)?;
    let second = sent(sender, &runs, since + 1.0)?;
    let from = since + if scene.has_line() { SETTLED_LINE } else { SETTLED };
    let slow = cell.rate <= 100_000 && cell.direction == Direction::Upload;
    let measured = if slow { MEASURED_SLOW } else { MEASURED };
    let to = from + f64::from(measured);
    let passed = || match cell.design {
        Design::Ours => scene.passed(&target, cell.direction).map(Some),
        Design::Nft | Design::Htb => Ok(None),
    };
    sleep_until(from)?;
    let passed_before = passed()?;
    let (mut waits, mut trips, mut pings) = (Vec::new(), Vec::new(), Vec::new());
    for second in 0..measured {
        sleep_until(from + 0.3 + f64::from(second))?;
        if cell.design == Design::Ours && cell.direction == Direction::Download {
            let report = scene.report(&target)?;
            waits.extend(report.directions.download.and_then(|held| held.counters.queue_us));
        }
        trips.push(round_trip(namespace)?);
        pings.push(neighbour.ping()?);
    }
    let end = sent(sender, &runs, to)?;
    let passed_after = passed()?;
    let meter = receiver.meter_at(to)?;
    let rates: Vec<f64> = runs.iter().map(|&run| meter.rate(run, from, to, |totals| totals.rx)).collect();
    let rate = cell.rate as f64;
    let of_second = |second: u32| {
        let from = from + f64::from(second);
        runs.iter().map(|&run| meter.rate(run, from, from + 1.0, |totals| totals.rx)).sum::<f64>() / rate
    };
    let outcome = Outcome {
        cell: *cell,
        goodput: rates.iter().sum::<f64>() / rate,
        passed: passed_before
            .zip(passed_after)
            .map(|((from, before), (to, after))| (after - before) as f64 / (to - from) / rate),
        again: (end.1 - second.1) / (end.0 - second.0).max(1.0),
        // What the line lost is sent again by and by, limit or not.
        caused: (end.1 - start.1.max(scene.lost_payload() as f64)).max(0.0) / (end.0 - start.0).max(1.0),
        fairness: rates.iter().copied().fold(f64::INFINITY, f64::min)
            / rates.iter().copied().fold(1.0, f64::max),
        most: (0..measured).map(of_second).fold(0.0, f64::max),
        wait: (!waits.is_empty()).then(|| median(waits.into_iter().map(|us| us as f64 / 1e3))),
        round_trip: median(trips),
        ping: median(pings) - alone,
    };
    limit.end()?;
    Ok(outcome)
}

/// A process without a limit in the limited one's namespace, and who answers it at the other end.
struct Neighbour {
    pinger: Worker,
    _echo: Worker,
}

impl Neighbour {
    fn new(scene: &Scene) -> Result<Self> {
        let address = scene.lab.server_at(Version::V4, ECHO_PORT).to_string();
        let place = |namespace| Place { namespace: Some(namespace), cgroup: None };
        Ok(Self {
            _echo: Worker::echo(place(&scene.lab.server), &address)?,
            pinger: Worker::pinger(place(&scene.lab.client), &address)?,
        })
    }

    /// Median round trip, in ms.
    fn ping(&mut self) -> Result<f64> {
        self.pinger.median_us(PINGING_MS).map(|us| us / 1e3)
    }
}

/// Round trip of the connections that send from a namespace, in ms, median: as TCP itself smoothes it.
fn round_trip(namespace: &Namespace) -> Result<f64> {
    let sockets = SockDiag::open_in(namespace)?.list(&[Protocol::Tcp], true)?;
    let senders = sockets.into_iter().filter_map(|socket| socket.tcp).filter(|tcp| tcp.bytes_sent > 0);
    Ok(median(senders.map(|tcp| f64::from(tcp.rtt_us) / 1e3)))
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
