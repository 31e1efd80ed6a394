//! What the backend needs, found out by trying: tables, cgroups and packets of its own, in a network namespace that is
//! made for it and gone with it.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
};

use super::{place::Place, plan};
use crate::{
    backend::{Probe, Requirement, Site},
    error::{Context, Error, Kind, Result},
    kernel::{
        caps, cgroup,
        netlink::Route,
        netns::Namespace,
        nft::{Bucket, Field, Hook, Nft, Part, SetKind, Step},
        process,
        sock_diag::{Protocol, SockDiag},
    },
    model::{Direction, LimitId},
};

/// Datagrams of the trial, and their payload in bytes: together more than a bucket of this rate (bytes/s) holds.
const DATAGRAMS: usize = 100;
const PAYLOAD: usize = 1_400;
const RATE: u64 = 1_000;

/// The first thing that is missing, or ready.
pub(super) fn probe(site: &Site) -> Probe {
    list(site)
        .into_iter()
        .map(|requirement| requirement.state)
        .find(|state| *state != Probe::Ready)
        .unwrap_or(Probe::Ready)
}

/// Everything, each looked at by itself; what takes a namespace of our own is not tried when there can be none.
pub(super) fn list(site: &Site) -> Vec<Requirement> {
    let one = |name: &str, found: String, state| Requirement { name: name.into(), found, state };
    let mount = cgroup::attach_point(site.cgroup_root.as_deref());
    let mut all = vec![
        one(&caps::names(&caps::FOR_CROWDS), String::new(), capabilities()),
        one(
            "/proc of this PID namespace",
            String::new(),
            judge(own_proc(), Some("mount -t proc proc /proc")),
        ),
        one(
            "cgroup2 mount",
            mount.as_ref().map_or_else(|_| String::new(), |path| path.display().to_string()),
            judge(mount.map(drop), None),
        ),
    ];
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(error) => {
            all.push(one("private network namespace to try in", String::new(), judge(Err(error), None)));
            return all;
        }
    };
    for (name, mend, steps) in parts() {
        let tried = Nft::open_in(&namespace, "trial").and_then(|mut nft| nft.change(&steps));
        all.push(one(name, String::new(), judge(tried, Some(mend))));
    }
    let listed = SockDiag::open_in(&namespace).and_then(|mut diag| diag.list(&Protocol::ALL, false));
    all.push(one(
        "lists of sockets",
        String::new(),
        judge(
            listed.map(drop),
            Some("modprobe -a tcp_diag udp_diag (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)"),
        ),
    ));
    if all.iter().all(|requirement| requirement.state == Probe::Ready) {
        for direction in Direction::ALL {
            let held = try_out(direction);
            all.push(one(&format!("{direction}s are held"), String::new(), judge(held, None)));
        }
    }
    all
}

/// What the kernel must know: name, mend, and steps that take it.
fn parts() -> Vec<(&'static str, &'static str, Vec<Step>)> {
    let table = || vec![Step::AddTable];
    let with = |more: Vec<Step>| table().into_iter().chain(more).collect::<Vec<_>>();
    let name = || "trial".to_owned();
    let cgroups = SetKind { fields: vec![Field::Cgroup { level: 0 }], map: true, timeout: false };
    let dispatch = Part::Dispatch { fields: vec![Field::Cgroup { level: 0 }], map: name() };
    vec![
        (
            "nf_tables with owned tables (Linux 5.12)",
            "modprobe nf_tables (CONFIG_NF_TABLES_INET), or a newer kernel",
            table(),
        ),
        (
            "chains of the family inet",
            "CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_IPV6",
            with(vec![Step::AddChain(name(), Some((Hook::Input, 0)))]),
        ),
        (
            "limit",
            "modprobe nft_limit (CONFIG_NFT_LIMIT)",
            with(vec![Step::AddLimit(name(), Bucket { rate: RATE, burst: plan::BURST })]),
        ),
        (
            "socket cgroupv2 (Linux 5.13)",
            "modprobe nft_socket (CONFIG_NFT_SOCKET), or a newer kernel",
            with(vec![
                Step::AddSet(name(), cgroups),
                Step::AddChain(name(), None),
                Step::AddRule(name(), vec![dispatch]),
            ]),
        ),
    ]
}

/// An answer; what is not permitted says nothing about the kernel.
fn judge(result: Result<()>, mend: Option<&str>) -> Probe {
    match result {
        Ok(()) => Probe::Ready,
        Err(error) if error.kind == Kind::NotPermitted => Probe::Unknown { reason: error.to_string() },
        Err(error) => Probe::Unavailable { reason: error.to_string(), mend: mend.map(Into::into) },
    }
}

/// Processes are looked for there, and moved by the ids they have here.
fn own_proc() -> Result<()> {
    if process::proc_is_ours()? {
        return Ok(());
    }
    Err(Error::new(Kind::NoBackend, "/proc shows the ids of another PID namespace"))
}

fn capabilities() -> Probe {
    let missing = caps::missing(&caps::FOR_CROWDS);
    if missing.is_empty() {
        return Probe::Ready;
    }
    Probe::Unknown {
        reason: format!(
            "can't be tried without {}: {}",
            caps::names(&missing),
            caps::mend(&caps::FOR_CROWDS)
        ),
    }
}

/// Limits this very process's cgroup in a namespace of its own, and sends through it.
fn try_out(direction: Direction) -> Result<()> {
    let mount = cgroup::mount()?;
    let own = cgroup::path_below(&mount, std::process::id())?;
    let own = plan::Place { level: cgroup::depth(&mount, &own), cgroup: cgroup::get_cgroup_id(&own)? };
    let namespace = Namespace::new()?;
    let mut route = Route::open_in(&namespace)?;
    let loopback = route.index("lo")?;
    route.set_up(loopback)?;
    let (sender, receiver) = namespace.run(|| {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("open a socket");
        Ok((bind()?, bind()?))
    })?;
    let limit = LimitId(1);
    let mut place = Place::open(namespace, direction)?;
    let bucket = place.make_bucket(limit, RATE)?;
    place.set(bucket)?;
    place.set_leaves(limit, [own].into_iter())?;
    place.verify()?;
    let target = receiver.local_addr().context("look at a socket")?;
    for _ in 0..DATAGRAMS {
        match sender.send_to(&[0; PAYLOAD], target) {
            // Where nothing can vanish, the sender is told.
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {}
            Err(cause) => return Err(cause).context("send a packet"),
            Ok(_) => {}
        }
    }
    receiver.set_nonblocking(true).context("read a socket")?;
    let passed = std::iter::from_fn(|| receiver.recv(&mut [0; PAYLOAD]).ok()).count();
    let counted = place.counts()?.remove(&limit).unwrap_or_default();
    let all = counted.passed_packets + counted.dropped_packets;
    if passed > DATAGRAMS / 2 || all != DATAGRAMS as u64 || counted.dropped_packets == 0 {
        return Err(Error::failed(format!(
            "the kernel takes the rules, but they do not hold: of {DATAGRAMS} packets {all} were met and {passed} passed"
        )));
    }
    Ok(())
}
