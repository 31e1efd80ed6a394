//! What was counted up to a moment. Counts only grow from one reading of a source to the next; where they begin
//! does not matter.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::{Add, AddAssign},
    time::{Instant, SystemTime},
};

use crate::{
    kernel::netlink::{Device, Route},
    model::{Notice, ProcessKey, Protocol, Source, State},
};

/// Bytes of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Received.
    pub rx: u64,
    /// Sent.
    pub tx: u64,
}

impl Bytes {
    /// What it is more than `other` in each direction; 0 where it is less.
    pub fn since(self, other: Self) -> Self {
        Self { rx: self.rx.saturating_sub(other.rx), tx: self.tx.saturating_sub(other.tx) }
    }

    /// The larger one of each direction.
    pub fn max(self, other: Self) -> Self {
        Self { rx: self.rx.max(other.rx), tx: self.tx.max(other.tx) }
    }

    /// Bytes/s if they took so many seconds.
    pub fn over(self, seconds: f64) -> Self {
        let rate = |bytes: u64| if seconds > 0.0 { (bytes as f64 / seconds).round() as u64 } else { 0 };
        Self { rx: rate(self.rx), tx: rate(self.tx) }
    }
}

impl Add for Bytes {
    type Output = Self;

    /// Wraps, as the kernel's counters do.
    fn add(self, other: Self) -> Self {
        Self { rx: self.rx.wrapping_add(other.rx), tx: self.tx.wrapping_add(other.tx) }
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// What the kernel side knows of a process that may have ended before anybody could look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Its comm.
    pub name: String,
    /// Its user.
    pub uid: u32,
    /// Its parent.
    pub parent: u32,
    /// Id of its cgroup.
    pub cgroup: u64,
}

/// What was counted for a process, or for the rows `kernel` and `other`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its open sockets.
    pub sockets: u32,
    /// Who it was.
    pub trace: Option<Trace>,
}

/// An open socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketTally {
    /// The kernel's cookie.
    pub id: u64,
    /// Who owns it.
    pub owner: ProcessKey,
    /// Transport protocol.
    pub protocol: Protocol,
    /// State.
    pub state: State,
    /// Own end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: Option<SocketAddr>,
    /// Its bytes.
    pub bytes: Bytes,
    /// Round trip, µs; TCP only.
    pub rtt_us: Option<u32>,
    /// Segments sent again; TCP only.
    pub retransmits: Option<u32>,
}

/// Everything that was counted.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When it was read.
    pub at: Instant,
    /// The same by the calendar.
    pub time: SystemTime,
    /// Who counted.
    pub source: Source,
    /// Processes with sockets or bytes, the rows `kernel` and `other`.
    pub processes: HashMap<ProcessKey, Tally>,
    /// Open sockets.
    pub sockets: Vec<SocketTally>,
    /// Interfaces.
    pub devices: Vec<Device>,
    /// What is not shown, or not exactly.
    pub notices: Vec<Notice>,
}

impl Reading {
    /// Nothing, at this moment.
    pub fn new(source: Source) -> Self {
        Self {
            at: Instant::now(),
            time: SystemTime::now(),
            source,
            processes: HashMap::new(),
            sockets: Vec::new(),
            devices: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// Adds the interfaces, or says that they are missing.
    pub fn read_devices(&mut self, route: &mut Option<Route>) {
        let read = match route {
            Some(route) => route.devices(),
            None => Route::open().and_then(|mut opened| {
                let devices = opened.devices();
                *route = Some(opened);
                devices
            }),
        };
        match read {
            Ok(devices) => self.devices = devices,
            Err(error) => {
                *route = None;
                self.notices.push(Notice {
                    what: "interfaces are not shown".into(),
                    why: error.to_string(),
                    mend: None,
                });
            }
        }
    }
}

/// Who counts.
pub trait Count: Send {
    /// What was counted up to now. With `sockets` also each socket by itself.
    fn read(&mut self, sockets: bool) -> crate::error::Result<Reading>;
}
