//! What the network did at one moment: all that tables, JSON and screens ever see.
//!
//! A [`Snapshot`] is made once a tick and never changed; it is passed on in an [`std::sync::Arc`]. Byte
//! counts only grow while a row is shown, whatever happens to the process behind it.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{Connection, Direction, LimitId, LimitReport, Rate, Target};

/// Clock ticks a second of [`Process::start_time`]: USER_HZ of Linux, the same on all its machines.
const TICKS_PER_SECOND: u64 = 100;

/// How bytes were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// By eBPF programs: every packet of every socket.
    #[default]
    Ebpf,
    /// By asking the kernel for the TCP sockets that are open: payload bytes of TCP only, and nothing of
    /// connections that ended between two looks.
    SockDiag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ebpf => "ebpf",
            Self::SockDiag => "sock_diag",
        })
    }
}

/// Something that is not shown, or not exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Notice {
    /// What the user does not see because of it; lower case.
    pub what: String,
    /// Why.
    pub why: String,
    /// What would mend it, if anything would.
    pub mend: Option<String>,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        match &self.mend {
            Some(mend) => write!(f, " ({mend})"),
            None => Ok(()),
        }
    }
}

/// Bytes and rates of anything that has both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes received since the monitor began.
    pub rx_bytes: u64,
    /// Bytes sent since the monitor began.
    pub tx_bytes: u64,
    /// Bytes/s received over the last interval.
    pub rx_rate: u64,
    /// Bytes/s sent over the last interval.
    pub tx_rate: u64,
}

impl Traffic {
    /// Both directions, since the monitor began.
    pub fn bytes(&self) -> u64 {
        self.rx_bytes.saturating_add(self.tx_bytes)
    }

    /// Both directions, bytes/s.
    pub fn rate(&self) -> u64 {
        self.rx_rate.saturating_add(self.tx_rate)
    }

    /// Rate of one direction, bytes/s.
    pub fn rate_of(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Upload => self.tx_rate,
            Direction::Download => self.rx_rate,
        }
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.rx_bytes = self.rx_bytes.saturating_add(other.rx_bytes);
        self.tx_bytes = self.tx_bytes.saturating_add(other.tx_bytes);
        self.rx_rate = self.rx_rate.saturating_add(other.rx_rate);
        self.tx_rate = self.tx_rate.saturating_add(other.tx_rate);
    }
}

/// What a row of [`Snapshot::processes`] stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessKind {
    /// A process.
    #[default]
    Process,
    /// Traffic of no process: forwarded, answered by the kernel itself. Its id is 0, its name `kernel`.
    Kernel,
    /// Processes that were too many to be kept apart, or whose names nobody saw. Its id is 0, its name
    /// `other`.
    Other,
}

/// Tells a process from any other, also from a later one of the same id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Process, kernel or other.
    pub kind: ProcessKind,
    /// Its id; 0 for what is no process.
    pub pid: u32,
    /// [`Process::start_time`].
    pub start_time: u64,
}

/// A process that has, or had, something to do with the network, or an ancestor of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Whether it is one.
    pub kind: ProcessKind,
    /// Its id, in the PID namespace of whoever watches; 0 for what is no process.
    pub pid: u32,
    /// When it started, clock ticks (hundredths of a second) after the boot, as in `/proc/PID/stat`.
    pub start_time: u64,
    /// Id of its parent, as it was last seen; 0: none.
    pub parent: u32,
    /// Its comm, at most 15 bytes. Not escaped, as no other text here is.
    pub name: String,
    /// Path of its executable; `None` when that could not be read.
    pub exe: Option<String>,
    /// Its arguments, joined by spaces; empty when they could not be read.
    pub cmdline: String,
    /// Name of its user, or the user's number where that has no name; empty when unknown.
    pub user: String,
    /// Path of its cgroup below the cgroup2 mount: `/system.slice/nginx.service`; empty when unknown.
    pub cgroup: String,
    /// systemd unit it belongs to.
    pub unit: Option<String>,
    /// Id of the container it belongs to.
    pub container: Option<String>,
    /// False once it has ended; such a row stays for some seconds.
    pub alive: bool,
    /// IP bytes received since the monitor began; with [`Source::SockDiag`] TCP payload bytes.
    pub rx_bytes: u64,
    /// The same, sent.
    pub tx_bytes: u64,
    /// Bytes/s received over the last interval.
    pub rx_rate: u64,
    /// Bytes/s sent over the last interval.
    pub tx_rate: u64,
    /// Open sockets of IP: connections, listeners, those without a peer.
    pub connections: u32,
    /// The limits that hold it.
    pub limits: Vec<LimitId>,
}

