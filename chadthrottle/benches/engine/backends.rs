//! What each backend costs where its limit is not reached, and how well it holds where it is: processor time at a fixed
//! load, and what pings take longer.

use std::{fmt::Write as _, fs, path::Path};

use chadthrottle::{
    Error, Kind, Result,
    model::Direction,
    selftest::{
        interrupt,
        lab::Version,
        process::{Place, Traffic, sleep_until},
        traffic::now,
    },
};

use crate::{
    page,
    ping::ECHO_PORT,
    stats::{busy, median},
    support::Scene,
    worker::Worker,
};

/// The load at which processor time is measured, bytes/s, and a limit that it never reaches.
const LOAD: u64 = 50_000_000;
const UNREACHED: u64 = 500_000_000;
/// How far off the load may be.
const TOLERANCE: f64 = 0.05;
/// The limit that holds, bytes/s.
const LIMIT: u64 = 10_000_000;

/// How often each is measured with and without a limit, in turn.
const PAIRS: u32 = 5;
/// How often a load that was not steady is tried again: a machine of which others have a part stands still at times.
const TRIES: u32 = 3;
/// Length of a measurement of processor time, and how long something runs before it is measured, in seconds.
const WINDOW: f64 = 2.0;
const SETTLE: f64 = 0.7;
/// Seconds over which a limit's accuracy is measured.
const HELD: f64 = 8.0;
/// How long pings are sent for a measurement, in ms.
const PINGS: u32 = 700;

/// What was promised of a backend: of a processor, and of a ping.
const PROMISED: [(&str, &str, &str); 5] = [
    ("ebpf", "1 %", "0.5 ms"),
    ("nftables", "2-3 %", "1-2 ms"),
    ("tc_htb", "5-7 %", "2-4 ms"),
    ("ifb_tc", "5-7 %", "2-4 ms"),
    ("tc_police", "4-6 %", "3-5 ms"),
];

/// One backend in one direction.
struct Row {
    name: &'static str,
    direction: Direction,
    /// Processor time that it takes more, as a share of one processor: median of the pairs, and their spread without the outermost.
    cpu: f64,
    spread: (f64, f64),
    /// Round trips of the limited process's pings, less those without a limit, in µs.
    own_us: f64,
    /// The same of a process without a limit, while the limited one is held.
    other_us: f64,
    /// Round trips of the limited process's pings while it is held, in µs.
    full_us: f64,
    /// IP bytes as a share of the limit, from what arrived as payload.
    share: f64,
}

/// Measures every backend that holds here, and writes the page.
pub fn measure(path: Option<&Path>) -> Result<()> {
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    for (name, _, _) in PROMISED {
        for direction in Direction::ALL {
            if chadthrottle::backend::find(name, direction).is_err() {
                continue;
            }
            interrupt::check()?;
            match run(name, direction) {
                Ok(row) => {
                    eprintln!("{}", line(&row));
                    rows.push(row);
                }
                Err(error) => {
                    // Not the command line that said so.
                    let error = error.to_string();
                    let reason = error.rsplit_once("error: ").map_or(error.as_str(), |(_, reason)| reason);
                    missing.push(format!("{name}, {direction}: {reason}"));
                }
            }
        }
    }
    let mut text = format!("{HEAD}\n{}\n{COLUMNS}", page::machine());
    for row in &rows {
        let _ = writeln!(text, "{}", line(row));
    }
    if !missing.is_empty() {
        let _ = write!(text, "\nNot measured:\n\n- {}\n", missing.join("\n- "));
    }
    println!("{text}");
    match path {
        Some(path) => fs::write(path, text)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write {}", path.display()), &cause)),
        None => Ok(()),
    }
}

const HEAD: &str = "\
# What the backends cost

Written by `cargo xtask bench --only backends`.";

const COLUMNS: &str = "
- *processor*: what the whole machine works more, as a share of one processor, while one TCP connection moves a steady 50 MB/s \
under a limit that it never reaches, less the same without a limit: median of five pairs, in brackets without the highest and the lowest. The \
owner, which checks the limit, is in it.
- *own ping*: what a datagram of the limited process and its answer take longer because of such a limit, median over 0.7 s, µs.
- *others' ping*: the same of a process without a limit, while the limited one is held to 10 MB/s, less its time while that one \
moves 10 MB/s by itself.
- *held*: round trip of the limited process's pings while its own transfer is held to 10 MB/s: they wait for their turn in the \
same limit.
- *of the limit*: IP bytes in seconds 2 to 10, as a share of 10 MB/s.

| backend | direction | processor | promised | own ping µs | others' ping µs | promised | held µs | of the limit |
|---|---|--:|--:|--:|--:|--:|--:|--:|
";

fn line(row: &Row) -> String {
    let (_, cpu, ping) = PROMISED.into_iter().find(|(name, ..)| *name == row.name).unwrap_or_default();
    format!(
        "| {} | {} | **{:+.1} %** ({:+.1} to {:+.1}) | {cpu} | {:+.0} | {:+.0} | {ping} | {:.0} | {:.3} |",
        row.name,
        row.direction,
        row.cpu * 100.0,
        row.spread.0 * 100.0,
        row.spread.1 * 100.0,
        row.own_us,
        row.other_us,
        row.full_us,
        row.share
    )
}

