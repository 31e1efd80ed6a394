//! What the backends need, found out by trying in a network namespace that is made for it and gone with it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use super::{means::Means, plan};
use crate::{
    backend::{
        Probe, Requirement, Site,
        basics::{self, judge, one},
        gate::Gate,
        tables,
        tree::Tree,
    },
    error::{Context, Error, Kind, Result},
    kernel::{
        netlink::Route,
        netns::Namespace,
        nft::{Nft, Step},
        tc::Tc,
    },
    model::{Direction, LimitId},
};

/// Datagrams of the trial, and their payload in bytes: many times more than may pass at that rate (bytes/s).
const DATAGRAMS: usize = 40;
const PAYLOAD: usize = 1_400;
const RATE: u64 = 1_000;
/// What may wait then, bytes.
const ROOM: u32 = 64 * 1024;
/// What may pass at once where nothing waits, bytes.
const BURST: u64 = 10 * PAYLOAD as u64;

/// How long the kernel may take to bring them there: on a busy machine it does so later than it is told to.
const ARRIVAL: Duration = Duration::from_millis(500);

const LOOPBACK: u32 = 1;
const LIMIT: LimitId = LimitId(1);
const IFB: &str = "chadt-trial";

/// What differs between queues and polices.
pub(super) trait Trial: Means {
    /// Whether the kernel has it, tried in a namespace of our own.
    fn requirement(namespace: &Namespace, direction: Direction) -> Requirement;

    /// Holds the trial's limit so that most of what is sent can't pass.
    fn hold(self, tc: &mut Tc) -> Result<()>;
}

impl Trial for Tree {
    fn requirement(namespace: &Namespace, direction: Direction) -> Requirement {
        let tried =
            Tc::open_in(namespace).and_then(|mut tc| Self::make(&mut tc, LOOPBACK, direction).map(drop));
        one("HTB", judge(tried, Some("modprobe sch_htb (CONFIG_NET_SCH_HTB)")))
    }

    fn hold(self, tc: &mut Tc) -> Result<()> {
        self.set_branch(tc, plan::branch(LIMIT), RATE, ROOM)
    }
}

impl Trial for Gate {
    fn requirement(namespace: &Namespace, direction: Direction) -> Requirement {
        let tried = Tc::open_in(namespace).and_then(|mut tc| {
            let gate = Self::make(&mut tc, LOOPBACK, direction)?;
            gate.hold(&mut tc)
        });
        let tried = tried.map_err(|error| match error.kind {
            Kind::NotFound => {
                Error::caused(error.kind, "the kernel has no act_police, or not what leads to it", &error)
            }
            _ => error,
        });
        let mend = "modprobe -a act_police act_gact cls_basic em_meta sch_ingress (CONFIG_NET_ACT_POLICE, \
            CONFIG_NET_ACT_GACT, CONFIG_NET_CLS_BASIC, CONFIG_NET_EMATCH_META, CONFIG_NET_SCH_INGRESS)";
        one("act_police", judge(tried, Some(mend)))
    }

    fn hold(self, tc: &mut Tc) -> Result<()> {
        self.set(tc, plan::branch(LIMIT), RATE, BURST)
    }
}

/// The first thing that is missing, or ready.
pub(super) fn probe<M: Trial>(site: &Site, direction: Direction) -> Probe {
    basics::first_missing(&list::<M>(site, direction))
}

/// Everything, each looked at by itself; what takes a namespace of our own is not tried when there can be none.
pub(super) fn list<M: Trial>(site: &Site, direction: Direction) -> Vec<Requirement> {
    let mut all = basics::list(site);
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(error) => {
            all.push(one("private network namespace to try in", judge(Err(error), None)));
            return all;
        }
    };
    all.push(M::requirement(&namespace, direction));
    if direction == Direction::Download {
        let tried = Tc::open_in(&namespace).and_then(|mut tc| tc.add_ifb(IFB));
        all.push(one("IFB", judge(tried.map(drop), Some("modprobe ifb numifbs=0 (CONFIG_IFB)"))));
    }
    let nft = |suffix: &str| Nft::open_in(&namespace, suffix);
    for (name, mend, steps) in parts(direction) {
        let tried = nft("trial").and_then(|mut nft| nft.change(&steps));
        all.push(one(name, judge(tried, Some(mend))));
    }
    if direction == Direction::Download {
        let steps = [plan::begin_forwarding(), plan::forward(1, "lo", LOOPBACK)].concat();
        let tried = nft("trial").and_then(|nft| nft.of_devices().change(&steps));
        let mend = "modprobe nft_fwd_netdev (CONFIG_NF_TABLES_NETDEV, CONFIG_NFT_FWD_NETDEV)";
        all.push(one("nf_tables that sends packets to devices", judge(tried, Some(mend))));
    }
    all.push(basics::lists_of_sockets(&namespace));
    if basics::first_missing(&all) == Probe::Ready {
        all.push(one(&format!("{direction}s are held"), judge(try_out::<M>(direction), None)));
    }
    all
}

