//! Sockets that several processes hold: whoever uses one owns it.

use libtest_mimic::Trial;

use crate::support::*;

const RATE: f64 = 2e6;

/// What a worker moves at least that is not under the limit, bytes/s. All four would share the limit if it held them.
const FREE: f64 = 4.0 * RATE;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for direction in Direction::ALL {
        for (name, serving) in [("before_it_accepts", false), ("while_it_serves", true)] {
            let name = format!("sharing::{direction}_of_one_of_four_workers_{name}");
            trials.push(plain(&name, move |scene| workers(scene, direction, serving)));
        }
    }
    trials
}

/// Four workers share a listener, each takes one connection; one is limited, the others keep what they had.
fn workers(scene: &Scene, direction: Direction, serving: bool) -> Result<()> {
    let address = scene.lab.client_at(Version::V4, 6000);
    let mut server = scene.client(&[format!("listen tcp {address} accept=1")])?;
    server.tell("prefork 4")?;
    let mut pids = Vec::new();
    for _ in 0..4 {
        let pid = server.await_event("forked")?["pid"].as_u64();
        pids.push(pid.and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| Error::failed("a pid"))?);
    }
    let runs: Vec<_> = pids.iter().map(|_| scene.run()).collect();
    // What the server uploads its peer gets.
    let way = match direction {
        Direction::Upload => "get",
        Direction::Download => "put",
    };
    let transfers: Vec<_> =
        runs.iter().map(|run| format!("connect tcp {address} {way} cc=cubic run={run}")).collect();
    let mut peer = scene.peer(if serving { &transfers } else { &[] })?;
    if serving {
        sleep_until(now() + 0.5)?;
    }
    let limited = pids[0];
    let limit = scene.limit(&format!("pid:{limited} --{direction}-limit {RATE}"))?;
    if !serving {
        for transfer in &transfers {
            peer.tell(transfer)?;
        }
    }
    let since = now().max(limit.since);
    let (sent, served) = (peer.meter_at(since + 4.0)?, server.meter_at(since + 4.0)?);
    let receiver = match direction {
        Direction::Upload => &sent,
        Direction::Download => &served,
    };
    let mut limited_runs = 0;
    for run in runs {
        let rate = receiver.rate(run, since + 1.0, since + 4.0, |totals| totals.rx);
        let workers = served.processes(run);
        if workers == [limited] {
            limited_runs += 1;
            let share = rate / RATE;
            ensure!((0.5..1.5).contains(&share), "the limited worker: {share:.3} of its limit");
        } else {
            ensure!(rate > FREE, "worker {workers:?} moves only {rate:.0} bytes/s");
        }
    }
    ensure!(limited_runs == 1, "the limited worker has {limited_runs} connections");
    Ok(())
}
