//! Two ways to queue downloads, side by side.

use chadthrottle::{kernel::cgroup, selftest::process::Place};
use libtest_mimic::Trial;

use crate::support::{relay::Line, *};

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for rtt in [0, 20, 80] {
        for rate in [1_000_000, 10_000_000] {
            for (flows, congestion) in [(1, "cubic"), (1, "bbr"), (8, "cubic"), (8, "bbr")] {
                let name = format!("rung::cell_{rtt}_{}_{flows}_{congestion}_", rate / 1_000_000);
                let make =
                    move || if rtt == 0 { Scene::new() } else { Scene::over(Line::new(rtt, 12 * rate)) };
                trials.push(line_trial(&name, make, move |scene| {
                    for _ in 0..1 {
                        for timed in [false, true] {
                            cell(scene, rtt, rate, flows, congestion, timed)?;
                        }
                    }
                    Ok(Finding::Holds)
                }));
            }
        }
    }
    trials.push(plain("rung::shared", shared));
    trials.push(plain("rung::many", many));
    trials.push(plain("rung::nested", nested));
    trials.push(plain("rung::udp", udp));
    trials
}

fn choose(timed: bool) -> &'static str {
    // SAFETY: nobody else reads the environment meanwhile.
    unsafe {
        if !timed {
            std::env::set_var("CHADT_FAULT_NO_FQ", "1")
        } else {
            std::env::remove_var("CHADT_FAULT_NO_FQ")
        }
    }
    if timed { "fq " } else { "htb" }
}

fn busy() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let words: Vec<f64> =
        text.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    (words.iter().sum::<f64>() - words.get(3).unwrap_or(&0.0) - words.get(4).unwrap_or(&0.0)) / 100.0
}

fn sent(server: &Traffic, runs: &[u64], until: f64) -> Result<(f64, f64)> {
    let meter = server.meter_at(until)?;
    let all = runs.iter().map(|run| meter.totals(*run));
    Ok(all.fold((0.0, 0.0), |(sent, again), one| (sent + one.sent as f64, again + one.retransmitted as f64)))
}

fn cell(scene: &Scene, rtt: u64, rate: u64, flows: u32, congestion: &str, timed: bool) -> Result<()> {
    let way = choose(timed);
    let server = scene.server()?;
    let runs: Vec<u64> = (0..flows).map(|_| scene.run()).collect();
    let address = scene.tcp(Version::V4);
    let words: Vec<_> =
        runs.iter().map(|run| format!("connect tcp {address} get cc={congestion} run={run}")).collect();
    let client = scene.client(&words)?;
    let line = scene.has_line();
    sleep_until(now() + if line { 3.0 } else { 1.0 })?;
    let before = sent(&server, &runs, now())?;
    let limit = scene.limit(&format!("pid:{} -d {rate}", client.pid()))?;
    let since = limit.since;
    let from = since + if line { 5.0 } else { 2.0 };
    sleep_until(from)?;
    let (start, cpu) = (sent(&server, &runs, from)?, busy());
    sleep_until(from + 6.0)?;
    let (end, cpu) = (sent(&server, &runs, from + 6.0)?, busy() - cpu);
    let counters =
        scene.report(&format!("pid:{}", client.pid()))?.directions.download.map(|held| held.counters);
    let counters = counters.ok_or_else(|| Error::failed("no download"))?;
    let shares: Vec<f64> =
        runs.iter().map(|run| received(&client, *run, from, from + 6.0)).collect::<Result<_>>()?;
    let (least, most) = shares.iter().fold((f64::MAX, 0.0_f64), |(l, m), s| (l.min(*s), m.max(*s)));
    eprintln!(
        "CELL {rtt:2} ms {:2} MB/s {flows} {congestion:5} {way} goodput {:.4} again {:.5} switching {:.0} KB fair {:.2} queue {:.1} ms cpu {cpu:.2} s dropped {} delayed {}",
        rate / 1_000_000,
        shares.iter().sum::<f64>() / rate as f64,
        (end.1 - start.1) / (end.0 - start.0),
        (start.1 - before.1) / 1e3,
        least / most,
        counters.queue_us.unwrap_or(0) as f64 / 1e3,
        counters.dropped_packets,
        counters.delayed_packets,
    );
    let ended = limit.end()?;
    let at_end = sent(&server, &runs, ended + 1.0)?;
    eprintln!(
        "     sent again after the end: {:.0} KB of {:.0} KB",
        (at_end.1 - end.1) / 1e3,
        (at_end.0 - end.0) / 1e3
    );
    drop(client);
    scene.await_no_helpers(5.0)
}

