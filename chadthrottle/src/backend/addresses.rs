//! Sockets that are older than their limit, by their addresses. Pure: what is open is looked up elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::SocketAddr,
};

use crate::{
    kernel::sock_diag::{Socket, State, unmapped},
    model::LimitId,
};

/// By what packets of a socket are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A connection.
    Flow {
        /// Number of the transport protocol.
        protocol: u8,
        /// Its own end.
        local: SocketAddr,
        /// The other end.
        remote: SocketAddr,
    },
    /// A socket that listens, or is not connected, at one address; with what is accepted from it.
    Bind {
        /// Number of the transport protocol.
        protocol: u8,
        /// Where.
        local: SocketAddr,
    },
    /// The same at all addresses.
    Port {
        /// Number of the transport protocol.
        protocol: u8,
        /// Where.
        port: u16,
    },
}

impl Address {
    fn bound(protocol: u8, local: SocketAddr) -> Self {
        if local.ip().is_unspecified() {
            Self::Port { protocol, port: local.port() }
        } else {
            Self::Bind { protocol, local }
        }
    }

    /// The addresses of which it is a part.
    fn wider(self) -> Option<[Self; 2]> {
        let Self::Flow { protocol, local, .. } = self else { return None };
        Some([Self::Bind { protocol, local }, Self::Port { protocol, port: local.port() }])
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |protocol: u8| match i32::from(protocol) {
            libc::IPPROTO_TCP => "tcp",
            libc::IPPROTO_UDP => "udp",
            _ => "?",
        };
        match self {
            Self::Flow { protocol, local, remote } => write!(f, "{} {local}-{remote}", name(*protocol)),
            Self::Bind { protocol, local } => write!(f, "{} {local}", name(*protocol)),
            Self::Port { protocol, port } => write!(f, "{} *:{port}", name(*protocol)),
        }
    }
}

/// What a socket is known by; `None`: it is not bound yet, or closed.
pub fn address(socket: &Socket) -> Option<Address> {
    let protocol = socket.protocol.number();
    let (local, remote) = (unmapped(socket.local), unmapped(socket.remote));
    match (local.port(), remote.port()) {
        (0, _) => None,
        (_, 0) => Some(Address::bound(protocol, local)),
        _ => Some(Address::Flow { protocol, local, remote }),
    }
}

/// The sockets of a limit in one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Those that are not known by their cgroup.
    pub addresses: BTreeSet<Address>,
    /// How many there are, all of them.
    pub count: u32,
    /// There are old ones of which nobody can tell yet what they will be known by.
    pub unsettled: bool,
    /// Addresses that others use too.
    pub shared: Vec<Address>,
}

/// Whether a socket may bring forth others, or speaks to anybody.
fn is_open_to_all(socket: &Socket) -> bool {
    socket.remote.port() == 0 && socket.local.port() != 0
}

/// Old sockets at which it matters whether somebody else holds them too.
pub fn open_to_all<'a>(
    all: &'a [Socket],
    mine: &'a HashSet<u32>,
    knows: &'a dyn Fn(Option<u64>) -> bool,
) -> impl Iterator<Item = u32> + 'a {
    let old = move |socket: &&Socket| mine.contains(&socket.inode) && !knows(socket.cgroup);
    all.iter().filter(old).filter(|socket| is_open_to_all(socket)).map(|socket| socket.inode)
}

/// What the sockets with these inodes (`mine`) are known by. `all` are those of the namespace; `knows` says of a
/// cgroup whether sockets made in it are known by it; `elsewhere` are those of mine that other processes hold too;
/// `before` is what was known last.
pub fn addresses(
    all: &[Socket],
    mine: &HashSet<u32>,
    knows: &dyn Fn(Option<u64>) -> bool,
    elsewhere: &HashSet<u32>,
    before: &BTreeSet<Address>,
) -> Sockets {
    let mut found = Sockets::default();
    let mut inodes = HashSet::new();
    // By address, whether all who are open to all there are mine.
    let mut exclusive: HashMap<(u8, u16), bool> = HashMap::new();
    for socket in all.iter().filter(|socket| is_open_to_all(socket)) {
        let ours = mine.contains(&socket.inode) && !elsewhere.contains(&socket.inode);
        *exclusive.entry((socket.protocol.number(), socket.local.port())).or_insert(true) &= ours;
    }
    let mut flows = Vec::new();
    for socket in all {
        if socket.state == State::TIME_WAIT {
            continue;
        }
        let address = address(socket);
        if !mine.contains(&socket.inode) {
            // What a process leaves in the send queue when it closes a connection is still its traffic.
            if socket.inode == 0 {
                flows.extend(address.filter(|address| before.contains(address)));
            }
            continue;
        }
        if inodes.insert(socket.inode) {
            found.count += 1;
        }
        if knows(socket.cgroup) {
            continue;
        }
        match address {
            None => found.unsettled = true,
            Some(flow @ Address::Flow { .. }) => flows.push(flow),
            Some(open) if exclusive[&(socket.protocol.number(), socket.local.port())] => {
                found.addresses.insert(open);
            }
            Some(open) => {
                found.shared.push(open);
                // Connections that it accepts are met one by one.
                found.unsettled = true;
            }
        }
    }
    let known = &found.addresses;
    let narrow: Vec<_> = flows
        .into_iter()
        .filter(|flow| flow.wider().is_none_or(|wider| !wider.iter().any(|it| known.contains(it))))
        .collect();
    found.addresses.extend(narrow);
    found
}

