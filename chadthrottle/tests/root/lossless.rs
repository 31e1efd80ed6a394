//! Downloads through the queue: nothing is sent twice, and nothing is left of it.

use std::time::Duration;

use chadthrottle::{
    kernel::{
        bpf::load_ebpf_program,
        tc::{Does, Hook, Tc},
    },
    model::{Rung, RungKind},
    selftest::process::Place,
};
use libtest_mimic::Trial;

use crate::{
    foreign,
    support::{relay::Line, *},
};

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
    for rate in [1_000_000, 10_000_000] {
        for rtt in [20, 80] {
            for (flows, congestion) in [(1, "cubic"), (1, "bbr"), (8, "cubic"), (8, "bbr")] {
                let name = format!("lossless::rtt_{rtt}_{}_mb_{flows}_{congestion}", rate / 1_000_000);
                let line = Line::new(rtt, 12 * rate);
                let run = move |scene: &Scene| download(scene, rate, flows, congestion, Version::V4);
                trials.push(line_trial(&name, move || Scene::over(line), run));
            }
        }
    }
    let line = Line { buffer: Duration::from_millis(300), ..Line::new(20, 8_000_000) };
    trials.push(line_trial("lossless::past_the_queue", move || Scene::over(line), past_the_queue));
    trials.push(trial("lossless::a_chain_at_the_ingress", a_chain_at_the_ingress));
    trials.push(plain("lossless::many_limits", many_limits));
    trials.push(plain("lossless::foreign_filters_stay", foreign_filters_stay));
    trials.push(plain("lossless::made_again", made_again));
    trials.push(plain("lossless::another_rate", another_rate));
    for rate in [100_000, 1_000_000] {
        let name = format!("lossless::beside_the_queue_{}_kb", rate / 1_000);
        trials.push(plain(&name, move |scene| beside_the_queue(scene, rate)));
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
    let client =
        scene.client(&[format!("connect tcp {address} get flows={flows} cc={congestion} run={run}")])?;
    // A sender that starts on a line first overfills it.
    sleep_until(now() + if scene.has_line() { 3.0 } else { 1.0 })?;
    let before = sent(&server, run, now())?;
    let limit = scene.limit(&format!("pid:{} -d {rate}", client.pid()))?;
    let since = limit.since;
    // What is under way on a long line when the limit comes is more than a second of it, and has gaps, where the line
    // was too full before: that all of it arrives in its order takes some seconds.
    let settled = if scene.has_line() { 6.0 } else { 1.0 };
    let start = sent(&server, run, since + settled)?;
    let meter = client.meter_at(since + 1.2)?;
    let from = meter.report_after(run, since);
    let first = meter.rate(run, from, from + 1.0, |totals| totals.arrived) / rate as f64;
    let end = sent(&server, run, since + settled + 8.0)?;
    let goodput = received(&client, run, since + settled + 1.0, since + settled + 8.0)? / rate as f64;
    let switched = start.1 - before.1;
    let again = (end.1 - start.1) / (end.0 - start.0);
    // A sender repeats what the line itself lost, before the limit, whoever limits it.
    let caused = end.1 - before.1.max(scene.lost_payload() as f64);
    eprintln!(
        "{rate} B/s, {flows} flows, {congestion}: goodput {goodput:.4}, sent again {again:.5}, \
         while switching {:.0} KB, first second {first:.3}, in all {:.0} KB more than the line lost",
        switched / 1e3,
        caused / 1e3,
    );
    // A lone bbr flow on a long line stops every ten seconds, to look how long the line is.
    let least = if flows == 1 && congestion == "bbr" { 0.89 } else { 0.92 };
    ensure!((least..=0.985).contains(&goodput), "goodput {goodput:.4}");
    ensure!(again <= 0.002, "sent again {again:.5}");
    let held = scene.report(&format!("pid:{}", client.pid()))?.directions.download;
    let counters = held.ok_or_else(|| Error::failed("the status tells of no download"))?.counters;
    eprintln!("{counters:?}");
    ensure!(counters.dropped_packets == 0, "{} packets had no room in the queue", counters.dropped_packets);
    ensure!(
        counters.delayed_packets > 0 && counters.marked_packets > 0,
        "nothing was queued, or no window lowered"
    );
    // 50 ms are wanted.
    ensure!(counters.queue_us.is_some_and(|us| us <= 200_000), "a queue of {:?} us", counters.queue_us);
    limit.end()?;
    Ok(Finding::Holds)
}

