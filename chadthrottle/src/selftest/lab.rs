//! Two private network namespaces with a cable between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    error::Result,
    kernel::{netlink::Route, netns::Namespace},
};

/// Ethernet's.
const MTU: u32 = 1500;

/// Name of the client's end.
pub const CLIENT_DEVICE: &str = "chadt-c";
/// Name of the server's end.
pub const SERVER_DEVICE: &str = "chadt-s";

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The two namespaces; gone when dropped and nobody runs inside any more.
pub struct Lab {
    /// Where the processes are that get limited.
    pub client: Namespace,
    /// Where their peers are.
    pub server: Namespace,
}

impl Lab {
    /// Makes the namespaces, with addresses 1 (client) and 2 (server) of 10.99.0.0/24 and fd99::/64.
    /// Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
    pub fn new() -> Result<Self> {
        let cable =
            |lab: &Self| Route::open_in(&lab.client)?.add_veth(CLIENT_DEVICE, SERVER_DEVICE, &lab.server);
        Self::joined_by(cable).map(|(lab, ())| lab)
    }

    /// The same with something else between them: `join` makes [`CLIENT_DEVICE`] and [`SERVER_DEVICE`], both
    /// with Ethernet headers.
    pub fn joined_by<T>(join: impl FnOnce(&Self) -> Result<T>) -> Result<(Self, T)> {
        let lab = Self { client: Namespace::new()?, server: Namespace::new()? };
        let line = join(&lab)?;
        for (namespace, device, host) in [(&lab.client, CLIENT_DEVICE, 1), (&lab.server, SERVER_DEVICE, 2)] {
            let mut route = Route::open_in(namespace)?;
            let loopback = route.index("lo")?;
            route.set_up(loopback)?;
            let index = route.index(device)?;
            route.set_mtu(index, MTU)?;
            route.add_address(index, address(Version::V4, host), 24)?;
            route.add_address(index, address(Version::V6, host), 64)?;
            route.set_up(index)?;
        }
        Ok((lab, line))
    }

    /// An endpoint in the server's namespace.
    pub fn server_at(&self, version: Version, port: u16) -> SocketAddr {
        SocketAddr::new(address(version, 2), port)
    }

    /// An endpoint in the client's namespace.
    pub fn client_at(&self, version: Version, port: u16) -> SocketAddr {
        SocketAddr::new(address(version, 1), port)
    }
}

fn address(version: Version, host: u8) -> IpAddr {
    match version {
        Version::V4 => Ipv4Addr::new(10, 99, 0, host).into(),
        Version::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_and_server_are_neighbours() {
        assert_eq!(address(Version::V4, 1).to_string(), "10.99.0.1");
        assert_eq!(address(Version::V6, 2).to_string(), "fd99::2");
    }
}