/// What nf_tables must know: name, mend, and steps that take it.
fn parts(direction: Direction) -> Vec<(&'static str, &'static str, Vec<Step>)> {
    let mut parts = vec![
        (
            "nf_tables with owned tables (Linux 5.12)",
            "modprobe nf_tables (CONFIG_NF_TABLES_INET), or a newer kernel",
            vec![Step::AddTable],
        ),
        (
            "socket cgroupv2 (Linux 5.13)",
            "modprobe nft_socket (CONFIG_NFT_SOCKET), or a newer kernel",
            socket_steps(),
        ),
        (
            "nf_tables that knows priorities",
            "CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_IPV6",
            plan::begin(direction, 1_000),
        ),
    ];
    if direction == Direction::Download {
        let steps = [plan::begin(direction, 1_000), plan::see(1, "lo")].concat();
        parts.push((
            "nf_tables at devices (Linux 5.10)",
            "CONFIG_NETFILTER_INGRESS, or a newer kernel",
            steps,
        ));
    }
    parts
}

fn socket_steps() -> Vec<Step> {
    let place = tables::Place { level: 1, cgroup: 1 };
    let mut steps = vec![Step::AddTable, tables::cgroups(), Step::AddChain(tables::LEVELS.into(), None)];
    tables::change_levels([].into_iter(), [place].iter(), &mut steps);
    steps
}

/// Limits this very process's cgroup on the loopback device of a namespace of its own, and sends through it.
fn try_out<M: Trial>(direction: Direction) -> Result<()> {
    let namespace = Namespace::new()?;
    let mut route = Route::open_in(&namespace)?;
    route.set_up(LOOPBACK)?;
    let (near, far) = namespace.run(|| {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("open a socket");
        Ok((bind()?, bind()?))
    })?;
    let mut tc = Tc::open_in(&namespace)?;
    let device = match direction {
        Direction::Upload => LOOPBACK,
        Direction::Download => tc.add_ifb(IFB)?,
    };
    let tree = M::make(&mut tc, device, direction)?;
    tree.hold(&mut tc)?;
    let mut nft = Nft::open_in(&namespace, "trial")?;
    let own = basics::own_leaf()?;
    let limited = plan::State {
        limits: [LIMIT].into(),
        cgroups: [(tables::Place { level: own.level, cgroup: own.id }, LIMIT)].into(),
        ..plan::State::default()
    };
    let mut steps = plan::begin(direction, 60_000);
    steps.extend(plan::change(direction, &plan::State::default(), &limited));
    let mut forwarder = Nft::open_in(&namespace, "trial-forward")?.of_devices();
    if direction == Direction::Download {
        steps.extend(plan::see(1, "lo"));
        let mut steps = plan::begin_forwarding();
        steps.extend(plan::forward(1, "lo", device));
        steps.push(plan::add_classes(LIMIT));
        forwarder.change(&steps)?;
    }
    nft.change(&steps)?;
    // The way back is learnt from the way there.
    let address = |socket: &UdpSocket| socket.local_addr().context("look at a socket");
    send(&far, 1, address(&near)?)?;
    send(&near, DATAGRAMS, address(&far)?)?;
    far.set_nonblocking(true).context("read a socket")?;
    let bulk = plan::branch(LIMIT).bulk;
    let deadline = Instant::now() + ARRIVAL;
    let (mut met, mut passed) = (0, 0);
    loop {
        if let Some((_, count)) = tree.counts(&mut tc)?.iter().find(|(class, _)| *class == bulk) {
            met = count.packets as usize + count.dropped as usize + count.waiting as usize;
        }
        passed += std::iter::from_fn(|| far.recv(&mut [0; PAYLOAD]).ok()).count();
        if met.max(passed) >= DATAGRAMS || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(ARRIVAL / 50);
    }
    if passed > DATAGRAMS / 2 || met < DATAGRAMS / 2 {
        return Err(Error::failed(format!(
            "the kernel takes the rules, but they do not hold: of {DATAGRAMS} packets {met} were met and {passed} passed"
        )));
    }
    Ok(())
}

fn send(socket: &UdpSocket, count: usize, target: SocketAddr) -> Result<()> {
    socket.set_nonblocking(true).context("use a socket")?;
    for _ in 0..count {
        match socket.send_to(&[0; PAYLOAD], target) {
            Ok(_) => {}
            // What waits counts for the sender.
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            Err(cause) => return Err(cause).context("send a packet"),
        }
    }
    Ok(())
}