impl Process {
    /// Tells it from any other.
    pub fn key(&self) -> ProcessKey {
        ProcessKey { kind: self.kind, pid: self.pid, start_time: self.start_time }
    }

    /// Its bytes and rates.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            rx_rate: self.rx_rate,
            tx_rate: self.tx_rate,
        }
    }

    /// Nothing to show for itself, not even a limit: it is here because a child of it moves bytes, or moved none yet.
    pub fn is_idle(&self) -> bool {
        self.connections == 0 && self.traffic().bytes() == 0 && self.limits.is_empty()
    }
}

/// A network interface of the network namespace of whoever watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Bytes of the link layer received since the monitor began.
    pub rx_bytes: u64,
    /// The same, sent.
    pub tx_bytes: u64,
    /// Bytes/s received over the last interval.
    pub rx_rate: u64,
    /// Bytes/s sent over the last interval.
    pub tx_rate: u64,
}

/// Everything, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// When the machine started: what [`Process::start_time`] counts from.
    #[serde(with = "rfc3339")]
    pub boot_time: SystemTime,
    /// Seconds since the snapshot before, or since the monitor began; what all rates are over. 0 in the very
    /// first, which has no rates.
    pub interval: f64,
    /// Seconds since the monitor began.
    pub elapsed: f64,
    /// How bytes are counted.
    pub source: Source,
    /// Processes with sockets or traffic, or held by a limit that names processes by their ids; their ancestors, and
    /// the rows `kernel` and `other`; in no order.
    pub processes: Vec<Process>,
    /// Open sockets; empty when nobody asked for them.
    pub connections: Vec<Connection>,
    /// Interfaces, by name.
    pub interfaces: Vec<Interface>,
    /// Limits in force, in the order they were set.
    pub limits: Vec<LimitReport>,
    /// What is not shown, or not exactly, and why.
    pub notices: Vec<Notice>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            time: SystemTime::UNIX_EPOCH,
            boot_time: SystemTime::UNIX_EPOCH,
            interval: 0.0,
            elapsed: 0.0,
            source: Source::default(),
            processes: Vec::new(),
            connections: Vec::new(),
            interfaces: Vec::new(),
            limits: Vec::new(),
            notices: Vec::new(),
        }
    }
}

impl Snapshot {
    /// When a process started, to a hundredth of a second.
    pub fn started(&self, process: &Process) -> SystemTime {
        let ticks = process.start_time;
        let since_boot = Duration::from_secs(ticks / TICKS_PER_SECOND)
            + Duration::from_millis(ticks % TICKS_PER_SECOND * 1000 / TICKS_PER_SECOND);
        self.boot_time.checked_add(since_boot).unwrap_or(self.boot_time)
    }

    /// The process of that key.
    pub fn process(&self, key: ProcessKey) -> Option<&Process> {
        self.processes.iter().find(|process| process.key() == key)
    }

    /// Sockets of a process.
    pub fn connections_of(&self, key: ProcessKey) -> impl Iterator<Item = &Connection> {
        self.connections.iter().filter(move |connection| connection.owner == key)
    }

    /// The limits that hold a process.
    pub fn limits_of(&self, process: &Process) -> impl Iterator<Item = &LimitReport> {
        self.limits.iter().filter(|limit| process.limits.contains(&limit.id))
    }

    /// The lowest rate that holds a process in one direction; of limits on some far ends only where there is no other.
    pub fn rate_limit(&self, process: &Process, direction: Direction) -> Option<Rate> {
        let is_narrow = |limit: &LimitReport| !limit.targets.iter().all(Target::names_processes);
        let rates = self.limits_of(process).filter_map(|limit| {
            limit.directions.get(direction).as_ref().map(|held| (is_narrow(limit), held.rate))
        });
        rates.min().map(|(_, rate)| rate)
    }

    /// Sum over all interfaces but the loopback one.
    pub fn interface_traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        for interface in self.interfaces.iter().filter(|interface| interface.name != "lo") {
            sum += Traffic {
                rx_bytes: interface.rx_bytes,
                tx_bytes: interface.tx_bytes,
                rx_rate: interface.rx_rate,
                tx_rate: interface.tx_rate,
            };
        }
        sum
    }

    /// Connections by their owners.
    pub fn connections_by_owner(&self) -> HashMap<ProcessKey, Vec<&Connection>> {
        let mut by_owner = HashMap::<_, Vec<_>>::new();
        for connection in &self.connections {
            by_owner.entry(connection.owner).or_default().push(connection);
        }
        by_owner
    }
}

/// Times as RFC 3339 in UTC, to the millisecond.
pub mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// For `serde(with)`.
    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    /// For `serde(with)`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests;
