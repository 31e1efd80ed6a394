//! Every byte to its process: what `monitor` says against what a packet socket saw.

use std::collections::{BTreeMap, BTreeSet};

use chadthrottle::{
    kernel::netns::Namespace,
    selftest::{
        cgroup::Cgroup,
        process::{Place, Process},
    },
};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    actor::{self, Lines},
    exact,
    support::{
        sniff::{Ports, Sniffer, Wire},
        *,
    },
};

/// The largest error, of what the truth is.
const ERROR: f64 = 0.001;
const PORT: u16 = 7100;
const MEGABYTE: u64 = 1_000_000;

pub fn trials() -> Vec<Trial> {
    let put = |name: &str, how: &'static str, version, count: u64, bytes: u64| {
        trial(name, move |scene| one(scene, &[how], version, count, bytes))
    };
    vec![
        put("monitor::long_tcp", "tcp", Version::V4, 1, 200 * MEGABYTE),
        put("monitor::ipv6", "tcp", Version::V6, 1, 200 * MEGABYTE),
        put("monitor::udp_connected", "udp", Version::V4, 1, 20 * MEGABYTE),
        put("monitor::udp_unconnected", "udp-to", Version::V6, 1, 20 * MEGABYTE),
        put("monitor::sendfile", "sendfile", Version::V4, 1, 200 * MEGABYTE),
        put("monitor::mptcp", "mptcp", Version::V4, 4, 50 * MEGABYTE),
        put("monitor::short_connections", "tcp", Version::V4, 1500, 128 * 1024),
        plain("monitor::older_than_the_tool", older),
        plain("monitor::one_shot_processes", one_shot),
        plain("monitor::prefork_workers", prefork),
        plain("monitor::inherited_socket", |scene| handed_on(scene, "inherit")),
        plain("monitor::passed_socket", |scene| handed_on(scene, "pass")),
        plain("monitor::child_cgroup_and_other_namespace", elsewhere),
        plain("monitor::refused_by_a_limit_is_not_counted", limited),
    ]
}

/// A monitor at work, and the truth.
pub struct Watch {
    call: Call,
    sniffer: Sniffer,
}

impl Watch {
    fn start(scene: &Scene) -> Result<Self> {
        Self::start_as(scene, None, &[])
    }

    /// Starts it in a namespace, with variables of the environment.
    pub fn start_as(
        scene: &Scene,
        namespace: Option<&Namespace>,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = scene.command("monitor --json --summary --interval 0.25");
        command.envs(variables.iter().copied());
        let mut call = Call::spawn(command, Place { namespace, cgroup: None })?;
        call.process().wait_for("the first tick", |output| (!output.stdout.is_empty()).then_some(()))?;
        Ok(Self { call, sniffer: Sniffer::new(&scene.lab.client)? })
    }

    /// What both have seen: by process, and by port.
    pub fn finish(self) -> Result<(BTreeMap<u32, Wire>, Ports, Value)> {
        let (rows, ports, summary, _) = self.finish_with_messages()?;
        Ok((rows, ports, summary))
    }

    /// The same, and what it printed beside.
    pub fn finish_with_messages(mut self) -> Result<(BTreeMap<u32, Wire>, Ports, Value, String)> {
        // Last words of connections, and a tick after.
        sleep_until(now() + 1.0)?;
        let ports = self.sniffer.finish()?;
        self.call.process().signal(Signal::SIGINT);
        let (status, output) = self.call.finish()?;
        ensure!(status.success(), "the monitor ended with {status}: {}", output.messages());
        let line = output.stdout.last().map_or("", String::as_str);
        let summary: Value =
            serde_json::from_str(line).map_err(|cause| Error::failed(format!("read '{line}': {cause}")))?;
        ensure!(summary["kind"] == "summary" && summary["source"] == "ebpf", "no summary: {line}");
        let mut rows = BTreeMap::<u32, Wire>::new();
        for process in summary["processes"].as_array().into_iter().flatten() {
            let number = |key: &str| process[key].as_u64().unwrap_or(0);
            *rows.entry(number("pid") as u32).or_default() +=
                Wire { rx: number("rx_bytes"), tx: number("tx_bytes") };
        }
        Ok((rows, ports, summary, output.messages()))
    }
}

