//! The IPv4 and IPv6 sockets of processes, with their addresses, as /proc shows them: for explaining, not for limiting.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// The tables in `/proc/PID/net`, and the protocol of each.
const TABLES: &[(&str, &str)] = &[
    ("tcp", "tcp"),
    ("tcp6", "tcp"),
    ("udp", "udp"),
    ("udp6", "udp"),
    ("udplite", "udplite"),
    ("udplite6", "udplite"),
    ("raw", "raw"),
    ("raw6", "raw"),
    ("icmp", "icmp"),
    ("icmp6", "icmp"),
];

/// Names of the states of TCP, from include/net/tcp_states.h.
const STATES: &[&str] = &[
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
];

/// An open socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// tcp, udp, udplite, raw, icmp.
    pub protocol: &'static str,
    /// Its own end.
    pub local: SocketAddr,
    /// The far end; `None`: not connected.
    pub remote: Option<SocketAddr>,
    /// Of TCP.
    pub state: Option<&'static str>,
}

/// Reads the sockets of processes, each network namespace once.
pub struct Reader {
    proc: PathBuf,
    tables: HashMap<PathBuf, HashMap<u64, Socket>>,
}

impl Reader {
    /// Of the mounted proc file system at `proc`.
    pub fn new(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), tables: HashMap::new() }
    }

    /// Those a process holds, each once; `None`: hidden from us.
    pub fn of(&mut self, pid: u32) -> Option<Vec<Socket>> {
        let folder = self.proc.join(pid.to_string());
        let entries = fs::read_dir(folder.join("fd")).ok()?;
        let mut inodes = HashSet::new();
        for entry in entries.flatten() {
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            inodes.extend(inode(&link.to_string_lossy()));
        }
        if inodes.is_empty() {
            return Some(Vec::new());
        }
        // Where its namespace has no name for us, the table is read for it alone.
        let namespace = fs::read_link(folder.join("ns/net")).unwrap_or_else(|_| folder.clone());
        let table = self.tables.entry(namespace).or_insert_with(|| read_tables(&folder.join("net")));
        let mut sockets: Vec<_> = inodes.iter().filter_map(|inode| table.get(inode)).cloned().collect();
        sockets.sort_by_key(|socket| (socket.protocol, socket.local, socket.remote));
        Some(sockets)
    }
}

fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn read_tables(folder: &Path) -> HashMap<u64, Socket> {
    let mut sockets = HashMap::new();
    for (file, protocol) in TABLES {
        // One that is not there has no sockets.
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(|line| parse(line, protocol)));
    }
    sockets
}

/// A line: number, local, remote, state …, and the inode as the tenth word.
fn parse(line: &str, protocol: &'static str) -> Option<(u64, Socket)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (local, remote) = (address(words.get(1)?)?, address(words.get(2)?)?);
    let inode: u64 = words.get(9)?.parse().ok()?;
    let state = usize::from_str_radix(words.get(3)?, 16).ok()?;
    let state = (protocol == "tcp").then(|| STATES.get(state.wrapping_sub(1)).copied().unwrap_or("other"));
    let connected = !remote.ip().is_unspecified() || remote.port() != 0;
    (inode != 0).then_some((inode, Socket { protocol, local, remote: connected.then_some(remote), state }))
}

/// `0100007F:0050`: words of the address as this machine stores them, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn finds_our_own_sockets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        let datagrams = UdpSocket::bind("[::1]:0").unwrap();
        let sockets = Reader::new(Path::new("/proc")).of(std::process::id()).unwrap();
        let find =
            |local| sockets.iter().find(|socket| socket.local == local && socket.remote != Some(local));
        let listens = sockets.iter().find(|socket| socket.state == Some("listen") && socket.local == address);
        assert!(listens.is_some_and(|socket| socket.remote.is_none()));
        let connected = find(stream.local_addr().unwrap()).unwrap();
        assert_eq!((connected.remote, connected.state), (Some(address), Some("established")));
        let udp = find(datagrams.local_addr().unwrap()).unwrap();
        assert_eq!((udp.protocol, udp.remote, udp.state), ("udp", None, None));
        assert_eq!(Reader::new(Path::new("/proc")).of(u32::MAX), None);
    }

    #[test]
    fn what_is_no_line() {
        for line in
            ["", "0:", "0: 0100007F:0050", "0: 1:1 2:2 01", "0: 0100007F:0050 0100007F:zz 0A 0 0 0 0 0 7"]
        {
            assert_eq!(parse(line, "tcp"), None, "{line}");
        }
    }
}
