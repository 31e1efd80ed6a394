//! The live check: what gets past a limit while it runs is seen, said, and where possible mended.

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
};

use chadthrottle::{
    kernel::bpf::CgroupHook,
    model::EscapeKind,
    selftest::process::{Place, Process},
};
use libtest_mimic::Trial;

use crate::{
    actor::{self, Lines, Sink},
    kernels, raw,
    support::*,
};

/// The limits here, bytes/s.
const RATE: f64 = 2e6;

/// Within so many seconds an escape is told of.
pub const PROMISE: f64 = 5.0;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("live::a_socket_from_somebody_else", socket_from_somebody_else),
        plain("live::a_socket_from_outside_the_cgroup", socket_from_outside),
        plain("live::detached_links", detached_links),
        plain("live::foreign_program", foreign_program),
        plain("live::no_false_alarm_about_transfers", quiet_transfers),
        plain("live::no_false_alarm_about_servers", quiet_servers),
        plain("live::soon_in_force", soon_in_force),
    ]
}

/// Fails unless `status` and the command itself tell of such an escape in time.
fn ensure_told(
    scene: &Scene,
    limit: &mut Limit,
    target: &str,
    kind: EscapeKind,
    since: f64,
) -> Result<String> {
    loop {
        let escapes = scene.report(target)?.escapes;
        let told = escapes.iter().find(|escape| escape.kind == kind).map(|escape| escape.message.clone());
        if let Some(message) = told
            && limit.call.process().look(|said| said.messages().contains(&message))
        {
            return Ok(message);
        }
        ensure!(now() < since + PROMISE, "{kind:?} is not told of within {PROMISE} s, only {escapes:?}");
        sleep_until(now() + 0.1)?;
    }
}

/// An actor that waits for a connection, and the other end of its socket.
fn taker(scene: &Scene) -> Result<(Process<Lines>, OwnedFd)> {
    let (ours, theirs) =
        UnixStream::pair().map_err(|cause| Error::failed(format!("make a socket pair: {cause}")))?;
    let number = theirs.as_raw_fd();
    let mut command = actor::command(&["take", &number.to_string()])?;
    inherit(&mut command, number);
    let place = Place { namespace: Some(&scene.lab.client), cgroup: Some(scene.cgroup()) };
    let taker = actor::spawn(command, place)?;
    actor::await_line(&taker, "waiting")?;
    Ok((taker, ours.into()))
}

