//! Downloads that wait in fq, each packet until its time: what the classes of HTB can't do. On kernels without fq (of
//! Debian's, `kernels::what_there_is` sees to it that the program finds it) there is nothing to try but HTB itself.

use chadthrottle::{
    kernel::cgroup,
    model::{LimitReport, Rung, RungKind},
    selftest::process::{Call, Place},
};
use libtest_mimic::Trial;

use crate::support::*;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("departures::two_namespaces", two_namespaces),
        plain("departures::nested", nested),
        plain("departures::another_rate_without_a_gap", another_rate),
        plain("departures::datagrams", datagrams),
        plain("departures::without_fq", without_fq),
    ]
}

/// How a limit's downloads wait at the client's device.
fn queue_of(report: &LimitReport) -> Option<&Rung> {
    let rungs = &report.directions.download.as_ref()?.rungs;
    rungs.iter().find(|rung| rung.device.as_deref() == Some("chadt-c"))
}

/// Whether they wait in fq; says why not.
fn waits_in_fq(report: &LimitReport) -> Result<bool> {
    let rung = queue_of(report).ok_or_else(|| Error::failed(format!("no rung on the device: {report:?}")))?;
    if rung.kind == RungKind::IfbFqWindow {
        return Ok(true);
    }
    let reason = rung.reason.as_deref().unwrap_or("");
    ensure!(rung.kind == RungKind::IfbHtbWindow && !reason.is_empty(), "held by {rung:?}");
    eprintln!("nothing to try: {reason}");
    Ok(false)
}

/// The target that means everything in the scene.
fn everything(scene: &Scene) -> Result<String> {
    let mount = cgroup::mount()?;
    let path = scene.cgroup().path();
    Ok(format!("cgroup:/{}", path.strip_prefix(&mount).unwrap_or(path).display()))
}

fn again(server: &Traffic, runs: &[u64], until: f64) -> Result<f64> {
    let meter = server.meter_at(until)?;
    Ok(runs.iter().map(|run| meter.totals(*run).retransmitted as f64).sum())
}

/// One limit over processes in two namespaces: together they have the rate once.
fn two_namespaces(scene: &Scene) -> Result<()> {
    const RATE: u32 = 2_000_000;
    let _near = scene.server()?;
    let here = scene.lab.client_at(Version::V4, 5005);
    let place = Place { namespace: Some(&scene.lab.client), cgroup: None };
    let _far = Traffic::spawn(&program(), "the other server", place, &[format!("listen tcp {here}")])?;
    let (one, other) = (scene.run(), scene.run());
    let client = scene.client(&[format!("connect tcp {} get cc=cubic run={one}", scene.tcp(Version::V4))])?;
    let place = Place { namespace: Some(&scene.lab.server), cgroup: Some(scene.cgroup()) };
    let words = [format!("connect tcp {here} get cc=cubic run={other}")];
    let second = Traffic::spawn(&program(), "the other client", place, &words)?;
    sleep_until(now() + 0.5)?;
    let target = everything(scene)?;
    let limit = scene.limit(&format!("{target} -d {RATE}"))?;
    let from = limit.since + 2.0;
    let share = |client, run| Ok::<_, Error>(received(client, run, from, from + 5.0)? / f64::from(RATE));
    let shares = [share(&client, one)?, share(&second, other)?];
    eprintln!("{shares:.3?}");
    let sum = shares[0] + shares[1];
    let report = scene.report(&target)?;
    let rung =
        queue_of(&report).ok_or_else(|| Error::failed(format!("no rung on the device: {report:?}")))?;
    let least = match rung.kind {
        RungKind::IfbFqWindow => 0.90,
        // Two HTBs would let twice the rate pass: the bucket, which both share, takes their place and says why.
        RungKind::WindowBucket if rung.reason.is_some() => 0.80,
        _ => return Err(Error::failed(format!("held by {rung:?}"))),
    };
    ensure!((least..=1.02).contains(&sum), "together they get {sum:.3} of the limit");
    ensure!(shares[0].min(shares[1]) >= 0.2, "shares of {shares:.3?}");
    limit.end().map(drop)
}

