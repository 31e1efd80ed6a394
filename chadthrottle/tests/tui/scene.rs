//! Snapshots as a busy machine would give them: made from a few lines that say who moves what, so that every
//! picture and every measurement is the same each time.

use std::{
    f64::consts::TAU,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use chadthrottle::model::{
    Connection, Counters, Direction, DirectionReport, Escape, EscapeKind, Interface, LimitId, LimitReport,
    Notice, PerDirection, Process, ProcessKind, Protocol, Rate, Snapshot, Source, State, Target,
};

/// Seconds since the boot when the monitor began.
const UPTIME: u64 = 86_400;
/// When the machine started.
const BOOT: u64 = 1_767_225_600;

/// A process of the scene.
#[derive(Clone)]
pub struct Actor {
    pub pid: u32,
    pub parent: u32,
    pub name: &'static str,
    pub exe: &'static str,
    pub arguments: &'static str,
    pub user: &'static str,
    pub unit: Option<&'static str>,
    pub container: Option<&'static str>,
    /// Bytes/s when nothing limits it; download, upload.
    pub rates: [f64; 2],
    /// How much it goes up and down, from 0 to 1, and how often, in seconds.
    pub wave: (f64, f64),
    pub remotes: &'static [&'static str],
    /// When it ends, in seconds after the monitor began.
    pub ends: Option<u32>,
}

const NOBODY: Actor = Actor {
    pid: 0,
    parent: 1,
    name: "",
    exe: "",
    arguments: "",
    user: "root",
    unit: None,
    container: None,
    rates: [0.0; 2],
    wave: (0.0, 10.0),
    remotes: &[],
    ends: None,
};

const BACKUP: &str = "4f2a9c1be07d55e8a3d1f0c2b6e97788aa01c3d4e5f60718293a4b5c6d7e8f90";

