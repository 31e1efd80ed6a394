//! The rows that are no process: `kernel` and `other`. What they show is added up from interfaces, or from maps that
//! are full; the debug build is told to take a trial's namespace for the whole machine, and to make its maps small.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use chadthrottle::{kernel::netlink::Route, kernel::netns::Namespace};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    actor, exact,
    monitor::{Watch, ensure_close, moved, truth},
    support::{
        sniff::{Sniffer, Wire},
        *,
    },
};

const PORT: u16 = 7300;
const MEGABYTE: u64 = 1_000_000;
/// Payload of a datagram, and what IPv4 and UDP put before it.
const DATAGRAM: u64 = 1200;
const HEADERS: u64 = 28;
/// Neighbours are asked for, and networks found, by packets of the kernel's own.
const CHATTER: u64 = 30_000;
/// Other addresses than the lab's: behind the router, and behind the tunnel.
const BEHIND: [u8; 3] = [10, 98, 0];
const TUNNEL: [u8; 3] = [10, 97, 0];

pub fn trials() -> Vec<Trial> {
    vec![
        told("monitor::kernel_row_has_nothing_of_a_process", nothing_of_a_process),
        told("monitor::forwarded_is_the_kernels", forwarded),
        told("monitor::through_a_tunnel_is_shown_once", tunnelled),
        told("monitor::full_maps_lose_nothing", overflow),
        told("monitor::without_functions_and_tracepoints", by_reads),
    ]
}

/// A trial whose monitor is told something that a release build does not listen to.
fn told(name: &str, run: fn(&Scene) -> Result<()>) -> Trial {
    trial(name, move |scene| {
        if !cfg!(debug_assertions) {
            return Ok(Finding::Skipped("the binary has no faults built in".into()));
        }
        run(scene).map(|()| Finding::Holds)
    })
}

/// A monitor that takes the client's namespace for the machine.
fn watch(scene: &Scene) -> Result<Watch> {
    Watch::start_as(scene, Some(&scene.lab.client), &[("CHADT_FAULT_SEES_ALL", "1")])
}

/// Bytes of a row that is no process.
fn row(summary: &Value, name: &str) -> Wire {
    let rows = summary["processes"].as_array().into_iter().flatten();
    let number = |row: &Value, key: &str| row[key].as_u64().unwrap_or(0);
    let mut found = Wire::default();
    for row in rows.filter(|row| row["pid"] == 0 && row["name"] == name) {
        found += Wire { rx: number(row, "rx_bytes"), tx: number(row, "tx_bytes") };
    }
    found
}

fn at(network: [u8; 3], host: u8, port: u16) -> SocketAddr {
    let [a, b, c] = network;
    (Ipv4Addr::new(a, b, c, host), port).into()
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> Error + '_ {
    move |cause| Error::failed(format!("{what}: {cause}"))
}

fn nothing_of_a_process(scene: &Scene) -> Result<()> {
    let address = scene.lab.server_at(Version::V4, PORT);
    exact::sink(&scene.lab.server, address)?;
    let words = ["put", "tcp", &address.to_string(), "20", "10000000"];
    let mut actor = actor::start(scene, &words)?;
    actor::await_line(&actor, "ready")?;
    let watch = watch(scene)?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, ports, summary) = watch.finish()?;
    let wire: u64 = ports.values().map(|wire| wire.tx).sum();
    ensure_close("sent", rows.get(&actor.pid()).map_or(0, |row| row.tx), wire, 0)?;
    let kernel = row(&summary, "kernel");
    ensure!(kernel.rx < CHATTER && kernel.tx < CHATTER, "for the kernel: {kernel:?}");
    ensure!(row(&summary, "other") == Wire::default(), "for others: {:?}", row(&summary, "other"));
    Ok(())
}