/// Two limited processes in a limited whole: all three hold, and nothing is sent again.
fn nested(scene: &Scene) -> Result<()> {
    const EACH: u32 = 1_000_000;
    const ALL: u32 = 1_500_000;
    let server = scene.server()?;
    let runs = [scene.run(), scene.run()];
    let transfer =
        |run| scene.client(&[format!("connect tcp {} get cc=cubic run={run}", scene.tcp(Version::V4))]);
    let clients = [transfer(runs[0])?, transfer(runs[1])?];
    let target = everything(scene)?;
    let mut limits = vec![scene.limit(&format!("{target} -d {ALL}"))?];
    for client in &clients {
        limits.push(scene.limit(&format!("pid:{} -d {EACH}", client.pid()))?);
    }
    let from = now() + 2.0;
    let before = again(&server, &runs, from)?;
    let share = |index: usize| received(&clients[index], runs[index], from, from + 5.0);
    let shares = [share(0)?, share(1)?];
    let twice = (again(&server, &runs, from + 5.0)? - before) / 5.0 / f64::from(ALL);
    eprintln!("{shares:.0?}, sent again {twice:.5}");
    let report = scene.report(&target)?;
    if waits_in_fq(&report)? {
        let sum = (shares[0] + shares[1]) / f64::from(ALL);
        ensure!((0.90..=0.99).contains(&sum), "together they get {sum:.3} of the whole");
        ensure!(shares[0].min(shares[1]) / shares[0].max(shares[1]) >= 0.6, "shares of {shares:.0?}");
        ensure!(twice <= 0.002, "sent again {twice:.5}");
        let dropped = report.directions.download.map(|held| held.counters.dropped_packets);
        ensure!(dropped == Some(0), "{dropped:?} packets of the whole were dropped");
    }
    limits.into_iter().try_for_each(|limit| limit.end().map(drop))
}

/// What waits when the rate changes leaves as it was told, and what follows right after it.
fn another_rate(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} get cc=cubic run={run}", scene.tcp(Version::V4))])?;
    let target = format!("pid:{}", client.pid());
    scene.succeed(&format!("limit {target} -d 10M --detach"))?;
    sleep_until(now() + 2.0)?;
    let fq = waits_in_fq(&scene.report(&target)?)?;
    for rate in [1_000_000, 10_000_000, 2_000_000] {
        let before = again(&server, &[run], now())?;
        let start = now();
        scene.succeed(&format!("limit {target} -d {rate} --detach"))?;
        let (changed, mut least) = (now(), f64::INFINITY);
        // The least of any 400 ms from before the change on.
        let mut time = start;
        while time < changed + 1.5 {
            least = least.min(received(&client, run, time, time + 0.4)?);
            time += 0.2;
        }
        let twice = again(&server, &[run], now())? - before;
        eprintln!("{rate}: at least {least:.0} B/s, {twice} bytes sent again");
        ensure!(!fq || least >= 0.2 * f64::from(rate.min(1_000_000)), "at {rate} a gap: {least:.0} B/s");
    }
    scene.succeed("clear").map(drop)
}

/// UDP at twice the limit waits a second at most, and what there is no room for is counted.
fn datagrams(scene: &Scene) -> Result<()> {
    const RATE: u32 = 1_000_000;
    let run = scene.run();
    let here = scene.lab.client_at(Version::V4, 5006);
    let client = scene.client(&[format!("listen udp {here}")])?;
    // Between virtual devices what waits is still in its sender's buffer, which holds a tenth of a second.
    let one = format!("udp {here} put rate={} run={run}", RATE / 8);
    let _flood = scene.peer(&vec![one; 16])?;
    let target = format!("pid:{}", client.pid());
    let limit = scene.limit(&format!("{target} -d {RATE}"))?;
    // For six seconds there is room for five of the rate.
    let from = limit.since + 8.0;
    let share = received(&client, run, from, from + 3.0)? / f64::from(RATE);
    let report = scene.report(&target)?;
    let counters = report.directions.download.as_ref().map(|held| held.counters);
    eprintln!("{share:.3}, {counters:?}");
    let counters = counters.unwrap_or_default();
    ensure!((0.90..=1.0).contains(&share), "{share:.3} of the limit");
    ensure!(counters.dropped_packets > 0, "nothing was counted as dropped");
    let queue = counters.queue_us.unwrap_or(0);
    ensure!((500_000..=1_100_000).contains(&queue), "a queue of {queue} us");
    limit.end().map(drop)
}

/// Where there is no fq it is HTB, and says so.
fn without_fq(scene: &Scene) -> Result<()> {
    let _server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} get run={run}", scene.tcp(Version::V4))])?;
    let target = format!("pid:{}", client.pid());
    let mut command = scene.command(&format!("limit {target} -d 1M"));
    command.env("CHADT_FAULT_NO_FQ", "1");
    let call = Call::spawn(command, Place::default())?;
    let (since, _) = call.await_message("limited")?;
    ensure_held(&client, run, since, 1e6)?;
    let report = scene.report(&target)?;
    let rung = queue_of(&report).map(|rung| (rung.kind, rung.reason.is_some()));
    let expected = Some((RungKind::IfbHtbWindow, true));
    ensure!(rung == expected, "held by {rung:?}");
    Limit { call, since }.end().map(drop)
}