/// Who is there.
pub fn cast() -> Vec<Actor> {
    vec![
        Actor {
            pid: 812,
            name: "systemd-resolve",
            exe: "/usr/lib/systemd/systemd-resolved",
            user: "systemd-resolve",
            unit: Some("systemd-resolved.service"),
            rates: [900.0, 450.0],
            wave: (1.0, 7.0),
            remotes: &["9.9.9.9:53"],
            ..NOBODY
        },
        Actor {
            pid: 1021,
            name: "nginx",
            exe: "/usr/sbin/nginx",
            arguments: "-g daemon off;",
            unit: Some("nginx.service"),
            ..NOBODY
        },
        Actor {
            pid: 1033,
            parent: 1021,
            name: "nginx",
            exe: "/usr/sbin/nginx",
            arguments: "worker process",
            user: "www-data",
            unit: Some("nginx.service"),
            rates: [84_000.0, 2_650_000.0],
            wave: (0.35, 19.0),
            remotes: &["198.51.100.23:51544", "203.0.113.77:40122", "[2001:db8:77::12]:55310"],
            ..NOBODY
        },
        Actor {
            pid: 1034,
            parent: 1021,
            name: "nginx",
            exe: "/usr/sbin/nginx",
            arguments: "worker process",
            user: "www-data",
            unit: Some("nginx.service"),
            rates: [61_000.0, 1_480_000.0],
            wave: (0.5, 13.0),
            remotes: &["198.51.100.180:33012", "203.0.113.5:61033"],
            ..NOBODY
        },
        Actor {
            pid: 1377,
            name: "sshd",
            exe: "/usr/sbin/sshd",
            unit: Some("ssh.service"),
            rates: [1_200.0, 9_800.0],
            wave: (0.9, 5.0),
            remotes: &["192.0.2.40:50122"],
            ..NOBODY
        },
        Actor {
            pid: 2210,
            name: "restic",
            exe: "/usr/bin/restic",
            arguments: "backup /srv",
            container: Some(BACKUP),
            rates: [38_000.0, 6_900_000.0],
            wave: (0.15, 23.0),
            remotes: &["[2001:db8:5::9]:443", "[2001:db8:5::a]:443"],
            ..NOBODY
        },
        Actor {
            pid: 4120,
            parent: 1,
            name: "bash",
            exe: "/usr/bin/bash",
            user: "alice",
            unit: Some("session-4.scope"),
            ..NOBODY
        },
        Actor {
            pid: 4188,
            parent: 4120,
            name: "curl",
            exe: "/usr/bin/curl",
            arguments: "-LO https://cdn.example.org/images/debian-13.1.0-amd64-DVD-1.iso",
            user: "alice",
            unit: Some("session-4.scope"),
            rates: [11_800_000.0, 96_000.0],
            wave: (0.12, 17.0),
            remotes: &["203.0.113.10:443"],
            ..NOBODY
        },
        Actor {
            pid: 4460,
            parent: 1,
            name: "firefox",
            exe: "/usr/lib/firefox/firefox",
            user: "alice",
            unit: Some("app-firefox-4460.scope"),
            rates: [1_900_000.0, 120_000.0],
            wave: (0.9, 11.0),
            remotes: &["203.0.113.200:443", "198.51.100.99:443", "[2001:db8:42::1]:443", "192.0.2.81:443"],
            ..NOBODY
        },
        Actor {
            pid: 4502,
            parent: 4460,
            name: "Socket Process",
            exe: "/usr/lib/firefox/firefox",
            arguments: "-contentproc",
            user: "alice",
            unit: Some("app-firefox-4460.scope"),
            rates: [420_000.0, 24_000.0],
            wave: (0.8, 9.0),
            remotes: &["203.0.113.201:443", "203.0.113.202:443"],
            ..NOBODY
        },
        Actor {
            pid: 5150,
            parent: 1,
            name: "transmission-gt",
            exe: "/usr/bin/transmission-gtk",
            user: "bob",
            unit: Some("app-transmission-5150.scope"),
            rates: [5_400_000.0, 3_300_000.0],
            wave: (0.4, 29.0),
            remotes: &["203.0.113.140:51413", "198.51.100.7:6881", "192.0.2.66:51413", "203.0.113.61:6889"],
            ..NOBODY
        },
        Actor {
            pid: 5301,
            parent: 4120,
            name: "wget",
            exe: "/usr/bin/wget",
            arguments: "https://mirror.example.net/ls-lR.gz",
            user: "alice",
            unit: Some("session-4.scope"),
            rates: [780_000.0, 8_000.0],
            remotes: &["198.51.100.200:443"],
            ends: Some(52),
            ..NOBODY
        },
        Actor { pid: 640, name: "名前 é\n", user: "1004", rates: [2_000.0, 0.0], ..NOBODY },
    ]
}

/// A limit of the scene.
#[derive(Clone)]
pub struct Held {
    pub id: u64,
    pub target: Target,
    /// Download, upload.
    pub rates: [Option<u64>; 2],
    /// Seconds after the monitor began.
    pub from: u32,
    pub duration: Option<f64>,
    pub detached: bool,
    /// Traffic gets past it.
    pub escape: Option<&'static str>,
}

/// The limits: one that the user of the screen just set, one of somebody else.
pub fn limits() -> Vec<Held> {
    let held = Held {
        id: 3,
        target: Target::Pid(4188),
        rates: [Some(4_000_000), None],
        from: 35,
        duration: None,
        detached: false,
        escape: None,
    };
    let other = Held {
        id: 2,
        target: Target::Tree(5150),
        rates: [Some(5_000_000), Some(1_000_000)],
        from: 0,
        duration: Some(5400.0),
        detached: true,
        escape: None,
    };
    vec![other, held]
}

/// The scene.
#[derive(Clone)]
pub struct Scene {
    pub actors: Vec<Actor>,
    pub limits: Vec<Held>,
    pub notices: Vec<Notice>,
    pub source: Source,
}

impl Default for Scene {
    fn default() -> Self {
        Self { actors: cast(), limits: limits(), notices: Vec::new(), source: Source::Ebpf }
    }
}

