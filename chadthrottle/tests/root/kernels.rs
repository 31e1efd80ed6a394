//! Which backends there must be on which kernel, and which must not: where one is missing without need, or offered
//! where it does not hold, nobody would notice otherwise.

use std::{ops::Range, path::Path};

use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::*;

/// Set by `cargo xtask vm`: this is a kernel as Debian builds it.
const DEBIAN_KERNEL: &str = "CHADT_DEBIAN_KERNEL";

/// Major and minor number of a kernel.
pub type Version = (u32, u32);

/// Later than any.
const NEVER: Version = (u32::MAX, 0);

/// The kernels on which a backend is available. Every backend of the table of drivers stands here.
const AVAILABLE: &[(&str, Range<Version>)] = &[
    ("ebpf", (5, 10)..NEVER),
    // Its `socket cgroupv2` came with 5.13.
    ("nftables", (5, 13)..NEVER),
    // These know packets by the same.
    ("tc_htb", (5, 13)..NEVER),
    ("ifb_tc", (5, 13)..NEVER),
    ("tc_police", (5, 13)..NEVER),
];

/// What the eBPF backend does without, on which kernels; a part of how it says so.
const DEGRADED: &[(&str, Range<Version>)] = &[
    ("open sockets are found one by one", (0, 0)..(5, 11)),
    ("is only seen to change hands within a second", (0, 0)..(5, 11)),
    ("is seen to change hands when one of them reads", (5, 11)..(6, 3)),
    ("packets can't carry a time", (0, 0)..TIMED),
    ("send up to 64 KB at once", (0, 0)..SMALL_BUFFERS),
];

/// The first kernel on which packets can carry the time at which they leave a queue.
const TIMED: Version = (5, 18);

/// The first kernel on which connections may be held to small buffers, because that can be given back.
const SMALL_BUFFERS: Version = (5, 15);

/// Rungs of the eBPF backend's downloads that every kernel of Debian has; since [`TIMED`] it is one more.
const RUNGS: usize = 2;

/// Debian's kernels with multipath TCP.
const MULTIPATH: Range<Version> = (6, 1)..NEVER;

/// The kernels on which the monitor counts every packet; on others it asks for TCP's own figures.
const COUNTED: Range<Version> = (5, 12)..NEVER;

/// What the monitor says that it does without where it can't count.
const NOT_COUNTED: [&str; 2] = [
    "bytes are those that open TCP connections report, not what is on the wire",
    "UDP, headers, and connections shorter than a tick are not counted",
];

pub fn trials() -> Vec<Trial> {
    vec![
        plain("kernels::what_there_is", what_there_is),
        plain("kernels::what_the_monitors_lack", what_monitors_lack),
    ]
}

fn parse(what: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|cause| Error::failed(format!("{what}'s JSON: {cause}")))
}

/// Doctor and monitor agree on who counts, and both say what is missing. Nothing is on a kernel that can count.
fn what_monitors_lack(scene: &Scene) -> Result<()> {
    let version = version()?;
    let report = parse("doctor", &scene.succeed("doctor --json")?)?["monitor"].clone();
    let (status, output) = scene.call("monitor --json --interval 0.2 --count 1")?;
    ensure!(status.success(), "the monitor ended with {status}: {}", output.messages());
    let tick = parse("the monitor", &output.stdout.join("\n"))?;
    ensure!(report["source"] == tick["source"], "doctor: {report}, monitor: {tick}");
    let said: Vec<&str> = tick["notices"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|notice| notice["what"].as_str())
        // Said wherever a trial runs.
        .filter(|what| !what.starts_with("processes outside the cgroup root"))
        .collect();
    eprintln!("Linux {version:?}: doctor says {report}; the monitor: {}", tick["notices"]);
    for what in &said {
        ensure!(output.messages().contains(what), "no warning of '{what}': {}", output.messages());
    }
    if !is_debian() {
        return Ok(());
    }
    if COUNTED.contains(&version) {
        ensure!(tick["source"] == "ebpf" && said.is_empty(), "on Linux {version:?}: {tick}");
    } else {
        ensure!(tick["source"] == "sock_diag" && said == NOT_COUNTED, "on Linux {version:?}: {tick}");
        let refused = &report["requirements"][0]["state"];
        let why = refused["reason"].as_str().unwrap_or_default();
        ensure!(!is_ready(refused) && why.contains("Linux 5.12"), "doctor says no reason: {report}");
    }
    Ok(())
}

