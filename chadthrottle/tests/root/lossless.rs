//! Downloads through the queue: nothing is sent twice, and nothing is left of it.

use libtest_mimic::Trial;

use crate::support::*;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for rate in [1_000_000, 10_000_000] {
        for flows in [1, 8] {
            for congestion in ["cubic", "bbr"] {
                let name = format!("lossless::{}_mb_{flows}_{congestion}", rate / 1_000_000);
                trials.push(trial(&name, move |scene| download(scene, rate, flows, congestion, Version::V4)));
            }
        }
    }
    trials.push(trial("lossless::ipv6", |scene| download(scene, 2_000_000, 2, "cubic", Version::V6)));
    trials
}

/// What a server sent for a run up to a time: bytes and those of them sent again.
fn sent(server: &Traffic, run: u64, until: f64) -> Result<(f64, f64)> {
    let totals = server.meter_at(until)?.totals(run);
    Ok((totals.sent as f64, totals.retransmitted as f64))
}

/// A limit in the middle of a transfer at full speed.
fn download(scene: &Scene, rate: u64, flows: u32, congestion: &str, version: Version) -> Result<Finding> {
    if !has_congestion_control(congestion) {
        return Ok(Finding::Skipped(format!("this kernel has no {congestion}")));
    }
    let server = scene.server()?;
    let run = scene.run();
    let address = scene.tcp(version);
    let client = scene.client(&[format!("connect tcp {address} get flows={flows} cc={congestion} run={run}")])?;
    sleep_until(now() + 1.0)?;
    let before = sent(&server, run, now())?;
    let limit = scene.limit(&format!("pid:{} -d {rate}", client.pid()))?;
    let since = limit.since;
    let start = sent(&server, run, since + 1.0)?;
    let meter = client.meter_at(since + 1.2)?;
    let from = meter.report_after(run, since);
    let first = meter.rate(run, from, from + 1.0, |totals| totals.arrived) / rate as f64;
    let end = sent(&server, run, since + 9.0)?;
    let goodput = received(&client, run, since + 2.0, since + 9.0)? / rate as f64;
    let switched = start.1 - before.1;
    let again = (end.1 - start.1) / (end.0 - start.0);
    eprintln!(
        "{rate} B/s, {flows} flows, {congestion}: goodput {goodput:.4}, sent again {again:.5}, \
         while switching {:.0} KB, first second {first:.3}",
        switched / 1e3,
    );
    ensure!((0.92..=0.985).contains(&goodput), "goodput {goodput:.4}");
    ensure!(again <= 0.002, "sent again {again:.5}");
    limit.end()?;
    Ok(Finding::Holds)
}
