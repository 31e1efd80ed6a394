//! What the backend needs, found out by trying: tables, cgroups and packets of its own, in a network namespace that is
//! made for it and gone with it.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use super::{place::Table, plan};
use crate::{
    backend::{
        Probe, Requirement, Site,
        basics::{self, judge, one},
        crowded::Place,
    },
    error::{Context, Error, Result},
    kernel::{
        netlink::Route,
        netns::Namespace,
        nft::{Bucket, Field, Hook, Nft, Part, SetKind, Step, Value},
    },
    model::{Direction, LimitId},
};

/// Datagrams of the trial, and their payload in bytes: together more than a bucket of this rate (bytes/s) holds.
const DATAGRAMS: usize = 100;
const PAYLOAD: usize = 1_400;
const RATE: u64 = 1_000;

/// How long they may be under way: on a busy machine what arrives is looked at later.
const ARRIVAL: Duration = Duration::from_secs(1);

/// The first thing that is missing, or ready.
pub(super) fn probe(site: &Site) -> Probe {
    basics::first_missing(&list(site))
}

/// Everything, each looked at by itself; what takes a namespace of our own is not tried when there can be none.
pub(super) fn list(site: &Site) -> Vec<Requirement> {
    let mut all = basics::list(site);
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(error) => {
            all.push(one("private network namespace to try in", judge(Err(error), None)));
            return all;
        }
    };
    for (name, mend, steps) in parts() {
        let tried = Nft::open_in(&namespace, "trial").and_then(|mut nft| nft.change(&steps));
        all.push(one(name, judge(tried, Some(mend))));
    }
    all.push(basics::lists_of_sockets(&namespace));
    if basics::first_missing(&all) == Probe::Ready {
        for direction in Direction::ALL {
            let held = try_out(direction);
            all.push(one(&format!("{direction}s are held"), judge(held, None)));
        }
    }
    all
}

/// What the kernel must know: name, mend, and steps that take it.
fn parts() -> Vec<(&'static str, &'static str, Vec<Step>)> {
    let table = || vec![Step::AddTable];
    let with = |more: Vec<Step>| table().into_iter().chain(more).collect::<Vec<_>>();
    let name = || "trial".to_owned();
    let cgroups = SetKind::of(vec![Field::Cgroup { level: 0 }], Value::Verdict);
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

/// Limits this very process's cgroup in a namespace of its own, and sends through it.
fn try_out(direction: Direction) -> Result<()> {
    let own = basics::own_leaf()?;
    let namespace = Namespace::new()?;
    let mut route = Route::open_in(&namespace)?;
    let loopback = route.index("lo")?;
    route.set_up(loopback)?;
    let (sender, receiver) = namespace.run(|| {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("open a socket");
        Ok((bind()?, bind()?))
    })?;
    let limit = LimitId(1);
    let mut place = Table::open(namespace, direction)?;
    place.set_rate(limit, RATE)?;
    place.set_leaves(limit, &[own])?;
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
    let deadline = Instant::now() + ARRIVAL;
    let mut passed = 0;
    let (all, dropped) = loop {
        let counted = place.counts()?.remove(&limit).unwrap_or_default();
        passed += std::iter::from_fn(|| receiver.recv(&mut [0; PAYLOAD]).ok()).count();
        let all = counted.passed_packets + counted.dropped_packets;
        if all >= DATAGRAMS as u64 || Instant::now() > deadline {
            break (all, counted.dropped_packets);
        }
        std::thread::sleep(ARRIVAL / 50);
    };
    if passed > DATAGRAMS / 2 || all != DATAGRAMS as u64 || dropped == 0 {
        return Err(Error::failed(format!(
            "the kernel takes the rules, but they do not hold: of {DATAGRAMS} packets {all} were met and {passed} passed"
        )));
    }
    Ok(())
}
