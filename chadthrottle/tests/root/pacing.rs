//! Pacing: applications that pace their connections themselves keep their caps, and datagrams wait in fq.

use chadthrottle::model::{DirectionReport, RungKind};
use libtest_mimic::Trial;

use crate::{
    cleanup::pacing_caps,
    foreign::run,
    support::{relay::Line, *},
};

/// What the application allows each of its connections, payload bytes/s.
const OWN: u32 = 2_000_000;

/// The limit of those that send datagrams, bytes/s.
const RATE: u64 = 500_000;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("pacing::own_caps_stay", own_caps_stay),
        trial("pacing::datagrams_wait_in_fq", datagrams_wait_in_fq),
        plain("pacing::few_datagrams_beside_a_transfer", few_datagrams),
        plain("pacing::flows_that_begin_together_share", begun_together),
        plain("pacing::short_ones_leave_the_rest", short_ones_leave_the_rest),
        plain("pacing::slow_ones_leave_the_rest", slow_ones_leave_the_rest),
        line_trial(
            "pacing::slow_ones_leave_the_rest_over_a_line",
            || Scene::over(Line::new(80, 12_000_000)),
            |scene| slow_ones_leave_the_rest(scene).map(|()| Finding::Holds),
        ),
    ]
}

/// Eight that begin when a limit has been there, and unused, for a while.
fn begun_together(scene: &Scene) -> Result<()> {
    const LIMIT: f64 = 1e6;
    let server = scene.server()?;
    for congestion in ["cubic", "bbr"] {
        let mut client = scene.client(&[])?;
        let limit = scene.limit(&format!("pid:{} -u {LIMIT}", client.pid()))?;
        sleep_until(limit.since + 1.5)?;
        let runs: Vec<u64> = (0..8).map(|_| scene.run()).collect();
        for run in &runs {
            client.tell(&format!("connect tcp {} put cc={congestion} run={run}", scene.tcp(Version::V4)))?;
        }
        let from = now() + 1.0;
        let shares = runs.iter().map(|run| Ok(received(&server, *run, from, from + 8.0)? / LIMIT));
        let shares = shares.collect::<Result<Vec<f64>>>()?;
        let (least, most) =
            shares.iter().fold((f64::MAX, 0.0_f64), |(low, high), share| (low.min(*share), high.max(*share)));
        let sum: f64 = shares.iter().sum();
        eprintln!("{congestion}: {sum:.3} of the limit, least to most {:.2}", least / most);
        ensure!(least / most >= 0.4, "{congestion}: of the limit they get {shares:.3?}");
        ensure!((0.85..=1.05).contains(&sum), "{congestion}: together they get {sum:.3} of the limit");
        limit.end()?;
    }
    Ok(())
}

/// Twenty connections a second that send 20 KB each beside one that would send all.
fn short_ones_leave_the_rest(scene: &Scene) -> Result<()> {
    const LIMIT: f64 = 2e6;
    let server = scene.server()?;
    let (short, all) = (scene.run(), scene.run());
    let address = scene.tcp(Version::V4);
    let mut client = scene.client(&[format!("connect tcp {address} put cc=cubic run={all}")])?;
    let limit = scene.limit(&format!("pid:{} -u {LIMIT}", client.pid()))?;
    client.tell(&format!("burst {address} count=180 every=50 bytes=20000 run={short}"))?;
    let (from, to) = (limit.since + 2.0, limit.since + 8.0);
    let shares = [received(&server, short, from, to)? / LIMIT, received(&server, all, from, to)? / LIMIT];
    eprintln!("short ones {:.3} of the limit, the long one {:.3}", shares[0], shares[1]);
    ensure!(shares[0] >= 0.1, "the short ones get {:.3} of the limit", shares[0]);
    ensure!(shares[1] >= 0.6, "the long one gets {:.3} of the limit", shares[1]);
    let sum = shares[0] + shares[1];
    ensure!((0.85..=1.05).contains(&sum), "together they get {sum:.3} of the limit");
    limit.end().map(drop)
}

/// Seven connections that send little do not keep the limit from one that would send all.
fn slow_ones_leave_the_rest(scene: &Scene) -> Result<()> {
    const LIMIT: f64 = 1e6;
    let server = scene.server()?;
    let (little, all) = (scene.run(), scene.run());
    let address = scene.tcp(Version::V4);
    let mut words = vec![format!("connect tcp {address} put rate=20000 cc=cubic run={little}"); 7];
    words.push(format!("connect tcp {address} put cc=cubic run={all}"));
    let client = scene.client(&words)?;
    sleep_until(now() + 1.0)?;
    let limit = scene.limit(&format!("pid:{} -u {LIMIT}", client.pid()))?;
    let (from, to) = (limit.since + 4.0, limit.since + 12.0);
    let shares = [received(&server, little, from, to)? / LIMIT, received(&server, all, from, to)? / LIMIT];
    eprintln!("seven slow ones {:.3} of the limit, the other {:.3}", shares[0], shares[1]);
    let sum = shares[0] + shares[1];
    ensure!((0.88..=1.01).contains(&sum), "together they get {sum:.3} of the limit");
    ensure!(shares[0] >= 0.08, "the slow ones get {:.3} of the limit", shares[0]);
    limit.end().map(drop)
}

