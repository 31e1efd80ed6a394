//! The sockets of a network namespace, as sock_diag lists them: TCP, multipath TCP and UDP over both IPs.
//!
//! What it costs grows with the sockets of the namespace: about a millisecond for a thousand. Layouts:
//! include/uapi/linux/{inet_diag,tcp}.h.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::{
    netns::Namespace,
    nl::{Attributes, Message, Netlink},
};
use crate::error::{Error, Kind, Result};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// There since Linux 5.6 with multipath TCP; the attribute that asks for it came with 5.9, and before that the answer
/// is TCP's list.
const KNOWS_MPTCP: &str = "/proc/sys/net/mptcp";
/// struct inet_diag_msg.
const HEADER: usize = 72;

/// Which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP. The subflows of multipath TCP are among them, with inode 0.
    Tcp,
    /// Multipath TCP: the sockets that programs see.
    Mptcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// All.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Mptcp, Self::Udp];

    /// The number in IP headers; multipath TCP goes as TCP.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp | Self::Mptcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

/// A TCP socket's state, as in the kernel's include/net/tcp_states.h; UDP uses two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State(pub u8);

impl State {
    /// An open connection; of UDP, a connected socket.
    pub const ESTABLISHED: Self = Self(1);
    /// Closed, but for the wait; belongs to nobody.
    pub const TIME_WAIT: Self = Self(6);
    /// Not connected; of UDP, any that is bound.
    pub const CLOSE: Self = Self(7);
    /// Accepts connections.
    pub const LISTEN: Self = Self(10);
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its state.
    pub state: State,
    /// Its own end. An IPv6 socket that speaks IPv4 has mapped addresses: see [`unmapped`].
    pub local: SocketAddr,
    /// The other end; port 0 when it is not connected.
    pub remote: SocketAddr,
    /// Device it is bound to; 0: none.
    pub device: u32,
    /// Number that the kernel uses for it and never again.
    pub cookie: u64,
    /// Inode number, by which `/proc/PID/fd` names it; 0: no program's.
    pub inode: u32,
    /// Its owner.
    pub uid: u32,
    /// Bytes received and not read yet; of a listener, connections not accepted yet.
    pub receive_queue: u32,
    /// Bytes written and not acknowledged yet; of a listener, how many connections may wait.
    pub send_queue: u32,
    /// The cgroup2 it was made in (Linux 5.9).
    pub cgroup: Option<u64>,
    /// What TCP knows of the connection.
    pub tcp: Option<TcpInfo>,
}

/// The part of struct tcp_info that somebody needs. Kernels that do not know a figure leave it 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Payload bytes sent and acknowledged.
    pub bytes_acked: u64,
    /// Payload bytes received in order.
    pub bytes_received: u64,
    /// Payload bytes sent, with those sent again (Linux 4.19).
    pub bytes_sent: u64,
    /// Payload bytes sent again (Linux 4.19).
    pub bytes_retransmitted: u64,
    /// Segments sent.
    pub segments_out: u32,
    /// Segments received.
    pub segments_in: u32,
    /// Round trip as the sender measures it, microseconds.
    pub rtt_us: u32,
    /// The least of the last minutes, microseconds.
    pub min_rtt_us: u32,
    /// Round trip as the receiver measures it, microseconds.
    pub receiver_rtt_us: u32,
    /// Largest payload of a segment that it sends.
    pub send_mss: u32,
    /// Largest payload of a segment that it received.
    pub receive_mss: u32,
    /// Shift of the windows that it advertises.
    pub receive_window_scale: u8,
}

impl TcpInfo {
    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| field(bytes, at).map_or(0, u32::from_ne_bytes);
        let long = |at: usize| field(bytes, at).map_or(0, u64::from_ne_bytes);
        Self {
            bytes_acked: long(120),
            bytes_received: long(128),
            bytes_sent: long(200),
            bytes_retransmitted: long(208),
            segments_out: word(136),
            segments_in: word(140),
            rtt_us: word(68),
            min_rtt_us: word(148),
            receiver_rtt_us: word(92),
            send_mss: word(16),
            receive_mss: word(20),
            // Two fields of four bits; the send window's first, which is the lower half.
            receive_window_scale: bytes.get(6).map_or(0, |scales| scales >> 4),
        }
    }
}

/// An IPv4 address that an IPv6 socket has mapped, as what it is.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A connection to sock_diag; it speaks of the namespace in which it was opened, wherever it is used.
pub struct SockDiag(Netlink);

impl SockDiag {
    /// For the calling thread's namespace.
    pub fn open() -> Result<Self> {
        Netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// For another namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)
    }