/// Datagrams from one namespace to another, through the watched one.
fn forwarded(scene: &Scene) -> Result<()> {
    const COUNT: u64 = 10_000;
    let (lab, behind) = (&scene.lab, Namespace::new()?);
    Route::open_in(&lab.client)?.add_veth("chadt-f", "chadt-b", &behind)?;
    for (namespace, device, host) in [(&lab.client, "chadt-f", 1), (&behind, "chadt-b", 9)] {
        let mut route = Route::open_in(namespace)?;
        let index = route.index(device)?;
        route.add_address(index, at(BEHIND, host, 0).ip(), 24)?;
        route.set_up(index)?;
    }
    // Its neighbour answers for those behind it.
    let mut route = Route::open_in(&lab.server)?;
    let index = route.index("chadt-s")?;
    route.add_address(index, at(BEHIND, 2, 0).ip(), 24)?;
    lab.client.run(|| {
        for (name, value) in
            [("ip_forward", "1"), ("conf/chadt-c/proxy_arp", "1"), ("neigh/chadt-c/proxy_delay", "0")]
        {
            fs::write(format!("/proc/sys/net/ipv4/{name}"), value).map_err(failed(name))?;
        }
        Ok(())
    })?;
    let end = at(BEHIND, 9, PORT);
    let receiver = behind.run(|| UdpSocket::bind(end).map_err(failed("listen behind the router")))?;
    let sender = lab
        .server
        .run(|| UdpSocket::bind((Ipv4Addr::new(10, 99, 0, 2), 0)).map_err(failed("make a socket")))?;
    receiver.set_read_timeout(Some(Duration::from_secs(1))).map_err(failed("set a timeout"))?;
    let address = lab.server_at(Version::V4, PORT);
    exact::sink(&lab.server, address)?;
    let mut actor = actor::start(scene, &["put", "udp", &address.to_string(), "1", "10000000"])?;
    actor::await_line(&actor, "ready")?;

    let arrived = thread::spawn(move || {
        let mut count = 0;
        while receiver.recv(&mut [0; 2000]).is_ok() {
            count += 1;
        }
        count
    });
    let watch = watch(scene)?;
    actor::go_on(&mut actor)?;
    for number in 0..COUNT {
        sender.send_to(&[7; DATAGRAM as usize], end).map_err(failed("send through the router"))?;
        if number % 20 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
    actor::await_line(&actor, "done")?;
    let count: u64 = arrived.join().map_err(|_| Error::failed("the receiver panicked"))?;
    ensure!(count > COUNT / 2, "only {count} datagrams arrived behind the router");
    let (rows, ports, summary) = watch.finish()?;
    let kernel = row(&summary, "kernel");
    ensure_close("forwarded, in", kernel.rx, COUNT * (DATAGRAM + HEADERS), CHATTER)?;
    // What the receiver had no room for was forwarded all the same.
    let (least, most) = (count * (DATAGRAM + HEADERS), COUNT * (DATAGRAM + HEADERS) + CHATTER);
    ensure!((least..=most).contains(&kernel.tx), "forwarded, out: {} of {least} to {most}", kernel.tx);
    let own = rows.get(&actor.pid()).copied().unwrap_or_default();
    ensure_close("sent by the process", own.tx, 10 * MEGABYTE / DATAGRAM * (DATAGRAM + HEADERS), 0)?;
    ensure!(own.rx < CHATTER && ports.len() > 1, "received by the process: {own:?}");
    Ok(())
}

/// A process sends into a tunnel, and what carries it is another process.
fn tunnelled(scene: &Scene) -> Result<()> {
    let address = scene.lab.server_at(Version::V4, PORT);
    exact::sink(&scene.lab.server, address)?;
    let carrier = actor::start(scene, &["tunnel", &address.to_string()])?;
    actor::await_line(&carrier, "ready")?;
    let inside = at(TUNNEL, 2, PORT).to_string();
    let mut actor = actor::start(scene, &["put", "udp-to", &inside, "1", "6000000"])?;
    actor::await_line(&actor, "ready")?;
    let watch = watch(scene)?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, _, summary) = watch.finish()?;
    let once = 6 * MEGABYTE / DATAGRAM * (DATAGRAM + HEADERS);
    ensure_close("sent by the process", rows.get(&actor.pid()).map_or(0, |row| row.tx), once, 0)?;
    // What it could not take from the device in time it did not carry.
    let carried = rows.get(&carrier.pid()).map_or(0, |row| row.tx);
    let most = 6 * MEGABYTE / DATAGRAM * (DATAGRAM + 2 * HEADERS) + CHATTER;
    ensure!((1..=most).contains(&carried), "the tunnel's process sent {carried}, of at most {most}");
    let kernel = row(&summary, "kernel");
    ensure!(kernel.rx < CHATTER && kernel.tx < CHATTER, "for the kernel: {kernel:?}");
    Ok(())
}

