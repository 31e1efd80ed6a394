//! Counts by eBPF programs: every packet of every socket.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use chadthrottle_common::abi::{CountKey, CountRecord, KERNEL_KEY, ProcessCount};

use super::{
    diag::state_of,
    reading::{Bytes, Count, Reading, SocketTally, Tally, Trace},
    rest::Rest,
};
use crate::{
    backend::{
        Site,
        ebpf::{self, Counted, Counting},
    },
    error::Result,
    kernel::{
        bpf::counters::Taps,
        memory,
        netlink::Route,
        process::{self, PROC},
    },
    model::{Notice, ProcessKey, ProcessKind, Protocol, Source, State},
};

/// A start time of /proc in ns.
const TICK_NS: u64 = 10_000_000;
/// With this part of the map taken, processes that ended are taken out.
const CROWDED: usize = 4;
/// How often, and what was taken out is remembered so long.
const TIDY_PERIOD: Duration = Duration::from_secs(5);
const REMEMBERED: Duration = Duration::from_secs(120);
/// How often it is looked who holds sockets that nobody owns.
const SEARCH_PERIOD: Duration = Duration::from_secs(5);

/// The count.
pub struct Wire {
    taps: Taps,
    lacks: Vec<Notice>,
    route: Option<Route>,
    /// What interfaces moved beyond what was counted; `None`: not everything is counted.
    rest: Option<Rest>,
    /// Processes that were taken out of the map.
    retired: HashMap<CountKey, (Instant, ProcessCount)>,
    /// Processes for which there was no room: all of theirs is in the row `other`. When their sockets end the kernel
    /// adds it there, so it must not be theirs before.
    homeless: HashSet<CountKey>,
    tidied_at: Instant,
    searched_at: Instant,
}

/// Loads the programs, attaches them, and finds out whose the open sockets are. The programs count as long as what
/// is returned beside lives.
pub fn open(site: &Site) -> Result<(Wire, Counting)> {
    let Counted { counting, taps, lacks, sees_all } = ebpf::count(site)?;
    taps.find_owners()?;
    // Reading the kernel's types took many times what counting takes.
    memory::give_back();
    let now = Instant::now();
    let wire = Wire {
        taps,
        lacks,
        route: None,
        rest: sees_all.then(Rest::default),
        retired: HashMap::new(),
        homeless: HashSet::new(),
        tidied_at: now,
        searched_at: now,
    };
    Ok((wire, counting))
}

/// Of a map that another processor may just be about to set right: never less than nothing.
fn bytes(rx: u64, tx: u64) -> Bytes {
    let sane = |bytes: u64| bytes.cast_signed().max(0).cast_unsigned();
    Bytes { rx: sane(rx), tx: sane(tx) }
}

/// A row that is no process.
fn row(kind: ProcessKind) -> ProcessKey {
    ProcessKey { kind, ..ProcessKey::default() }
}

fn process_key(key: &CountKey) -> ProcessKey {
    let kind = match *key {
        KERNEL_KEY => ProcessKind::Kernel,
        CountKey { tgid: 0, .. } => ProcessKind::Other,
        CountKey { tgid, start_ns, .. } => {
            return ProcessKey { kind: ProcessKind::Process, pid: tgid, start_time: start_ns / TICK_NS };
        }
    };
    row(kind)
}

fn trace(count: &ProcessCount) -> Option<Trace> {
    let name: Vec<u8> =
        count.comm.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    (!name.is_empty()).then(|| Trace {
        name: String::from_utf8_lossy(&name).into_owned(),
        uid: count.uid,
        parent: count.parent,
        cgroup: count.cgroup,
    })
}