/// Who takes part.
struct Cast {
    scene: Scene,
    server: Traffic,
    client: Traffic,
    _echo: Worker,
    /// In the limit, and not.
    own: Worker,
    other: Worker,
}

impl Cast {
    fn new() -> Result<Self> {
        let scene = Scene::new()?;
        let echo = scene.lab.server_at(Version::V4, ECHO_PORT).to_string();
        let client_place = || Place { namespace: Some(&scene.lab.client), cgroup: Some(scene.cgroup()) };
        Ok(Self {
            server: scene.server()?,
            client: scene.client(&[])?,
            _echo: Worker::echo(Place { namespace: Some(&scene.lab.server), cgroup: None }, &echo)?,
            own: Worker::pinger(client_place(), &echo)?,
            other: Worker::pinger(client_place(), &echo)?,
            scene,
        })
    }

    /// Starts a transfer; its run.
    fn load(&mut self, direction: Direction, rate: u64) -> Result<u64> {
        let way = if direction == Direction::Upload { "put" } else { "get" };
        let run = self.scene.run();
        let rate = if rate == 0 { String::new() } else { format!(" rate={rate}") };
        self.client.tell(&format!("connect tcp {} {way} run={run}{rate}", self.scene.tcp(Version::V4)))?;
        sleep_until(now() + SETTLE)?;
        Ok(run)
    }

    fn rest(&mut self) -> Result<()> {
        self.client.tell("close").map(drop)
    }

    /// The words of a limit on the client and its pinger.
    fn limit(&self, name: &str, direction: Direction, rate: u64) -> String {
        let option = if direction == Direction::Upload { "-u" } else { "-d" };
        let (client, own) = (self.client.pid(), self.own.pid());
        format!("pid:{client} pid:{own} {option} {rate} --{direction}-backend {name} --no-fallback")
    }
}

fn run(name: &'static str, direction: Direction) -> Result<Row> {
    let mut cast = Cast::new()?;
    let (mut cpu, mut own, mut other) = (Vec::new(), Vec::new(), Vec::new());
    let unreached = cast.limit(name, direction, UNREACHED);
    for _ in 0..PAIRS {
        let free = (busy_at(&mut cast, direction)?, cast.own.median_us(PINGS)?);
        let limit = cast.scene.limit(&unreached)?;
        let held = (busy_at(&mut cast, direction)?, cast.own.median_us(PINGS)?);
        limit.end()?;
        cpu.push(held.0 - free.0);
        own.push(held.1 - free.1);
    }
    let holding = cast.limit(name, direction, LIMIT);
    let (mut full, mut share) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS / 2 {
        cast.load(direction, LIMIT)?;
        let free = cast.other.median_us(PINGS)?;
        cast.rest()?;
        let run = cast.load(direction, 0)?;
        let limit = cast.scene.limit(&holding)?;
        sleep_until(limit.since + 2.0)?;
        if pair == 0 {
            let receiver = if direction == Direction::Upload { &cast.server } else { &cast.client };
            let end = limit.since + 2.0 + HELD;
            let payload = receiver.meter_at(end)?.rate(run, end - HELD, end, |totals| totals.arrived);
            // Full packets, with the timestamp option.
            share.push(payload * 1500.0 / 1448.0 / LIMIT as f64);
        }
        other.push(cast.other.median_us(PINGS)? - free);
        full.push(cast.own.median_us(PINGS)?);
        limit.end()?;
        cast.rest()?;
    }
    cpu.sort_by(f64::total_cmp);
    Ok(Row {
        name,
        direction,
        spread: (cpu[1], cpu[cpu.len() - 2]),
        cpu: median(cpu),
        own_us: median(own),
        other_us: median(other),
        full_us: median(full),
        share: median(share),
    })
}

/// Of one processor, what the machine is busy while the load runs.
fn busy_at(cast: &mut Cast, direction: Direction) -> Result<f64> {
    let mut result = busy_once(cast, direction);
    for _ in 1..TRIES {
        let Err(error) = &result else { break };
        eprintln!("{error}; tried again");
        result = busy_once(cast, direction);
    }
    result
}

fn busy_once(cast: &mut Cast, direction: Direction) -> Result<f64> {
    let run = cast.load(direction, LOAD)?;
    let (start, before) = (now(), busy()?);
    sleep_until(start + WINDOW)?;
    let (end, after) = (now(), busy()?);
    let receiver = if direction == Direction::Upload { &cast.server } else { &cast.client };
    let moved = receiver.meter_at(end)?.rate(run, start, end, |totals| totals.rx);
    cast.rest()?;
    if (moved / LOAD as f64 - 1.0).abs() > TOLERANCE {
        return Err(Error::failed(format!(
            "the load is {:.1} MB/s, not as steady as it has to be",
            moved / 1e6
        )));
    }
    Ok((after - before) / (end - start))
}
