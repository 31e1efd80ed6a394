//! How well a high rate is held.

use std::path::Path;

use chadthrottle::{
    Result,
    model::Direction,
    selftest::{
        lab::{Lab, Version},
        process::{Place, Traffic, sleep_until},
        traffic::now,
    },
};

use crate::scene::{Engine, Scene};

/// The limit, bytes/s.
pub const RATE: u64 = 100_000_000;

/// One line of the table; rates as shares of the limit.
pub struct Row {
    /// Which way.
    pub direction: Direction,
    /// Connections.
    pub flows: u32,
    /// Congestion control of the sender.
    pub congestion: &'static str,
    /// What passed the hook in the first second.
    pub first: f64,
    /// What passed it in seconds 2 to 10.
    pub passed: f64,
    /// TCP payload that was received in seconds 2 to 10.
    pub received: f64,
    /// The transfer without a limit, bytes/s.
    pub free: f64,
}

/// All lines.
pub fn measure(scene: &Scene, program: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut engine = Engine::open(scene)?;
    for direction in Direction::ALL {
        for flows in [1, 8] {
            for congestion in ["cubic", "bbr"] {
                let row = row(scene, &mut engine, program, direction, flows, congestion)?;
                eprintln!(
                    "{direction} {flows} {congestion}: first second {:.3}, passed {:.3}, received {:.3}, free {:.0} MB/s",
                    row.first,
                    row.passed,
                    row.received,
                    row.free / 1e6
                );
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

fn row(
    scene: &Scene,
    engine: &mut Engine,
    program: &Path,
    direction: Direction,
    flows: u32,
    congestion: &'static str,
) -> Result<Row> {
    let lab = Lab::new()?;
    let address = lab.server_at(Version::V4, 5000);
    let place = Place { namespace: Some(&lab.server), cgroup: None };
    let server = Traffic::spawn(program, "the server", place, &[format!("listen tcp {address}")])?;
    let place = Place { namespace: Some(&lab.client), cgroup: Some(&scene.cgroup) };
    let way = if direction == Direction::Upload { "put" } else { "get" };
    let transfer = format!("connect tcp {address} {way} flows={flows} cc={congestion} run=1");
    let client = Traffic::spawn(program, "the client", place, &[transfer])?;
    let receiver = if direction == Direction::Upload { &server } else { &client };

    let from = now() + 0.2;
    let free = receiver.meter_at(from + 0.5)?.rate(1, from, from + 0.5, |totals| totals.rx);
    let id = engine.id();
    engine.apply(id, direction, client.pid(), RATE)?;
    let start = now();
    // When the counter was read, and what it said.
    let read = |engine: &mut Engine, after: f64| -> Result<(f64, u64)> {
        while now() < start + after {
            engine.tick()?;
            sleep_until((now() + 0.2).min(start + after))?;
        }
        let before = now();
        let bytes = engine.backend(direction).stats(id)?.passed_bytes;
        Ok(((before + now()) / 2.0, bytes))
    };
    let (at_first, first) = read(engine, 1.0)?;
    let (at_last, last) = read(engine, 10.0)?;
    let received = receiver.meter_at(at_last)?.rate(1, at_first, at_last, |totals| totals.rx);
    engine.backend(direction).remove(id)?;
    let rate = RATE as f64;
    Ok(Row {
        direction,
        flows,
        congestion,
        first: first as f64 / (at_first - start) / rate,
        passed: (last - first) as f64 / (at_last - at_first) / rate,
        received: received / rate,
        free,
    })
}