/// Pid and port of what an actor says it moved.
pub fn moved(actor: &Process<Lines>) -> Vec<(u32, u16)> {
    let pair = |line: &String| {
        let mut words = line.strip_prefix("moved ")?.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    actor.look(|lines| lines.iter().filter_map(pair).collect())
}

/// What passed the ports of each process.
pub fn truth(moved: &[(u32, u16)], ports: &Ports) -> BTreeMap<u32, Wire> {
    let mut of = BTreeMap::<u32, Wire>::new();
    for (pid, port) in moved.iter().collect::<BTreeSet<_>>() {
        *of.entry(*pid).or_default() += ports.get(port).copied().unwrap_or_default();
    }
    of
}

pub fn ensure_close(what: &str, shown: u64, true_one: u64, slack: u64) -> Result<()> {
    let error = shown.abs_diff(true_one);
    let share = error as f64 / true_one.max(1) as f64;
    eprintln!("{what}: {shown} shown, {true_one} on the wire, error {:.4} %", share * 100.0);
    ensure!(
        error <= slack.max((true_one as f64 * ERROR) as u64),
        "{what}: {shown} bytes are shown, {true_one} were on the wire"
    );
    Ok(())
}

/// Each process within the error, what it sent and what it received, and nothing for the row `other`.
/// Acknowledgements are few bytes: a packet or two a connection may come when its socket is gone.
fn ensure_exact(rows: &BTreeMap<u32, Wire>, truth: &BTreeMap<u32, Wire>, connections: u64) -> Result<()> {
    let (mut shown, mut all) = (Wire::default(), Wire::default());
    let slack = 120 * connections;
    for (pid, wire) in truth {
        let row = rows.get(pid).copied().unwrap_or_default();
        shown += row;
        all += *wire;
        if truth.len() <= 8 {
            ensure_close(&format!("{pid} sent"), row.tx, wire.tx, 0)?;
            ensure_close(&format!("{pid} received"), row.rx, wire.rx, slack)?;
        } else {
            let (off, most) = (row.tx.abs_diff(wire.tx), (wire.tx as f64 * ERROR) as u64);
            ensure!(off <= most, "{pid} sent {} bytes, {} are shown", wire.tx, row.tx);
        }
    }
    ensure_close("all sent", shown.tx, all.tx, 0)?;
    ensure_close("all received", shown.rx, all.rx, slack)?;
    let nobody = rows.get(&0).copied().unwrap_or_default();
    ensure!(nobody == Wire::default(), "of no process: {nobody:?}");
    Ok(())
}

/// A process that uploads.
fn one(scene: &Scene, how: &[&str], version: Version, count: u64, bytes: u64) -> Result<Finding> {
    let address = scene.lab.server_at(version, PORT);
    if how == ["mptcp"] {
        if std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_err() {
            return Ok(Finding::Skipped("this kernel has no multipath TCP".into()));
        }
        exact::mptcp_sink(&scene.lab.server, address)?;
    } else {
        exact::sink(&scene.lab.server, address)?;
    }
    let (count_word, bytes_word) = (count.to_string(), bytes.to_string());
    let words = ["put", how[0], &address.to_string(), &count_word, &bytes_word];
    let mut actor = actor::start(scene, &words)?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start(scene)?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, ports, _) = watch.finish()?;
    let truth = truth(&moved(&actor), &ports);
    ensure!(truth.values().any(|wire| wire.tx >= bytes * count / 100 * 99), "too little was sent: {truth:?}");
    ensure_exact(&rows, &truth, count)?;
    Ok(Finding::Holds)
}

fn older(scene: &Scene) -> Result<()> {
    let address = scene.lab.server_at(Version::V4, PORT);
    exact::sink(&scene.lab.server, address)?;
    let mut actor = actor::start(scene, &["old", &address.to_string(), "50000000"])?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start(scene)?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, ports, _) = watch.finish()?;
    ensure_exact(&rows, &truth(&moved(&actor), &ports), 1)
}

/// Most live for less than a tick.
fn one_shot(scene: &Scene) -> Result<()> {
    let address = scene.lab.server_at(Version::V4, PORT);
    exact::sink(&scene.lab.server, address)?;
    let mut actor = actor::start(scene, &["one-shot", &address.to_string(), "500", "131072"])?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start(scene)?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, ports, summary) = watch.finish()?;
    let truth = truth(&moved(&actor), &ports);
    ensure!(truth.len() == 500, "{} processes moved something", truth.len());
    ensure_exact(&rows, &truth, 500)?;
    let named = summary["processes"].as_array().into_iter().flatten().filter(|process| {
        truth.contains_key(&(process["pid"].as_u64().unwrap_or(0) as u32))
            && process["name"].as_str().is_some_and(|name| !name.is_empty())
            // The machines of other kernels have no list of users.
            && (process["user"] == "root" || process["user"] == "0")
    });
    ensure!(named.count() == 500, "not all have a name and a user");
    Ok(())
}

