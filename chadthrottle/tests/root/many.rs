//! Thousands of limits at once, most of them on processes that do nothing.

use std::{collections::HashMap, fs, time::Duration};

use chadthrottle::{
    backend::Site,
    model::{LimitReport, PerDirection, Rate, Scope, Target},
    owner::{
        client::Client,
        protocol::{LimitRequest, Reply, Request},
    },
};
use libtest_mimic::Trial;

use crate::{
    actor::{self, Sink},
    support::*,
};

/// Limits in all.
const LIMITS: usize = 4_096;

/// Of which so many have traffic.
const BUSY: usize = 64;

/// Limits of one process.
const NESTED: usize = 4;

/// Each of the limits, bytes/s; all that are busy together are what a small machine moves easily.
const RATE: u64 = 200_000;

/// How long the traffic is measured, in seconds.
const MEASURED: f64 = 15.0;

/// What the owner may use of one processor while it holds them all: checking each once a second. An unoptimized one used
/// a third to two thirds, by how busy the machine below was; what matters is that it keeps up.
const MAX_LOAD: f64 = 0.9;

pub fn trials() -> Vec<Trial> {
    vec![plain("many::limits_at_once", at_once), plain("many::limits_of_one_process", of_one_process)]
}

fn connect(scene: &Scene) -> Result<Client> {
    // The owner is started as this very program would be, so somebody else has to do it.
    let client = Client::connect(scene.runtime_dir())?;
    client.ok_or_else(|| Error::failed("there is no owner"))
}

fn request(scene: &Scene, pid: u32, rate: u64) -> Result<Request> {
    let rate = Rate::new(rate).ok_or_else(|| Error::failed("no rate"))?;
    Ok(Request::Limit(LimitRequest {
        targets: vec![Target::Pid(pid)],
        scope: Scope::All,
        wait: false,
        rates: PerDirection { upload: Some(rate), download: Some(rate) },
        backends: PerDirection::default(),
        // nftables would take the fifth.
        no_fallback: true,
        partial: false,
        duration: None,
        detach: false,
        site: Site { cgroup_root: Some(scene.cgroup().path().to_owned()) },
    }))
}

fn limits(client: &mut Client) -> Result<Vec<LimitReport>> {
    match client.request(&Request::Status)? {
        Reply::Status(report) => Ok(report.limits),
        other => Err(Error::failed(format!("the owner says {other:?}"))),
    }
}

/// Upload bytes that each limit let through so far, by process, and when that was.
fn passed(client: &mut Client) -> Result<(f64, HashMap<u32, u64>)> {
    let before = now();
    let limits = limits(client)?;
    let time = (before + now()) / 2.0;
    let passed = limits.iter().filter_map(|limit| {
        Some((limit.targets.first()?.pid()?, limit.directions.upload.as_ref()?.counters.passed_bytes))
    });
    Ok((time, passed.collect()))
}

/// Seconds of processor time that a process has used.
fn processor_time(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<f64>().ok());
    match (ticks(14), ticks(15)) {
        // USER_HZ is 100 on every architecture.
        (Some(user), Some(system)) => Ok((user + system) / 100.0),
        _ => Err(Error::failed(format!("process {pid} has no times"))),
    }
}

