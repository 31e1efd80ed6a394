//! What a user has set up with tc(8) and nft(8), and has pinned of eBPF, stays as it is, whichever backend holds limits beside it.

use std::process::Command;

use chadthrottle::kernel::{netlink::Route, netns::Namespace, tc::Tc};
use libtest_mimic::Trial;

use crate::{kernels, support::*};

pub fn trials() -> Vec<Trial> {
    let beside = |upload, download| move |scene: &Scene| stays(scene, upload, download, INGRESS);
    let mut trials = vec![
        trial("foreign::stays_beside_ebpf", beside("ebpf", "ebpf")),
        trial("foreign::stays_beside_nftables", beside("nftables", "nftables")),
        trial("foreign::stays_beside_htb", beside("tc_htb", "ifb_tc")),
        trial("foreign::an_exclusive_program_is_a_reason", exclusive),
        trial("foreign::a_root_qdisc_is_a_reason", |scene| is_a_reason(scene, "tc_htb", ROOT)),
        trial("foreign::a_tree_that_is_removed_is_made_again", removed),
        trial("foreign::an_ifb_in_trouble_is_mended", ifb_in_trouble),
    ];
    if kernels::may_have_police() {
        let police = |scene: &Scene| stays(scene, "tc_police", "tc_police", CLSACT);
        trials.push(trial("foreign::stays_beside_police", police));
        let reason = |scene: &Scene| is_a_reason(scene, "tc_police", INGRESS);
        trials.push(trial("foreign::an_ingress_qdisc_is_a_reason_for_police", reason));
    }
    trials
}

/// The limits here, bytes/s.
const RATE: f64 = 1e6;

/// What the user did, on two devices of theirs (not in use, which would be a reason against `tc_htb`).
const SETUP: &[&str] = &[
    "tc qdisc add dev theirs-1 root handle 1: htb default 20",
    "tc class add dev theirs-1 parent 1: classid 1:20 htb rate 3mbit",
    "tc filter add dev theirs-1 parent 1: protocol ip prio 5 u32 match ip dport 99 0xffff flowid 1:20",
    "tc qdisc add dev theirs-2 root tbf rate 8mbit burst 32k latency 100ms",
    "nft add table inet theirs",
    "nft add chain inet theirs out { type filter hook output priority 0 ; }",
    "nft add rule inet theirs out tcp dport 97 counter drop",
];

const DUMPS: &[&str] = &[
    "tc -d qdisc show dev theirs-1",
    "tc -d class show dev theirs-1",
    "tc -d filter show dev theirs-1",
    "tc -d qdisc show dev theirs-2",
    "nft list table inet theirs",
];

/// What the user did on the device over which the limited process talks, what shows it, and what ends it.
struct AtTheDevice {
    set_up: &'static [&'static str],
    dumps: &'static [&'static str],
    end: &'static str,
    /// What a backend that has no place beside it says.
    reason: &'static str,
}

const ROOT: AtTheDevice = AtTheDevice {
    set_up: &["tc qdisc add dev chadt-c root handle 7: tbf rate 800mbit burst 128k latency 100ms"],
    dumps: &["tc -d qdisc show dev chadt-c root"],
    end: "tc qdisc del dev chadt-c root",
    reason: "chadt-c has a root qdisc of somebody else (tbf 7:)",
};

const INGRESS: AtTheDevice = AtTheDevice {
    set_up: &[
        "tc qdisc add dev chadt-c ingress",
        "tc filter add dev chadt-c ingress protocol ip prio 7 u32 match ip dport 98 0xffff flowid :1",
    ],
    dumps: &["tc -d qdisc show dev chadt-c ingress", "tc -d filter show dev chadt-c ingress pref 7"],
    end: "tc qdisc del dev chadt-c ingress",
    reason: "chadt-c has an ingress qdisc of somebody else",
};

