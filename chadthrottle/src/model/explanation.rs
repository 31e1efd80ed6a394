//! What targets mean at one moment, for `explain`.

use std::net::SocketAddr;

use serde::Serialize;

use super::{Scope, Target};

/// The processes and sockets that a limit on these targets would hold now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// As asked for.
    pub targets: Vec<Target>,
    /// As asked for.
    pub scope: Scope,
    /// By id.
    pub processes: Vec<ExplainedProcess>,
    /// Processes whose executable file is hidden from us, so that nobody can tell whether they match by it.
    pub hidden: u32,
}

/// A process that a target means.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedProcess {
    /// Its id …
    pub pid: u32,
    /// … and clock ticks from the boot to its start, which tell it from any other one.
    pub start_time: u64,
    /// Its name (comm).
    pub name: String,
    /// Path of its executable file; `None`: it has none, or it is hidden from us.
    pub exe: Option<String>,
    /// Name of its real user, or the id where it has none.
    pub user: String,
    /// Its cgroup (version 2).
    pub cgroup: Option<String>,
    /// Its systemd unit.
    pub unit: Option<String>,
    /// Id or name of its innermost container.
    pub container: Option<String>,
    /// Every reason.
    pub why: Vec<Reason>,
    /// Its IPv4 and IPv6 sockets; `None`: hidden from us.
    pub sockets: Option<Vec<ExplainedSocket>>,
}

/// Why a process is meant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// By which target.
    pub target: Target,
    /// What of the process fits it.
    pub because: String,
}

/// A socket of a process that is meant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedSocket {
    /// tcp, udp, udplite, raw, icmp.
    pub protocol: &'static str,
    /// Its own end.
    pub local: SocketAddr,
    /// The far end; `None`: not connected.
    pub remote: Option<SocketAddr>,
    /// State of TCP.
    pub state: Option<&'static str>,
    /// Whether its traffic would be limited; `None`: that is decided packet by packet.
    pub matches: Option<bool>,
}
