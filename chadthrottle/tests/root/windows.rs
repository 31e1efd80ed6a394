//! The windows that limited connections advertise, packet by packet on the line.

use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libtest_mimic::Trial;

use crate::support::{
    edges::Watched,
    relay::{Line, Watch, Way},
    *,
};

/// Over which the connections come that are watched.
const RATE: u64 = 1_000_000;
const FLOWS: u32 = 4;

/// Largest receive buffers, bytes, and the window scales that they make the kernel choose.
const BUFFERS: &[(u64, u8)] = &[(6 << 20, 7), (32 << 20, 10), (1 << 29, 14)];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for &(buffer, scale) in BUFFERS {
        for (version, name) in [(Version::V4, "ipv4"), (Version::V6, "ipv6")] {
            let seen = Arc::new(Mutex::new(Watched::default()));
            let watched = Arc::clone(&seen);
            let make = move || {
                *lock(&seen) = Watched::default();
                Scene::watched(Line::new(20, 12 * RATE), || watch(&seen))
            };
            let run = move |scene: &Scene| {
                edges_stay(scene, version, buffer, scale, &watched).map(|()| Finding::Holds)
            };
            trials.push(line_trial(&format!("windows::{name}_scale_{scale}"), make, run));
        }
    }
    trials.push(line_trial(
        "windows::slow_ones_leave_the_rest",
        || Scene::over(Line::new(80, 12 * RATE)),
        |scene| slow_ones_leave_the_rest(scene).map(|()| Finding::Holds),
    ));
    trials
}

/// Connections that are sent little do not keep the limit from one that wants all, and when they want all, too, nothing
/// is lost and the queue stays short.
fn slow_ones_leave_the_rest(scene: &Scene) -> Result<()> {
    const SLOW: usize = 7;
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (little, all) = (scene.run(), scene.run());
    let slow = format!("connect tcp {address} get rate=20000 cc=cubic run={little}");
    let mut words = vec![slow; SLOW];
    words.push(format!("connect tcp {address} get cc=cubic run={all}"));
    let mut client = scene.client(&words)?;
    sleep_until(now() + 1.0)?;
    let target = format!("pid:{}", client.pid());
    let limit = scene.limit(&format!("{target} -d {RATE}"))?;
    let (from, to) = (limit.since + 5.0, limit.since + 10.0);
    let share = |client: &Traffic, run| Ok::<_, Error>(received(client, run, from, to)? / RATE as f64);
    let (some, rest) = (share(&client, little)?, share(&client, all)?);
    eprintln!("seven slow ones {some:.3} of the limit, the other {rest:.3}");
    ensure!((0.12..=0.15).contains(&some), "the slow ones get {some:.3}");
    ensure!((0.88..=0.985).contains(&(some + rest)), "together they get {:.3}", some + rest);

    let before = server.meter_at(now())?.totals(all);
    client.tell(&format!("connect tcp {address} get flows={SLOW} cc=cubic run={all}"))?;
    let start = now();
    let mut longest = 0;
    while now() < start + 5.0 {
        sleep_until(now() + 0.25)?;
        let held = scene.report(&target)?.directions.download;
        longest = longest.max(held.and_then(|held| held.counters.queue_us).unwrap_or(0));
    }
    let after = server.meter_at(now())?.totals(all);
    let again = (after.retransmitted - before.retransmitted) as f64 / (after.sent - before.sent) as f64;
    eprintln!("seven more: sent again {again:.5}, a queue of {} ms at most", longest / 1_000);
    ensure!(again <= 0.002, "sent again {again:.5}");
    ensure!(longest <= 300_000, "a queue of {longest} us");
    limit.end().map(drop)
}

fn lock(seen: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at what the client advertises.
fn watch(seen: &Arc<Mutex<Watched>>) -> Watch {
    let seen = Arc::clone(seen);
    Box::new(move |way, frame| {
        if way == Way::ToServer {
            lock(&seen).see(frame, TCP_PORT);
        }
    })
}

/// When the limit starts the windows shrink at once; from then on no right edge moves back, and every checksum is right.
fn edges_stay(scene: &Scene, version: Version, buffer: u64, scale: u8, seen: &Mutex<Watched>) -> Result<()> {
    scene.lab.client.run(|| {
        fs::write("/proc/sys/net/ipv4/tcp_rmem", format!("4096 131072 {buffer}"))
            .map_err(|cause| Error::failed(format!("set the size of receive buffers: {cause}")))
    })?;
    let _server = scene.server()?;
    let run = scene.run();
    let transfer = format!("connect tcp {} get flows={FLOWS} cc=cubic run={run}", scene.tcp(version));
    let client = scene.client(&[transfer])?;
    sleep_until(now() + 1.0)?;
    let limit = scene.limit(&format!("pid:{} -d {RATE}", client.pid()))?;
    let share = received(&client, run, limit.since + 2.0, limit.since + 6.0)? / RATE as f64;
    let watched = lock(seen);
    let bulk: Vec<_> = watched.connections.values().filter(|connection| connection.packets > 100).collect();
    for connection in &bulk {
        eprintln!("{connection:?}");
    }
    eprintln!("{share:.3} of the limit; {} checksums, {} wrong", watched.checked, watched.wrong);
    ensure!(bulk.len() == FLOWS as usize, "{} connections", bulk.len());
    ensure!(watched.wrong == 0, "{} of {} checksums are wrong", watched.wrong, watched.checked);
    let mut windows = 0;
    for connection in bulk {
        ensure!(connection.scale == scale, "the window scale is {}", connection.scale);
        ensure!(connection.moved_back <= 1, "an edge moved back {} times", connection.moved_back);
        windows += connection.window;
    }
    // 70 KB are wanted, of which each has what the others leave; a window is a number of units.
    ensure!(windows <= 3 * 70_000 + (FLOWS << scale), "windows of {windows} bytes in all");
    ensure!((0.92..=0.985).contains(&share), "{share:.3} of the limit");
    drop(watched);
    limit.end().map(drop)
}
