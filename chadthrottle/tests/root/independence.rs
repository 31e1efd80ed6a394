//! Limits, and those who have none, do not disturb each other; limits change and go without a trace.

use libtest_mimic::Trial;

use crate::support::*;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("independence::a_neighbour_keeps_its_upload", |scene| neighbour(scene, Direction::Upload)),
        plain("independence::a_neighbour_keeps_its_download", |scene| neighbour(scene, Direction::Download)),
        plain("independence::two_limits_of_two_callers", two_callers),
        plain("independence::another_owner_is_refused", another_owner),
        plain("independence::several_targets_share_one_rate", several_targets),
        plain("independence::nested_limits_both_hold", nested),
        plain("independence::a_fifth_limit_is_refused", fifth),
        plain("independence::a_changed_limit_has_no_gap", changed),
        plain("independence::a_removed_limit_gives_full_speed_back", removed),
    ]
}

/// A process in the same cgroup. It wants far more than the limit, but not all that the processors can do: that would
/// tell how many others want them.
pub fn neighbour(scene: &Scene, direction: Direction) -> Result<()> {
    const WANTED: f64 = 30e6;
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (limited, free) = (scene.run(), scene.run());
    let way = match direction {
        Direction::Upload => "put",
        Direction::Download => "get",
    };
    let transfer = |run, rate| [format!("connect tcp {address} {way} cc=cubic rate={rate} run={run}")];
    let client = scene.client(&transfer(limited, 0.0))?;
    let neighbour = scene.client(&transfer(free, WANTED))?;
    let receiver = |client| match direction {
        Direction::Upload => &server,
        Direction::Download => client,
    };
    let start = now() + 0.5;
    let before = received(receiver(&neighbour), free, start, start + 2.0)?;
    ensure!(before > WANTED / 2.0, "without a limit the neighbour has only {before:.0} bytes/s");
    let limit = scene.limit(&format!("pid:{} --{direction}-limit 1M", client.pid()))?;
    let since = limit.since + 0.5;
    let after = received(receiver(&neighbour), free, since, since + 2.0)?;
    ensure_held(receiver(&client), limited, limit.since, 1e6)?;
    ensure!(after >= 0.9 * before, "the neighbour had {before:.0} bytes/s and has {after:.0}");
    Ok(())
}

pub fn two_callers(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (slow, fast) = (scene.run(), scene.run());
    let transfer = |run| [format!("connect tcp {address} put cc=cubic run={run}")];
    let one = scene.client(&transfer(slow))?;
    let other = scene.client(&transfer(fast))?;
    let first = scene.limit(&format!("pid:{} -u 1M", one.pid()))?;
    let second = scene.limit(&format!("pid:{} -u 4M", other.pid()))?;
    ensure_held(&server, slow, second.since, 1e6)?;
    ensure_held(&server, fast, second.since, 4e6)?;
    let ended = first.end()?;
    await_full_speed(&server, slow, ended, 1.0)?;
    ensure_held(&server, fast, ended, 4e6)
}

/// Two owners on one connection would leave one's pacing cap to the other.
fn another_owner(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} put run={run}", scene.tcp(Version::V4))])?;
    let limit = scene.limit(&format!("pid:{} -u 1M", client.pid()))?;
    let elsewhere = scene.elsewhere();
    let words = format!("limit pid:{} -u 2M --duration 1 --upload-backend ebpf", client.pid());
    let (status, output) = scene.call_at(&elsewhere, &words)?;
    let said = output.messages();
    ensure!(status.code() == Some(5), "another owner ended with {status}: {said}");
    let folder = format!("--runtime-dir {})", scene.runtime_dir().display());
    for words in ["another owner", folder.as_str()] {
        ensure!(said.contains(words), "'{words}' is missing in: {said}");
    }
    ensure_held(&server, run, now(), 1e6)?;
    let ended = limit.end()?;
    await_full_speed(&server, run, ended, 1.0)?;
    // Whose limits are over is in nobody's way.
    scene.await_no_helpers(5.0)?;
    let (status, output) = scene.call_at(&elsewhere, &words)?;
    ensure!(status.success(), "alone, another owner ended with {status}: {}", output.messages());
    scene.await_no_helpers(5.0)?;
    std::fs::remove_dir_all(&elsewhere).map_err(|cause| Error::failed(cause.to_string()))
}

