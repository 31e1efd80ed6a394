//! Connections, and what else a socket of IP can be.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{ProcessKey, Traffic};

/// Transport protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// Multipath TCP.
    Mptcp,
    /// UDP.
    Udp,
    /// UDP-Lite.
    Udplite,
    /// ICMP and ICMPv6 by way of a ping socket.
    Icmp,
    /// SCTP.
    Sctp,
    /// A raw socket, or any other protocol.
    Raw,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Mptcp => "mptcp",
            Self::Udp => "udp",
            Self::Udplite => "udplite",
            Self::Icmp => "icmp",
            Self::Sctp => "sctp",
            Self::Raw => "raw",
        })
    }
}

/// State of a connection; protocols other than TCP know only the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Has a peer.
    Established,
    /// Has none.
    Unconnected,
    /// Waits for connections.
    Listen,
    /// Asked for a connection.
    SynSent,
    /// Was asked for one.
    SynRecv,
    /// Closed by us, not acknowledged.
    FinWait1,
    /// Closed by us.
    FinWait2,
    /// Closed by the peer.
    CloseWait,
    /// Closed by both, not acknowledged.
    LastAck,
    /// Closed by both at the same time.
    Closing,
    /// Waits for stray packets.
    TimeWait,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Established => "established",
            Self::Unconnected => "unconnected",
            Self::Listen => "listen",
            Self::SynSent => "syn_sent",
            Self::SynRecv => "syn_recv",
            Self::FinWait1 => "fin_wait1",
            Self::FinWait2 => "fin_wait2",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::Closing => "closing",
            Self::TimeWait => "time_wait",
        })
    }
}

/// An open socket of IP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Names the socket on this host until the next boot (the kernel's socket cookie).
    pub id: u64,
    /// Who owns it; [`super::ProcessKind::Other`] when that is not known.
    pub owner: ProcessKey,
    /// Transport protocol.
    pub protocol: Protocol,
    /// State.
    pub state: State,
    /// Own address and port; port 0 where the protocol has none. An IPv4 address that an IPv6 socket uses
    /// is written as IPv4.
    pub local: SocketAddr,
    /// The peer's; `None`: it has none, or sends to a new one each time.
    pub remote: Option<SocketAddr>,
    /// IP bytes received since the monitor began, or since it was made.
    pub rx_bytes: u64,
    /// The same, sent.
    pub tx_bytes: u64,
    /// Bytes/s received over the last interval.
    pub rx_rate: u64,
    /// Bytes/s sent over the last interval.
    pub tx_rate: u64,
    /// Smoothed round trip time in µs; TCP only.
    pub rtt_us: Option<u32>,
    /// Segments sent again since it was made; TCP only.
    pub retransmits: Option<u32>,
}

impl Connection {
    /// Its bytes and rates.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            rx_rate: self.rx_rate,
            tx_rate: self.tx_rate,
        }
    }

    /// The peer's address.
    pub fn remote_ip(&self) -> Option<IpAddr> {
        self.remote.map(|remote| remote.ip())
    }
}