/// Somebody's filter decides before ours: the status says that nothing comes through the queue, and the windows still keep
/// the sender from sending much twice. When that filter goes there is a queue again.
fn past_the_queue(scene: &Scene) -> Result<Finding> {
    const RATE: u64 = 1_000_000;
    let tc = |words: &str| foreign::run(&scene.lab.client, &format!("tc {words}"));
    if tc("qdisc add dev chadt-c clsact")?.is_none() {
        return Ok(Finding::Skipped("there is no tc".into()));
    }
    tc("filter add dev chadt-c ingress pref 1 u32 match u32 0 0 flowid :1")?;
    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} get cc=cubic run={run}", scene.tcp(Version::V4))])?;
    sleep_until(now() + 1.0)?;
    let target = format!("pid:{}", client.pid());
    let limit = scene.limit(&format!("{target} -d {RATE}"))?;
    let (from, to) = (limit.since + 4.0, limit.since + 10.0);
    let start = sent(&server, run, from)?;
    let end = sent(&server, run, to)?;
    let again = (end.1 - start.1) / (end.0 - start.0);
    let share = received(&client, run, from, to)? / RATE as f64;
    let past = rung(scene, &target)?;
    eprintln!("{share:.3} of the limit, sent again {again:.5}, {past:?}");
    let said = past.reason.as_deref().is_some_and(|reason| reason.contains("past the queue"));
    ensure!(past.kind == RungKind::WindowBucket && said, "the status tells of {past:?}");
    ensure!((0.85..=0.985).contains(&share), "{share:.3} of the limit");
    ensure!(again <= 0.02, "sent again {again:.5}");
    tc("filter del dev chadt-c ingress pref 1")?;
    sleep_until(now() + 3.0)?;
    let last = rung(scene, &target)?;
    ensure!(is_queue(&last), "in the end: {last:?}");
    limit.end()?;
    tc("qdisc del dev chadt-c clsact")?;
    Ok(Finding::Holds)
}

/// How the limit of `target` holds downloads at the client's device.
fn rung(scene: &Scene, target: &str) -> Result<Rung> {
    let held = scene.report(target)?.directions.download;
    let rungs = held.map_or_else(Vec::new, |held| held.rungs);
    let rung = rungs.into_iter().find(|rung| rung.device.as_deref() == Some("chadt-c"));
    rung.ok_or_else(|| Error::failed("the status tells of no device"))
}

fn is_queue(rung: &Rung) -> bool {
    matches!(rung.kind, RungKind::IfbFqWindow | RungKind::IfbHtbWindow)
}

/// A user's firewall at the device's ingress hook goes on to see every packet: what comes out of a queue would go past it,
/// so there is none as long as it is there.
fn a_chain_at_the_ingress(scene: &Scene) -> Result<Finding> {
    let nft = |words: &str| foreign::run(&scene.lab.client, &format!("nft {words}"));
    if nft("--version")?.is_none() {
        return Ok(Finding::Skipped("there is no nft".into()));
    }
    let seen = || -> Result<u64> {
        let listed = nft("list chain netdev theirs in")?.unwrap_or_default();
        let packets = listed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        packets.ok_or_else(|| Error::failed(format!("no counter in: {listed}")))
    };
    let _server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} get cc=cubic run={run}", scene.tcp(Version::V4))])?;
    let target = format!("pid:{}", client.pid());
    let limit = scene.limit(&format!("{target} -d 1M"))?;
    sleep_until(now() + 1.0)?;
    let first = rung(scene, &target)?;
    ensure!(is_queue(&first), "at first: {first:?}");
    nft("add table netdev theirs")?;
    nft("add chain netdev theirs in { type filter hook ingress device chadt-c priority 0 ; }")?;
    nft("add rule netdev theirs in counter")?;
    sleep_until(now() + 3.0)?;
    let (before, from) = (seen()?, now());
    let held = rung(scene, &target)?;
    let said = held.reason.as_deref().is_some_and(|reason| reason.contains("netfilter chain theirs in"));
    ensure!(held.kind == RungKind::WindowBucket && said, "beside a chain: {held:?}");
    let share = received(&client, run, from, from + 3.0)? / 1e6;
    let packets = seen()? - before;
    eprintln!("{share:.3} of the limit, {packets} packets seen by the chain");
    ensure!((0.3..=1.05).contains(&share), "{share:.3} of the limit");
    // Buffers of many packets at once, where the device puts them together.
    ensure!(packets as f64 > 3.0 * share * 1e6 / 66_000.0, "the chain saw {packets} packets");
    nft("delete table netdev theirs")?;
    sleep_until(now() + 3.0)?;
    let last = rung(scene, &target)?;
    ensure!(is_queue(&last), "in the end: {last:?}");
    limit.end()?;
    Ok(Finding::Holds)
}

