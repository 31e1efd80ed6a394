use super::*;
use crate::model::{Counters, DirectionReport, PerDirection, Protocol, State, Target};

/// A process with traffic, to be changed by tests.
pub fn process(pid: u32, parent: u32, name: &str) -> Process {
    Process {
        pid,
        start_time: u64::from(pid) * 10,
        parent,
        name: name.into(),
        exe: Some(format!("/usr/bin/{name}")),
        cmdline: format!("{name} --option"),
        user: "root".into(),
        cgroup: format!("/system.slice/{name}.service"),
        unit: Some(format!("{name}.service")),
        alive: true,
        rx_bytes: u64::from(pid),
        rx_rate: u64::from(pid),
        connections: 1,
        ..Process::default()
    }
}

/// An established TCP connection of a process.
pub fn connection(owner: &Process, local: &str, remote: Option<&str>) -> Connection {
    Connection {
        id: 1,
        owner: owner.key(),
        protocol: Protocol::Tcp,
        state: State::Established,
        local: local.parse().unwrap(),
        remote: remote.map(|remote| remote.parse().unwrap()),
        rx_bytes: 0,
        tx_bytes: 0,
        rx_rate: 0,
        tx_rate: 0,
        rtt_us: Some(1500),
        retransmits: Some(0),
    }
}

/// A limit of these rates.
pub fn limit(id: u64, download: Option<u64>, upload: Option<u64>) -> LimitReport {
    let direction = |rate: Option<u64>| {
        rate.map(|rate| DirectionReport {
            rate: Rate::new(rate).unwrap(),
            measured: None,
            backend: "ebpf".into(),
            counters: Counters::default(),
            rungs: Vec::new(),
        })
    };
    LimitReport {
        id: LimitId(id),
        targets: vec![Target::Pid(1)],
        scope: crate::model::Scope::All,
        name: String::new(),
        processes: 1,
        sockets: 1,
        directions: PerDirection { upload: direction(upload), download: direction(download) },
        detached: false,
        client_pid: 1,
        owner_pid: 2,
        age: 1.0,
        remaining: None,
        escapes: Vec::new(),
    }
}

/// A bit of everything.
pub fn full() -> Snapshot {
    let mut curl = process(42, 1, "cu\nrl");
    curl.limits = vec![LimitId(1), LimitId(2)];
    Snapshot {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        boot_time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000),
        interval: 1.0,
        elapsed: 3.5,
        connections: vec![connection(&curl, "[::1]:1", Some("192.0.2.1:443"))],
        processes: vec![
            curl,
            Process { kind: ProcessKind::Kernel, name: "kernel".into(), ..Process::default() },
        ],
        interfaces: vec![
            Interface { name: "lo".into(), up: true, rx_bytes: 5, ..Interface::default() },
            Interface { name: "eth0".into(), up: true, rx_bytes: 7, ..Interface::default() },
        ],
        limits: vec![
            limit(1, Some(5000), None),
            limit(2, Some(4000), Some(9000)),
            limit(3, Some(1000), None),
        ],
        notices: vec![Notice { what: "a".into(), why: "b".into(), mend: Some("c".into()) }],
        ..Snapshot::default()
    }
}

#[test]
fn json_there_and_back() {
    let snapshot = full();
    let json = serde_json::to_string(&snapshot).unwrap();
    assert!(json.contains("\"time\":\"2023-11-14T22:13:20.123Z\""), "{json}");
    assert_eq!(serde_json::from_str::<Snapshot>(&json).unwrap(), snapshot);
}

#[test]
fn facts_about_processes() {
    let snapshot = full();
    let curl = &snapshot.processes[0];
    assert_eq!(snapshot.rate_limit(curl, Direction::Download), Rate::new(4000));
    assert_eq!(snapshot.rate_limit(curl, Direction::Upload), Rate::new(9000));
    assert_eq!(snapshot.rate_limit(&snapshot.processes[1], Direction::Upload), None);
    assert_eq!(snapshot.started(curl), snapshot.boot_time + Duration::from_millis(4200));
    assert_eq!(snapshot.connections_of(curl.key()).count(), 1);
    assert_eq!(snapshot.interface_traffic().rx_bytes, 7);
    assert!(snapshot.processes[1].is_idle() && !curl.is_idle());
    assert_eq!(snapshot.notices[0].to_string(), "a: b (c)");
}
