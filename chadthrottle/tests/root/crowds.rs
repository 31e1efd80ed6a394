//! Many processes under one limit, limits one in another, and processes in other namespaces.

use std::{os::unix::fs::symlink, path::Path, process::Command};

use chadthrottle::{kernel::process, selftest::process::Place};
use libtest_mimic::Trial;

use crate::{
    actor::{self, Played, Sink},
    support::{sniff::Sniffer, *},
    targets::{Homes, ID, Kin, folder, holds},
};

/// Short-lived processes, and what each sends, bytes. It fits a socket's buffer, so that nobody has to wait for it.
const SWARM: usize = 2_000;
const SHOT: usize = 5_000;
/// What the kernel sends itself for a connection whose socket is gone: it acknowledges the other side's end. Bytes.
const LAST_WORD: u64 = 52;
/// So many of them at a time at most, as a shell that starts jobs may have.
const AT_ONCE: usize = 64;
const SWARM_RATE: f64 = 1e6;

/// Of a unit with 50 processes, and of one of them, which is less than its part; bytes/s.
const UNIT_RATE: f64 = 10e6;
const ONE_RATE: f64 = 60e3;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("crowds::two_thousand_short_lived_processes", swarm),
        plain("crowds::unit_of_fifty_and_one_of_them", |scene| {
            nested(scene, "system.slice/chadt-crowd.service", "unit:chadt-crowd")
        }),
        plain("crowds::container_of_fifty_and_one_of_them", |scene| {
            nested(scene, &format!("docker/{ID}"), &format!("container:{}", &ID[..12]))
        }),
        plain("crowds::other_pid_and_user_namespaces", namespaces),
        plain("crowds::by_its_pid_out_here", by_pid),
    ]
}

/// Plays a part; `None`: there is no such.
pub fn play(words: &[&str]) -> Option<Played> {
    Some(match *words {
        ["swarm", program, address] => launch(program, address),
        ["shot", address] => shot(address),
        _ => return None,
    })
}

/// Starts them as fast as it can.
fn launch(program: &str, address: &str) -> Played {
    let mut running = std::collections::VecDeque::new();
    for _ in 0..SWARM {
        if running.len() == AT_ONCE {
            let first: Option<std::process::Child> = running.pop_front();
            if !first.map(|mut child| child.wait()).transpose()?.is_some_and(|status| status.success()) {
                return Err("one of them failed".into());
            }
        }
        running.push_back(Command::new(program).args(["actor", "shot", address]).spawn()?);
    }
    for mut child in running {
        if !child.wait()?.success() {
            return Err("one of them failed".into());
        }
    }
    println!("launched");
    Ok(())
}

/// Sends a little, and ends before that has gone.
fn shot(address: &str) -> Played {
    use std::io::Write;
    Ok(std::net::TcpStream::connect(address)?.write_all(&[0; SHOT])?)
}

/// What they move together is within the limit, and all of it passed the limit.
fn swarm(scene: &Scene) -> Result<()> {
    let sink = Sink::new(scene)?;
    let sniffer = Sniffer::new(&scene.lab.server)?;
    let folder = folder()?;
    let program = folder.path().join("chadt-swarm");
    let own = std::env::current_exe();
    own.and_then(|own| symlink(own, &program))
        .map_err(|cause| Error::failed(format!("make a link: {cause}")))?;
    let limit = scene.limit(&format!("name:chadt-swarm --wait -u {SWARM_RATE}"))?;
    let start = now();
    let launcher = actor::start(scene, &["swarm", &program.display().to_string(), &sink.address()])?;
    let all = (SWARM * SHOT) as u64;
    let deadline = start + 150.0;
    while sink.total() < all {
        let failed = launcher.look(|lines| lines.iter().find(|line| line.contains("failed")).cloned());
        ensure!(failed.is_none(), "{failed:?}");
        ensure!(now() < deadline, "only {} of {all} bytes have arrived after 150 s", sink.total());
        sleep_until(now() + 0.01)?;
    }
    let took = now() - start;
    let share = all as f64 / took / SWARM_RATE;
    ensure!(share <= 1.05, "{SWARM} processes moved {share:.3} of their limit within {took:.1} s");
    let arrived = sniffer.finish()?.get(&sink.port()).map_or(0, |wire| wire.rx);
    let report = scene.report("name:chadt-swarm")?;
    let upload = report.directions.upload.as_ref().ok_or_else(|| Error::failed("no limit"))?;
    let passed = upload.counters.passed_bytes;
    ensure!(arrived > all, "only {arrived} bytes came over the line");
    let beside = arrived.saturating_sub(passed);
    ensure!(beside <= SWARM as u64 * LAST_WORD, "{beside} bytes arrived that did not pass the limit");
    ensure!(report.escapes.is_empty(), "{:?}", report.escapes);
    eprintln!(
        "{SWARM} processes in {took:.1} s, {share:.3} of the limit, {beside} of {arrived} bytes beside it"
    );
    limit.end().map(drop)
}

