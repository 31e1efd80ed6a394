//! Readings become snapshots: totals since the watcher came, rates, names, rows that ended and stay a while.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use super::{
    census::Census,
    reading::{Bytes, Reading, SocketTally, Tally},
};
use crate::{
    kernel::{clock, netlink::Device, process::PROC},
    model::{
        Connection, Interface, LimitId, LimitReport, Notice, Process, ProcessKey, ProcessKind, Snapshot,
        State,
    },
};

/// The row of an ended process stays so long after its last byte, and for two snapshots at least.
const ENDED_STAYS: Duration = Duration::from_secs(5);
/// More connections than these are not listed one by one.
pub const MOST_CONNECTIONS: usize = 20_000;

/// What has been counted for something, from the watcher's point of view.
#[derive(Clone, Copy, Debug)]
struct Account {
    /// What the source had counted before.
    base: Bytes,
    /// The last that the source said; never less than before.
    last: Bytes,
    /// Whether this round's reading has it.
    round: u64,
}

/// An account's new figures.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    total: Bytes,
    rate: Bytes,
}

impl Account {
    /// `begins`: what it has is not this watcher's.
    fn open(now: Bytes, begins: bool, round: u64) -> Self {
        Self { base: if begins { now } else { Bytes::default() }, last: Bytes::default(), round }
    }

    fn enter(&mut self, now: Bytes, seconds: f64, round: u64) -> Figures {
        let last = self.last.max(self.base);
        self.last = now.max(last);
        self.round = round;
        Figures { total: self.last.since(self.base), rate: self.last.since(last).over(seconds) }
    }
}

/// A row's life.
#[derive(Clone, Copy, Debug)]
struct Row {
    account: Account,
    moved_at: Instant,
    /// In how many snapshots it has been shown as ended since it last moved a byte.
    farewells: u32,
}

/// The limits in force, and whom they hold.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// As `status` has them.
    pub reports: Vec<LimitReport>,
    /// Ids of the processes that each holds, where the backend keeps a list.
    pub members: Vec<(LimitId, Vec<u32>)>,
}

/// One watcher's view.
pub struct Assembler {
    census: Census,
    began: Option<Instant>,
    last: Option<Instant>,
    round: u64,
    rows: HashMap<ProcessKey, Row>,
    sockets: HashMap<u64, Account>,
    /// With what earlier devices of the name had moved.
    devices: HashMap<String, (Account, Bytes)>,
}

impl Assembler {
    /// It begins with the first reading. `mount`: where cgroup2 is, if it is.
    pub fn new(mount: Option<PathBuf>) -> Self {
        Self {
            census: Census::new(PROC.as_ref(), mount),
            began: None,
            last: None,
            round: 0,
            rows: HashMap::new(),
            sockets: HashMap::new(),
            devices: HashMap::new(),
        }
    }

    /// The next snapshot; `connections`: with each by itself.
    pub fn snapshot(&mut self, reading: &Reading, limits: Limits, connections: bool) -> Snapshot {
        let began = *self.began.get_or_insert(reading.at);
        let interval = self.last.map_or(0.0, |last| reading.at.saturating_duration_since(last).as_secs_f64());
        self.last = Some(reading.at);
        self.round += 1;
        self.census.begin_round();
        let mut notices = reading.notices.clone();
        let mut processes = self.processes(reading, interval);
        self.add_limited(&mut processes, &limits);
        processes.extend(self.census.ancestors(&processes));
        for process in &mut processes {
            let held = limits.members.iter().filter(|(_, pids)| process.alive && pids.contains(&process.pid));
            process.limits = held.map(|(id, _)| *id).collect();
        }
        Snapshot {
            time: reading.time,
            boot_time: boot_time(reading.time),
            interval,
            elapsed: reading.at.saturating_duration_since(began).as_secs_f64(),
            source: reading.source,
            processes,
            connections: if connections {
                self.connections(reading, interval, &mut notices)
            } else {
                Vec::new()
            },
            interfaces: self.interfaces(&reading.devices, interval),
            limits: limits.reports,
            notices,
        }
    }

