//! Network namespaces that nothing shows but a socket: their maker made them for it, and went home.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::Path,
};

use chadthrottle::kernel::{
    netlink::Route,
    netns::Namespace,
    process::{self, Process},
    sockets,
};
use libtest_mimic::Trial;
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::pause,
};

use crate::{
    actor::{self, Played},
    support::*,
};

const DEVICE: &str = "chadt-h";
const OTHER_END: &str = "chadt-i";

pub fn trials() -> Vec<Trial> {
    vec![trial("hidden::a_killed_owner_leaves_nothing", |scene| {
        // The eBPF backend puts its queue only where processes are.
        scene.use_backends("tc_htb", "ifb_tc");
        killed_owner(scene).map(|()| Finding::Holds)
    })]
}

/// Plays a part; `None`: there is no such.
pub fn play(words: &[&str]) -> Option<Played> {
    matches!(*words, ["hide"]).then(hide)
}

/// Has a connection over loopback and a datagram socket in a namespace with a device, which it has left.
fn hide() -> Played {
    let home = File::open("/proc/thread-self/ns/net")?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut route = Route::open()?;
    route.add_veth(DEVICE, OTHER_END, &Namespace::current()?)?;
    for device in ["lo", DEVICE, OTHER_END] {
        let index = route.index(device)?;
        route.set_up(index)?;
    }
    // It would show the namespace as well as the others do.
    drop(route);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let _connection = TcpStream::connect(listener.local_addr()?)?;
    let _datagrams = UdpSocket::bind("0.0.0.0:0")?;
    setns(home.as_fd(), CloneFlags::CLONE_NEWNET)?;
    drop(home);
    println!("there");
    loop {
        pause();
    }
}

/// What is in the namespace of a socket of that process which is not in the process's own.
fn look(pid: u32) -> Result<Vec<String>> {
    let proc = Path::new(process::PROC);
    let home = process::network_namespace(proc, pid);
    let process = Process::open(pid)?;
    for (descriptor, _) in process::socket_descriptors(proc, pid) {
        let socket = sockets::borrow(&process, descriptor)?;
        let namespace = Namespace::of_socket(socket.as_fd())?;
        if Some(namespace.inode()?) != home {
            let mut found = BTreeSet::new();
            namespace.run(|| network::list("", &mut found))?;
            return Ok(found.into_iter().collect());
        }
    }
    Err(Error::failed("it has no socket abroad"))
}

fn killed_owner(scene: &Scene) -> Result<()> {
    let hider = actor::start(scene, &["hide"])?;
    actor::await_line(&hider, "there")?;
    let before = look(hider.pid())?;
    let limit = scene.limit(&format!("{} -u 1M -d 1M", hider.pid()))?;
    let during = look(hider.pid())?;
    ensure!(during.len() > before.len(), "a limit puts nothing there: {during:?}");
    let owner = scene.owner()?;
    kill(owner, Signal::SIGKILL).map_err(|cause| Error::failed(format!("kill {owner}: {cause}")))?;
    limit.call.finish()?;
    scene.await_no_helpers(5.0)?;
    let after = look(hider.pid())?;
    ensure!(after == before, "before: {before:?}, with a limit: {during:?}, left: {after:?}");
    // And so it is for the next.
    scene.limit(&format!("{} -u 1M -d 1M", hider.pid()))?.end()?;
    let after = look(hider.pid())?;
    ensure!(after == before, "before: {before:?}, after a limit that ended: {after:?}");
    Ok(())
}