fn at_once(scene: &Scene) -> Result<()> {
    let sink = Sink::new(scene)?;
    let sleepers = (LIMITS - BUSY).to_string();
    let mut crowd = actor::start(scene, &["crowd", &sleepers, &BUSY.to_string(), &sink.address()])?;
    let line = crowd.wait_for("its pids", |lines| lines.first().cloned())?;
    let pids: Vec<u32> = line.split(' ').filter_map(|pid| pid.parse().ok()).collect();
    ensure!(pids.len() == LIMITS, "the crowd says '{line}'");
    let first = scene.limit(&format!("pid:{} -u 1M", pids[LIMITS - 1]))?;
    let mut client = connect(scene)?;

    let begun = now();
    let mut times = Vec::new();
    for pid in &pids {
        let time = now();
        client.request(&request(scene, *pid, RATE)?)?;
        times.push(now() - time);
    }
    times.sort_by(f64::total_cmp);
    eprintln!(
        "{LIMITS} limits in {:.1} s, each in {:.1} ms (median), at most {:.1} ms",
        now() - begun,
        times[LIMITS / 2] * 1e3,
        times[LIMITS - 1] * 1e3
    );
    first.end()?;

    actor::go_on(&mut crowd)?;
    sleep_until(now() + 3.0)?;
    let owner = client.owner_pid();
    let used = processor_time(owner)?;
    let (from, before) = passed(&mut client)?;
    sleep_until(from + MEASURED)?;
    let (to, after) = passed(&mut client)?;
    let load = (processor_time(owner)? - used) / (to - from);
    ensure!(after.len() == LIMITS, "{} limits are left", after.len());
    let share = |pid: &u32| (after[pid] - before[pid]) as f64 / (to - from) / RATE as f64;
    let mut shares: Vec<f64> = pids[..BUSY].iter().map(share).collect();
    shares.sort_by(f64::total_cmp);
    eprintln!(
        "at the hook {:.3} to {:.3} of the limit; the owner uses {:.1} % of a processor",
        shares[0],
        shares[BUSY - 1],
        load * 100.0
    );
    ensure!(shares[0] >= 0.85 && shares[BUSY - 1] <= 1.1, "at the hook: {shares:.3?} of the limit");
    ensure!(load < MAX_LOAD, "the owner uses {:.0} % of a processor", load * 100.0);
    let escaped: Vec<_> = limits(&mut client)?.into_iter().flat_map(|limit| limit.escapes).collect();
    ensure!(escaped.is_empty(), "{} escapes: {:?}", escaped.len(), escaped.first());

    let time = now();
    // However long it takes: of all who send without a limit from now on, none leaves the processors to others.
    let ended = scene.command("clear").output();
    let ended = ended.map_err(|cause| Error::failed(format!("start clear: {cause}")))?;
    ensure!(ended.status.success(), "clear: {}", String::from_utf8_lossy(&ended.stderr));
    eprintln!("cleared in {:.0} ms", (now() - time) * 1e3);
    ensure!(limits(&mut client)?.is_empty(), "some are left");
    let rate = sink.rate(1.0)?;
    ensure!(rate > full_speed(), "without limits they move only {rate:.0} bytes/s");
    client.close_and_wait(Duration::from_secs(5))
}

/// Four fit; a fifth is refused, and changes nothing.
fn of_one_process(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let run = scene.run();
    let process = scene.client(&[format!("connect tcp {} put run={run}", scene.tcp(Version::V4))])?;
    let first = scene.limit(&format!("pid:{} -u 8M", process.pid()))?;
    let mut client = connect(scene)?;
    for rate in [4_000_000, 2_000_000, 6_000_000] {
        client.request(&request(scene, process.pid(), rate)?)?;
    }
    let refused = client.request(&request(scene, process.pid(), 1_000_000)?);
    let message = refused.err().map(|error| error.to_string()).unwrap_or_default();
    let expected =
        format!("limit process {}: it already has 4 limits, clear one of them first", process.pid());
    // Once, not for each direction.
    ensure!(
        message.matches(&expected).count() == 1 && message.contains("upload or download"),
        "a fifth limit: '{message}'"
    );
    ensure!(limits(&mut client)?.len() == NESTED, "there are not four limits");
    ensure_held(&server, run, now(), 2e6)?;
    let limits = limits(&mut client)?;
    let quiet = limits.iter().all(|limit| limit.escapes.is_empty());
    ensure!(quiet, "{:?}", limits.iter().map(|limit| &limit.escapes).collect::<Vec<_>>());
    client.close_and_wait(Duration::from_secs(5))?;
    ensure_held(&server, run, now(), 8e6)?;
    first.end().map(drop)
}
