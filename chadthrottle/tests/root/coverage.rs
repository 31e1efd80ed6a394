//! Which traffic a limit holds: every socket of the process and of its children, however it came to be.

use libtest_mimic::Trial;

use crate::support::*;

/// The limits here, bytes/s.
const RATE: f64 = 2e6;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("coverage::open_connections", |scene| connections(scene, true)),
        plain("coverage::new_connections", |scene| connections(scene, false)),
        trial("coverage::open_mptcp", |scene| mptcp(scene, true)),
        trial("coverage::new_mptcp", |scene| mptcp(scene, false)),
        plain("coverage::child_with_its_own_connection", own_connection_of_a_child),
        plain("coverage::child_that_takes_over", child_that_takes_over),
        plain("coverage::exec", exec),
        plain("coverage::short_lived_children", short_lived_children),
        plain("coverage::accepted_connections", accepted_connections),
        plain("coverage::tree_has_children_that_pid_has_not", tree),
        plain("coverage::connecting_in_debt_is_quick", connecting_in_debt),
    ]
}

fn both_ways(rate: f64) -> String {
    format!("-u {rate} -d {rate}")
}

/// TCP in both directions over both IPs, opened before or after the limit.
pub fn connections(scene: &Scene, before: bool) -> Result<()> {
    let server = scene.server()?;
    let mut pairs = Vec::new();
    for version in [Version::V4, Version::V6] {
        let (get, put) = (scene.run(), scene.run());
        let address = scene.tcp(version);
        let transfers =
            [format!("connect tcp {address} get run={get}"), format!("connect tcp {address} put run={put}")];
        let mut client = scene.client(if before { &transfers } else { &[] })?;
        if before {
            await_full_speed(&client, get, now(), 2.0)?;
        }
        let limit = scene.limit(&format!("pid:{} {}", client.pid(), both_ways(RATE)))?;
        if !before {
            for transfer in &transfers {
                client.tell(transfer)?;
            }
        }
        pairs.push((client, get, put, now(), limit));
    }
    for (client, get, put, since, _limit) in &pairs {
        ensure_held(client, *get, *since, RATE)?;
        ensure_held(&server, *put, *since, RATE)?;
    }
    Ok(())
}

pub fn mptcp(scene: &Scene, before: bool) -> Result<Finding> {
    if std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_err() {
        return Ok(Finding::Skipped("this kernel has no multipath TCP".into()));
    }
    let address = scene.mptcp();
    let server = scene.peer(&[format!("listen mptcp {address}")])?;
    let (get, put) = (scene.run(), scene.run());
    let transfers =
        [format!("connect mptcp {address} get run={get}"), format!("connect mptcp {address} put run={put}")];
    let mut client = scene.client(if before { &transfers } else { &[] })?;
    if before {
        await_full_speed(&client, get, now(), 2.0)?;
    }
    let _limit = scene.limit(&format!("pid:{} {}", client.pid(), both_ways(RATE)))?;
    if !before {
        for transfer in &transfers {
            client.tell(transfer)?;
        }
    }
    let since = now();
    ensure_held(&client, get, since, RATE)?;
    ensure_held(&server, put, since, RATE)?;
    ensure_multipath(client.pid(), 2)?;
    Ok(Finding::Holds)
}

/// Fails unless the client's namespace has so many connections that both ends agreed to be multipath TCP: a
/// connection that fell back is plain TCP, which other trials limit.
fn ensure_multipath(pid: u32, connections: u64) -> Result<()> {
    let path = format!("/proc/{pid}/net/netstat");
    let text =
        std::fs::read_to_string(&path).map_err(|cause| Error::failed(format!("read {path}: {cause}")))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("MPTcpExt: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return Err(Error::failed(format!("{path} has no counters of multipath TCP")));
    };
    let counter = |wanted: &str| {
        let mut pairs = names.split(' ').zip(values.split(' '));
        pairs.find(|(name, _)| *name == wanted).and_then(|(_, value)| value.parse::<u64>().ok())
    };
    let (agreed, fell_back) = (counter("MPCapableSYNACKRX"), counter("MPCapableFallbackSYNACK"));
    ensure!(
        agreed.is_some_and(|agreed| agreed >= connections) && fell_back == Some(0),
        "multipath TCP: {agreed:?} connections agreed to it, {fell_back:?} fell back"
    );
    Ok(())
}

pub fn own_connection_of_a_child(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let mut client = scene.client(&[])?;
    let _limit = scene.limit(&format!("pid:{} {}", client.pid(), both_ways(RATE)))?;
    let (put, get) = (scene.run(), scene.run());
    client.tell(&format!("fork connect tcp {address} put run={put}"))?;
    // A grandchild, too.
    client.tell(&format!("fork fork connect tcp {address} get run={get}"))?;
    let since = now();
    ensure_held(&server, put, since, RATE)?;
    ensure_held(&client, get, since, RATE)
}