fn what_there_is(scene: &Scene) -> Result<()> {
    let version = version()?;
    let report: Value = serde_json::from_str(&scene.succeed("doctor --json")?)
        .map_err(|cause| Error::failed(format!("doctor's JSON: {cause}")))?;
    let backends = report["backends"].as_array().cloned().unwrap_or_default();
    ensure!(!backends.is_empty(), "doctor knows no backend: {report}");
    for backend in &backends {
        let name = backend["name"].as_str().unwrap_or_default();
        let state = &backend["available"];
        // As on every machine: what is not there says why.
        ensure!(is_ready(state) || says_why(state), "{name} is missing without a reason: {state}");
        let Some((_, versions)) = AVAILABLE.iter().find(|(known, _)| *known == name) else {
            return Err(Error::failed(format!(
                "say in tests/root/kernels.rs where {name} must be available"
            )));
        };
        // Others may build a kernel without what it takes; but all trials here need eBPF.
        if is_debian() || name == "ebpf" {
            let wanted = versions.contains(&version);
            ensure!(is_ready(state) == wanted, "{name} on Linux {version:?}: {state}, wanted: {wanted}");
        }
        if name == "tc_police" && !has_police()? {
            ensure!(!is_ready(state), "this kernel has no act_police, and tc_police is offered: {state}");
            ensure!(
                state.to_string().contains("act_police"),
                "tc_police's reason names no act_police: {state}"
            );
        }
    }
    if is_debian() {
        let multipath = Path::new("/proc/sys/net/mptcp").exists();
        ensure!(multipath == MULTIPATH.contains(&version), "multipath TCP on Linux {version:?}: {multipath}");
        ensure_degraded(version, &backends)?;
    }
    Ok(())
}

/// What this kernel lacks is named, and nothing else is missing.
fn ensure_degraded(version: Version, backends: &[Value]) -> Result<()> {
    let ebpf = backends.iter().find(|backend| backend["name"] == "ebpf");
    let requirements = ebpf.and_then(|ebpf| ebpf["requirements"].as_array()).cloned().unwrap_or_default();
    let (ready, missing): (Vec<_>, Vec<_>) =
        requirements.iter().partition(|requirement| is_ready(&requirement["state"]));
    let said: Vec<String> = missing.iter().map(|requirement| requirement["state"].to_string()).collect();
    for (text, versions) in DEGRADED {
        let count = said.iter().filter(|said| said.contains(text)).count();
        let wanted = usize::from(versions.contains(&version));
        ensure!(count == wanted, "'{text}' stands {count} times in what Linux {version:?} lacks: {said:?}");
    }
    let wanted = DEGRADED.iter().filter(|(_, versions)| versions.contains(&version)).count();
    ensure!(said.len() == wanted, "Linux {version:?} lacks {said:?}, which should be {wanted} things");
    let rungs = ready
        .iter()
        .filter(|requirement| {
            requirement["name"].as_str().is_some_and(|name| name.starts_with("downloads by "))
        })
        .count();
    let wanted = RUNGS + usize::from(version >= TIMED);
    ensure!(
        rungs == wanted,
        "{rungs} of {wanted} rungs for downloads on Linux {version:?}: {requirements:?}"
    );
    Ok(())
}

/// Whether trials of `tc_police` are worth a try; [`what_there_is`] makes sure that elsewhere it is not offered.
pub fn may_have_police() -> bool {
    let modules = || {
        let release = nix::sys::utsname::uname().ok()?.release().to_str()?.to_owned();
        std::fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).ok()
    };
    has_police().unwrap_or(true) || modules().is_some_and(|modules| modules.contains("/act_police."))
}

/// Whether the kernel has act_police, in it or loaded by the probes of the program.
fn has_police() -> Result<bool> {
    let symbols = std::fs::read_to_string("/proc/kallsyms")
        .map_err(|cause| Error::failed(format!("read /proc/kallsyms: {cause}")))?;
    Ok(symbols.lines().any(|line| line.contains(" tcf_police_")))
}

/// Whether this is one of `cargo xtask vm`'s machines.
pub fn is_debian() -> bool {
    std::env::var_os(DEBIAN_KERNEL).is_some_and(|value| value == "1")
}

fn is_ready(state: &Value) -> bool {
    state["state"] == "ready"
}

fn says_why(state: &Value) -> bool {
    state.to_string().contains("reason")
}

pub fn version() -> Result<Version> {
    let name = nix::sys::utsname::uname().map_err(|cause| Error::failed(format!("uname: {cause}")))?;
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(Error::failed(format!("a kernel's version: '{release}'"))),
    }
}
