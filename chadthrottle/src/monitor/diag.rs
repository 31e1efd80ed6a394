//! Counts by asking the kernel for its TCP sockets, and /proc who holds them. Takes no right, and shows what a
//! user may see: payload of TCP, of connections that are open when somebody looks, in this network namespace.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use super::reading::{Bytes, Count, Reading, SocketTally};
use crate::{
    error::Result,
    kernel::{
        netlink::Route,
        process::{self, PROC, Stat},
        sock_diag::{self, SockDiag},
    },
    model::{Notice, ProcessKey, ProcessKind, Protocol, Source, State},
};

/// A socket as it was last seen.
struct Seen {
    owner: ProcessKey,
    bytes: Bytes,
    round: u64,
}

/// The count.
pub struct Diag {
    proc: PathBuf,
    diag: SockDiag,
    route: Option<Route>,
    seen: HashMap<u64, Seen>,
    /// Bytes of sockets that are gone, and of owners that gave a socket away.
    past: HashMap<ProcessKey, Bytes>,
    /// Who holds which socket, by inode.
    holders: HashMap<u32, ProcessKey>,
    /// Inodes that nobody we may look into holds.
    strangers: HashSet<u32>,
    round: u64,
    why: Notice,
}

impl Diag {
    /// `why`: what keeps the better count from working.
    pub fn open(why: Notice) -> Result<Self> {
        Ok(Self {
            proc: PROC.into(),
            diag: SockDiag::open()?,
            route: None,
            seen: HashMap::new(),
            past: HashMap::new(),
            holders: HashMap::new(),
            strangers: HashSet::new(),
            round: 0,
            why,
        })
    }

    /// Finds out who holds the sockets, if there are some that were never looked for.
    fn find_holders(&mut self, inodes: &HashSet<u32>) {
        self.strangers.retain(|inode| inodes.contains(inode));
        self.holders.retain(|inode, _| inodes.contains(inode));
        let known = |inode: &u32| self.holders.contains_key(inode) || self.strangers.contains(inode);
        // A socket may also be handed on; every now and then all are looked for.
        if inodes.iter().all(known) && !self.round.is_multiple_of(10) {
            return;
        }
        let mut holders = HashMap::new();
        for pid in process::all(&self.proc).unwrap_or_default() {
            let own = inodes_of(&self.proc, pid);
            if own.is_empty() {
                continue;
            }
            let Ok(Some(stat)) = Stat::read(&self.proc, pid) else { continue };
            let key = ProcessKey { kind: ProcessKind::Process, pid, start_time: stat.start_time };
            for inode in own.into_iter().filter(|inode| inodes.contains(inode)) {
                let holder = holders.entry(inode).or_insert(key);
                // Of several the one that holds it already, or the youngest: servers fork their workers.
                let before = self.holders.get(&inode);
                if before == Some(&key) || before != Some(holder) && holder.start_time < key.start_time {
                    *holder = key;
                }
            }
        }
        self.strangers = inodes.iter().filter(|inode| !holders.contains_key(inode)).copied().collect();
        self.holders = holders;
    }
}