impl Count for Wire {
    fn read(&mut self, sockets: bool) -> Result<Reading> {
        let mut reading = Reading::new(Source::Ebpf);
        // Interfaces first: what comes in between must not look as if nobody had counted it.
        reading.read_devices(&mut self.route);
        let wired = self.taps.wired()?;
        // Totals before sockets: what a socket is relieved of in between is missing for a moment, not there twice.
        let totals = self.taps.totals()?;
        let (kernel, other) = self.taps.spare()?;
        let mut records = self.taps.sockets()?;
        if self.searched_at.elapsed() >= SEARCH_PERIOD && records.iter().any(is_unclaimed) {
            self.searched_at = Instant::now();
            self.taps.find_owners()?;
            records = self.taps.sockets()?;
        }
        self.look_for_homeless(&totals, &records, other.overflows > 0);
        let row_of = |key: &CountKey| match process_key(key) {
            _ if self.homeless.contains(key) => row(ProcessKind::Other),
            known => known,
        };
        let mut add = |key: ProcessKey, more: Bytes| reading.processes.entry(key).or_default().bytes += more;
        for (key, count) in &totals {
            add(row_of(key), bytes(count.rx_bytes, count.tx_bytes));
        }
        for (key, (_, count)) in &self.retired {
            add(row_of(key), bytes(count.rx_bytes, count.tx_bytes));
        }
        let rest = self
            .rest
            .as_mut()
            .map(|rest| rest.update(&reading.devices, Bytes { rx: wired.0, tx: wired.1 }, reading.at));
        add(row(ProcessKind::Kernel), bytes(kernel.rx_bytes, kernel.tx_bytes) + rest.unwrap_or_default());
        add(row(ProcessKind::Other), bytes(other.rx_bytes, other.tx_bytes));
        for record in &records {
            add(row_of(&record.owner), bytes(record.count.rx_bytes, record.count.tx_bytes));
        }
        let retired = self.retired.iter().map(|(key, (_, count))| (key, count));
        for (key, count) in totals.iter().map(|(key, count)| (key, count)).chain(retired) {
            if let Some(tally) = reading.processes.get_mut(&process_key(key)) {
                tally.trace = trace(count).or(tally.trace.take());
            }
        }
        for record in &records {
            let owner = row_of(&record.owner);
            if owner.kind == ProcessKind::Kernel && record.local_port == 0 || is_shown_in_parts(record) {
                continue;
            }
            let tally: &mut Tally = reading.processes.entry(owner).or_default();
            tally.sockets += 1;
            if sockets {
                reading.sockets.push(tally_of(record, owner));
            }
        }
        // Who never moved a byte and holds nothing has no place here.
        reading.processes.retain(|_, tally| tally.sockets > 0 || tally.bytes != Bytes::default());
        self.tidy(&totals, &records);
        self.notice(&mut reading, other.overflows);
        Ok(reading)
    }
}

impl Wire {
    /// Notes whose sockets are there without an entry in the map of processes, once that has been full.
    fn look_for_homeless(
        &mut self,
        totals: &[(CountKey, ProcessCount)],
        records: &[CountRecord],
        overflown: bool,
    ) {
        if !overflown && totals.len() < self.taps.most() {
            return;
        }
        let housed: HashSet<CountKey> =
            totals.iter().map(|(key, _)| *key).chain(self.retired.keys().copied()).collect();
        let owners: HashSet<CountKey> = records.iter().map(|record| record.owner).collect();
        self.homeless.retain(|key| owners.contains(key) || housed.contains(key));
        self.homeless.extend(owners.into_iter().filter(|key| key.tgid != 0 && !housed.contains(key)));
    }

    /// Makes room in the map of processes.
    fn tidy(&mut self, totals: &[(CountKey, ProcessCount)], records: &[CountRecord]) {
        self.retired.retain(|_, (since, _)| since.elapsed() < REMEMBERED);
        if totals.len() < self.taps.most() / CROWDED || self.tidied_at.elapsed() < TIDY_PERIOD {
            return;
        }
        self.tidied_at = Instant::now();
        let holding: HashSet<CountKey> = records.iter().map(|record| record.owner).collect();
        for (key, _) in totals.iter().filter(|(key, _)| !holding.contains(key)) {
            if process::lives(PROC.as_ref(), key.tgid, key.start_ns / TICK_NS).unwrap_or(true) {
                continue;
            }
            match self.taps.take_total(key) {
                Ok(Some(count)) => {
                    let (since, known) = self.retired.entry(*key).or_insert((self.tidied_at, count));
                    if *since != self.tidied_at {
                        known.rx_bytes = known.rx_bytes.wrapping_add(count.rx_bytes);
                        known.tx_bytes = known.tx_bytes.wrapping_add(count.tx_bytes);
                        *since = self.tidied_at;
                    }
                }
                Ok(None) => {}
                Err(error) => return tracing::warn!("{error}"),
            }
        }
    }

    fn notice(&self, reading: &mut Reading, overflows: u64) {
        reading.notices.extend(self.lacks.iter().cloned());
        let mut say = |what: &str, why: String| {
            reading.notices.push(Notice { what: what.into(), why, mend: None });
        };
        if overflows > 0 {
            say(
                "bytes of some processes are in the row `other`",
                format!(
                    "there were more than {} processes, or no memory, {overflows} times",
                    self.taps.most()
                ),
            );
        }
        if self.rest.is_none() {
            say(
                "processes outside the cgroup root are not counted, and traffic of no process is not shown",
                "--cgroup-root".into(),
            );
        }
        if !self.taps.are_attached() {
            say(
                "not everything is counted any more",
                "somebody detached our eBPF programs from the cgroup; begin anew".into(),
            );
        }
    }
}

/// A process holds it, and has neither made it nor used it since counting began.
fn is_unclaimed(record: &CountRecord) -> bool {
    record.owner.tgid == 0 && record.has_file != 0
}

/// The whole of a multipath connection, whose parts are listed, each with its path.
fn is_shown_in_parts(record: &CountRecord) -> bool {
    protocol_of(record.protocol) == Protocol::Mptcp && state_of(record.state as u8) == State::Established
}