/// `tc_police` needs this one at a device it sends from.
const CLSACT: AtTheDevice = AtTheDevice {
    set_up: &[
        "tc qdisc add dev chadt-c clsact",
        "tc filter add dev chadt-c egress protocol ip prio 7 u32 match ip dport 98 0xffff flowid :1",
    ],
    dumps: &["tc -d qdisc show dev chadt-c clsact", "tc -d filter show dev chadt-c egress pref 7"],
    end: "tc qdisc del dev chadt-c clsact",
    reason: "",
};

/// Runs a command of the user's in a namespace; what it printed. `None`: there is no such command.
pub fn run(namespace: &Namespace, line: &str) -> Result<Option<String>> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    match namespace.contain(&mut command)?.output() {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::failed(format!("{line}: {cause}"))),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "{line}: {said}");
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
    }
}

fn dump(scene: &Scene, more: &[&str]) -> Result<Vec<String>> {
    let lines = DUMPS.iter().chain(more);
    let dumps: Result<Option<Vec<_>>> = lines.map(|line| run(&scene.lab.client, line)).collect();
    dumps?.ok_or_else(|| Error::failed("tc or nft is gone"))
}

/// Devices of the user's; whether tc and nft are there to use them.
fn set_up(scene: &Scene, lines: &[&str]) -> Result<bool> {
    Route::open_in(&scene.lab.client)?.add_veth("theirs-1", "theirs-2", &scene.lab.client)?;
    for line in lines {
        if run(&scene.lab.client, line)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn stays(
    scene: &Scene,
    upload: &'static str,
    download: &'static str,
    device: AtTheDevice,
) -> Result<Finding> {
    if !set_up(scene, &[SETUP, device.set_up].concat())? {
        return Ok(Finding::Skipped("tc or nft is not installed".into()));
    }
    scene.use_backends(upload, download);
    let pins = Pins::new(scene.cgroup().path())?;
    let look = || -> Result<Vec<String>> {
        let mut dumps = dump(scene, device.dumps)?;
        dumps.push(pins.dump()?);
        Ok(dumps)
    };
    let before = look()?;
    ensure!(before.iter().all(|text| !text.trim().is_empty()), "empty: {before:?}");
    let pair = Pair::new(scene)?;
    let limit = scene.limit(&pair.limit(RATE))?;
    pair.ensure_held(limit.since, RATE)?;
    let during = look()?;
    ensure!(during == before, "during the limit: {during:#?} instead of {before:#?}");
    let counted = pins.packets()?;
    let ended = limit.end()?;
    pair.ensure_free(ended, 1.0)?;
    scene.await_no_helpers(5.0)?;
    let after = look()?;
    ensure!(after == before, "after the limit: {after:#?} instead of {before:#?}");
    let goes_on = pins.packets()? > counted && counted > 0;
    ensure!(goes_on, "the user's program counted {counted} packets and no more");
    for line in [device.end, "nft delete table inet theirs", "ip link del theirs-1"] {
        run(&scene.lab.client, line)?;
    }
    Ok(Finding::Holds)
}

/// Where somebody has what stands in a backend's place, another backend takes the limit, or nobody.
fn is_a_reason(scene: &Scene, backend: &str, device: AtTheDevice) -> Result<Finding> {
    if !set_up(scene, device.set_up)? {
        return Ok(Finding::Skipped("tc is not installed".into()));
    }
    let look = || {
        let dumps = device.dumps.iter().map(|line| run(&scene.lab.client, line));
        dumps.collect::<Result<Vec<_>>>()
    };
    let before = look()?;
    let server = scene.server()?;
    let transfer = scene.run();
    let client = scene.client(&[format!("connect tcp {} put run={transfer}", scene.tcp(Version::V4))])?;
    let (status, output) =
        scene.call(&format!("limit pid:{} -u 1M --upload-backend {backend}", client.pid()))?;
    let said = output.messages();
    let told = said.contains(device.reason);
    ensure!(status.code() == Some(5) && told, "{status}: {said}");
    let limit = scene.limit(&format!("pid:{} -u 1M", client.pid()))?;
    ensure_held(&server, transfer, limit.since, RATE)?;
    limit.end()?;
    scene.await_no_helpers(5.0)?;
    let after = look()?;
    ensure!(after == before, "{after:?} instead of {before:?}");
    for line in [device.end, "ip link del theirs-1"] {
        run(&scene.lab.client, line)?;
    }
    Ok(Finding::Holds)
}

/// Where a program admits no other, eBPF can't be had, and what is asked for without a name goes to another backend.
fn exclusive(scene: &Scene) -> Result<Finding> {
    let alone = Exclusive::new(scene.cgroup().path())?;
    let pair = Pair::new(scene)?;
    let (status, output) = scene.call(&format!("limit {} -u 1M --upload-backend ebpf", pair.target()))?;
    let said = output.messages();
    ensure!(status.code() == Some(5) && said.contains("admits no other"), "{status}: {said}");
    let mut call = scene.start(&format!("limit {}", pair.limit(RATE)))?;
    let (since, _) = call.await_message("limited")?;
    pair.ensure_held(since, RATE)?;
    for (direction, held) in scene.report(&pair.target())?.directions.iter() {
        let backend = held.as_ref().map(|held| held.backend.as_str());
        ensure!(backend == Some("nftables"), "{direction} is held by {backend:?}");
    }
    call.process().signal(nix::sys::signal::Signal::SIGINT);
    let (status, output) = call.finish()?;
    let said = output.messages();
    let told = said.contains("ebpf") && said.contains("admits no other");
    ensure!(status.success() && told, "{status}: the reason is not told: {said}");
    scene.await_no_helpers(5.0)?;
    drop(alone);
    Ok(Finding::Holds)
}

/// Somebody removes our tree under a limit in force.
fn removed(scene: &Scene) -> Result<Finding> {
    scene.use_backends("tc_htb", "ifb_tc");
    let server = scene.server()?;
    let transfer = scene.run();
    let client = scene.client(&[format!("connect tcp {} put run={transfer}", scene.tcp(Version::V4))])?;
    let limit = scene.limit(&format!("pid:{} -u 1M", client.pid()))?;
    if run(&scene.lab.client, "tc qdisc del dev chadt-c root")?.is_none() {
        return Ok(Finding::Skipped("tc is not installed".into()));
    }
    ensure_held(&server, transfer, now() + 2.0, RATE)?;
    limit.end()?;
    Ok(Finding::Holds)
}

/// Somebody deletes the IFB under a download limit in force, takes it out of use, and renames the device.
fn ifb_in_trouble(scene: &Scene) -> Result<Finding> {
    scene.use_backends("tc_htb", "ifb_tc");
    let _server = scene.server()?;
    let transfer = scene.run();
    let client = scene.client(&[format!("connect tcp {} get run={transfer}", scene.tcp(Version::V4))])?;
    let limit = scene.limit(&format!("pid:{} -d 1M", client.pid()))?;
    ensure_held(&client, transfer, limit.since, RATE)?;
    let mut tc = Tc::open_in(&scene.lab.client)?;
    let mut ifb = || -> Result<String> {
        let found = tc.devices()?.into_iter().find(|device| device.kind == "ifb");
        found.map(|device| device.name).ok_or_else(|| Error::failed("there is no IFB"))
    };
    let lines = [
        format!("ip link del {}", ifb()?),
        format!("ip link set {} down", ifb()?),
        "ip link set chadt-c name theirs".to_owned(),
        "ip link set theirs name chadt-c".to_owned(),
    ];
    for line in lines {
        match run(&scene.lab.client, &line) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Finding::Skipped("ip is not installed".into())),
            // Only Linux 6.2 renames a device that is in use.
            Err(error) if line.contains(" name ") => {
                eprintln!("{error}");
                break;
            }
            Err(error) => return Err(error),
        }
        // It is looked for once a second, and TCP tries again later and later what was lost.
        let from = now() + 3.0;
        ensure_held(&client, transfer, from, RATE)
            .map_err(|error| Error::failed(format!("{line}: {error}")))?;
        ifb()?;
    }
    limit.end()?;
    Ok(Finding::Holds)
}