/// The part of [`tunnelled`]'s carrier: a device whose packets go on as datagrams.
pub fn tunnel(address: &str) -> exact::Played {
    /// struct ifreq with flags.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let mut device: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request =
        Request { name: [0; 16], flags: (libc::IFF_TUN | libc::IFF_NO_PI) as u16, rest: [0; 22] };
    request.name[..7].copy_from_slice(b"chadt-t");
    // SAFETY: a struct ifreq of ours.
    if unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let mut route = Route::open()?;
    let index = route.index("chadt-t")?;
    route.add_address(index, at(TUNNEL, 1, 0).ip(), 24)?;
    route.set_up(index)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    println!("ready");
    let mut packet = [0; 2000];
    loop {
        let length = device.read(&mut packet)?;
        socket.send_to(&packet[..length], address)?;
    }
}

/// More processes than there is room for, in a map made small.
fn overflow(scene: &Scene) -> Result<()> {
    let address = scene.lab.server_at(Version::V4, PORT);
    exact::sink(&scene.lab.server, address)?;
    let mut actor = actor::start(scene, &["one-shot", &address.to_string(), "200", "131072"])?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start_as(scene, None, &[("CHADT_FAULT_MOST_COUNTED", "32")])?;
    actor::go_on(&mut actor)?;
    actor::await_line(&actor, "done")?;
    let (rows, ports, summary, messages) = watch.finish_with_messages()?;
    let (mut shown, mut wire) = (Wire::default(), Wire::default());
    rows.values().for_each(|row| shown += *row);
    ports.values().for_each(|port| wire += *port);
    ensure_close("all sent", shown.tx, wire.tx, 0)?;
    ensure_close("all received", shown.rx, wire.rx, 200 * 120)?;
    let other = row(&summary, "other");
    ensure!(other.tx > MEGABYTE, "the row `other` has {other:?}");
    ensure!(messages.contains("are in the row `other`"), "no warning: {messages}");
    Ok(())
}

/// Workers of a server, as on a kernel where neither functions nor the newer tracepoints can be watched: what is sent
/// before anything is read is the parent's, and that is said.
fn by_reads(scene: &Scene) -> Result<()> {
    // The place in the list of what to watch by.
    const READS: (&str, &str) = ("CHADT_FAULT_WATCHERS", "4");
    let address = scene.lab.client_at(Version::V4, PORT);
    let actor = actor::start(scene, &["prefork", &address.to_string(), "4", "50", "1000000"])?;
    actor::await_line(&actor, "ready")?;
    let watch = Watch::start_as(scene, None, &[READS])?;
    // The truth goes by the fetchers' ports, who receive it.
    let sniffer = Sniffer::new(&scene.lab.server)?;
    exact::fetch(&scene.lab.server, address, 50)?;
    actor::await_line(&actor, "done")?;
    let (rows, _, _, messages) = watch.finish_with_messages()?;
    let truth = truth(&moved(&actor), &sniffer.finish()?);
    let of = |pid: u32| rows.get(&pid).map_or(0, |row| row.tx);
    let shown = of(actor.pid()) + truth.keys().map(|pid| of(*pid)).sum::<u64>();
    ensure_close("all sent", shown, truth.values().map(|wire| wire.rx).sum(), 0)?;
    let what = "a process that sends before it reads on a socket it inherited is counted for its parent";
    ensure!(messages.contains(what), "no warning: {messages}");
    let output =
        scene.command("doctor --json").env(READS.0, READS.1).output().map_err(failed("run doctor"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains(what), "doctor does not say it: {text}");
    Ok(())
}
