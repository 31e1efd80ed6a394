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
    trials
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
    for connection in bulk {
        ensure!(connection.scale == scale, "the window scale is {}", connection.scale);
        ensure!(connection.moved_back <= 1, "an edge moved back {} times", connection.moved_back);
        // 17.5 KB each are wanted; a window is a number of units.
        ensure!(connection.window <= 3 * 17_500 + (1 << scale), "a window of {} bytes", connection.window);
    }
    ensure!((0.92..=0.985).contains(&share), "{share:.3} of the limit");
    drop(watched);
    limit.end().map(drop)
}