    /// All sockets of these protocols over both IPs, in any state. With `details`, [`Socket::tcp`] is filled in,
    /// for which the kernel takes each socket's lock. Of multipath TCP there are none where the kernel does not know
    /// it.
    pub fn list(&mut self, protocols: &[Protocol], details: bool) -> Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        for &protocol in protocols {
            if protocol == Protocol::Mptcp && !Path::new(KNOWS_MPTCP).exists() {
                continue;
            }
            for family in [libc::AF_INET, libc::AF_INET6] {
                match self.0.dump(request(protocol, family as u8, details)) {
                    Ok(answers) => {
                        sockets.extend(answers.iter().filter_map(|answer| parse(protocol, answer)));
                    }
                    Err(error) if error.kind == Kind::NotFound && protocol == Protocol::Mptcp => {}
                    Err(cause) => {
                        return Err(Error::caused(cause.kind, format!("list {protocol:?} sockets"), &cause));
                    }
                }
            }
        }
        Ok(sockets)
    }
}

fn request(protocol: Protocol, family: u8, details: bool) -> Message {
    /// All of them; TCP has 13, numbered from 1.
    const STATES: u32 = u32::MAX;
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states, and a socket's id (zero: any).
    let extensions = if details { 1 << (INET_DIAG_INFO - 1) } else { 0 };
    let number = match protocol {
        Protocol::Tcp | Protocol::Mptcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    };
    let mut header = vec![family, number, extensions, 0];
    header.extend(STATES.to_ne_bytes());
    header.resize(56, 0);
    let mut message = Message::new(SOCK_DIAG_BY_FAMILY, 0, &header);
    if protocol == Protocol::Mptcp {
        // Too large a number for the header.
        message.attribute(INET_DIAG_REQ_PROTOCOL, &(libc::IPPROTO_MPTCP as u32).to_ne_bytes());
    }
    message
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn parse(protocol: Protocol, answer: &[u8]) -> Option<Socket> {
    let word = |at: usize| field(answer, at).map(u32::from_ne_bytes);
    let port = |at: usize| field(answer, at).map(u16::from_be_bytes);
    let family = i32::from(*answer.first()?);
    let address = |at: usize| -> Option<IpAddr> {
        Some(match family {
            libc::AF_INET => Ipv4Addr::from(field::<4>(answer, at)?).into(),
            libc::AF_INET6 => Ipv6Addr::from(field::<16>(answer, at)?).into(),
            _ => return None,
        })
    };
    let attributes = Attributes::of(answer.get(HEADER..)?);
    Some(Socket {
        protocol,
        state: State(*answer.get(1)?),
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        device: word(40)?,
        cookie: u64::from(word(44)?) | u64::from(word(48)?) << 32,
        receive_queue: word(56)?,
        send_queue: word(60)?,
        uid: word(64)?,
        inode: word(68)?,
        cgroup: attributes
            .get(INET_DIAG_CGROUP_ID)
            .and_then(|value| value.try_into().ok())
            .map(u64::from_ne_bytes),
        tcp: attributes.get(INET_DIAG_INFO).filter(|info| !info.is_empty()).map(TcpInfo::parse),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream, UdpSocket},
        os::{fd::AsRawFd, unix::fs::MetadataExt},
    };

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u32 {
        let meta = std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        meta.ino() as u32
    }

    #[test]
    fn finds_our_own_sockets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[7; 5_000]).unwrap();
        far.read_exact(&mut [0; 5_000]).unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let all = SockDiag::open().unwrap().list(&Protocol::ALL, true).unwrap();
        let find = |inode: u32| all.iter().find(|socket| socket.inode == inode).unwrap();

        let found = find(inode(&near));
        assert_eq!((found.protocol, found.state), (Protocol::Tcp, State::ESTABLISHED));
        assert_eq!(found.local, near.local_addr().unwrap());
        assert_eq!(found.remote, near.peer_addr().unwrap());
        assert_eq!(found.tcp.unwrap().bytes_acked, 5_001, "and the SYN");
        assert_eq!(find(inode(&far)).tcp.unwrap().bytes_received, 5_000);
        assert_eq!(find(inode(&listener)).state, State::LISTEN);
        assert_ne!(found.cookie, find(inode(&far)).cookie);
        let found = find(inode(&udp));
        assert_eq!((found.protocol, found.local), (Protocol::Udp, udp.local_addr().unwrap()));
        assert_eq!(found.remote.port(), 0);
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(
            unmapped("[::ffff:10.0.0.1]:80".parse().unwrap()),
            "10.0.0.1:80".parse::<SocketAddr>().unwrap()
        );
        let other: SocketAddr = "[fd99::1]:80".parse().unwrap();
        assert_eq!(unmapped(other), other);
    }

    #[test]
    fn short_answers_are_no_sockets() {
        for length in [0, 1, 60, HEADER - 1] {
            assert_eq!(parse(Protocol::Tcp, &vec![2; length]), None);
        }
        assert_eq!(TcpInfo::parse(&[0; 104]), TcpInfo::default());
        assert_eq!(TcpInfo::parse(&[0, 0, 0, 0, 0, 0, 0x79]).receive_window_scale, 7);
    }
}
