//! How exactly a limit holds.

use std::ops::RangeInclusive;

use libtest_mimic::Trial;

use crate::{actor, support::*};

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for rate in [1_000_000, 10_000_000] {
        for congestion in ["cubic", "bbr"] {
            let name = format!("accuracy::{}_mb_{congestion}", rate / 1_000_000);
            trials.push(trial(&name, move |scene| matrix(scene, rate, congestion, (1.0, 0.85), aim)));
        }
    }
    trials.push(plain("accuracy::100_kb", hundred_kilobytes));
    trials.push(plain("accuracy::udp", udp));
    trials.push(trial("accuracy::two_processors", two_processors));
    trials
}

/// One transfer and the limit on it.
struct Cell {
    direction: Direction,
    flows: u32,
    run: u64,
    client: Traffic,
    limit: Limit,
}

impl Cell {
    /// Sets a limit on a transfer that is at full speed.
    fn start(scene: &Scene, direction: Direction, rate: u64, transfer: &str, flows: u32) -> Result<Self> {
        let run = scene.run();
        let client = scene.client(&[format!("{transfer} run={run}")])?;
        sleep_until(now() + 0.3)?;
        let limit = scene.limit(&format!("pid:{} --{direction}-limit {rate}", client.pid()))?;
        Ok(Self { direction, flows, run, client, limit })
    }

    fn receiver<'a>(&'a self, server: &'a Traffic) -> &'a Traffic {
        match self.direction {
            Direction::Upload => server,
            Direction::Download => &self.client,
        }
    }

    fn passed(&self, scene: &Scene) -> Result<(f64, u64)> {
        scene.passed(&format!("pid:{}", self.client.pid()), self.direction)
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Upload => "put",
        Direction::Download => "get",
    }
}

/// What passes the hook of ebpf, as a share of the limit.
fn aim(_: Direction) -> RangeInclusive<f64> {
    0.97..=1.02
}

