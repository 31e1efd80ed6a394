//! Sockets that several processes hold: whoever uses one owns it.

use libtest_mimic::Trial;

use crate::support::*;

const RATE: f64 = 2e6;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("sharing::one_of_four_workers_before_it_accepts", |scene| workers(scene, false)),
        plain("sharing::one_of_four_workers_while_it_serves", |scene| workers(scene, true)),
    ]
}

/// Four workers share a listener; one is limited, the others keep what they had.
fn workers(scene: &Scene, serving: bool) -> Result<()> {
    let address = scene.lab.client_at(Version::V4, 6000);
    let mut server = scene.client(&[format!("listen tcp {address} accept=1")])?;
    server.tell("prefork 4")?;
    let mut pids = Vec::new();
    for _ in 0..4 {
        let pid = server.await_event("forked")?["pid"].as_u64();
        pids.push(pid.and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| Error::failed("a pid"))?);
    }
    let runs: Vec<_> = pids.iter().map(|_| scene.run()).collect();
    let transfers: Vec<_> =
        runs.iter().map(|run| format!("connect tcp {address} get cc=cubic run={run}")).collect();
    let mut peer = scene.peer(if serving { &transfers } else { &[] })?;
    if serving {
        sleep_until(now() + 0.5)?;
    }
    let limited = pids[0];
    let limit = scene.limit(&format!("pid:{limited} -u {RATE}"))?;
    if !serving {
        for transfer in &transfers {
            peer.tell(transfer)?;
        }
    }
    let since = now().max(limit.since);
    let meter = peer.meter_at(since + 4.0)?;
    let served = server.meter();
    for run in runs {
        let rate = meter.rate(run, since + 1.0, since + 4.0, |totals| totals.rx);
        if served.processes(run) == [limited] {
            ensure!(
                (0.5..1.5).contains(&(rate / RATE)),
                "the limited worker: {:.3} of its limit",
                rate / RATE
            );
        } else {
            ensure!(rate > FULL_SPEED, "worker {:?} gets only {rate:.0} bytes/s", served.processes(run));
        }
    }
    Ok(())
}