/// All fifty together are within the outer limit, and one of them within its own too.
fn nested(scene: &Scene, path: &str, target: &str) -> Result<()> {
    let homes = Homes::new(scene, path)?;
    let sink = Sink::new(scene)?;
    let server = scene.server()?;
    let place = Place { namespace: Some(&scene.lab.client), cgroup: Some(homes.inner()) };
    let mut crowd = actor::spawn(actor::command(&["crowd", "0", "48", &sink.address()])?, place)?;
    crowd.wait_for("the crowd", |lines| lines.first().cloned())?;
    let (run, free) = (scene.run(), scene.run());
    let put = |run| format!("connect tcp {} put cc=reno run={run}", scene.tcp(Version::V4));
    let kin = Kin::copy("chadt-trial")?;
    let one = kin.start(scene, Some(homes.inner()), &[put(run)])?;
    let _stranger = scene.client(&[put(free)])?;
    let outer = scene.limit(&format!("{target} -u {UNIT_RATE}"))?;
    let inner = scene.limit(&format!("{} -u {ONE_RATE}", one.pid()))?;
    actor::go_on(&mut crowd)?;
    let since = now() + 1.0;
    sleep_until(since)?;
    let crowd_rate = sink.rate(5.0)?;
    let one_rate = received(&server, run, since, since + 5.0)?;
    let together = (crowd_rate + one_rate) / UNIT_RATE;
    ensure!((0.5..1.1).contains(&together), "together they get {together:.3} of their limit");
    let share = one_rate / ONE_RATE;
    ensure!((0.1..1.3).contains(&share), "the one gets {share:.3} of its limit");
    let beside = received(&server, free, since, since + 5.0)?;
    ensure!(beside > UNIT_RATE / 10.0, "who is not in it moves only {beside:.0} bytes/s");
    let report = scene.report(&scene.status()?.limits[0].subject())?;
    ensure!(report.processes == 50, "the owner counts {} processes", report.processes);
    for limit in scene.status()?.limits {
        ensure!(limit.escapes.is_empty(), "{:?}", limit.escapes);
    }
    inner.end()?;
    outer.end().map(drop)
}

/// In a pid namespace and a user namespace of its own, as in a container without root.
const UNSHARED: &str = "unshare --user --map-root-user --pid --fork --kill-child";

/// Found by what they are, from out here.
fn namespaces(scene: &Scene) -> Result<()> {
    let kin = Kin::script("chadt-unshared", UNSHARED)?;
    let other = Kin::copy("chadt-other")?;
    let target = format!("exe:{}", kin.folder().join("program").display());
    holds(scene, &target, |all| kin.start(scene, None, all), |all| other.start(scene, None, all))
}

/// By the process id that it has in the namespace of who sets the limit.
fn by_pid(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let kin = Kin::script("chadt-unshared", UNSHARED)?;
    let run = scene.run();
    let outside =
        kin.start(scene, None, &[format!("connect tcp {} put cc=reno run={run}", scene.tcp(Version::V4))])?;
    await_full_speed(&server, run, now(), 3.0)?;
    let inside = process::descendants(Path::new(process::PROC), outside.pid())?;
    ensure!(inside.len() == 1, "there are {} processes inside", inside.len());
    const RATE: f64 = 2e6;
    let limit = scene.limit(&format!("{} -u {RATE}", inside[0]))?;
    ensure_held(&server, run, limit.since, RATE)?;
    limit.end().map(drop)
}