/// One limit over processes in two network namespaces.
fn shared(scene: &Scene) -> Result<()> {
    for timed in [false, true, false, true] {
        let way = choose(timed);
        let near = scene.server()?;
        let place = Place { namespace: Some(&scene.lab.client), cgroup: None };
        let here = scene.lab.client_at(Version::V4, 5005);
        let far = Traffic::spawn(&program(), "the other server", place, &[format!("listen tcp {here}")])?;
        let runs = [scene.run(), scene.run()];
        let one = scene.client(&[format!(
            "connect tcp {} get cc=cubic run={}",
            scene.tcp(Version::V4),
            runs[0]
        )])?;
        let place = Place { namespace: Some(&scene.lab.server), cgroup: Some(scene.cgroup()) };
        let words = [format!("connect tcp {here} get cc=cubic run={}", runs[1])];
        let other = Traffic::spawn(&program(), "the other client", place, &words)?;
        sleep_until(now() + 1.0)?;
        let path = scene
            .cgroup()
            .path()
            .strip_prefix(cgroup::mount()?)
            .unwrap_or(scene.cgroup().path())
            .display()
            .to_string();
        let limit = scene.limit(&format!("cgroup:/{path} -d 2M"))?;
        let from = limit.since + 2.0;
        sleep_until(from + 5.0)?;
        let shares = [
            received(&one, runs[0], from, from + 5.0)? / 2e6,
            received(&other, runs[1], from, from + 5.0)? / 2e6,
        ];
        eprintln!(
            "SHARED {way} {shares:.3?} sum {:.3} again {:?} {:?}",
            shares[0] + shares[1],
            sent(&near, &runs, now())?,
            sent(&far, &runs, now())?
        );
        limit.end()?;
        drop((one, other));
        scene.await_no_helpers(5.0)?;
    }
    Ok(())
}

/// What a limit more costs.
fn many(scene: &Scene) -> Result<()> {
    for timed in [false, true, false, true] {
        let way = choose(timed);
        let _server = scene.server()?;
        let run = scene.run();
        let client =
            scene.client(&[format!("connect tcp {} get rate=100000 run={run}", scene.tcp(Version::V4))])?;
        let first = scene.limit(&format!("pid:{} -d 1M", client.pid()))?;
        sleep_until(now() + 1.0)?;
        let mut clients = Vec::new();
        for _ in 0..20 {
            let run = scene.run();
            clients.push(
                scene.client(&[format!("connect tcp {} get rate=1000 run={run}", scene.tcp(Version::V4))])?,
            );
        }
        let before = now();
        for client in &clients {
            scene.succeed(&format!("limit pid:{} -d 1M --detach", client.pid()))?;
        }
        let time = (now() - before) / 20.0;
        let cpu = busy();
        sleep_until(now() + 5.0)?;
        eprintln!("MANY {way} a limit {:.1} ms, idle cpu {:.2} s in 5 s", time * 1e3, busy() - cpu);
        scene.succeed("clear")?;
        drop((first, clients, client));
        scene.await_no_helpers(5.0)?;
    }
    Ok(())
}

/// Two limited processes in a limited whole.
fn nested(scene: &Scene) -> Result<()> {
    for timed in [false, true, false, true] {
        let way = choose(timed);
        let server = scene.server()?;
        let runs = [scene.run(), scene.run()];
        let client = |run: u64| {
            scene.client(&[format!("connect tcp {} get cc=cubic run={run}", scene.tcp(Version::V4))])
        };
        let clients = [client(runs[0])?, client(runs[1])?];
        let path = scene
            .cgroup()
            .path()
            .strip_prefix(cgroup::mount()?)
            .unwrap_or(scene.cgroup().path())
            .display()
            .to_string();
        let mut limits = Vec::new();
        for one in &clients {
            limits.push(scene.limit(&format!("pid:{} -d 1M", one.pid()))?);
        }
        limits.push(scene.limit(&format!("cgroup:/{path} -d 1500K"))?);
        let from = now() + 2.0;
        sleep_until(from)?;
        let start = sent(&server, &runs, from)?;
        sleep_until(from + 5.0)?;
        let end = sent(&server, &runs, from + 5.0)?;
        let share = |index: usize| received(&clients[index], runs[index], from, from + 5.0);
        eprintln!(
            "NESTED {way} {:.0} {:.0} KB/s, again {:.4}",
            share(0)? / 1e3,
            share(1)? / 1e3,
            (end.1 - start.1) / (end.0 - start.0)
        );
        limits.into_iter().try_for_each(|limit| limit.end().map(drop))?;
        drop(clients);
        scene.await_no_helpers(5.0)?;
    }
    Ok(())
}

/// Datagrams, less and more than the limit.
fn udp(scene: &Scene) -> Result<()> {
    for timed in [false, true, false, true] {
        let way = choose(timed);
        let _server = scene.server()?;
        for rate in [500_000, 2_000_000] {
            let run = scene.run();
            let client = scene
                .client(&[format!("udp {} get rate={rate} size=1200 run={run}", scene.udp(Version::V4))])?;
            let limit = scene.limit(&format!("pid:{} -d 1M", client.pid()))?;
            let from = limit.since + 8.0;
            sleep_until(from + 3.0)?;
            let share = received(&client, run, from, from + 3.0)? / 1e6;
            let counters =
                scene.report(&format!("pid:{}", client.pid()))?.directions.download.map(|held| held.counters);
            eprintln!("UDP {way} {rate}: {share:.3} {counters:?}");
            limit.end()?;
        }
        scene.await_no_helpers(5.0)?;
    }
    Ok(())
}
