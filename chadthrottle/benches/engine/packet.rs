//! What a packet costs.

use std::time::Duration;

use chadthrottle::{
    Result,
    model::Direction,
    selftest::{
        lab::{Lab, Version},
        process::{Place, Traffic},
    },
};

use crate::{
    scene::{Engine, Programs, Scene, Yardstick},
    stats::{median, quantile, watch},
    worker::Worker,
};

/// Time that each line is measured.
const LENGTH: Duration = Duration::from_millis(1_000);

/// What a program costs over the empty one, in ns a packet.
#[derive(Clone, Copy)]
pub struct Cost {
    /// Of the windows' means.
    pub median: f64,
    /// Of the quietest tenth of the windows.
    pub quiet: f64,
}

/// One line of the table.
pub struct Row {
    /// Whose packets.
    pub what: String,
    /// Which way.
    pub direction: Direction,
    /// Limits in force.
    pub limits: usize,
    /// Open tagged sockets of the sender.
    pub sockets: usize,
    /// The empty program, median.
    pub empty: f64,
    /// The engine's.
    pub engine: Cost,
    /// The naive bucket's.
    pub naive: Cost,
}

/// Measures whatever is on its way now.
fn row(
    scene: &Scene,
    engine: &mut Engine,
    what: &str,
    limits: usize,
    sockets: usize,
    rows: &mut Vec<Row>,
) -> Result<()> {
    for direction in Direction::ALL {
        let programs = Programs::find(scene, direction)?;
        engine.tick()?;
        let windows = watch([&programs.empty, &programs.engine, &programs.naive], LENGTH)?;
        engine.tick()?;
        let over = |which: usize| {
            let differences = || windows.iter().map(|means| means[which] - means[0]);
            Cost { median: median(differences()), quiet: quantile(differences(), 0.1) }
        };
        let row = Row {
            what: what.to_owned(),
            direction,
            limits,
            sockets,
            empty: median(windows.iter().map(|means| means[0])),
            engine: over(1),
            naive: over(2),
        };
        eprintln!(
            "{:<28} {:<8} {:>5} limits {:>6} sockets: empty {:>5.1}, engine +{:.1} (quiet +{:.1}), naive +{:.1} ns ({} windows)",
            row.what,
            row.direction,
            limits,
            sockets,
            row.empty,
            row.engine.median,
            row.engine.quiet,
            row.naive.median,
            windows.len()
        );
        rows.push(row);
    }
    Ok(())
}

/// All lines.
pub fn measure(
    scene: &Scene,
    yardstick: &mut Yardstick,
    program: &std::path::Path,
    most: usize,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|cause| {
        chadthrottle::Error::caused(chadthrottle::Kind::Failed, "enable eBPF statistics", &cause)
    })?;
    yardstick.attach(scene)?;
    let mut engine = Engine::open(scene)?;

    let mut free = Worker::sender(scene.place(), 10)?;
    let mut limited = Worker::sender(scene.place(), 10)?;
    let mut nested = Worker::sender(scene.place(), 10)?;
    engine.limit(limited.pid())?;
    let (mut crowd, pids) = Worker::crowd(scene.place(), most, 64)?;
    let mut pids = pids.into_iter();
    let mut limits = 1;
    for wanted in [1, 64, most] {
        if wanted > 1 && limits == 1 {
            for _ in 0..4 {
                engine.limit(nested.pid())?;
            }
            limits += 4;
        }
        for pid in pids.by_ref().take(wanted - limits) {
            engine.limit(pid)?;
        }
        limits = wanted;
        for (what, sender) in
            [("untagged", &mut free), ("one limit", &mut limited), ("four nested limits", &mut nested)]
        {
            if limits == 1 && what.starts_with("four") {
                continue;
            }
            sender.tell("send hot")?;
            row(scene, &mut engine, &format!("UDP, {what}"), limits, 10, &mut rows)?;
            sender.tell("rest")?;
        }
    }
    crowd.tell("talk")?;
    row(scene, &mut engine, "UDP, 64 limits in turn", limits, 1, &mut rows)?;
    crowd.tell("rest")?;
    drop((free, limited, nested, crowd));
    drop(engine);

    let mut engine = Engine::open(scene)?;
    for sockets in [10, 1_000, 10_000] {
        let mut sender = Worker::sender(scene.place(), sockets)?;
        let id = engine.limit(sender.pid())?;
        for (what, command) in [("one socket", "send hot"), ("all in turn", "send all")] {
            sender.tell(command)?;
            row(scene, &mut engine, &format!("UDP, {what}"), 1, sockets, &mut rows)?;
        }
        drop(sender);
        for direction in Direction::ALL {
            engine.backend(direction).remove(id)?;
        }
    }

    let lab = Lab::new()?;
    let address = lab.server_at(Version::V4, 5000);
    let _server = Traffic::spawn(
        program,
        "the server",
        Place { namespace: Some(&lab.server), cgroup: None },
        &[format!("listen tcp {address}")],
    )?;
    let place = Place { namespace: Some(&lab.client), cgroup: Some(&scene.cgroup) };
    for (what, count) in [("untagged", 0), ("one limit", 1), ("four nested limits", 4)] {
        for way in ["put", "get"] {
            let client =
                Traffic::spawn(program, "the client", place, &[format!("connect tcp {address} {way}")])?;
            let ids = (0..count).map(|_| engine.limit(client.pid())).collect::<Result<Vec<_>>>()?;
            row(scene, &mut engine, &format!("TCP {way}, {what}"), count, 1, &mut rows)?;
            for (id, direction) in ids.iter().flat_map(|id| Direction::ALL.map(|direction| (id, direction))) {
                engine.backend(direction).remove(*id)?;
            }
        }
    }
    Ok(rows)
}