    fn processes(&mut self, reading: &Reading, interval: f64) -> Vec<Process> {
        let (round, first) = (self.round, self.round == 1);
        let mut shown = Vec::with_capacity(reading.processes.len());
        let none = Tally::default();
        let missing: Vec<_> =
            self.rows.keys().filter(|key| !reading.processes.contains_key(key)).copied().collect();
        let gone = missing.into_iter().map(|key| (key, None));
        for (key, tally) in reading.processes.iter().map(|(key, tally)| (*key, Some(tally))).chain(gone) {
            let row = self.rows.entry(key).or_insert_with(|| Row {
                account: Account::open(tally.map_or(Bytes::default(), |tally| tally.bytes), first, round),
                moved_at: reading.at,
                farewells: 0,
            });
            // What the source has forgotten keeps its figures.
            let now = tally.map_or(row.account.last, |tally| tally.bytes);
            let tally = tally.unwrap_or(&none);
            let figures = row.account.enter(now, interval, round);
            if figures.rate != Bytes::default() {
                (row.moved_at, row.farewells) = (reading.at, 0);
            }
            let mut process = self.census.look(key, tally.trace.as_ref());
            if !process.alive {
                let over = reading.at.saturating_duration_since(row.moved_at) > ENDED_STAYS;
                // What ended before the watcher came and moved nothing since is no news.
                if (over && row.farewells >= 2) || figures.total == Bytes::default() && tally.sockets == 0 {
                    continue;
                }
                row.farewells += 1;
            } else if process.name.is_empty() {
                continue;
            }
            (process.rx_bytes, process.tx_bytes) = (figures.total.rx, figures.total.tx);
            (process.rx_rate, process.tx_rate) = (figures.rate.rx, figures.rate.tx);
            process.connections = tally.sockets;
            if key.kind == ProcessKind::Process || !process.is_idle() {
                shown.push(process);
            }
        }
        // The source forgets what ended long ago; then so do we.
        let at = reading.at;
        self.rows.retain(|key, row| {
            reading.processes.contains_key(key)
                || at.saturating_duration_since(row.moved_at) <= ENDED_STAYS
                || row.farewells < 2 && row.account.last != row.account.base
        });
        shown
    }

    /// Whoever was limited by its id is shown before it has a connection, and after. What a name or a user means may
    /// be half of the machine, and is not.
    fn add_limited(&mut self, processes: &mut Vec<Process>, limits: &Limits) {
        let by_id = |id: &LimitId| {
            let report = limits.reports.iter().find(|report| report.id == *id);
            report.is_some_and(|report| report.targets.iter().any(|target| target.pid().is_some()))
        };
        let held = limits.members.iter().filter(|(id, _)| by_id(id)).flat_map(|(_, pids)| pids);
        let mut met: HashSet<u32> = processes.iter().map(|process| process.pid).collect();
        for pid in held.copied().filter(|pid| met.insert(*pid)) {
            let Some(key) = self.census.key_of(pid) else { continue };
            processes.push(self.census.look(key, None));
        }
    }

    fn connections(
        &mut self,
        reading: &Reading,
        interval: f64,
        notices: &mut Vec<Notice>,
    ) -> Vec<Connection> {
        let (round, first) = (self.round, self.round == 1);
        let mut shown = Vec::with_capacity(reading.sockets.len());
        for socket in &reading.sockets {
            let account =
                self.sockets.entry(socket.id).or_insert_with(|| Account::open(socket.bytes, first, round));
            let figures = account.enter(socket.bytes, interval, round);
            shown.push(connection(socket, figures));
        }
        self.sockets.retain(|_, account| account.round == round);
        if shown.len() > MOST_CONNECTIONS {
            let all = shown.len();
            shown.sort_by_key(|each| std::cmp::Reverse((each.traffic().rate(), each.traffic().bytes())));
            shown.truncate(MOST_CONNECTIONS);
            notices.push(Notice {
                what: format!("only the {MOST_CONNECTIONS} busiest connections are listed"),
                why: format!("there are {all}"),
                mend: None,
            });
        }
        shown
    }