/// One connection that was open before the limit, and one that the application paces only after it was established:
/// by then a limit had its hand on it.
fn own_caps_stay(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let (old, new) = (scene.run(), scene.run());
    let transfer = |run| format!("connect tcp {} put cc=cubic rate={OWN} run={run}", scene.tcp(Version::V4));
    let mut client = scene.client(&[transfer(old)])?;
    let target = format!("pid:{}", client.pid());
    // Above the two, above one of them, below both, and above again. The level moves for seconds after each.
    for (place, rate) in [50_000_000, 3_000_000, 1_000_000, 20_000_000].into_iter().enumerate() {
        scene.succeed(&format!("limit {target} -u {rate} --detach"))?;
        if place == 0 {
            client.tell(&transfer(new))?;
        }
        let since = now();
        let rates = [
            received(&server, old, since + 2.0, since + 5.0)?,
            received(&server, new, since + 2.0, since + 5.0)?,
        ];
        eprintln!("limit {rate}: {rates:.0?} B/s, caps {:?}", pacing_caps(client.pid())?);
        let expected = f64::from(rate.min(2 * OWN));
        let most = rates[0].max(rates[1]) / f64::from(OWN);
        let all = (rates[0] + rates[1]) / expected;
        ensure!(most <= 1.05, "under a limit of {rate} a connection moves {most:.2} of what it asked for");
        ensure!(
            (0.85..=1.05).contains(&all),
            "under a limit of {rate} both move {all:.2} of what they could"
        );
    }
    scene.succeed("clear")?;
    let caps = pacing_caps(client.pid())?;
    ensure!(caps == [u64::from(OWN); 2], "caps in the end: {caps:?}");
    let since = now();
    let rate = received(&server, new, since + 0.5, since + 2.5)? / f64::from(OWN);
    ensure!(
        (0.85..=1.05).contains(&rate),
        "without a limit a connection moves {rate:.2} of what it asked for"
    );
    Ok(())
}

/// The client's device.
const DEVICE: &str = "chadt-c";

/// UDP at three times the limit. Without fq it is dropped, and it is said what would help; with it, it waits in the
/// device and none is lost, for the limit that is there and for the next one from its start.
fn datagrams_wait_in_fq(scene: &Scene) -> Result<Finding> {
    let server = scene.server()?;
    let mut cells = Vec::new();
    for version in [Version::V4, Version::V6] {
        let run = scene.run();
        let client =
            scene.client(&[format!("udp {} put rate={} run={run}", scene.udp(version), 3 * RATE)])?;
        cells.push((version, run, client));
    }
    let limits = |cells: &[(Version, u64, Traffic)]| {
        let one = |(_, _, client): &(_, _, Traffic)| scene.limit(&format!("pid:{} -u {RATE}", client.pid()));
        cells.iter().map(one).collect::<Result<Vec<_>>>()
    };
    let first = limits(&cells)?;
    sleep_until(now() + 2.5)?;
    for (_, _, client) in &cells {
        let held = upload(scene, client)?;
        let said = held.rungs.iter().any(|rung| {
            rung.kind == RungKind::PacingBucket
                && rung.device.as_deref() == Some(DEVICE)
                && rung.reason.as_deref().is_some_and(|reason| reason.contains("fq"))
        });
        ensure!(said && held.counters.dropped_packets > 0, "without fq: {held:?}");
    }
    match run(&scene.lab.client, "tc qdisc add dev chadt-c root fq") {
        Ok(Some(_)) => {}
        Ok(None) => return Ok(Finding::Skipped("there is no tc".to_owned())),
        Err(error) => {
            // On kernels that should have it `kernels::what_there_is` sees to it that the program finds it.
            eprintln!("{error}");
            return Ok(Finding::Holds);
        }
    }
    sleep_until(now() + 3.0)?;
    waits(scene, &server, &cells)?;
    for limit in first {
        limit.end()?;
    }
    let second = limits(&cells)?;
    sleep_until(now() + 0.5)?;
    waits(scene, &server, &cells)?;
    for (_, _, client) in &cells {
        let dropped = upload(scene, client)?.counters.dropped_packets;
        ensure!(dropped <= 20, "{dropped} datagrams dropped, although the limit found fq");
    }
    for limit in second {
        limit.end()?;
    }
    run(&scene.lab.client, "tc qdisc del dev chadt-c root").map(|_| Finding::Holds)
}