/// The parent opened the connection, the child uses it.
pub fn child_that_takes_over(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (before, after) = (scene.run(), scene.run());
    let mut client = scene.client(&[format!("connect tcp {address} put run={before}")])?;
    await_full_speed(&server, before, now(), 2.0)?;
    let _limit = scene.limit(&format!("pid:{} -u {RATE}", client.pid()))?;
    client.tell("fork take")?;
    ensure_held(&server, before, now(), RATE)?;
    // And one that was opened under the limit. Both share it.
    client.tell(&format!("connect tcp {address} put run={after}"))?;
    client.tell("fork take")?;
    let since = now();
    let both = received(&server, before, since + 1.0, since + 4.0)?
        + received(&server, after, since + 1.0, since + 4.0)?;
    ensure!((0.5..1.5).contains(&(both / RATE)), "both together get {:.3} of the limit", both / RATE);
    Ok(())
}

pub fn exec(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (kept, new) = (scene.run(), scene.run());
    let mut client = scene.client(&[format!("connect tcp {address} put run={kept}")])?;
    let _limit = scene.limit(&format!("pid:{} {}", client.pid(), both_ways(RATE)))?;
    client.send("exec")?;
    client.await_event("ready")?;
    client.tell(&format!("connect tcp {address} get run={new}"))?;
    let since = now();
    ensure_held(&server, kept, since, RATE)?;
    ensure_held(&client, new, since, RATE)
}

/// Each opens a connection at once and moves more than its share: ten times the limit in all.
pub fn short_lived_children(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let mut client = scene.client(&[])?;
    let _limit = scene.limit(&format!("pid:{} -u {RATE}", client.pid()))?;
    let run = scene.run();
    let address = scene.tcp(Version::V4);
    client.tell(&format!("burst {address} count=100 every=20 bytes=400000 run={run}"))?;
    let since = now();
    let share = received(&server, run, since + 1.0, since + 5.0)? / RATE;
    ensure!((0.5..1.5).contains(&share), "the children together get {share:.3} of the limit");
    Ok(())
}

/// The limited process is the server; its listener is opened before or after the limit.
pub fn accepted_connections(scene: &Scene) -> Result<()> {
    let early = scene.lab.client_at(Version::V4, 6000);
    let late = scene.lab.client_at(Version::V6, 6001);
    let mut client = scene.client(&[format!("listen tcp {early}")])?;
    let limit = scene.limit(&format!("pid:{} {}", client.pid(), both_ways(RATE)))?;
    client.tell(&format!("listen tcp {late}"))?;
    for address in [early, late] {
        let (get, put) = (scene.run(), scene.run());
        let mut peer = scene.peer(&[
            format!("connect tcp {address} get run={get}"),
            format!("connect tcp {address} put run={put}"),
        ])?;
        let since = now();
        ensure_held(&peer, get, since, RATE)?;
        ensure_held(&client, put, since, RATE)?;
        peer.tell("close")?;
    }
    limit.end()?;
    // Accepted without a limit, and limited while open.
    let run = scene.run();
    let peer = scene.peer(&[format!("connect tcp {early} get run={run}")])?;
    await_full_speed(&peer, run, now(), 2.0)?;
    let limit = scene.limit(&format!("pid:{} -u {RATE}", client.pid()))?;
    ensure_held(&peer, run, limit.since, RATE)
}

pub fn tree(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let run = scene.run();
    let mut client = scene.client(&[])?;
    client.tell(&format!("fork fork connect tcp {address} put cc=cubic run={run}"))?;
    await_full_speed(&server, run, now(), 2.0)?;
    let limit = scene.limit(&format!("pid:{} -u {RATE}", client.pid()))?;
    sleep_until(limit.since + 0.5)?;
    await_full_speed(&server, run, limit.since + 0.5, 2.0)?;
    limit.end()?;
    let limit = scene.limit(&format!("tree:{} -u {RATE}", client.pid()))?;
    ensure_held(&server, run, limit.since, RATE)
}

/// New connections of a process whose transfers have used up everything.
pub fn connecting_in_debt(scene: &Scene) -> Result<()> {
    let _server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let mut client = scene.client(&[
        format!("connect tcp {address} put flows=4"),
        format!("connect tcp {address} get flows=4"),
    ])?;
    let limit = scene.limit(&format!("pid:{} {}", client.pid(), both_ways(1e6)))?;
    sleep_until(limit.since + 1.0)?;
    let mut times = Vec::new();
    for _ in 0..20 {
        let answer = client.tell(&format!("time-connect {address}"))?;
        times.push(answer["ms"][0].as_f64().unwrap_or(f64::INFINITY));
        sleep_until(now() + 0.1)?;
    }
    times.sort_by(f64::total_cmp);
    // A machine that is busy with something else may make two of them wait for a processor; none waits for the debt,
    // which would be the second after which a SYN is sent again.
    ensure!(times[17] < 50.0 && times[19] < 500.0, "20 connections took {times:.1?} ms");
    Ok(())
}