fn inherit(command: &mut std::process::Command, descriptor: i32) {
    // SAFETY: the closure only makes a system call.
    unsafe {
        command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
}

/// A process at `place` with an open connection, which it will pass on, and one that waits for it.
pub fn giver_and_taker(
    scene: &Scene,
    sink: &Sink,
    place: Place<'_>,
) -> Result<(Process<Lines>, Process<Lines>)> {
    let (taker, socket) = taker(scene)?;
    let number = socket.as_raw_fd();
    let mut command = actor::command(&["give", &sink.address(), &number.to_string()])?;
    inherit(&mut command, number);
    let giver = actor::spawn(command, place)?;
    actor::await_line(&giver, "connected")?;
    Ok((giver, taker))
}

/// An open connection of a process at `place`, which passes it on to a limited one.
fn passed_on(scene: &Scene, sink: &Sink, place: Place<'_>, kind: EscapeKind) -> Result<()> {
    let (mut giver, taker) = giver_and_taker(scene, sink, place)?;
    let target = format!("pid:{}", taker.pid());
    let mut limit = scene.limit(&format!("{target} -u {RATE}"))?;
    sleep_until(limit.since + 2.5)?;
    actor::go_on(&mut giver)?;
    actor::await_line(&taker, "taken")?;
    let since = now();
    let message = ensure_told(scene, &mut limit, &target, kind, since)?;
    eprintln!("after {:.1} s: {message}", now() - since);
    if kind == EscapeKind::UntaggedSocket {
        sleep_until(now() + 0.5)?;
        let share = sink.rate(3.0)? / RATE;
        ensure!((0.5..1.5).contains(&share), "the connection gets {share:.3} of the limit");
    }
    limit.end().map(drop)
}

fn socket_from_somebody_else(scene: &Scene) -> Result<()> {
    let sink = Sink::new(scene)?;
    let place = Place { namespace: Some(&scene.lab.client), cgroup: Some(scene.cgroup()) };
    passed_on(scene, &sink, place, EscapeKind::UntaggedSocket)
}

/// Born where the programs are not attached: no packet of it passes the hook, which nothing can mend.
fn socket_from_outside(scene: &Scene) -> Result<()> {
    let sink = Sink::new(scene)?;
    let place = Place { namespace: Some(&scene.lab.client), cgroup: None };
    passed_on(scene, &sink, place, EscapeKind::Bypass)
}

/// Somebody detaches all our programs from the cgroup.
fn detached_links(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let (get, put, new) = (scene.run(), scene.run(), scene.run());
    let mut client = scene.client(&[
        format!("connect tcp {address} get run={get}"),
        format!("connect tcp {address} put run={put}"),
    ])?;
    let target = format!("pid:{}", client.pid());
    let mut limit = scene.limit(&format!("{target} -u {RATE} -d {RATE}"))?;
    ensure_held(&server, put, limit.since, RATE)?;
    let links = raw::cgroup_links(scene.owner()?.as_raw())?;
    ensure!(links.len() == 4, "the owner holds {} links to cgroups", links.len());
    let since = now();
    for link in links {
        raw::detach(link)?;
    }
    // Opened while nobody looked.
    client.tell(&format!("connect tcp {address} put run={new}"))?;
    let message = ensure_told(scene, &mut limit, &target, EscapeKind::DeadLink, since)?;
    eprintln!("after {:.1} s: {message}", now() - since);
    let since = now() + 1.0;
    ensure_held(&client, get, since, RATE)?;
    let both =
        received(&server, put, since + 1.0, since + 4.0)? + received(&server, new, since + 1.0, since + 4.0)?;
    ensure!((0.5..1.5).contains(&(both / RATE)), "upload gets {:.3} of the limit", both / RATE);
    limit.end().map(drop)
}

fn foreign_program(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let run = scene.run();
    let client = scene.client(&[format!("connect tcp {} put run={run}", scene.tcp(Version::V4))])?;
    let target = format!("pid:{}", client.pid());
    for hook in [CgroupHook::Egress, CgroupHook::Ingress] {
        let mut limit = scene.limit(&format!("{target} -u {RATE} -d {RATE}"))?;
        sleep_until(limit.since + 1.5)?;
        let escapes = scene.report(&target)?.escapes;
        ensure!(escapes.is_empty(), "before there is one: {escapes:?}");
        let since = now();
        let foreign = raw::attach_foreign(scene.cgroup().path(), hook)?;
        let message = ensure_told(scene, &mut limit, &target, EscapeKind::ForeignProgram, since)?;
        eprintln!("{hook:?}: after {:.1} s: {message}", now() - since);
        // Beside it the limit holds.
        ensure_held(&server, run, now(), RATE)?;
        limit.end()?;
        drop(foreign);
    }
    Ok(())
}

/// Fails if anything is told of a limit within ten seconds.
fn ensure_quiet(scene: &Scene, limit: Limit, target: &str) -> Result<()> {
    while now() < limit.since + 10.0 {
        // Attaches the same programs once more, for a moment.
        scene.succeed("--list-backends")?;
        let escapes = scene.report(target)?.escapes;
        ensure!(escapes.is_empty(), "{target}: {escapes:?}");
        sleep_until(now() + 0.5)?;
    }
    let mut limit = limit;
    let lines = limit.call.process().look(|said| said.stderr.len());
    ensure!(
        lines == 1,
        "the command says more than 'limited …': {}",
        limit.call.process().look(|said| said.messages())
    );
    limit.end().map(drop)
}

fn quiet_transfers(scene: &Scene) -> Result<()> {
    let _server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let udp = scene.udp(Version::V4);
    for rate in ["5M", "100M"] {
        let client = scene.client(&[
            format!("connect tcp {address} get flows=8"),
            format!("connect tcp {address} put flows=8"),
            format!("udp {udp} put rate=1000000"),
        ])?;
        sleep_until(now() + 0.5)?;
        let target = format!("pid:{}", client.pid());
        let limit = scene.limit(&format!("{target} -u {rate} -d {rate}"))?;
        ensure_quiet(scene, limit, &target)?;
    }
    Ok(())
}

/// The time until a limit is in force is mostly the verifier's, and that goes with the instructions it looks at: a
/// million it refuses, a hundred thousand take a fifth of a second.
fn soon_in_force(scene: &Scene) -> Result<()> {
    let _server = scene.server()?;
    let client = scene.client(&[format!("connect tcp {} get", scene.tcp(Version::V4))])?;
    let limit = scene.limit(&format!("pid:{} -u 1M -d 1M", client.pid()))?;
    let mut looked_at = Vec::new();
    let figures = fs::read_dir(format!("/proc/{}/fdinfo", scene.owner()?));
    for entry in figures.map_err(|error| Error::failed(format!("the owner's files: {error}")))? {
        // One that was closed meanwhile is no program.
        let text = entry.and_then(|entry| fs::read_to_string(entry.path())).unwrap_or_default();
        let figure = text.lines().find_map(|line| line.strip_prefix("verified_insns:"));
        looked_at.extend(figure.and_then(|figure| figure.trim().parse::<u32>().ok()));
    }
    looked_at.sort_unstable();
    eprintln!("instructions looked at, by program: {looked_at:?}");
    // Older verifiers see less that is the same.
    let bound = if kernels::version()? < (6, 12) { 250_000 } else { 150_000 };
    // Linux 5.16 and later tell.
    ensure!(looked_at.last().is_none_or(|&most| most < bound), "{looked_at:?}");
    limit.end().map(drop)
}

/// Workers that share a listener: all of them limited, and one of them.
fn quiet_servers(scene: &Scene) -> Result<()> {
    let address = scene.lab.client_at(Version::V4, 6000);
    let mut server = scene.client(&[format!("listen tcp {address}")])?;
    server.tell("prefork 4")?;
    let workers: Vec<u64> = (0..4)
        .map(|_| Ok(server.await_event("forked")?["pid"].as_u64().unwrap_or(0)))
        .collect::<Result<_>>()?;
    let transfers =
        [format!("connect tcp {address} get flows=8"), format!("connect tcp {address} put flows=8")];
    for target in [format!("tree:{}", server.pid()), format!("pid:{}", workers[0])] {
        let mut peer = scene.peer(&transfers)?;
        let limit = scene.limit(&format!("{target} -u {RATE} -d {RATE}"))?;
        // And some that come later, and leave.
        for transfer in &transfers {
            peer.tell(transfer)?;
        }
        peer.tell(&format!("time-connect {address} count=20"))?;
        ensure_quiet(scene, limit, &target)?;
    }
    Ok(())
}