fn tally_of(record: &CountRecord, owner: ProcessKey) -> SocketTally {
    let protocol = if record.is_part != 0 { Protocol::Mptcp } else { protocol_of(record.protocol) };
    let is_tcp = matches!(protocol, Protocol::Tcp | Protocol::Mptcp);
    let state = match record.state as u8 {
        number if is_tcp || protocol == Protocol::Sctp => state_of(number),
        1 => State::Established,
        _ => State::Unconnected,
    };
    let is_ipv6 = i32::from(record.family) == libc::AF_INET6;
    let local_port = if protocol == Protocol::Raw { 0 } else { record.local_port };
    let remote_port = u16::from_be(record.remote_port);
    let remote = SocketAddr::new(address(record.remote, is_ipv6), remote_port);
    let has_peer = remote_port != 0 || !remote.ip().is_unspecified();
    let measured = is_tcp && i32::from(record.protocol) == libc::IPPROTO_TCP && state != State::Listen;
    let count = &record.count;
    SocketTally {
        id: record.cookie,
        owner,
        protocol,
        state,
        local: SocketAddr::new(address(record.local, is_ipv6), local_port),
        remote: has_peer.then_some(remote),
        bytes: bytes(
            count.rx_bytes.wrapping_add(count.past_rx_bytes),
            count.tx_bytes.wrapping_add(count.past_tx_bytes),
        ),
        rtt_us: (measured && record.srtt != 0).then_some(record.srtt / 8),
        retransmits: measured.then_some(record.retransmits),
    }
}

/// Four or sixteen bytes as the kernel has them.
fn address(words: [u64; 2], is_ipv6: bool) -> IpAddr {
    let [first, second] = words.map(u64::to_ne_bytes);
    if is_ipv6 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first);
        bytes[8..].copy_from_slice(&second);
        IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
    } else {
        Ipv4Addr::from((words[0] as u32).to_ne_bytes()).into()
    }
}

fn protocol_of(number: u16) -> Protocol {
    match i32::from(number) {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_MPTCP => Protocol::Mptcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        libc::IPPROTO_UDPLITE => Protocol::Udplite,
        libc::IPPROTO_SCTP => Protocol::Sctp,
        libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => Protocol::Icmp,
        _ => Protocol::Raw,
    }
}

#[cfg(test)]
mod tests {
    use chadthrottle_common::abi::{OTHER_KEY, SocketCount};

    use super::*;

    #[test]
    fn a_record_becomes_a_connection() {
        let record = CountRecord {
            cookie: 7,
            owner: CountKey { tgid: 42, reserved: 0, start_ns: 5_019_999_999 },
            count: SocketCount {
                rx_bytes: 3,
                tx_bytes: u64::MAX,
                past_rx_bytes: 10,
                past_tx_bytes: 100,
                is_part: 0,
            },
            local: [u64::from(u32::from_ne_bytes([10, 0, 0, 1])), 0],
            remote: [u64::from(u32::from_ne_bytes([192, 0, 2, 1])), 0],
            local_port: 5000,
            remote_port: 443u16.to_be(),
            family: libc::AF_INET as u16,
            protocol: 6,
            state: 1,
            srtt: 8000,
            retransmits: 2,
            has_file: 1,
            is_part: 0,
            reserved: 0,
        };
        let owner = process_key(&record.owner);
        assert_eq!((owner.pid, owner.start_time), (42, 501));
        let tally = tally_of(&record, owner);
        assert_eq!(tally.local, "10.0.0.1:5000".parse().unwrap());
        assert_eq!(tally.remote, Some("192.0.2.1:443".parse().unwrap()));
        assert_eq!((tally.rtt_us, tally.retransmits, tally.state), (Some(1000), Some(2), State::Established));
        assert_eq!(tally.bytes, Bytes { rx: 13, tx: 99 });
        let mapped = [u64::from_ne_bytes([0; 8]), u64::from_ne_bytes([0, 0, 255, 255, 10, 0, 0, 9])];
        assert_eq!(address(mapped, true), "10.0.0.9".parse::<IpAddr>().unwrap());
        let udp = CountRecord { protocol: 17, state: 7, remote: [0; 2], remote_port: 0, ..record };
        let tally = tally_of(&udp, owner);
        assert_eq!((tally.protocol, tally.state, tally.remote), (Protocol::Udp, State::Unconnected, None));
        assert_eq!((tally.rtt_us, tally.retransmits), (None, None));
    }

    #[test]
    fn what_is_no_process_has_its_row() {
        assert_eq!(process_key(&KERNEL_KEY).kind, ProcessKind::Kernel);
        assert_eq!(process_key(&OTHER_KEY).kind, ProcessKind::Other);
        // In the moment between a refusal and its packet.
        assert_eq!(bytes(5u64.wrapping_sub(100), 7), Bytes { rx: 0, tx: 7 });
    }

    #[test]
    fn traces_have_names() {
        let comm = [u64::from_ne_bytes(*b"a long n"), u64::from_ne_bytes(*b"ame\0xxxx")];
        let known =
            trace(&ProcessCount { comm, uid: 5, parent: 6, cgroup: 7, ..ProcessCount::default() }).unwrap();
        assert_eq!((known.name.as_str(), known.uid, known.parent, known.cgroup), ("a long name", 5, 6, 7));
        assert_eq!(trace(&ProcessCount::default()), None);
    }
}
