//! Limits side by side over lines of several lengths: how near to the limit, and what is sent twice for it.

mod beside;
mod design;
mod page;

use std::{path::Path, time::Duration};

use chadthrottle::{
    Error, Kind, Result,
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
    stats::{busy, median},
    support::{Scene, has_congestion_control, program, relay::Line},
    worker::Worker,
};

/// What the line carries, as a multiple of the limit.
const LINE: u64 = 8;
/// And at most, bytes/s: more than this machine moves through it without taking part in the result.
const FASTEST_LINE: u64 = 150_000_000;
/// What waits in front of the line at most, and what receivers let their senders have under way beyond the line itself, all
/// connections together: less than that, so that the line loses nothing before the limit comes. What it lost would be sent
/// again afterwards, whoever limits.
const BUFFER: Duration = Duration::from_millis(500);
const QUEUED: Duration = Duration::from_millis(200);
/// No connection's receive buffer is smaller, in bytes.
const LEAST_BUFFER: u64 = 16_384;

/// How long a transfer runs before the limit, in seconds.
const BEFORE: f64 = 1.5;
/// How long after the limit it is measured, and from when on: over a cable, and over a line with a length. There a
/// receiver has up to a second of the line's full speed waiting behind gaps when the limit comes, and is handed
/// that when they are filled: after the limit, but not through it.
const MEASURED: u32 = 8;
/// An upload at 100 KB/s, where a sender that hands over 64 KB at a time does so every 0.65 s.
const MEASURED_SLOW: u32 = 30;
const SETTLED: f64 = 2.0;
const SETTLED_LINE: f64 = 4.0;

/// How long pings are sent in every second of it, in ms, and from when on, in seconds: before, there is only traffic, and
/// the processors are looked at.
const PINGING_MS: u32 = 400;
const LOOK_AFTER: f64 = 0.4;

/// How long as much traffic without a limit runs before pings are sent beside it, in seconds.
const ALONE: f64 = 0.6;

/// One cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The same in packets.
    packets: f64,
    /// What was sent again from the limit on, beyond what the line itself had lost, as a share of what was sent.
    caused: f64,
    /// The slowest connection's share of the fastest one's.
    fairness: f64,
    /// Payload received in the best second.
    most: f64,
    /// The same of what passed.
    most_passed: Option<f64>,
    /// How long a packet waits in the limit's queue, milliseconds, median; `None`: it has none.
    wait: Option<f64>,
    /// Round trip of the limited connections, as their senders see it, milliseconds, median.
    round_trip: f64,
    /// What a ping of a process without a limit takes longer than beside as much traffic without one, milliseconds,
    /// medians.
    ping: f64,
    /// How busy all processors together are, traffic included, as a share of one.
    busy: f64,
}

/// Payload of a full packet, with the timestamp option.
const PAYLOAD: f64 = 1448.0;

impl Outcome {
    /// Payload that a limit of IP bytes can carry at most.
    const CEILING: f64 = PAYLOAD / 1500.0;

    /// Distance from what can be reached.
    fn distance(&self) -> f64 {
        (self.goodput / Self::CEILING - 1.0).abs()
    }
}

