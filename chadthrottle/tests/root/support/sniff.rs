//! Counts what passes a device, packet by packet, to compare with: a packet socket that reads headers.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use chadthrottle::kernel::netns::Namespace;

use super::{Error, Result, ensure};

/// IP bytes as on the wire, by direction as the namespace sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wire {
    pub rx: u64,
    pub tx: u64,
}

impl std::ops::AddAssign for Wire {
    fn add_assign(&mut self, other: Self) {
        (self.rx, self.tx) = (self.rx + other.rx, self.tx + other.tx);
    }
}

/// By the port of this side.
pub type Ports = HashMap<u16, Wire>;

pub struct Sniffer {
    ports: Arc<Mutex<Ports>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<u32>>>,
}

const ETH_P_ALL: u16 = 0x0003;
/// struct virtio_net_hdr, and an Ethernet header.
const VNET: usize = 10;
const ETHERNET: usize = 14;
/// Enough for all headers.
const HEADERS: usize = VNET + ETHERNET + 120;

impl Sniffer {
    /// Listens at all devices of a namespace, which may have only one beside loopback.
    pub fn new(namespace: &Namespace) -> Result<Self> {
        let failed = |cause: io::Error| Error::failed(format!("listen to packets: {cause}"));
        let socket = namespace.run(|| open().map_err(failed))?;
        let (ports, stop) = (Arc::new(Mutex::new(Ports::new())), Arc::new(AtomicBool::new(false)));
        let (all, end) = (Arc::clone(&ports), Arc::clone(&stop));
        let thread = std::thread::spawn(move || listen(&socket, &all, &end));
        Ok(Self { ports, stop, thread: Some(thread) })
    }

    /// What passed; fails when the kernel had to leave packets out.
    pub fn finish(mut self) -> Result<Ports> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| Error::failed("the sniffer has ended"))?;
        let lost = thread.join().map_err(|_| Error::failed("the sniffer panicked"))?;
        let lost = lost.map_err(|cause| Error::failed(format!("read packets: {cause}")))?;
        ensure!(lost == 0, "the sniffer missed {lost} packets");
        Ok(self.ports.lock().unwrap().clone())
    }
}

fn open() -> io::Result<OwnedFd> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; a new descriptor that nobody else owns.
    let socket = unsafe {
        OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, kind, i32::from(ETH_P_ALL.to_be())))?)
    };
    let set = |level, name, value: libc::c_int| {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: an int of ours.
        check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) })
    };
    set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 256 << 20)?;
    let time = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
    // SAFETY: a timeval of ours.
    check(unsafe {
        let length = size_of::<libc::timeval>() as libc::socklen_t;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const time).cast(),
            length,
        )
    })?;
    Ok(socket)
}

fn listen(socket: &OwnedFd, ports: &Mutex<Ports>, stop: &AtomicBool) -> io::Result<u32> {
    let mut packet = [0u8; HEADERS];
    loop {
        // SAFETY: integers only.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: both buffers are ours, of the lengths given.
        let whole = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                packet.as_mut_ptr().cast(),
                packet.len(),
                libc::MSG_TRUNC,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        if whole < 0 {
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock if stop.load(Ordering::Relaxed) => return lost(socket),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                _ => return Err(error),
            }
        }
        let read = &packet[..packet.len().min(whole as usize)];
        let Some((source, destination, bytes)) = parse(read, whole as usize) else { continue };
        let mut ports = ports.lock().unwrap();
        if from.sll_pkttype == libc::PACKET_OUTGOING {
            ports.entry(source).or_default().tx += bytes;
        } else {
            ports.entry(destination).or_default().rx += bytes;
        }
    }
}

/// Both ports, and the IP bytes that a packet is on the wire.
fn parse(packet: &[u8], whole: usize) -> Option<(u16, u16, u64)> {
    let segment = usize::from(u16::from_ne_bytes(packet.get(4..6)?.try_into().ok()?));
    let is_gso = packet[1] != 0;
    let ip = packet.get(VNET + ETHERNET..)?;
    let length = whole - VNET - ETHERNET;
    let (protocol, at) = match *ip.first()? >> 4 {
        4 => (*ip.get(9)?, usize::from(ip[0] & 15) * 4),
        6 => (*ip.get(6)?, 40),
        _ => return None,
    };
    let headers = at
        + match i32::from(protocol) {
            libc::IPPROTO_TCP => usize::from(*ip.get(at + 12)? >> 4) * 4,
            libc::IPPROTO_UDP => 8,
            _ => return None,
        };
    let port = |at: usize| Some(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?));
    let segments = if is_gso { (length - headers).div_ceil(segment.max(1)) } else { 1 };
    Some((port(at)?, port(at + 2)?, (length + segments.saturating_sub(1) * headers) as u64))
}

fn lost(socket: &OwnedFd) -> io::Result<u32> {
    let mut statistics = [0u32; 2];
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: two words of ours, as struct tpacket_stats.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if asked < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics[1]) }
}
