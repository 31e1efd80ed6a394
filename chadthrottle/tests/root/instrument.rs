//! The measuring instrument itself: what the traffic processes say must be true before anything is limited.

use libtest_mimic::Trial;

use crate::support::*;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("instrument::tcp_both_ways", tcp_both_ways),
        plain("instrument::udp_at_its_rate", udp_at_its_rate),
        plain("instrument::mptcp", mptcp),
        plain("instrument::children_and_exec", children_and_exec),
        plain("instrument::prefork", prefork),
    ]
}

fn tcp_both_ways(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    for version in [Version::V4, Version::V6] {
        let (get, put) = (scene.run(), scene.run());
        let address = scene.tcp(version);
        let client = scene.client(&[
            format!("connect tcp {address} get flows=2 cc=cubic run={get}"),
            format!("connect tcp {address} put flows=2 cc=cubic run={put}"),
        ])?;
        // A machine that does nothing else needs a hundredth of a second for that.
        let end = now() + 2.0;
        let received = client.meter_at(end)?.totals(get);
        let sent = server.meter_at(end)?.totals(put);
        ensure!(received.rx > 10_000_000 && received.flows == 2, "get: {received:?}");
        ensure!(sent.rx > 10_000_000 && sent.flows == 2, "put: {sent:?}");
        // The client's end of the upload is the one that TCP counts for.
        let client = client.meter_at(end)?.totals(put);
        ensure!(client.sent > 10_000_000, "put, by tcp_info: {client:?}");
    }
    Ok(())
}

fn udp_at_its_rate(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    for version in [Version::V4, Version::V6] {
        let (get, put) = (scene.run(), scene.run());
        let address = scene.udp(version);
        let client = scene.client(&[
            format!("udp {address} get rate=3000000 run={get}"),
            format!("udp {address} put rate=3000000 run={put}"),
        ])?;
        let start = now() + 0.3;
        let end = start + 2.0;
        let down = client.meter_at(end)?.rate(get, start, end, |totals| totals.rx) / 3e6;
        let up = server.meter_at(end)?.rate(put, start, end, |totals| totals.rx) / 3e6;
        // A sender that gets no processor for 50 ms does not make up for more than these.
        ensure!((0.85..1.03).contains(&down) && (0.85..1.03).contains(&up), "down {down:.3}, up {up:.3}");
    }
    Ok(())
}

fn mptcp(scene: &Scene) -> Result<()> {
    let address = scene.mptcp();
    let server = scene.peer(&[format!("listen mptcp {address}")])?;
    let run = scene.run();
    let _client = scene.client(&[format!("connect mptcp {address} put run={run}")])?;
    let totals = server.meter_at(now() + 1.0)?.totals(run);
    ensure!(totals.rx > 1_000_000, "{totals:?}");
    Ok(())
}

fn children_and_exec(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (own, taken, short) = (scene.run(), scene.run(), scene.run());
    let mut client = scene.client(&[format!("connect tcp {address} put run={taken}")])?;
    client.tell(&format!("fork connect tcp {address} put run={own}"))?;
    client.await_event("forked")?;
    client.tell("fork take")?;
    client.await_event("forked")?;
    let moves = |run, from: f64| -> Result<bool> {
        Ok(server.meter_at(from + 0.5)?.rate(run, from, from + 0.5, |totals| totals.rx) > 1e6)
    };
    ensure!(moves(own, now())?, "a child's own connection");
    ensure!(moves(taken, now())?, "a connection that a child took over");

    let executed = scene.run();
    client.tell(&format!("connect tcp {address} put run={executed}"))?;
    client.send("exec")?;
    client.await_event("ready")?;
    ensure!(moves(executed, now())?, "a connection kept over exec");

    client.tell(&format!("burst {address} count=20 every=10 bytes=10000 run={short}"))?;
    let deadline = now() + 5.0;
    loop {
        let totals = server.meter_at(now() + 0.2)?.totals(short);
        if totals.rx == 200_000 && totals.flows == 0 {
            return Ok(());
        }
        ensure!(now() < deadline && totals.rx <= 200_000, "short-lived children: {totals:?}");
    }
}

fn prefork(scene: &Scene) -> Result<()> {
    let address = scene.lab.client_at(Version::V4, 6000);
    let mut server = scene.client(&[format!("listen tcp {address} accept=1")])?;
    server.tell("prefork 4")?;
    let run = scene.run();
    let _peer = scene.peer(&[format!("connect tcp {address} get flows=4 run={run}")])?;
    let deadline = now() + 5.0;
    loop {
        let workers = server.meter_at(now() + 0.2)?.processes(run);
        if workers.len() == 4 && !workers.contains(&server.pid()) {
            return Ok(());
        }
        ensure!(now() < deadline, "{workers:?} serve");
    }
}