/// While the queue is full, answers that do not come through it (a resolver's, over loopback) all arrive, and all
/// together stays below the limit and a tenth; also with a bulk transfer beside the queue.
fn beside_the_queue(scene: &Scene, rate: u64) -> Result<()> {
    const ANSWERS: f64 = 4_000.0;
    let place = Place { namespace: Some(&scene.lab.client), cgroup: None };
    let near = ["listen udp 127.0.0.1:5353".to_owned(), "listen tcp 127.0.0.1:5354".to_owned()];
    let _near = Traffic::spawn(&program(), "the resolver", place, &near)?;
    let _server = scene.server()?;
    let (run, answers, bulk) = (scene.run(), scene.run(), scene.run());
    let mut client = scene.client(&[
        format!("connect tcp {} get cc=cubic run={run}", scene.tcp(Version::V4)),
        format!("udp 127.0.0.1:5353 get rate={ANSWERS} size=200 run={answers}"),
    ])?;
    let target = format!("pid:{}", client.pid());
    let limit = scene.limit(&format!("{target} -d {rate}"))?;
    for beside in [false, true] {
        if beside {
            client.tell(&format!("connect tcp 127.0.0.1:5354 get run={bulk}"))?;
        }
        sleep_until(now() + 2.0)?;
        let (from, before) = scene.passed(&target, Direction::Download)?;
        sleep_until(from + 6.0)?;
        let (to, after) = scene.passed(&target, Direction::Download)?;
        let share = |run| received(&client, run, from, to);
        let sum = (after - before) as f64 / (to - from) / rate as f64;
        let (queued, near) = (share(run)? / rate as f64, share(bulk)? / rate as f64);
        let arrived = share(answers)? / ANSWERS;
        eprintln!(
            "{rate} B/s, bulk beside: {beside}: queued {queued:.3}, bulk {near:.3}, answers {arrived:.3}, sum {sum:.3}"
        );
        ensure!(arrived >= 0.95, "bulk beside: {beside}: {arrived:.3} of the answers arrive");
        ensure!(queued >= 0.85, "bulk beside: {beside}: {queued:.3} comes through the queue");
        ensure!(sum <= 1.1, "bulk beside: {beside}: {sum:.3} of the limit in all");
    }
    let held = scene.report(&target)?.directions.download;
    let rungs = held.map_or_else(Vec::new, |held| held.rungs);
    let of =
        |device: &str| rungs.iter().find(|rung| rung.device.as_deref() == Some(device)).map(|rung| rung.kind);
    let queued = matches!(of("chadt-c"), Some(RungKind::IfbFqWindow | RungKind::IfbHtbWindow));
    ensure!(queued && of("lo") == Some(RungKind::Bucket), "the status tells of {rungs:?}");
    eprint!("{}", scene.succeed("status")?);
    limit.end().map(drop)
}

/// Several limits share one IFB, and one by one they end.
fn many_limits(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let mut held = Vec::new();
    for rate in [500_000_u64, 1_000_000, 2_000_000, 4_000_000] {
        let run = scene.run();
        let client = scene.client(&[format!("connect tcp {address} get cc=cubic run={run}")])?;
        let limit = scene.limit(&format!("pid:{} -d {rate}", client.pid()))?;
        held.push((rate, run, client, limit));
    }
    let from = now() + 1.0;
    let queues = scene.lab.client.run(|| Tc::open()?.devices())?;
    let queues = queues.iter().filter(|device| device.kind == "ifb").count();
    ensure!(queues == 1, "{queues} IFBs");
    let mut shares = Vec::new();
    for (rate, run, client, _) in &held {
        let share = received(client, *run, from, from + 4.0)? / *rate as f64;
        let meter = server.meter_at(from + 4.0)?;
        let rate_of = |value: fn(&Totals) -> u64| meter.rate(*run, from, from + 4.0, value);
        let again = rate_of(|totals| totals.retransmitted) / rate_of(|totals| totals.sent);
        shares.push(format!("{rate}: {share:.3}, again {again:.4}"));
        ensure!((0.92..=0.99).contains(&share) && again < 0.002, "{}", shares.join("; "));
    }
    eprintln!("{}", shares.join("; "));
    let (_, run, client, limit) = held.remove(0);
    await_full_speed(&client, run, limit.end()?, 1.0)?;
    let (rate, run, client, _) = &held[0];
    let share = received(client, *run, now(), now() + 2.0)? / *rate as f64;
    ensure!((0.85..=1.05).contains(&share), "after another limit ended: {share:.3}");
    held.into_iter().try_for_each(|(.., limit)| limit.end().map(drop))
}