fn prefork(scene: &Scene) -> Result<()> {
    let address = scene.lab.client_at(Version::V4, PORT);
    let actor = actor::start(scene, &["prefork", &address.to_string(), "4", "200", "1000000"])?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start(scene)?;
    // Here the truth goes by the fetchers' ports.
    let sniffer = Sniffer::new(&scene.lab.server)?;
    exact::fetch(&scene.lab.server, address, 200)?;
    actor::await_line(&actor, "done")?;
    let (rows, _, _) = watch.finish()?;
    let swapped = |wire: Wire| Wire { rx: wire.tx, tx: wire.rx };
    let ports = sniffer.finish()?.into_iter().map(|(port, wire)| (port, swapped(wire))).collect();
    let truth = truth(&moved(&actor), &ports);
    ensure!(truth.len() == 4, "{} workers sent", truth.len());
    // The parent owns the listener: first packets of each connection are its own.
    let mut rows = rows;
    let parent = rows.remove(&actor.pid()).unwrap_or_default();
    ensure!(parent.tx < 200 * 200 && parent.rx < 200 * 300, "for the parent: {parent:?}");
    for (pid, wire) in &truth {
        ensure_close(&format!("worker {pid} sent"), rows.get(pid).map_or(0, |row| row.tx), wire.tx, 0)?;
    }
    Ok(())
}

/// A connection changes hands.
fn handed_on(scene: &Scene, how: &str) -> Result<()> {
    const BYTES: u64 = 50 * MEGABYTE;
    let address = scene.lab.server_at(Version::V4, PORT);
    exact::sink(&scene.lab.server, address)?;
    let mut actor = actor::start(scene, &[how, &address.to_string(), &BYTES.to_string()])?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start(scene)?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, ports, _) = watch.finish()?;
    let moved = moved(&actor);
    ensure!(moved.len() == 2 && moved[0].0 != moved[1].0, "who moved what: {moved:?}");
    let wire = ports.get(&moved[0].1).copied().unwrap_or_default();
    let sent = |pid| rows.get(&pid).map_or(0, |row| row.tx);
    let (first, second) = (sent(moved[0].0), sent(moved[1].0));
    ensure_close("both sent", first + second, wire.tx, 0)?;
    // One and three quarters of the payload. What TCP sent again of it falls to either, so the packets of each are
    // not known better than this.
    for (who, sent, parts) in [("first", first, 1), ("second", second, 3)] {
        let share = sent as f64 / (wire.tx / 4 * parts) as f64;
        ensure!((0.96..1.04).contains(&share), "the {who} sent {share:.4} of what it should have");
    }
    Ok(())
}

/// A process in a cgroup below, whose socket is in yet another network namespace.
fn elsewhere(scene: &Scene) -> Result<()> {
    let child = Cgroup::new(scene.cgroup().path(), &format!("chadt-below-{}", std::process::id()))?;
    let address = scene.lab.server_at(Version::V4, PORT);
    exact::sink(&scene.lab.server, address)?;
    let place = Place { namespace: Some(&scene.lab.client), cgroup: Some(&child) };
    let words = ["put", "tcp", &address.to_string(), "1", "100000000"];
    let mut actor = actor::spawn(actor::command(&words)?, place)?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start(scene)?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, ports, summary) = watch.finish()?;
    ensure_exact(&rows, &truth(&moved(&actor), &ports), 1)?;
    let process =
        summary["processes"].as_array().into_iter().flatten().find(|each| each["pid"] == actor.pid());
    let cgroup = process.and_then(|process| process["cgroup"].as_str()).unwrap_or_default();
    ensure!(cgroup.contains("/chadt-below-"), "its cgroup is shown as '{cgroup}'");
    Ok(())
}

/// What a limit refuses to send was not sent.
fn limited(scene: &Scene) -> Result<()> {
    let address = scene.lab.server_at(Version::V4, PORT);
    exact::sink(&scene.lab.server, address)?;
    let mut actor = actor::start(scene, &["put", "udp", &address.to_string(), "1", "20000000"])?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start(scene)?;
    let _limit = scene.limit(&format!("pid:{} -u 1M", actor.pid()))?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, ports, _) = watch.finish()?;
    let truth = truth(&moved(&actor), &ports);
    let sent: u64 = truth.values().map(|wire| wire.tx).sum();
    ensure!(sent < 15 * MEGABYTE, "the limit refused nothing: {sent} bytes were sent");
    ensure_exact(&rows, &truth, 1)
}
