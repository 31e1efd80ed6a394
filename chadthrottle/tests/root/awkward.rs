//! What few users do, and some: for the backends without eBPF, which are told what is where, and do not see it.

use std::{
    fs::File,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use chadthrottle::{
    kernel::{netlink::Route, netns::Namespace},
    selftest::process::{Call, Place},
};
use libtest_mimic::Trial;
use nix::sched::{CloneFlags, setns};

use crate::{
    actor::{self, Played, Sink},
    support::*,
};

/// The limits here, bytes/s.
const RATE: f64 = 1e6;

/// A rate at which a bucket that begins full takes hundreds of packets.
const FAST: &str = "20M";

/// Names of a pair of backends: for the trials, for upload, for download.
const PAIRS: &[(&str, &str, &str)] = &[("nftables", "nftables", "nftables"), ("htb", "tc_htb", "ifb_tc")];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for &(name, upload, download) in PAIRS {
        for part in ["abroad-socket", "abroad-thread"] {
            trials.push(trial(&format!("awkward::{name}::{}", part.replace('-', "_")), move |scene| {
                scene.use_backends(upload, download);
                abroad(scene, part).map(|()| Finding::Holds)
            }));
        }
    }
    trials.push(trial("awkward::htb::datagrams_to_this_host", |scene| {
        scene.use_backends("tc_htb", "ifb_tc");
        to_this_host(scene).map(|()| Finding::Holds)
    }));
    trials.push(trial("awkward::htb::classes_that_are_removed_are_made_again", classes_removed));
    trials.push(trial("awkward::htb::another_owner_is_a_reason", |scene| {
        another_owner(scene).map(|()| Finding::Holds)
    }));
    trials.push(trial("awkward::nftables::a_firewall_does_not_see_our_own_packets", firewall));
    trials
}

/// Plays a part; `None`: there is no such.
pub fn play(words: &[&str]) -> Option<Played> {
    Some(match *words {
        ["abroad-socket", namespace, address] => socket_abroad(namespace, address),
        ["abroad-thread", namespace, address] => thread_abroad(namespace, address),
        ["datagrams", address] => datagrams(address),
        _ => return None,
    })
}

fn enter(namespace: &File) -> Played {
    Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?)
}

fn connect_abroad(namespace: &str, address: &str) -> Result<TcpStream, Box<dyn std::error::Error>> {
    enter(&File::open(namespace)?)?;
    Ok(TcpStream::connect(address)?)
}

/// Opens a connection in another namespace, comes back, and sends.
fn socket_abroad(namespace: &str, address: &str) -> Played {
    let home = File::open("/proc/thread-self/ns/net")?;
    let mut connection = connect_abroad(namespace, address)?;
    enter(&home)?;
    println!("there");
    actor::pour(&mut connection)
}

/// Has a thread in another namespace that sends.
fn thread_abroad(namespace: &str, address: &str) -> Played {
    let (namespace, address) = (namespace.to_owned(), address.to_owned());
    let abroad = thread::spawn(move || -> Result<(), String> {
        let mut connection = connect_abroad(&namespace, &address).map_err(|cause| cause.to_string())?;
        println!("there");
        actor::pour(&mut connection).map_err(|cause| cause.to_string())
    });
    abroad.join().map_err(|_| "the thread panicked")?.map_err(Into::into)
}