/// Both directions with 1 and 8 connections, all at the same time, over nine seconds from `settled` seconds after the
/// limit on. At least `least` of the limit is received: what is sent twice is held twice.
pub fn matrix(
    scene: &Scene,
    rate: u64,
    congestion: &str,
    (settled, least): (f64, f64),
    aim: fn(Direction) -> RangeInclusive<f64>,
) -> Result<Finding> {
    if !has_congestion_control(congestion) {
        return Ok(Finding::Skipped(format!("this kernel has no {congestion}")));
    }
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let mut cells = Vec::new();
    for direction in Direction::ALL {
        for flows in [1, 8] {
            let transfer = format!("connect tcp {address} {} flows={flows} cc={congestion}", way(direction));
            cells.push(Cell::start(scene, direction, rate, &transfer, flows)?);
        }
    }
    let since = cells.iter().map(|cell| cell.limit.since).fold(0.0, f64::max);
    sleep_until(since + settled)?;
    let early = cells.iter().map(|cell| cell.passed(scene)).collect::<Result<Vec<_>>>()?;
    sleep_until(since + settled + 9.0)?;
    let late = cells.iter().map(|cell| cell.passed(scene)).collect::<Result<Vec<_>>>()?;

    let mut wrong = Vec::new();
    for ((cell, (t0, before)), (t1, after)) in cells.iter().zip(early).zip(late) {
        let rate = rate as f64;
        let since = cell.limit.since;
        let receiver = cell.receiver(&server);
        let hook = (after - before) as f64 / (t1 - t0) / rate;
        let meter = receiver.meter_at(since + settled + 9.2)?;
        let since = meter.report_after(cell.run, since);
        let got = |from, to| meter.rate(cell.run, since + from, since + to, |totals| totals.arrived) / rate;
        let (got, first, second) = (got(settled, settled + 9.0), got(0.0, 1.0), got(0.1, 1.1));
        let line = format!(
            "{} {} connections: at the hook {hook:.3}, received {got:.3}, first second {first:.3}, \
             from 100 ms on {second:.3}",
            cell.direction, cell.flows
        );
        eprintln!("{line}");
        let holds = aim(cell.direction).contains(&hook) && (least..=1.05).contains(&got);
        if !holds || first > 1.3 || second > 1.3 {
            wrong.push(line);
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(Finding::Holds)
}

/// One GSO buffer is most of a second here, so a longer mean.
fn hundred_kilobytes(scene: &Scene) -> Result<()> {
    at_hundred_kilobytes(scene, 0.85..=1.05, 0.85..=1.05)
}

/// The same for those that drop what does not fit their queue. At this rate it takes seconds to send that again; until
/// then the receiver can't have what came after it, and then it has all of it at once. What they let pass is what tells.
pub fn hundred_kilobytes_passed(scene: &Scene) -> Result<()> {
    at_hundred_kilobytes(scene, 0.90..=1.05, 0.60..=1.25)
}

/// Both directions, from five seconds after the limit on, for thirty: which shares of it passed, and were received.
fn at_hundred_kilobytes(
    scene: &Scene,
    passed: RangeInclusive<f64>,
    received: RangeInclusive<f64>,
) -> Result<()> {
    const RATE: f64 = 1e5;
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let mut cells = Vec::new();
    for direction in Direction::ALL {
        let transfer = format!("connect tcp {address} {}", way(direction));
        cells.push(Cell::start(scene, direction, RATE as u64, &transfer, 1)?);
    }
    let since = cells.iter().map(|cell| cell.limit.since).fold(0.0, f64::max) + 5.0;
    sleep_until(since)?;
    let early = cells.iter().map(|cell| cell.passed(scene)).collect::<Result<Vec<_>>>()?;
    sleep_until(since + 30.0)?;
    let late = cells.iter().map(|cell| cell.passed(scene)).collect::<Result<Vec<_>>>()?;
    for ((cell, (t0, before)), (t1, after)) in cells.iter().zip(early).zip(late) {
        let hook = (after - before) as f64 / (t1 - t0) / RATE;
        let got = super::support::received(cell.receiver(&server), cell.run, since, since + 30.0)? / RATE;
        let line = format!("{}: of 100 KB/s {hook:.3} passed, {got:.3} were received", cell.direction);
        eprintln!("{line}");
        ensure!(passed.contains(&hook) && received.contains(&got), "{line}");
    }
    Ok(())
}

/// Datagrams at three times the limit: no error for the sender, the limit for the receiver.
fn udp(scene: &Scene) -> Result<()> {
    const RATE: u64 = 2_000_000;
    let server = scene.server()?;
    let mut cells = Vec::new();
    for version in [Version::V4, Version::V6] {
        for direction in Direction::ALL {
            let transfer = format!("udp {} {} rate={}", scene.udp(version), way(direction), 3 * RATE);
            cells.push((version, Cell::start(scene, direction, RATE, &transfer, 1)?));
        }
    }
    for (version, cell) in &cells {
        let headers = match version {
            Version::V4 => DATAGRAM_HEADERS_V4,
            Version::V6 => DATAGRAM_HEADERS_V6,
        };
        let since = cell.limit.since + 1.0;
        let meter = cell.receiver(&server).meter_at(since + 5.0)?;
        let ip_bytes = |totals: &Totals| totals.rx + totals.rx_datagrams * headers;
        let share = meter.rate(cell.run, since, since + 5.0, ip_bytes) / RATE as f64;
        ensure!((0.95..=1.02).contains(&share), "{version:?} {}: {share:.3}", cell.direction);
        let sender = cell.client.meter().totals(cell.run);
        ensure!(sender.errors == 0, "{version:?} {}: {} errors from sendto", cell.direction, sender.errors);
    }
    Ok(())
}

/// Two processors that send through one bucket as fast as they can.
fn two_processors(scene: &Scene) -> Result<Finding> {
    const RATE: u64 = 10_000_000;
    const LENGTH: f64 = 5.0;
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() < 2) {
        return Ok(Finding::Skipped("there is one processor".to_owned()));
    }
    let _server = scene.server()?;
    let sender = actor::start(scene, &["hammer", &scene.udp(Version::V4).to_string()])?;
    actor::await_line(&sender, "hammering 2")?;
    let target = format!("pid:{}", sender.pid());
    let limit = scene.limit(&format!("{target} --upload-limit {RATE}"))?;
    sleep_until(limit.since + 1.0)?;
    let (from, before) = scene.passed(&target, Direction::Upload)?;
    sleep_until(from + LENGTH)?;
    let (to, after) = scene.passed(&target, Direction::Upload)?;
    let share = (after - before) as f64 / (to - from) / RATE as f64;
    eprintln!("two processors: {share:.4} of the limit");
    ensure!((0.97..=1.02).contains(&share), "two processors: {share:.4} of the limit");
    Ok(Finding::Holds)
}
