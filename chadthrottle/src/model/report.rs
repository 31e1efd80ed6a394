//! What the owner tells its clients about limits in force.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{LimitId, PerDirection, Rate, Scope, Target};

/// Counters of one direction since the limit was set. Bytes are IP bytes as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Let through.
    pub passed_packets: u64,
    /// Let through.
    pub passed_bytes: u64,
    /// Refused; on upload, TCP keeps these and sends them later.
    pub dropped_packets: u64,
    /// Refused.
    pub dropped_bytes: u64,
    /// Waited in a queue of ours.
    pub delayed_packets: u64,
    /// Marked, or their sender told to slow down: acknowledgements whose window was lowered.
    pub marked_packets: u64,
    /// How long a packet waits that enters the queue now, in microseconds; `None`: there is no queue.
    #[serde(default)]
    pub queue_us: Option<u64>,
}

/// One direction of a limit in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectionReport {
    /// The limit, bytes/s.
    pub rate: Rate,
    /// What passed over the last full second, bytes/s; `None` before the first.
    pub measured: Option<u64>,
    /// Name of the backend that holds it.
    pub backend: String,
    /// Since the limit was set.
    pub counters: Counters,
    /// How well it is held: for each device at which the target's packets arrive, or once where that makes no
    /// difference. Empty until something is known, and for backends that have only one way.
    #[serde(default)]
    pub rungs: Vec<Rung>,
}

/// Ways to hold a direction, of which the best is taken that a device allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RungKind {
    /// Download: a queue in which each packet has its time, one for all devices, and senders that are told to send no
    /// more than fits it. Nothing is lost.
    IfbFqWindow,
    /// Download: a queue, and senders that are told to send no more than fits it. Nothing is lost.
    IfbHtbWindow,
    /// Download: senders are told to send less; what is too much is dropped.
    WindowBucket,
    /// Upload: TCP is paced, and UDP waits in the device's fq until its time. Nothing is lost.
    PacingEdt,
    /// Upload: TCP is paced; what is too much is refused, and UDP dropped.
    PacingBucket,
    /// What is too much is dropped.
    Bucket,
}

impl fmt::Display for RungKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::IfbFqWindow => "ifb+fq+window",
            Self::IfbHtbWindow => "ifb+htb+window",
            Self::WindowBucket => "window+bucket",
            Self::PacingEdt => "pacing+edt",
            Self::PacingBucket => "pacing+bucket",
            Self::Bucket => "bucket",
        })
    }
}

/// How a direction is held at a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    /// Name of the device; `None`: the same at all.
    pub device: Option<String>,
    /// Which way.
    pub kind: RungKind,
    /// Why it is no better one; `None`: there is none.
    pub reason: Option<String>,
}

/// How traffic of a target got past its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EscapeKind {
    /// The target held a socket that the limit did not know. It has been put under the limit.
    UntaggedSocket,
    /// A kernel object that holds the limit is gone.
    DeadLink,
    /// Somebody else's eBPF program decides over the same packets.
    ForeignProgram,
    /// The target's sockets moved more than passed the hook.
    Bypass,
    /// A child of the target could not be followed.
    UntrackedProcess,
    /// The owner could not renew its lease in time; until it did, nothing was limited.
    LeaseExpired,
    /// More passed than the limit allows.
    AboveLimit,
    /// The live check itself fails, so that nobody can tell.
    Unchecked,
}

/// Traffic got past a limit, or may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escape {
    /// Which way.
    pub kind: EscapeKind,
    /// One line for the user: what was seen, and what was or can be done.
    pub message: String,
}

impl fmt::Display for Escape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A limit in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitReport {
    /// Its id.
    pub id: LimitId,
    /// Whose traffic.
    pub targets: Vec<Target>,
    /// Of that, which remote addresses.
    #[serde(default)]
    pub scope: Scope,
    /// Name (comm) of the first target's process when the limit was set.
    pub name: String,
    /// Processes it holds now.
    pub processes: u32,
    /// Open IPv4 and IPv6 sockets of these processes, at the last look.
    pub sockets: u32,
    /// The directions; `None`: not limited that way.
    pub directions: PerDirection<Option<DirectionReport>>,
    /// Stays when its client goes.
    pub detached: bool,
    /// Process that asked for it.
    pub client_pid: u32,
    /// Process that holds it.
    pub owner_pid: u32,
    /// Seconds since it was set.
    pub age: f64,
    /// Seconds until it ends by itself.
    pub remaining: Option<f64>,
    /// The live check's findings, newest last, each kind once.
    pub escapes: Vec<Escape>,
}

impl LimitReport {
    /// What it is on, as it is written on the command line: `name:steam port:443 --scope local`. Escaped.
    pub fn subject(&self) -> String {
        let mut words: Vec<_> = self.targets.iter().map(ToString::to_string).collect();
        if self.scope != Scope::All {
            words.push(format!("--scope {}", self.scope));
        }
        words.join(" ")
    }
}

/// All limits of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// In the order they were set.
    pub limits: Vec<LimitReport>,
}
