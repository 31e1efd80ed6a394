//! Limits on some remote addresses and ports only: what they are about is held, everything beside it is not. The
//! "internet" here are addresses of the documentation ranges on the scene's own cable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use chadthrottle::kernel::netlink::Route;
use libtest_mimic::Trial;

use crate::{support::*, targets::Kin};

/// The limits here, bytes/s.
const LOCAL: f64 = 1.5e6;
const INTERNET: f64 = 3e6;

/// What each transfer tries to reach, and at least reaches where no limit holds it, bytes/s.
const TRIED: f64 = 8e6;
const FREE: f64 = 4e6;

/// Where the peer takes datagrams. What waits in a queue of ours is on its sender's account, as both are on one machine:
/// so each transfer has a socket of its own.
const DATAGRAMS: std::ops::Range<u16> = 5020..5024;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, version) in [("v4", Version::V4), ("v6", Version::V6)] {
        // Where datagrams fill a limit on upload there is no room for those that ask for datagrams.
        for (protocol, ways) in [("tcp", &["put", "get"][..]), ("udp", &["put"]), ("udp", &["get"])] {
            let name = format!("scopes::local_and_internet_at_once_{protocol}_{name}_{}", ways.join("_and_"));
            trials.push(plain(&name, move |scene| at_once(scene, protocol, ways, version)));
        }
    }
    trials.push(plain("scopes::one_socket_for_everybody_udp", |scene| everybody(scene, "udp")));
    trials.push(plain("scopes::one_listener_for_everybody_tcp", |scene| everybody(scene, "tcp")));
    trials.push(plain("scopes::connections_older_than_the_limit", older));
    trials.push(plain("scopes::name_and_remote_and_port", combined));
    trials
        .push(plain("scopes::port_alone", |scene| alone(scene, "port:4990-5000", |far| far.port() == 5000)));
    trials.push(plain("scopes::remote_alone_v4", |scene| {
        alone(scene, "remote:203.0.113.0/24", |far| far.ip() == public(Version::V4, 2))
    }));
    trials.push(plain("scopes::remote_alone_v6", |scene| {
        alone(scene, "remote:[2001:db8:99::]/48", |far| far.ip() == public(Version::V6, 2))
    }));
    trials.push(plain("scopes::another_backend_refuses", refused));
    trials.push(plain("scopes::two_detached_limits_on_the_same_target", detached));
    trials
}

fn public(version: Version, host: u8) -> IpAddr {
    match version {
        Version::V4 => Ipv4Addr::new(203, 0, 113, host).into(),
        Version::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, host.into()).into(),
    }
}

/// Gives both ends of the cable public addresses beside their private ones.
fn go_public(scene: &Scene) -> Result<()> {
    for (namespace, device, host) in [(&scene.lab.client, "chadt-c", 1), (&scene.lab.server, "chadt-s", 2)] {
        let mut route = Route::open_in(namespace)?;
        let index = route.index(device)?;
        route.add_address(index, public(Version::V4, host), 24)?;
        route.add_address(index, public(Version::V6, host), 64)?;
    }
    Ok(())
}

/// The far ends, of both scopes.
fn far_ends(scene: &Scene, version: Version, port: u16) -> [SocketAddr; 2] {
    [scene.lab.server_at(version, port), SocketAddr::new(public(version, 2), port)]
}

/// A process in the other namespace that serves TCP and UDP at all its addresses.
fn server(scene: &Scene) -> Result<Traffic> {
    let udp = DATAGRAMS.map(|port| ("udp", port));
    let ports = [("tcp", 5000), ("tcp", 5010)].into_iter().chain(udp);
    scene.peer(&ports.map(|(protocol, port)| format!("listen {protocol} [::]:{port}")).collect::<Vec<_>>())
}

fn transfer(protocol: &str, to: SocketAddr, way: &str, run: u64) -> String {
    match protocol {
        "tcp" => format!("connect tcp {to} {way} cc=reno rate={TRIED} run={run}"),
        _ => format!("udp {to} {way} rate={TRIED} run={run}"),
    }
}

fn rate(receiver: &Traffic, run: u64, since: f64) -> Result<f64> {
    received(receiver, run, since + 1.5, since + 4.5)
}

fn ensure_shares(what: &str, rate: f64, limit: f64) -> Result<()> {
    let share = rate / limit;
    ensure!((0.5..1.15).contains(&share), "{what} gets {share:.3} of its limit");
    Ok(())
}