/// Sends datagrams from a socket that is not connected, several times as many as may pass.
fn datagrams(address: &str) -> Played {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    let address: SocketAddr = address.parse()?;
    println!("there");
    loop {
        for _ in 0..5 {
            // What is refused is not sent.
            let _ = socket.send_to(&[0; 1_000], address);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A process at home in a third namespace, whose connection is in the client's.
fn abroad(scene: &Scene, part: &str) -> Result<()> {
    let home = Namespace::new()?;
    let mut route = Route::open_in(&home)?;
    let loopback = route.index("lo")?;
    route.set_up(loopback)?;
    let sink = Sink::new(scene)?;
    let client = scene.lab.client.as_fd().as_raw_fd();
    let there = format!("/proc/{}/fd/{client}", std::process::id());
    let place = Place { namespace: Some(&home), cgroup: Some(scene.cgroup()) };
    let traveller = actor::spawn(actor::command(&[part, &there, &sink.address()])?, place)?;
    actor::await_line(&traveller, "there")?;
    let limit = scene.limit(&format!("{} -u {RATE} -d {RATE}", traveller.pid()))?;
    sleep_until(limit.since + 1.0)?;
    let share = sink.rate(3.0)? / RATE;
    ensure!((0.5..1.5).contains(&share), "it gets {share:.3} of its limit");
    limit.end().map(drop)
}

/// What is sent to an address of this very host goes over loopback.
fn to_this_host(scene: &Scene) -> Result<()> {
    let address = scene.lab.client_at(Version::V4, 7001);
    let socket = scene.lab.client.run(|| {
        UdpSocket::bind(address).map_err(|cause| Error::failed(format!("bind to {address}: {cause}")))
    })?;
    let received = Arc::new(AtomicU64::new(0));
    let total = Arc::clone(&received);
    thread::spawn(move || {
        let mut packet = [0; 2_000];
        while let Ok(length) = socket.recv(&mut packet) {
            total.fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    let sender = actor::start(scene, &["datagrams", &address.to_string()])?;
    actor::await_line(&sender, "there")?;
    let rate = || -> Result<f64> {
        let (since, before) = (now(), received.load(Ordering::Relaxed));
        sleep_until(since + 2.0)?;
        Ok((received.load(Ordering::Relaxed) - before) as f64 / (now() - since))
    };
    let free = rate()?;
    ensure!(free > 2.0 * RATE, "it sends only {free:.0} bytes/s without a limit");
    let limit = scene.limit(&format!("{} -u {RATE}", sender.pid()))?;
    sleep_until(limit.since + 1.0)?;
    let share = rate()? / RATE;
    ensure!((0.5..1.5).contains(&share), "it gets {share:.3} of its limit");
    limit.end().map(drop)
}

/// Runs a command of the user's in the client's namespace; what it printed. `None`: there is no such command.
fn user(scene: &Scene, words: &[&str]) -> Result<Option<String>> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    match scene.lab.client.contain(&mut command)?.output() {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::failed(format!("{words:?}: {cause}"))),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "{words:?}: {said}");
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
    }
}

/// Somebody removes the classes of a limit, and leaves the tree.
fn classes_removed(scene: &Scene) -> Result<Finding> {
    scene.use_backends("tc_htb", "ifb_tc");
    let server = scene.server()?;
    let transfer = scene.run();
    let client = scene.client(&[format!("connect tcp {} put run={transfer}", scene.tcp(Version::V4))])?;
    let limit = scene.limit(&format!("pid:{} -u 1M", client.pid()))?;
    let Some(classes) = user(scene, &["tc", "class", "show", "dev", "chadt-c"])? else {
        return Ok(Finding::Skipped("tc is not installed".into()));
    };
    // Those that have queues: what is no limit's is right below the root.
    let leaves = classes.lines().filter(|line| line.contains(" parent "));
    let mut removed = 0;
    for class in leaves.filter_map(|line| line.split(' ').nth(2)) {
        user(scene, &["tc", "class", "del", "dev", "chadt-c", "classid", class])?;
        removed += 1;
    }
    ensure!(removed == 2, "{removed} classes were there: {classes}");
    ensure_held(&server, transfer, now() + 2.0, RATE)?;
    limit.end()?;
    Ok(Finding::Holds)
}

/// Limits of two owners would have the same classes in one namespace.
fn another_owner(scene: &Scene) -> Result<()> {
    scene.use_backends("tc_htb", "ifb_tc");
    let _server = scene.server()?;
    let transfer = scene.run();
    let get = format!("connect tcp {} get run={transfer}", scene.tcp(Version::V4));
    let client = scene.client(&[get])?;
    let stranger = scene.client(&[])?;
    let limit = scene.limit(&format!("pid:{} -d 1M", client.pid()))?;
    let other = tempfile::Builder::new().prefix("chadt-other-").tempdir();
    let other = other.map_err(|cause| Error::failed(format!("make a folder: {cause}")))?;
    let mut command = Command::new(program());
    command.args(["limit", &stranger.pid().to_string(), "-d", "1M", "--download-backend", "ifb_tc"]);
    command.arg("--runtime-dir").arg(other.path()).arg("--cgroup-root").arg(scene.cgroup().path());
    let (status, output) = Call::spawn(command, Place::default())?.finish()?;
    let said = output.messages();
    ensure!(status.code() == Some(5) && said.contains("of another owner"), "{status}: {said}");
    ensure_held(&client, transfer, now(), RATE)?;
    limit.end().map(drop)
}

/// Our packets that empty a new bucket are nobody else's business: who drops them would leave the bucket full, who
/// logs them would have a full log.
fn firewall(scene: &Scene) -> Result<Finding> {
    scene.use_backends("nftables", "nftables");
    const CHAIN: &str = "{ type filter hook output priority raw ; }";
    let lines = [
        vec!["nft", "add", "table", "inet", "theirs"],
        vec!["nft", "add", "chain", "inet", "theirs", "out", CHAIN],
        ["nft add rule inet theirs out oif lo udp dport 9 counter drop"]
            .iter()
            .flat_map(|line| line.split(' '))
            .collect(),
    ];
    for line in &lines {
        if user(scene, line)?.is_none() {
            return Ok(Finding::Skipped("nft is not installed".into()));
        }
    }
    let list = || user(scene, &["nft", "list", "table", "inet", "theirs"]);
    let before = list()?;
    let client = scene.client(&[])?;
    let limit = scene.limit(&format!("pid:{} -u {FAST}", client.pid()))?;
    limit.end()?;
    let after = list()?;
    ensure!(after == before, "{after:?} instead of {before:?}");
    user(scene, &["nft", "delete", "table", "inet", "theirs"])?;
    Ok(Finding::Holds)
}