impl Scene {
    /// As it was every second up to `seconds`.
    pub fn until(&self, seconds: u32) -> Vec<Snapshot> {
        let mut sums = vec![[0u64; 2]; self.actors.len()];
        let first = Snapshot { interval: 0.0, elapsed: 0.0, ..self.at(0, &mut sums) };
        std::iter::once(first).chain((1..=seconds).map(|second| self.at(second, &mut sums))).collect()
    }

    fn at(&self, second: u32, sums: &mut [[u64; 2]]) -> Snapshot {
        let mut processes = Vec::new();
        let mut connections = Vec::new();
        let mut total = [[0u64; 2]; 2];
        let in_force: Vec<&Held> = self.limits.iter().filter(|held| held.from < second.max(1)).collect();
        let mut measured = vec![[0u64; 2]; in_force.len()];
        for (index, actor) in self.actors.iter().enumerate() {
            let is_alive = actor.ends.is_none_or(|end| second < end);
            let mut rates = [0u64; 2];
            let own: Vec<usize> = (0..in_force.len()).filter(|at| self.holds(in_force[*at], actor)).collect();
            for direction in 0..2 {
                let limit = own.iter().filter_map(|at| {
                    in_force[*at].rates[direction].filter(|_| in_force[*at].escape.is_none())
                });
                let wish = actor.rate(direction, second) as u64;
                let rate = if is_alive && second > 0 {
                    limit.min().map_or(wish, |limit| wish.min(limit))
                } else {
                    0
                };
                rates[direction] = rate;
                sums[index][direction] += rate;
                total[0][direction] += rate;
                total[1][direction] += sums[index][direction];
                own.iter().for_each(|at| measured[*at][direction] += rate);
            }
            let mut process = actor.process(is_alive);
            [process.rx_rate, process.tx_rate] = rates;
            [process.rx_bytes, process.tx_bytes] = sums[index];
            process.limits = own.iter().map(|at| LimitId(in_force[*at].id)).collect();
            connections.extend(actor.connections(&process));
            process.connections = connections
                .iter()
                .filter(|connection: &&Connection| connection.owner == process.key())
                .count() as u32;
            processes.push(process);
        }
        processes.push(Process {
            kind: ProcessKind::Kernel,
            name: "kernel".into(),
            alive: true,
            rx_bytes: 64 * u64::from(second),
            tx_bytes: 40 * u64::from(second),
            rx_rate: 64,
            tx_rate: 40,
            ..Process::default()
        });
        let interface = |name: &str, up, share: u64| Interface {
            name: name.into(),
            up,
            rx_bytes: total[1][0] * share / 100,
            tx_bytes: total[1][1] * share / 100,
            rx_rate: total[0][0] * share / 100,
            tx_rate: total[0][1] * share / 100,
        };
        let limits = in_force.iter().zip(&measured);
        Snapshot {
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(BOOT + UPTIME + u64::from(second)),
            boot_time: SystemTime::UNIX_EPOCH + Duration::from_secs(BOOT),
            interval: 1.0,
            elapsed: f64::from(second),
            source: self.source,
            processes,
            connections,
            interfaces: vec![
                interface("eth0", true, 97),
                interface("lo", true, 2),
                interface("wlan0", false, 0),
            ],
            limits: limits.map(|(held, measured)| held.report(*measured, second)).collect(),
            notices: self.notices.clone(),
        }
    }

    fn holds(&self, held: &Held, actor: &Actor) -> bool {
        match held.target {
            Target::Tree(pid) => pid == actor.pid || pid == actor.parent,
            ref other => *other == Target::Pid(actor.pid),
        }
    }
}

impl Actor {
    fn rate(&self, direction: usize, second: u32) -> f64 {
        let (depth, period) = self.wave;
        let angle = TAU * (f64::from(second) / period + f64::from(self.pid % 7) / 7.0);
        // Two waves, so that it looks less like one.
        let wave = 0.7 * angle.sin() + 0.3 * (2.7 * angle).sin();
        (self.rates[direction] * (1.0 + depth * wave)).max(0.0)
    }

