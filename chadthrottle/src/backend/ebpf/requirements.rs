//! What the backend needs, each looked at by itself, and the probe that tries it all.

use nix::sys::utsname::uname;

use super::{departures, holder::Holder, queue};
use crate::{
    backend::{Probe, Requirement, Site},
    error::{Error, Kind},
    kernel::{bpf, btf, caps, cgroup, process},
    model::RungKind,
};

/// What downloads without loss need of the kernel, beside what the backend itself does; without it they are held by
/// a lower rung.
const FOR_QUEUE: &str = "a kernel with CONFIG_IFB, CONFIG_NET_SCH_HTB, CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF and \
                         CONFIG_NET_ACT_MIRRED, or their modules";
const FOR_TIMES: &str = "Linux 5.18 or later with CONFIG_NET_SCH_FQ, or its module, beside the same";
const FOR_EDT: &str = "a kernel with CONFIG_NET_SCH_FQ, or its module; then, for each device: tc qdisc replace dev DEVICE root fq";
const FOR_WINDOW: &str = "a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, or their modules";

/// Loads everything and attaches it, with nothing limited; then takes it away again.
pub fn probe(site: &Site) -> Probe {
    match Holder::open(site) {
        Ok(_) => Probe::Ready,
        Err(error) => judge(&error, None),
    }
}

/// An error as a probe's answer.
fn judge(error: &Error, mend: Option<&str>) -> Probe {
    match error.kind {
        Kind::NotPermitted => Probe::Unknown { reason: error.to_string() },
        _ => Probe::Unavailable { reason: error.to_string(), mend: mend.map(Into::into) },
    }
}

/// Every requirement of the backend.
pub fn list(site: &Site) -> Vec<Requirement> {
    let kernel = uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
    let one = |name: &str, found: String, state| Requirement { name: name.into(), found, state };
    let of = |result: crate::Result<()>, mend: Option<&str>| match result {
        Ok(()) => Probe::Ready,
        Err(error) => judge(&error, mend),
    };
    let mount = cgroup::attach_point(site.cgroup_root.as_deref());
    let mut all = vec![
        one("kernel 5.10 or later", kernel.clone(), version(&kernel)),
        one(&caps::names(&caps::FOR_EBPF), String::new(), capabilities()),
        one(
            "initial PID namespace",
            String::new(),
            of(
                process::in_initial_pid_namespace().and_then(|initial| {
                    if initial {
                        Ok(())
                    } else {
                        Err(Error::new(Kind::NoBackend, "this is another one (a container?)"))
                    }
                }),
                Some("run it on the host"),
            ),
        ),
        one(
            "cgroup2 mount",
            mount.as_ref().map_or_else(|_| String::new(), |path| path.display().to_string()),
            of(mount.map(drop), None),
        ),
        one(
            "kernel BTF",
            btf::VMLINUX.into(),
            of(btf::Btf::from_kernel().map(drop), Some("a kernel built with CONFIG_DEBUG_INFO_BTF=y")),
        ),
        one("programs load", String::new(), of(bpf::check_ebpf_support(), None)),
    ];
    let mut attached = Holder::open(site);
    let degraded = attached.as_ref().map_or_else(|_| Vec::new(), |holder| holder.loaded.degraded.clone());
    let parts = attached.as_mut().map_or_else(
        |_| Vec::new(),
        |holder| {
            let times = queue::try_queue(&mut holder.loaded, true);
            let (queue, window) =
                (queue::try_queue(&mut holder.loaded, false), queue::try_window(&mut holder.loaded));
            let name = |kind: RungKind| format!("downloads by {kind}");
            let rules = holder.loaded.prepare_rules();
            vec![
                one("processes by what they are (name:, exe:, unit: …)", String::new(), of(rules, None)),
                one(
                    &name(RungKind::IfbFqWindow),
                    String::new(),
                    of(times.and(window.clone()), Some(FOR_TIMES)),
                ),
                one(
                    &name(RungKind::IfbHtbWindow),
                    String::new(),
                    of(queue.and(window.clone()), Some(FOR_QUEUE)),
                ),
                one(&name(RungKind::WindowBucket), String::new(), of(window, Some(FOR_WINDOW))),
                one(
                    &format!("UDP uploads by {}", RungKind::PacingEdt),
                    String::new(),
                    of(departures::try_fq(), Some(FOR_EDT)),
                ),
            ]
        },
    );
    all.push(one("programs attach", String::new(), of(attached.map(drop), None)));
    all.extend(parts);
    all.extend(
        degraded
            .into_iter()
            .map(|what| one("in full", String::new(), Probe::Unavailable { reason: what, mend: None })),
    );
    all
}

/// Here a missing one is no riddle.
fn capabilities() -> Probe {
    let missing = caps::missing(&caps::FOR_EBPF);
    if missing.is_empty() {
        return Probe::Ready;
    }
    Probe::Unavailable {
        reason: format!("missing: {}", caps::names(&missing)),
        mend: Some(caps::mend(&caps::FOR_EBPF)),
    }
}

/// With 5.10 bpf_sk_storage_get began to take every kind of socket that a program may have in its hands.
fn version(release: &str) -> Probe {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) >= (5, 10) {
        Probe::Ready
    } else {
        Probe::Unavailable {
            reason: format!(
                "Linux {release} has no bpf_sk_storage_get helper for the sockets of packets of all kinds (5.10)"
            ),
            mend: Some("a newer kernel".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_versions_as_numbers() {
        assert_eq!(version("5.10.0-30-amd64"), Probe::Ready);
        assert_eq!(version("6.1.0-13-amd64"), Probe::Ready);
        assert!(matches!(version("5.9.16"), Probe::Unavailable { .. }));
        assert!(matches!(version("4.19"), Probe::Unavailable { .. }));
    }
}