/// What others have on the device stays as it is, and the limit holds beside it.
fn foreign_filters_stay(scene: &Scene) -> Result<()> {
    let mut tc = Tc::open_in(&scene.lab.client)?;
    let device = device(&mut tc)?;
    ensure!(tc.add_clsact(device)?, "the device has filters already");
    let mut foreign = load_ebpf_program()?;
    let program = foreign.classifier("lower_window")?;
    tc.add_filter(device, Hook::Ingress, program, "somebody's", Does::AsTheProgramSays)?;
    let before = tc.filters(device, Hook::Ingress)?;

    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} get run={run}", scene.tcp(Version::V4))])?;
    let limit = scene.limit(&format!("pid:{} -d 1M", client.pid()))?;
    let since = limit.since;
    ensure_held(&client, run, since, 1e6)?;
    ensure!(tc.filters(device, Hook::Ingress)?.len() == before.len() + 1, "our filter is not beside theirs");
    limit.end()?;
    drop(server);
    let deadline = now() + 3.0;
    while tc.filters(device, Hook::Ingress)? != before {
        ensure!(now() < deadline, "left: {:?}", tc.filters(device, Hook::Ingress)?);
        sleep_until(now() + 0.05)?;
    }
    ensure!(!tc.delete_clsact(device)?, "clsact went although somebody has a filter there");
    tc.delete_filter(device, Hook::Ingress, "somebody's")?;
    ensure!(tc.delete_clsact(device)?, "their clsact is gone");
    Ok(())
}

/// Somebody removes the IFB, and later the filters, under a limit in force.
fn made_again(scene: &Scene) -> Result<()> {
    let mut tc = Tc::open_in(&scene.lab.client)?;
    let device = device(&mut tc)?;
    let _server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} get run={run}", scene.tcp(Version::V4))])?;
    let limit = scene.limit(&format!("pid:{} -d 1M", client.pid()))?;
    ensure_held(&client, run, limit.since, 1e6)?;
    for remove_device in [true, false] {
        if remove_device {
            let ifb = tc.devices()?.into_iter().find(|device| device.kind == "ifb");
            let ifb = ifb.ok_or_else(|| Error::failed("there is no IFB"))?;
            tc.delete_ifb(&ifb.name)?;
        } else {
            for filter in tc.filters(device, Hook::Ingress)? {
                tc.delete_filter(device, Hook::Ingress, &filter.name)?;
            }
        }
        let time = now();
        let share = received(&client, run, time, time + 4.0)? / 1e6;
        ensure!((0.4..=1.1).contains(&share), "IFB removed: {remove_device}: {share:.3}");
        ensure_held(&client, run, now() + 1.0, 1e6)?;
        ensure!(!tc.filters(device, Hook::Ingress)?.is_empty(), "there is no filter again");
        ensure!(tc.devices()?.iter().any(|device| device.kind == "ifb"), "there is no IFB again");
    }
    limit.end().map(drop)
}

/// A running limit's rate changes, both ways, without loss.
fn another_rate(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} get cc=cubic run={run}", scene.tcp(Version::V4))])?;
    let target = format!("pid:{}", client.pid());
    for rate in [1_000_000, 10_000_000, 2_000_000] {
        scene.succeed(&format!("limit {target} -d {rate} --detach"))?;
        let since = now();
        let share = received(&client, run, since + 1.0, since + 4.0)? / f64::from(rate);
        eprintln!("{rate}: {share:.3}, {:?}", sent(&server, run, now())?);
        ensure!((0.92..=0.99).contains(&share), "{rate}: {share:.3}");
    }
    scene.succeed("clear").map(drop)
}

/// The scene's veth.
fn device(tc: &mut Tc) -> Result<u32> {
    let found = tc.devices()?.into_iter().find(|device| device.kind == "veth");
    found.map(|device| device.index).ok_or_else(|| Error::failed("the namespace has no veth"))
}