    fn process(&self, alive: bool) -> Process {
        Process {
            pid: self.pid,
            start_time: UPTIME * 50 + u64::from(self.pid) * 100,
            parent: self.parent,
            name: self.name.into(),
            exe: (!self.exe.is_empty()).then(|| self.exe.into()),
            cmdline: format!("{} {}", self.name, self.arguments).trim_end().into(),
            user: self.user.into(),
            cgroup: match (self.unit, self.container) {
                (_, Some(container)) => format!("/system.slice/docker-{container}.scope"),
                (Some(unit), None) => format!("/system.slice/{unit}"),
                (None, None) => "/".into(),
            },
            unit: self.unit.map(Into::into),
            container: self.container.map(Into::into),
            alive,
            ..Process::default()
        }
    }

    fn connections(&self, process: &Process) -> Vec<Connection> {
        if !process.alive {
            return Vec::new();
        }
        let count = self.remotes.len() as u64;
        let connection = |(index, remote): (usize, &&str)| {
            let remote: SocketAddr = remote.parse().expect("an address");
            // The first moves more than the others.
            let share = |bytes: u64| match (index, count) {
                (_, 1) => bytes,
                (0, _) => bytes / 2,
                _ => bytes / 2 / (count - 1),
            };
            let local = if remote.is_ipv4() { "192.0.2.15" } else { "[2001:db8::15]" };
            Connection {
                id: u64::from(self.pid) * 100 + index as u64,
                owner: process.key(),
                protocol: if remote.port() == 53 { Protocol::Udp } else { Protocol::Tcp },
                state: State::Established,
                local: format!("{local}:{}", 40_000 + self.pid + index as u32).parse().expect("an address"),
                remote: Some(remote),
                rx_bytes: share(process.rx_bytes),
                tx_bytes: share(process.tx_bytes),
                rx_rate: share(process.rx_rate),
                tx_rate: share(process.tx_rate),
                rtt_us: (remote.port() != 53).then_some(8_000 + self.pid % 13 * 2_900 + index as u32 * 410),
                retransmits: (remote.port() != 53).then_some((index as u32 * 3 + self.pid) % 4),
            }
        };
        self.remotes.iter().enumerate().map(connection).collect()
    }
}

impl Held {
    fn report(&self, measured: [u64; 2], second: u32) -> LimitReport {
        let age = f64::from(second.saturating_sub(self.from));
        let direction = |direction: Direction| {
            let index = usize::from(direction == Direction::Upload);
            self.rates[index].map(|rate| DirectionReport {
                rate: Rate::new(rate).expect("a rate"),
                measured: (age > 1.0).then_some(measured[index]),
                backend: "ebpf".into(),
                counters: Counters {
                    passed_bytes: (measured[index] as f64 * age) as u64,
                    passed_packets: (measured[index] as f64 * age / 1500.0) as u64,
                    dropped_packets: (age * 1.7) as u64,
                    ..Counters::default()
                },
                rungs: Vec::new(),
            })
        };
        let named =
            |actor: &Actor| matches!(self.target, Target::Pid(pid) | Target::Tree(pid) if pid == actor.pid);
        let actor = cast().into_iter().find(named);
        let escape = |message: &&str| Escape { kind: EscapeKind::Bypass, message: (*message).into() };
        LimitReport {
            id: LimitId(self.id),
            targets: vec![self.target.clone()],
            scope: chadthrottle::model::Scope::All,
            name: actor.as_ref().map_or("gone", |actor| actor.name).into(),
            processes: 1,
            sockets: actor.map_or(0, |actor| actor.remotes.len() as u32),
            directions: PerDirection::from_fn(direction),
            detached: self.detached,
            client_pid: 4242,
            owner_pid: 4243,
            age,
            remaining: self.duration.map(|duration| duration - age),
            escapes: self.escape.iter().map(escape).collect(),
        }
    }
}