/// What an application asks and says beside its transfers gets through, although these leave the bucket in debt nearly
/// always: name service, calls, games.
fn few_datagrams(scene: &Scene) -> Result<()> {
    const SIZE: u32 = 64;
    const A_SECOND: u32 = 40;
    let server = scene.server()?;
    let mut cells = Vec::new();
    for (rate, flows) in [(100_000, 1), (1_000_000, 1), (1_000_000, 8), (10_000_000, 1), (10_000_000, 8)] {
        let (tcp, udp) = (scene.run(), scene.run());
        let client = scene.client(&[
            format!("connect tcp {} put flows={flows} run={tcp}", scene.tcp(Version::V4)),
            format!("udp {} put rate={} size={SIZE} run={udp}", scene.udp(Version::V4), SIZE * A_SECOND),
        ])?;
        let limit = scene.limit(&format!("pid:{} -u {rate}", client.pid()))?;
        cells.push((rate, flows, tcp, udp, client, limit));
    }
    let (since, until) = (now() + 2.0, now() + 8.0);
    let meter = server.meter_at(until)?;
    let mut wrong = Vec::new();
    for (rate, flows, tcp, udp, client, _) in &cells {
        let sent = client.meter_at(until)?.rate(*udp, since, until, |totals| totals.tx_datagrams);
        let share = meter.rate(*udp, since, until, |totals| totals.rx_datagrams) / sent;
        let bulk = meter.rate(*tcp, since, until, |totals| totals.arrived) / f64::from(*rate);
        let line =
            format!("limit {rate}, {flows} connections: {share:.3} of the datagrams, transfer {bulk:.3}");
        eprintln!("{line}");
        // A buffer is a ninth of what may pass at the lowest rate.
        if share < 0.95 || !(0.75..=1.05).contains(&bulk) {
            wrong.push(line);
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn upload(scene: &Scene, client: &Traffic) -> Result<DirectionReport> {
    let held = scene.report(&format!("pid:{}", client.pid()))?.directions.upload;
    held.ok_or_else(|| Error::failed("no upload limit"))
}

/// For five seconds each is at its limit, is told of no error, and loses nothing.
fn waits(scene: &Scene, server: &Traffic, cells: &[(Version, u64, Traffic)]) -> Result<()> {
    const SECONDS: f64 = 5.0;
    /// What may be under way, datagrams.
    const UNDER_WAY: u64 = 200;
    let from = now();
    let mut before = Vec::new();
    for (_, run, client) in cells {
        let sent = client.meter_at(from)?.totals(*run).tx_datagrams;
        let came = server.meter_at(from)?.totals(*run).rx_datagrams;
        before.push((sent, came, upload(scene, client)?.counters));
    }
    for ((version, run, client), (sent, came, counters)) in cells.iter().zip(before) {
        let headers = match version {
            Version::V4 => DATAGRAM_HEADERS_V4,
            Version::V6 => DATAGRAM_HEADERS_V6,
        };
        let ip_bytes = |totals: &Totals| totals.rx + totals.rx_datagrams * headers;
        let meter = server.meter_at(from + SECONDS)?;
        let share = meter.rate(*run, from, from + SECONDS, ip_bytes) / RATE as f64;
        let totals = client.meter_at(from + SECONDS)?.totals(*run);
        let sent = totals.tx_datagrams - sent;
        let lost = sent.saturating_sub(meter.totals(*run).rx_datagrams - came);
        let held = upload(scene, client)?;
        let dropped = held.counters.dropped_packets - counters.dropped_packets;
        let delayed = held.counters.delayed_packets - counters.delayed_packets;
        eprintln!(
            "{version:?}: {share:.3} of the limit, {sent} datagrams, {lost} of them not there yet, {dropped} dropped, \
             {delayed} delayed"
        );
        ensure!((0.95..=1.02).contains(&share), "{version:?}: {share:.3} of the limit");
        ensure!(totals.errors == 0, "{version:?}: {} errors from sendto", totals.errors);
        ensure!(
            lost <= UNDER_WAY && dropped <= sent / 100,
            "{version:?}: {lost} of {sent} lost, {dropped} dropped"
        );
        ensure!(delayed > 0, "{version:?}: none waited");
        let kinds: Vec<_> = held.rungs.iter().map(|rung| (rung.device.as_deref(), rung.kind)).collect();
        ensure!(kinds == [(Some(DEVICE), RungKind::PacingEdt)], "{version:?}: {kinds:?}");
    }
    Ok(())
}