    fn interfaces(&mut self, devices: &[Device], interval: f64) -> Vec<Interface> {
        let (round, first) = (self.round, self.round == 1);
        let mut shown = Vec::with_capacity(devices.len());
        for device in devices {
            let now = Bytes { rx: device.rx_bytes, tx: device.tx_bytes };
            let (account, carried) = self
                .devices
                .entry(device.name.clone())
                .or_insert_with(|| (Account::open(now, first, round), Bytes::default()));
            // A device that was made anew under the same name begins at 0 again.
            let before = account.last;
            if now.rx < before.rx || now.tx < before.tx {
                *carried += before.since(account.base);
                *account = Account { base: Bytes::default(), last: Bytes::default(), round };
            }
            let mut figures = account.enter(now, interval, round);
            figures.total += *carried;
            shown.push(Interface {
                name: device.name.clone(),
                up: device.up,
                rx_bytes: figures.total.rx,
                tx_bytes: figures.total.tx,
                rx_rate: figures.rate.rx,
                tx_rate: figures.rate.tx,
            });
        }
        self.devices.retain(|_, (account, _)| account.round == round);
        shown
    }
}

fn connection(socket: &SocketTally, figures: Figures) -> Connection {
    Connection {
        id: socket.id,
        owner: socket.owner,
        protocol: socket.protocol,
        state: socket.state,
        local: socket.local,
        remote: socket.remote.filter(|_| socket.state != State::Listen),
        rx_bytes: figures.total.rx,
        tx_bytes: figures.total.tx,
        rx_rate: figures.rate.rx,
        tx_rate: figures.rate.tx,
        rtt_us: socket.rtt_us,
        retransmits: socket.retransmits,
    }
}