impl Cell {
    /// Whether it has these properties: design, direction, MB/s, round trip, connections, congestion control; any where
    /// there is `*`, or no word.
    fn is(&self, words: &str) -> bool {
        let own = [
            self.design.key().to_owned(),
            self.direction.to_string(),
            (self.rate as f64 / 1e6).to_string(),
            self.round_trip_ms.to_string(),
            self.flows.to_string(),
            self.congestion.to_owned(),
        ];
        words.split_whitespace().zip(&own).all(|(word, own)| word == "*" || word == own)
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
            for &flows in flows {
                // What a machine of this size moves through its line then is no more than the limit.
                if rate > 10_000_000 && round_trip_ms > 0 && flows > 8 {
                    continue;
                }
                for congestion in ["cubic", "bbr"] {
                    for direction in Direction::ALL {
                        for design in Design::ALL {
                            // Others' are for comparison: a part of the matrix is enough.
                            let compared =
                                flows == 8 && (1_000_000..=10_000_000).contains(&rate) && round_trip_ms != 20;
                            let wanted = match design {
                                Design::Ours => true,
                                Design::Window => {
                                    (flows == 8 || flows == 1 && round_trip_ms > 0)
                                        && (1_000_000..=10_000_000).contains(&rate)
                                        && direction == Direction::Download
                                }
                                Design::Naive => compared,
                                Design::Nft | Design::Htb => compared && congestion == "cubic",
                            };
                            if wanted {
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

/// What of the matrix, and where to.
pub struct Plan<'a> {
    /// All of it, not a few cells.
    pub full: bool,
    /// Of these only those that [`Cell::is`] fits.
    pub cells: Option<&'a str>,
    /// For the page and its plot.
    pub folder: Option<&'a Path>,
    /// The object with the naive bucket.
    pub yardstick: &'a Path,
}

/// Measures cells, and writes the page and its plot.
pub fn measure(plan: &Plan<'_>) -> Result<()> {
    let mut outcomes = Vec::new();
    let mut cells = cells(plan.full);
    cells.retain(|cell| plan.cells.is_none_or(|words| cell.is(words)));
    for (number, cell) in cells.iter().enumerate() {
        match run(cell, plan.yardstick) {
            Ok(outcome) => {
                eprintln!("{}/{}: {}", number + 1, cells.len(), page::row(&outcome));
                outcomes.push(outcome);
            }
            // One that fails (a tool is missing) does not end the others.
            Err(error) => eprintln!("{}/{}: {cell:?}: {error}", number + 1, cells.len()),
        }
        chadthrottle::selftest::interrupt::check()?;
    }
    if plan.cells.is_some() {
        return Ok(());
    }
    let beside = beside::measure()?;
    page::write(&outcomes, &beside, plan.folder)
}

/// Only what a limit costs traffic that has none.
pub fn measure_beside() -> Result<()> {
    print!("{}", page::beside(&beside::measure()?));
    Ok(())
}

fn run(cell: &Cell, yardstick: &Path) -> Result<Outcome> {
    let scene = match cell.round_trip_ms {
        0 => Scene::new()?,
        ms => {
            let round_trip = Duration::from_millis(ms);
            let line = Line { round_trip, rate: (cell.rate * LINE).min(FASTEST_LINE), buffer: BUFFER };
            let scene = Scene::over(line)?;
            let under_way = line.rate as f64 * (round_trip + QUEUED).as_secs_f64();
            let buffer = (under_way as u64 / u64::from(cell.flows)).max(LEAST_BUFFER);
            for namespace in [&scene.lab.client, &scene.lab.server] {
                namespace.run(|| set_buffers(buffer))?;
            }
            scene
        }
    };
    let server = scene.server()?;
    let way = if cell.direction == Direction::Upload { "put" } else { "get" };
    let mut neighbour = Neighbour::new(&scene)?;
    let alone = {
        let words =
            format!("connect tcp {} {way} rate={} run={}", scene.tcp(Version::V4), cell.rate, scene.run());
        let place = Place { namespace: Some(&scene.lab.client), cgroup: None };
        let _other = Traffic::spawn(&program(), "as much traffic without a limit", place, &[words])?;
        sleep_until(now() + ALONE)?;
        neighbour.ping()?
    };
    let runs: Vec<u64> = (0..cell.flows).map(|_| scene.run()).collect();
    let connections: Vec<_> = runs
        .iter()
        .map(|run| format!("connect tcp {} {way} cc={} run={run}", scene.tcp(Version::V4), cell.congestion))
        .collect();
    // Without a queue most of what is under way is lost when a limit comes: there it comes first.
    let first = cell.design == Design::Window;
    let mut client = scene.client(if first { &[] } else { &connections })?;
    if !first {
        sleep_until(now() + BEFORE)?;
    }
    let target = format!("pid:{}", client.pid());
    let limit = cell.design.set(&scene, cell.direction, cell.rate, client.pid(), yardstick)?;
    if first {
        connections.iter().try_for_each(|connection| client.tell(connection).map(drop))?;
    }
    let (sender, receiver, namespace) = match cell.direction {
        Direction::Upload => (&client, &server, &scene.lab.client),
        Direction::Download => (&server, &client, &scene.lab.server),
    };
    let since = limit.since();
    let start = sent(sender, &runs, since)?;
    let second = sent(sender, &runs, since + 1.0)?;
    let from = since + if scene.has_line() { SETTLED_LINE } else { SETTLED };
    let slow = cell.rate <= 100_000 && cell.direction == Direction::Upload && cell.flows <= 8;
    let measured = if slow { MEASURED_SLOW } else { MEASURED };
    let to = from + f64::from(measured);
    let passed = || match cell.design {
        Design::Ours | Design::Window => scene.passed(&target, cell.direction).map(Some),
        _ => Ok(None),
    };
    sleep_until(from)?;
    let mut passes = vec![passed()?];
    let (mut waits, mut trips, mut pings, mut shares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for second in 0..measured {
        let (start, before) = (now(), busy()?);
        sleep_until(from + LOOK_AFTER + f64::from(second))?;
        shares.push((busy()? - before) / (now() - start));
        if cell.design == Design::Ours && cell.direction == Direction::Download {
            let report = scene.report(&target)?;
            waits.extend(report.directions.download.and_then(|held| held.counters.queue_us));
        }
        trips.push(round_trip(namespace)?);
        pings.push(neighbour.ping()?);
        sleep_until(from + f64::from(second + 1))?;
        passes.push(passed()?);
    }
    let end = sent(sender, &runs, to)?;
    let meter = receiver.meter_at(to)?;
    let rates: Vec<f64> = runs.iter().map(|&run| meter.rate(run, from, to, |totals| totals.rx)).collect();
    let rate = cell.rate as f64;
    let of_second = |second: u32| {
        let from = from + f64::from(second);
        runs.iter().map(|&run| meter.rate(run, from, from + 1.0, |totals| totals.rx)).sum::<f64>() / rate
    };
    let passes: Vec<(f64, u64)> = passes.into_iter().flatten().collect();
    let share = |from: &(f64, u64), to: &(f64, u64)| (to.1 - from.1) as f64 / (to.0 - from.0) / rate;
    let outcome = Outcome {
        cell: *cell,
        goodput: rates.iter().sum::<f64>() / rate,
        passed: passes.first().zip(passes.last()).map(|(from, to)| share(from, to)),
        most_passed: passes.windows(2).map(|pair| share(&pair[0], &pair[1])).reduce(f64::max),
        again: (end.1 - second.1) / (end.0 - second.0).max(1.0),
        packets: (end.1 - second.1) / PAYLOAD,
        // What the line lost is sent again by and by, limit or not.
        caused: (end.1 - start.1.max(scene.lost_payload() as f64)).max(0.0) / (end.0 - start.0).max(1.0),
        fairness: rates.iter().copied().fold(f64::INFINITY, f64::min)
            / rates.iter().copied().fold(1.0, f64::max),
        most: (0..measured).map(of_second).fold(0.0, f64::max),
        wait: (!waits.is_empty()).then(|| median(waits.into_iter().map(|us| us as f64 / 1e3))),
        round_trip: median(trips),
        ping: median(pings) - alone,
        busy: median(shares),
    };
    limit.end()?;
    Ok(outcome)
}

/// Sets what TCP connections of the calling thread's namespace let be under way at most, in bytes. A sender keeps more than
/// that: it has not been told of all that arrived.
fn set_buffers(bytes: u64) -> Result<()> {
    let least = bytes.min(131_072);
    for (name, sizes) in [
        ("tcp_rmem", format!("4096 {least} {bytes}")),
        ("tcp_wmem", format!("4096 16384 {}", (4 * bytes).max(4 << 20))),
    ] {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), sizes)
            .map_err(|cause| Error::caused(Kind::Failed, format!("set {name}"), &cause))?;
    }
    Ok(())
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