/// Several limits may hold one address, and one that is wider: each address with its limits, as many as there are.
pub fn by_address(limits: &BTreeMap<LimitId, BTreeSet<Address>>) -> BTreeMap<Address, Vec<LimitId>> {
    let mut holders = BTreeMap::<Address, Vec<LimitId>>::new();
    for address in limits.values().flatten() {
        holders.entry(*address).or_insert_with(|| {
            let wider = address.wider();
            let holds = |held: &BTreeSet<Address>| {
                held.contains(address) || wider.is_some_and(|wider| wider.iter().any(|it| held.contains(it)))
            };
            limits.iter().filter(|(_, held)| holds(held)).map(|(id, _)| *id).collect()
        });
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::sock_diag::Protocol;

    const TCP: u8 = libc::IPPROTO_TCP as u8;
    const UDP: u8 = libc::IPPROTO_UDP as u8;
    const LEAF: u64 = 77;

    fn socket(protocol: Protocol, inode: u32, local: &str, remote: &str) -> Socket {
        Socket {
            protocol,
            state: State::ESTABLISHED,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            device: 0,
            cookie: u64::from(inode),
            inode,
            uid: 0,
            receive_queue: 0,
            send_queue: 0,
            cgroup: Some(1),
            tcp: None,
        }
    }

    fn tcp(inode: u32, local: &str, remote: &str) -> Socket {
        socket(Protocol::Tcp, inode, local, remote)
    }

    fn find(all: &[Socket], mine: &[u32], elsewhere: &[u32], before: &[Address]) -> Sockets {
        let set = |list: &[u32]| list.iter().copied().collect::<HashSet<_>>();
        addresses(
            all,
            &set(mine),
            &|cgroup| cgroup == Some(LEAF),
            &set(elsewhere),
            &before.iter().copied().collect(),
        )
    }

    fn flow(protocol: u8, local: &str, remote: &str) -> Address {
        Address::Flow { protocol, local: local.parse().unwrap(), remote: remote.parse().unwrap() }
    }

    #[test]
    fn only_the_old_ones_of_ours() {
        let mut young = tcp(3, "10.0.0.1:3", "10.0.0.2:80");
        young.cgroup = Some(LEAF);
        let mapped = tcp(2, "[::ffff:10.0.0.1]:2", "[::ffff:10.0.0.2]:80");
        let all = [tcp(1, "10.0.0.1:1", "10.0.0.2:80"), mapped, young, tcp(4, "10.0.0.1:4", "10.0.0.2:80")];
        let found = find(&all, &[1, 2, 3], &[], &[]);
        let expected = [flow(TCP, "10.0.0.1:1", "10.0.0.2:80"), flow(TCP, "10.0.0.1:2", "10.0.0.2:80")];
        assert_eq!(found.addresses, expected.into());
        assert_eq!((found.count, found.unsettled), (3, false));
    }

    #[test]
    fn a_listener_stands_for_what_it_accepts() {
        let all = [
            tcp(1, "[::]:80", "[::]:0"),
            tcp(2, "10.0.0.1:80", "10.0.0.9:5"),
            socket(Protocol::Udp, 3, "10.0.0.1:53", "0.0.0.0:0"),
        ];
        let found = find(&all, &[1, 2, 3], &[], &[]);
        let expected = [
            Address::Port { protocol: TCP, port: 80 },
            Address::Bind { protocol: UDP, local: "10.0.0.1:53".parse().unwrap() },
        ];
        assert_eq!(found.addresses, expected.into());
    }

    #[test]
    fn a_shared_listener_does_not() {
        let all = [tcp(1, "0.0.0.0:80", "0.0.0.0:0"), tcp(2, "10.0.0.1:80", "10.0.0.9:5")];
        let found = find(&all, &[1, 2], &[1], &[]);
        assert_eq!(found.addresses, [flow(TCP, "10.0.0.1:80", "10.0.0.9:5")].into());
        assert_eq!(found.shared, [Address::Port { protocol: TCP, port: 80 }]);
        assert!(found.unsettled);
        // Nor one whose port somebody else serves, too.
        let all = [tcp(1, "0.0.0.0:80", "0.0.0.0:0"), tcp(8, "10.0.0.1:80", "0.0.0.0:0")];
        assert!(find(&all, &[1], &[], &[]).addresses.is_empty());
    }

    #[test]
    fn what_is_left_to_send_stays_and_what_is_not_there_yet_is_waited_for() {
        let left = tcp(0, "10.0.0.1:1", "10.0.0.2:80");
        let mut waiting = tcp(0, "10.0.0.1:2", "10.0.0.2:80");
        waiting.state = State::TIME_WAIT;
        let unbound = tcp(5, "0.0.0.0:0", "0.0.0.0:0");
        let known = [flow(TCP, "10.0.0.1:1", "10.0.0.2:80"), flow(TCP, "10.0.0.1:2", "10.0.0.2:80")];
        let found = find(&[left, waiting, unbound], &[5], &[], &known);
        assert_eq!(found.addresses, [known[0]].into());
        assert!(found.unsettled);
    }

    #[test]
    fn a_wider_address_counts_for_the_narrow_one() {
        let port = Address::Port { protocol: TCP, port: 80 };
        let narrow = flow(TCP, "10.0.0.1:80", "10.0.0.9:5");
        let limits = [(LimitId(1), [port].into()), (LimitId(2), [narrow].into())].into();
        let expected = [(narrow, vec![LimitId(1), LimitId(2)]), (port, vec![LimitId(1)])];
        assert_eq!(by_address(&limits), expected.into());
    }
}