fn ensure_free(what: &str, rate: f64) -> Result<()> {
    ensure!(rate > FREE, "{what} moves only {rate:.0} bytes/s, without a limit");
    Ok(())
}

/// Two limits on one process, one for each scope, and another process beside it that has none.
fn at_once(scene: &Scene, protocol: &str, ways: &[&'static str], version: Version) -> Result<()> {
    go_public(scene)?;
    let server = server(scene)?;
    let mut ports = DATAGRAMS;
    let mut port = || if protocol == "tcp" { 5000 } else { ports.next().expect("a port for each") };
    let [local, internet] = far_ends(scene, version, 0);
    let mut client = scene.client(&[])?;
    let mut stranger = scene.client(&[])?;
    let pid = client.pid();
    for (scope, rate) in [("local", LOCAL), ("internet", INTERNET)] {
        let line = format!("limit {pid} --scope {scope} -u {rate} -d {rate} --detach");
        scene.succeed(&line)?;
    }
    let mut held = Vec::new();
    let mut free = Vec::new();
    for (scope, to, limit) in [("local", local, LOCAL), ("internet", internet, INTERNET)] {
        for &way in ways {
            let (run, beside) = (scene.run(), scene.run());
            let mut to = || SocketAddr::new(to.ip(), port());
            client.tell(&transfer(protocol, to(), way, run))?;
            held.push((format!("{scope} {way}"), way, run, limit));
            // One each way and scope would be more than a busy machine moves.
            if ways.len() == 1 || (way == "put") == (scope == "local") {
                stranger.tell(&transfer(protocol, to(), way, beside))?;
                free.push((format!("{scope} {way} of another"), way, beside));
            }
        }
    }
    let since = now();
    let receiver = |way, own| if way == "put" { &server } else { own };
    for (what, way, run, limit) in held {
        ensure_shares(&what, rate(receiver(way, &client), run, since)?, limit)?;
    }
    for (what, way, run) in free {
        ensure_free(&what, rate(receiver(way, &stranger), run, since)?)?;
    }
    for limit in scene.status()?.limits {
        ensure!(limit.escapes.is_empty(), "{:?}", limit.escapes);
    }
    scene.succeed("clear").map(drop)
}

/// The limited process serves IPv4 and IPv6, neighbours and the internet, with one socket. Only what goes to the
/// internet is limited.
fn everybody(scene: &Scene, protocol: &str) -> Result<()> {
    go_public(scene)?;
    let port = 6000;
    let client = scene.client(&[format!("listen {protocol} [::]:{port}")])?;
    let limit = scene.limit(&format!("{} --scope internet -u {INTERNET} -d {INTERNET}", client.pid()))?;
    let mut peer = scene.peer(&[])?;
    let (mut held, mut free) = (Vec::new(), Vec::new());
    for version in [Version::V4, Version::V6] {
        for (to, runs) in [
            (scene.lab.client_at(version, port), &mut free),
            (SocketAddr::new(public(version, 1), port), &mut held),
        ] {
            let way = if version == Version::V4 { "get" } else { "put" };
            let run = scene.run();
            peer.tell(&transfer(protocol, to, way, run))?;
            runs.push((to, way, run));
        }
    }
    let since = now();
    let receiver = |way| if way == "get" { &peer } else { &client };
    for (to, way, run) in held {
        ensure_shares(&to.to_string(), rate(receiver(way), run, since)?, INTERNET)?;
    }
    for (to, way, run) in free {
        ensure_free(&to.to_string(), rate(receiver(way), run, since)?)?;
    }
    limit.end().map(drop)
}

/// Only the connections that a limit is about are paced, and held, from the start.
fn older(scene: &Scene) -> Result<()> {
    go_public(scene)?;
    let server = server(scene)?;
    let [local, internet] = far_ends(scene, Version::V4, 5000);
    let (near, far) = (scene.run(), scene.run());
    let client =
        scene.client(&[transfer("tcp", local, "put", near), transfer("tcp", internet, "put", far)])?;
    sleep_until(now() + 0.5)?;
    let limit = scene.limit(&format!("{} --scope local -u {LOCAL}", client.pid()))?;
    ensure_shares("local", rate(&server, near, limit.since)?, LOCAL)?;
    ensure_free("internet", rate(&server, far, limit.since)?)?;
    limit.end().map(drop)
}

/// Only what fits all three.
fn combined(scene: &Scene) -> Result<()> {
    go_public(scene)?;
    let server = server(scene)?;
    let (kin, other) = (Kin::copy("chadt-trial")?, Kin::copy("chadt-other")?);
    let mut client = kin.start(scene, None, &[])?;
    let mut stranger = other.start(scene, None, &[])?;
    let limit =
        scene.limit(&format!("name:chadt-trial remote:203.0.113.0/24 port:80 port:5000 -u {LOCAL}"))?;
    let [local, internet] = far_ends(scene, Version::V4, 5000);
    let other_port = SocketAddr::new(internet.ip(), 5010);
    let (held, address, port, name) = (scene.run(), scene.run(), scene.run(), scene.run());
    for (run, to) in [(held, internet), (address, local), (port, other_port)] {
        client.tell(&transfer("tcp", to, "put", run))?;
    }
    stranger.tell(&transfer("tcp", internet, "put", name))?;
    let since = now();
    ensure_shares("what fits", rate(&server, held, since)?, LOCAL)?;
    for (what, run) in [("another address", address), ("another port", port), ("another name", name)] {
        ensure_free(what, rate(&server, run, since)?)?;
    }
    let shown = scene.succeed("status")?;
    ensure!(shown.contains("name:chadt-trial remote:203.0.113.0/24 port:80 port:5000"), "{shown}");
    limit.end().map(drop)
}

/// A limit without a process is one on all of them together: on connections that are open already, later ones, and
/// those of a process that starts later.
fn alone(scene: &Scene, target: &str, holds: impl Fn(SocketAddr) -> bool) -> Result<()> {
    go_public(scene)?;
    let server = server(scene)?;
    let version = if target.contains('[') { Version::V6 } else { Version::V4 };
    let mut ends = far_ends(scene, version, 5000).to_vec();
    ends.push(SocketAddr::new(public(version, 2), 5010));
    ends.push(scene.lab.server_at(version, 5010));
    let (mut held, mut free) = (Vec::new(), Vec::new());
    let mut put = |to: &SocketAddr| {
        let run = scene.run();
        if holds(*to) {
            held.push(run)
        } else {
            free.push((*to, run))
        };
        transfer("tcp", *to, "put", run)
    };
    let mut first = scene.client(&[put(&ends[0]), put(&ends[1])])?;
    let limit = scene.limit(&format!("{target} -u {LOCAL}"))?;
    first.tell(&put(&ends[2]))?;
    let _second = scene.client(&[put(&ends[1]), put(&ends[3])])?;
    let since = now();
    let mut all = 0.0;
    for run in held {
        all += rate(&server, run, since)?;
    }
    ensure_shares("all that it is about", all, LOCAL)?;
    for (to, run) in free {
        ensure_free(&to.to_string(), rate(&server, run, since)?)?;
    }
    limit.end().map(drop)
}

/// A backend that can't tell the packets apart says so, instead of holding all of them.
fn refused(scene: &Scene) -> Result<()> {
    let client = scene.client(&[])?;
    for narrowing in ["--scope local", "port:443", "remote:10.0.0.0/8"] {
        let line = format!("limit {} {narrowing} -u 1M --upload-backend nftables", client.pid());
        let (status, output) = scene.call(&line)?;
        let said = output.messages();
        ensure!(
            status.code() == Some(5) && said.contains("remote addresses or ports"),
            "{line} ended with {status}: {said}"
        );
    }
    Ok(())
}

/// The second is no change of the first.
fn detached(scene: &Scene) -> Result<()> {
    let client = scene.client(&[])?;
    for scope in ["local", "internet", "local"] {
        scene.succeed(&format!("limit {} --scope {scope} -u 1M --detach", client.pid()))?;
    }
    let shown = scene.succeed("status")?;
    let subject = |scope: &str| format!("pid:{} --scope {scope}", client.pid());
    ensure!(shown.contains(&subject("local")) && shown.contains(&subject("internet")), "{shown}");
    let json = scene.succeed("status --json")?;
    ensure!(json.contains("\"scope\":\"local\"") || json.contains("\"scope\": \"local\""), "{json}");
    ensure!(scene.status()?.limits.len() == 2, "{shown}");
    scene.succeed(&format!("clear {}", client.pid()))?;
    ensure!(scene.call("status")?.0.success(), "status");
    Ok(())
}