/// Inodes of the sockets that a process holds; none where we may not look.
fn inodes_of(proc: &Path, pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(proc.join(format!("{pid}/fd"))).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

impl Count for Diag {
    fn read(&mut self, sockets: bool) -> Result<Reading> {
        self.round += 1;
        let mut all = self.diag.list(&sock_diag::Protocol::ALL, true)?;
        // Subflows of multipath TCP belong to a socket that is listed as well; what waits to be forgotten, to
        // nobody.
        all.retain(|socket| socket.inode != 0);
        self.find_holders(&all.iter().map(|socket| socket.inode).collect());

        let mut reading = Reading::new(Source::SockDiag);
        reading.notices.push(self.why.clone());
        reading.notices.push(Notice {
            what: "UDP, headers, and connections shorter than a tick are not counted".into(),
            why: "only what TCP itself says about open connections is known".into(),
            mend: None,
        });
        if !self.strangers.is_empty() {
            reading.notices.push(Notice {
                what: match self.strangers.len() {
                    1 => "1 socket is shown without its process".into(),
                    many => format!("{many} sockets are shown without their process"),
                },
                why: "other users, or containers, have them".into(),
                mend: None,
            });
        }
        let nobody = ProcessKey { kind: ProcessKind::Other, ..ProcessKey::default() };
        for socket in &all {
            let owner = self.holders.get(&socket.inode).copied().unwrap_or(nobody);
            let now = socket
                .tcp
                .map_or(Bytes::default(), |tcp| Bytes { rx: tcp.bytes_received, tx: tcp.bytes_acked });
            let seen =
                self.seen.entry(socket.cookie).or_insert(Seen { owner, bytes: Bytes::default(), round: 0 });
            if seen.owner != owner {
                // What it has moved stays with the old owner.
                *self.past.entry(seen.owner).or_default() += seen.bytes;
                let debt = self.past.entry(owner).or_default();
                *debt = Bytes {
                    rx: debt.rx.wrapping_sub(seen.bytes.rx),
                    tx: debt.tx.wrapping_sub(seen.bytes.tx),
                };
                seen.owner = owner;
            }
            (seen.bytes, seen.round) = (now.max(seen.bytes), self.round);
            let tally = reading.processes.entry(owner).or_default();
            tally.bytes += seen.bytes;
            tally.sockets += 1;
            if sockets {
                reading.sockets.push(tally_of(socket, owner, seen.bytes));
            }
        }
        let (round, past) = (self.round, &mut self.past);
        self.seen.retain(|_, seen| {
            if seen.round != round {
                *past.entry(seen.owner).or_default() += seen.bytes;
            }
            seen.round == round
        });
        for (owner, bytes) in past.iter() {
            reading.processes.entry(*owner).or_default().bytes += *bytes;
        }
        reading.read_devices(&mut self.route);
        Ok(reading)
    }
}

fn tally_of(socket: &sock_diag::Socket, owner: ProcessKey, bytes: Bytes) -> SocketTally {
    let protocol = match socket.protocol {
        sock_diag::Protocol::Tcp => Protocol::Tcp,
        sock_diag::Protocol::Mptcp => Protocol::Mptcp,
        sock_diag::Protocol::Udp => Protocol::Udp,
    };
    let is_tcp = socket.protocol != sock_diag::Protocol::Udp;
    let established = socket.state == sock_diag::State::ESTABLISHED;
    let tcp = socket.tcp.filter(|_| is_tcp && socket.state != sock_diag::State::LISTEN);
    SocketTally {
        id: socket.cookie,
        owner,
        protocol,
        state: if is_tcp || established { state_of(socket.state.0) } else { State::Unconnected },
        local: sock_diag::unmapped(socket.local),
        remote: (socket.remote.port() != 0).then(|| sock_diag::unmapped(socket.remote)),
        bytes,
        rtt_us: tcp.map(|tcp| tcp.rtt_us).filter(|rtt| *rtt != 0),
        retransmits: tcp.map(|tcp| tcp.retransmits),
    }
}

/// A state as the kernel numbers them (include/net/tcp_states.h).
pub fn state_of(number: u8) -> State {
    match number {
        1 => State::Established,
        2 => State::SynSent,
        3 | 12 => State::SynRecv,
        4 => State::FinWait1,
        5 => State::FinWait2,
        6 => State::TimeWait,
        8 => State::CloseWait,
        9 => State::LastAck,
        10 => State::Listen,
        11 => State::Closing,
        _ => State::Unconnected,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::monitor::census::Census;

    #[test]
    fn our_own_bytes_are_ours_and_stay_after_the_end() {
        let mut count = Diag::open(Notice { what: "a".into(), why: "b".into(), mend: None }).unwrap();
        let me = Census::new(PROC.as_ref(), None).key_of(std::process::id()).unwrap();
        // Other tests of this program move bytes meanwhile, too.
        const MUCH: u64 = 30_000_000;
        let mine =
            |count: &mut Diag| count.read(false).unwrap().processes.get(&me).map_or(0, |mine| mine.bytes.rx);
        let before = mine(&mut count);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let reader = std::thread::spawn(move || {
            let mut left = vec![0; MUCH as usize];
            far.read_exact(&mut left).unwrap();
            far
        });
        near.write_all(&vec![0; MUCH as usize]).unwrap();
        let far = reader.join().unwrap();
        let reading = count.read(true).unwrap();
        let socket = reading.sockets.iter().find(|each| each.local == near.local_addr().unwrap()).unwrap();
        assert_eq!((socket.owner, socket.state), (me, State::Established));
        assert_eq!(socket.remote, Some(near.peer_addr().unwrap()));
        assert!(socket.bytes.tx >= MUCH && socket.rtt_us.is_some() && socket.retransmits.is_some());
        drop((near, far));
        let after = mine(&mut count) - before;
        assert!((MUCH..MUCH + MUCH / 10).contains(&after), "{after}");
        assert!(reading.devices.iter().any(|device| device.loopback && device.rx_bytes >= MUCH));
    }
}