/// The smaller one decides, and the larger one again when it is gone.
pub fn nested(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} put run={run}", scene.tcp(Version::V4))])?;
    let outer = scene.limit(&format!("tree:{} -u 4M", client.pid()))?;
    let inner = scene.limit(&format!("pid:{} -u 1M", client.pid()))?;
    ensure_held(&server, run, inner.since, 1e6)?;
    let ended = inner.end()?;
    ensure_held(&server, run, ended, 4e6)?;
    let ended = outer.end()?;
    await_full_speed(&server, run, ended, 1.0).map(drop)
}

/// It must not push out one of the four, whatever comes first among the rules.
fn fifth(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} put run={run}", scene.tcp(Version::V4))])?;
    let pid = client.pid();
    let four = [
        format!("pid:{pid} -u 4M"),
        format!("tree:{pid} -u 4M"),
        "user:0 -u 4M".into(),
        "remote:0.0.0.0/0 -u 1M".into(),
    ];
    let limits = four.iter().map(|words| scene.limit(words)).collect::<Result<Vec<_>>>()?;
    for target in [format!("cgroup:{}", scene.cgroup().path().display()), format!("pid:{pid}")] {
        let words = format!("limit {target} -u 4M --duration 2 --upload-backend ebpf");
        let (status, output) = scene.call(&words)?;
        let said = output.messages();
        ensure!(
            !status.success() && said.contains("it already has 4 limits"),
            "'{words}' ended with {status}: {said}"
        );
        ensure_held(&server, run, now(), 1e6)?;
    }
    limits.into_iter().try_for_each(|limit| limit.end().map(drop))
}

/// A detached limit that is set again with another rate.
pub fn changed(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} put flows=4 run={run}", scene.tcp(Version::V4))])?;
    let target = format!("pid:{}", client.pid());
    scene.succeed(&format!("limit {target} -u 1M --detach"))?;
    ensure_held(&server, run, now(), 1e6)?;
    let before = now();
    scene.succeed(&format!("limit {target} -u 4M --detach"))?;
    let after = now();
    ensure_held(&server, run, after, 4e6)?;
    let around = received(&server, run, before - 0.5, after + 0.5)?;
    ensure!(around < 4.6e6, "while it changes, {around:.0} bytes/s pass");
    ensure!(scene.status()?.limits.len() == 1, "the change made a second limit");
    scene.succeed(&format!("clear {target}"))?;
    await_full_speed(&server, run, now(), 1.0).map(drop)
}

/// In both directions.
pub fn removed(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit(1e6))?;
    pair.ensure_held(limit.since, 1e6)?;
    let ended = limit.end()?;
    pair.ensure_free(ended, 1.0)
}

/// One rate for two processes, also when one of them has ended.
fn several_targets(scene: &Scene) -> Result<()> {
    const RATE: f64 = 2e6;
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (one, other) = (scene.run(), scene.run());
    let transfer = |run| [format!("connect tcp {address} put cc=cubic run={run}")];
    let mut first = scene.client(&transfer(one))?;
    let second = scene.client(&transfer(other))?;
    let limit = scene.limit(&format!("pid:{} tree:{} -u {RATE}", first.pid(), second.pid()))?;
    let report = scene.status()?.limits;
    ensure!(report.len() == 1 && report[0].processes == 2, "{report:?}");
    let (from, to) = (limit.since + 1.0, limit.since + 5.0);
    let rates = [received(&server, one, from, to)?, received(&server, other, from, to)?];
    let both = (rates[0] + rates[1]) / RATE;
    ensure!((0.7..1.2).contains(&both), "together they get {both:.3} of the limit: {rates:.0?} bytes/s");
    ensure!(rates.iter().all(|rate| *rate > 0.05 * RATE), "one of them gets nothing: {rates:.0?} bytes/s");
    first.process().signal(nix::sys::signal::Signal::SIGKILL);
    first.process().wait()?;
    ensure_held(&server, other, now(), RATE)?;
    let ended = limit.end()?;
    await_full_speed(&server, other, ended, 1.0).map(drop)
}