/// When the machine started, from the calendar now and the time since.
fn boot_time(now: SystemTime) -> SystemTime {
    now.checked_sub(clock::since_boot()).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Protocol, Source, Target, snapshot::tests::limit},
        monitor::reading::Trace,
    };

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { kind: ProcessKind::Process, pid, start_time: 1 }
    }

    /// Processes that never were, but left a trace.
    fn reading(begun: Instant, seconds: f64, counts: &[(u32, u64, u64)]) -> Reading {
        let mut reading = Reading::new(Source::Ebpf);
        reading.at = begun + Duration::from_secs_f64(seconds);
        for (pid, rx, tx) in counts {
            let trace = Some(Trace { name: format!("p{pid}"), ..Trace::default() });
            let tally = Tally { bytes: Bytes { rx: *rx, tx: *tx }, sockets: 0, trace };
            reading.processes.insert(key(*pid), tally);
        }
        reading
    }

    fn figures(snapshot: &Snapshot, pid: u32) -> Option<(u64, u64, u64, u64)> {
        let process = snapshot.process(key(pid))?;
        Some((process.rx_bytes, process.tx_bytes, process.rx_rate, process.tx_rate))
    }

    /// Far above any real process's id.
    const A: u32 = 2_000_000_001;
    const B: u32 = 2_000_000_002;

    #[test]
    fn totals_begin_with_the_watcher_and_rates_with_the_second_look() {
        let begun = Instant::now();
        let mut assembler = Assembler::new(None);
        let mut shot = |seconds, counts: &[_]| {
            assembler.snapshot(&reading(begun, seconds, counts), Limits::default(), false)
        };
        let first = shot(0.0, &[(A, 1000, 10)]);
        assert_eq!((first.interval, figures(&first, A)), (0.0, None));
        // B was not there before: all of it is news.
        let second = shot(2.0, &[(A, 1500, 10), (B, 0, 80)]);
        assert_eq!(figures(&second, A), Some((500, 0, 250, 0)));
        assert_eq!(figures(&second, B), Some((0, 80, 0, 40)));
        assert_eq!((second.interval, second.elapsed), (2.0, 2.0));
        // A source that says less than before is not believed.
        let third = shot(3.0, &[(A, 1400, 10), (B, 0, 90)]);
        assert_eq!(figures(&third, A), Some((500, 0, 0, 0)));
        assert_eq!(figures(&shot(4.0, &[(A, 1510, 10), (B, 0, 90)]), A), Some((510, 0, 10, 0)));
    }

    #[test]
    fn an_ended_row_stays_a_while_and_comes_back_with_its_total() {
        let begun = Instant::now();
        let mut assembler = Assembler::new(None);
        let mut shot = |seconds, counts: &[_]| {
            assembler.snapshot(&reading(begun, seconds, counts), Limits::default(), false)
        };
        shot(0.0, &[]);
        assert!(!shot(1.0, &[(A, 7, 0)]).processes[0].alive);
        assert_eq!(figures(&shot(5.9, &[(A, 7, 0)]), A), Some((7, 0, 0, 0)));
        assert_eq!(figures(&shot(6.1, &[(A, 7, 0)]), A), None);
        assert_eq!(figures(&shot(8.0, &[(A, 9, 0)]), A), Some((9, 0, 1, 0)));
        // With long intervals it is seen twice all the same, even when the source forgets it.
        assert_eq!(figures(&shot(100.0, &[]), A), Some((9, 0, 0, 0)));
        assert_eq!(figures(&shot(200.0, &[]), A), None);
    }

    #[test]
    fn limits_are_told_to_those_they_hold() {
        let me = std::process::id();
        let mut assembler = Assembler::new(None);
        let key = assembler.census.key_of(me).unwrap();
        let mut reading = Reading::new(Source::Ebpf);
        reading.processes.insert(key, Tally { sockets: 1, ..Tally::default() });
        let limits =
            Limits { reports: Vec::new(), members: vec![(LimitId(4), vec![1, me]), (LimitId(5), vec![1])] };
        let snapshot = assembler.snapshot(&reading, limits, false);
        assert_eq!(snapshot.process(key).unwrap().limits, [LimitId(4)]);
        let keys: std::collections::HashSet<_> = snapshot.processes.iter().map(Process::key).collect();
        assert_eq!(keys.len(), snapshot.processes.len(), "each once");
        let ancestors = snapshot.processes.len() - 1;
        assert!(ancestors > 0 && snapshot.processes[1..].iter().all(|process| process.is_idle()));
        let started = snapshot.started(snapshot.process(key).unwrap());
        let age = SystemTime::now().duration_since(started).unwrap_or_default();
        assert!(age < Duration::from_secs(3600), "{age:?}");
    }

    #[test]
    fn whoever_is_limited_by_its_id_has_a_row() {
        let me = std::process::id();
        let mut assembler = Assembler::new(None);
        let key = assembler.census.key_of(me).unwrap();
        for (target, is_shown) in [(Target::Pid(me), true), (Target::User("root".into()), false)] {
            let report = LimitReport { targets: vec![target], ..limit(4, Some(1000), None) };
            let limits = Limits { reports: vec![report], members: vec![(LimitId(4), vec![me, u32::MAX])] };
            let snapshot = assembler.snapshot(&Reading::new(Source::Ebpf), limits, false);
            let row = snapshot.process(key).filter(|process| !process.is_idle());
            assert_eq!(row.map(|row| row.limits.as_slice()), is_shown.then_some(&[LimitId(4)][..]));
        }
    }

    #[test]
    fn connections_and_interfaces_have_totals_of_their_own() {
        let begun = Instant::now();
        let mut assembler = Assembler::new(None);
        let mut shot = |seconds: f64, id, bytes, device| {
            let mut reading = reading(begun, seconds, &[]);
            reading.sockets.push(SocketTally {
                id,
                owner: key(A),
                protocol: Protocol::Tcp,
                state: State::Established,
                local: "10.0.0.1:1".parse().unwrap(),
                remote: None,
                bytes: Bytes { rx: bytes, tx: 0 },
                rtt_us: None,
                retransmits: None,
            });
            reading.devices.push(Device { name: "d".into(), rx_bytes: device, ..Device::default() });
            let snapshot = assembler.snapshot(&reading, Limits::default(), true);
            (snapshot.connections[0].rx_bytes, snapshot.interfaces[0].rx_bytes)
        };
        assert_eq!(shot(0.0, 1, 100, 1000), (0, 0));
        assert_eq!(shot(1.0, 1, 130, 1500), (30, 500));
        // Another socket, and the device was made anew.
        assert_eq!(shot(2.0, 2, 40, 20), (40, 520));
    }
}
