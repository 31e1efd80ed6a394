//! A limit that goes from one backend to another while its traffic runs.

use libtest_mimic::Trial;

use crate::support::*;

/// Bytes/s, far from what the lab moves without a limit.
const RATE: f64 = 1e6;

/// Backends for upload and download, each moved to from the one before it.
const STATIONS: &[(&str, &str)] = &[("nftables", "nftables"), ("ebpf", "nftables"), ("ebpf", "ebpf")];

pub fn trials() -> Vec<Trial> {
    vec![plain("moving::a_limit_holds_while_it_changes_its_backend", through_all)]
}

fn through_all(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let (put, get) = (scene.run(), scene.run());
    let address = scene.tcp(Version::V4);
    let client = scene.client(&[
        format!("connect tcp {address} put run={put}"),
        format!("connect tcp {address} get run={get}"),
    ])?;
    let target = format!("pid:{}", client.pid());
    sleep_until(now() + 0.3)?;
    // What ends this limit is the end of the client.
    scene.use_backends("ebpf", "ebpf");
    scene.succeed(&format!("limit {target} -u {RATE} -d {RATE} --detach"))?;
    let set = now();
    let id = scene.report(&target)?.id;
    ensure_held(&server, put, set, RATE)?;
    ensure_held(&client, get, set, RATE)?;

    for &(upload, download) in STATIONS {
        scene.use_backends(upload, download);
        let before = now();
        scene.succeed(&format!("limit {target} -u {RATE} -d {RATE} --detach"))?;
        let report = scene.report(&target)?;
        for (direction, name) in [(Direction::Upload, upload), (Direction::Download, download)] {
            let held = report.directions.get(direction).as_ref().map(|held| held.backend.as_str());
            ensure!(held == Some(name), "{direction} is at {held:?} instead of {name}");
        }
        ensure!(report.id == id, "limit {id} became {}", report.id);
        for (way, receiver, run) in [("upload", &server, put), ("download", &client, get)] {
            let to = format!("{way}, on the way to {upload} and {download}");
            // Two tenths of a second without a limit are more than this by far.
            let during = received(receiver, run, before - 0.5, before + 2.5)? / RATE;
            ensure!(during <= 1.5, "{to}: {during:.3} of the limit");
            for start in 0..3 {
                let from = before + f64::from(start);
                let share = received(receiver, run, from, from + 1.0)? / RATE;
                ensure!(share >= 0.3, "{to}: in second {start} only {share:.3} of the limit");
            }
            ensure_held(receiver, run, before + 1.0, RATE)?;
        }
    }
    Ok(())
}
