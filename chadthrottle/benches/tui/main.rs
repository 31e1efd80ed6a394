//! What the screens cost with 1,000 processes and 10,000 connections at 200x60, beside what was promised.
//!
//! `cargo bench --bench tui`. Fails when a promise is missed by the median. As root also on as many real processes.

mod live;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/tui/pty.rs"]
mod pty;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use chadthrottle::{
    backend::Site,
    model::{
        Connection, Counters, Direction, DirectionReport, Interface, LimitId, LimitReport, PerDirection,
        Process, Protocol, Rate, Snapshot, Source, State, Target,
    },
    monitor::recording::Recorder,
    owner::protocol::{LimitRequest, Reply},
    tui::{App, Setup, draw, event::Event, theme::ThemeName},
};
use nix::unistd::Pid;
use pty::Session;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{Event as TerminalEvent, KeyCode, KeyEvent, KeyModifiers},
    layout::Size,
};

const PROCESSES: u32 = 1_000;
/// Of each process.
const CONNECTIONS: u32 = 10;
const LIMITS: u32 = 20;
const SIZE: Size = Size { width: 200, height: 60 };

/// What a frame may take.
const FRAME: Duration = Duration::from_millis(5);
/// From a key to its picture.
const KEY: Duration = Duration::from_millis(50);
/// Of a core, with a snapshot every second.
const SHARE: f64 = 0.03;
/// Snapshots over which the whole program is measured, after as many that fill its history.
const SECONDS: u32 = 12;

/// As a very busy server would look.
fn snapshot(second: u32) -> Snapshot {
    let process = |number: u32| {
        let rate = |salt: u32| u64::from((number * 7_919 + salt * 104_729 + second * 31) % 1_000) * 1_000;
        Process {
            pid: 1_000 + number,
            parent: match number % 10 {
                0 => 1,
                rest => 1_000 + number - rest,
            },
            start_time: 5_000 + u64::from(number),
            name: format!("worker-{number}"),
            exe: Some("/usr/lib/server/bin/worker".into()),
            cmdline: format!("/usr/lib/server/bin/worker --number {number} --config /etc/server/worker.toml"),
            user: format!("user{}", number % 20),
            cgroup: format!("/system.slice/server-{}.service", number / 10),
            unit: Some(format!("server-{}.service", number / 10)),
            alive: true,
            rx_rate: rate(1),
            tx_rate: rate(2),
            rx_bytes: rate(1) * u64::from(second),
            tx_bytes: rate(2) * u64::from(second),
            connections: CONNECTIONS,
            limits: if number < LIMITS { vec![LimitId(number.into())] } else { Vec::new() },
            ..Process::default()
        }
    };
    let processes: Vec<Process> = (0..PROCESSES).map(process).collect();
    let connection = |process: &Process, number: u32| Connection {
        id: u64::from(process.pid * CONNECTIONS + number),
        owner: process.key(),
        protocol: Protocol::Tcp,
        state: State::Established,
        local: ([10, 0, 0, 1], 443).into(),
        remote: Some(([198, 51, number as u8, process.pid as u8], 40_000 + number as u16).into()),
        rx_bytes: process.rx_bytes / u64::from(CONNECTIONS),
        tx_bytes: process.tx_bytes / u64::from(CONNECTIONS),
        rx_rate: process.rx_rate / u64::from(CONNECTIONS),
        tx_rate: process.tx_rate / u64::from(CONNECTIONS),
        rtt_us: Some(20_000 + number),
        retransmits: Some(number),
    };
    let connections = processes
        .iter()
        .flat_map(|process| (0..CONNECTIONS).map(|number| connection(process, number)))
        .collect();
    let held = Some(DirectionReport {
        rate: Rate::new(1_000_000).expect("a rate"),
        measured: Some(900_000),
        backend: "ebpf".into(),
        counters: Counters::default(),
        rungs: Vec::new(),
    });
    let limit = |process: &Process| LimitReport {
        id: process.limits[0],
        targets: vec![Target::Pid(process.pid)],
        scope: chadthrottle::model::Scope::All,
        name: process.name.clone(),
        processes: 1,
        sockets: CONNECTIONS,
        directions: PerDirection::from_fn(|direction| {
            held.clone().filter(|_| direction == Direction::Download)
        }),
        detached: false,
        client_pid: 7,
        owner_pid: 8,
        age: second.into(),
        remaining: None,
        escapes: Vec::new(),
    };
    let limits = processes[..LIMITS as usize].iter().map(limit).collect();
    let interface = Interface {
        name: "eth0".into(),
        up: true,
        rx_bytes: 1_000_000 * u64::from(second),
        tx_bytes: 1_000_000 * u64::from(second),
        rx_rate: 1_000_000,
        tx_rate: 1_000_000,
    };
    Snapshot {
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + u64::from(second)),
        boot_time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_000),
        interval: if second == 0 { 0.0 } else { 1.0 },
        elapsed: second.into(),
        source: Source::Ebpf,
        processes,
        connections,
        interfaces: vec![interface],
        limits,
        notices: Vec::new(),
    }
}

/// The state and a terminal in memory.
struct Bench {
    app: App,
    terminal: Terminal<TestBackend>,
    second: u32,
}

impl Bench {
    /// After two minutes, so that all of the history is there.
    fn new() -> Self {
        let template = LimitRequest {
            targets: Vec::new(),
            scope: chadthrottle::model::Scope::All,
            wait: false,
            rates: PerDirection::default(),
            backends: PerDirection::default(),
            no_fallback: false,
            partial: false,
            duration: None,
            detach: false,
            site: Site::default(),
        };
        let app = App::new(Setup {
            size: SIZE,
            theme: ThemeName::Default,
            ascii: false,
            template,
            read_only: None,
        });
        let terminal = Terminal::new(TestBackend::new(SIZE.width, SIZE.height)).expect("a terminal");
        let mut bench = Self { app, terminal, second: 0 };
        (0..=120).for_each(|_| bench.tick());
        bench.draw();
        bench
    }

    fn tick(&mut self) {
        let snapshot = Arc::new(snapshot(self.second));
        self.second += 1;
        self.app.handle(Event::Snapshot(snapshot));
    }

    fn draw(&mut self) {
        self.terminal.draw(|frame| draw(&self.app, frame)).expect("a picture");
    }

    fn press(&mut self, code: KeyCode) {
        self.app.handle(Event::Terminal(TerminalEvent::Key(KeyEvent::new(code, KeyModifiers::NONE))));
    }

    fn type_in(&mut self, keys: &str) {
        for letter in keys.chars() {
            self.press(match letter {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                letter => KeyCode::Char(letter),
            });
        }
    }
}

/// Times of something done often, sorted.
fn times(rounds: usize, mut run: impl FnMut(usize) -> Duration) -> Vec<Duration> {
    let mut times: Vec<_> = (0..rounds).map(&mut run).collect();
    times.sort();
    times
}

fn timed(run: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    run();
    begun.elapsed()
}

/// Prints a line of the table; whether the promise holds.
fn row(what: &str, times: &[Duration], promise: Duration) -> bool {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (median, last) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("| {what} | {:.2} | {:.2} | {:.0} |", ms(median), ms(last), ms(promise));
    median < promise
}

fn frames(bench: &mut Bench) -> bool {
    let screens = [
        ("processes", "1"),
        ("trees", "1v"),
        ("units", "v"),
        ("processes again", "vvv"),
        ("detail", "\n"),
        ("limits", "3"),
        ("limit dialog", "1t"),
    ];
    let mut holds = true;
    for (name, keys) in screens {
        bench.type_in(keys);
        let times = times(300, |_| timed(|| bench.draw()));
        holds &= row(&format!("a frame: {name}"), &times, FRAME);
    }
    bench.press(KeyCode::Esc);
    holds
}

fn keys(bench: &mut Bench) -> bool {
    let mut holds = true;
    for (name, keys) in [
        ("down, up", "jk"),
        ("to the last, to the first", "Gg"),
        ("order", "ssSS"),
        ("view: trees, units, users, names, processes", "vvvvv"),
        ("a filter, letter by letter", "/worker user:user1 port:443 rate:>1K\x1b"),
        ("screens", "2345161"),
    ] {
        let letters: Vec<char> = keys.chars().collect();
        let times = times(letters.len() * 20, |round| {
            let letter = letters[round % letters.len()];
            timed(|| {
                bench.type_in(&letter.to_string());
                bench.draw();
            })
        });
        holds &= row(&format!("a key: {name}"), &times, KEY);
    }
    holds
}

/// What the monitor's thread does with a line of the owner.
fn lines() -> bool {
    let line = serde_json::to_vec(&Reply::Snapshot(Arc::new(snapshot(7)))).expect("a line");
    let times = times(100, |_| {
        timed(|| {
            let reply = Reply::from_line(&line).expect("a snapshot");
            assert!(matches!(reply, Reply::Snapshot(_)));
        })
    });
    let what = format!("a snapshot of the owner's read ({:.1} MB)", line.len() as f64 / 1e6);
    row(&what, &times, Duration::from_secs_f64(SHARE))
}

fn ticks(bench: &mut Bench) -> bool {
    let coming: Vec<_> = (0..100).map(|later| Arc::new(snapshot(bench.second + later))).collect();
    let times = times(coming.len(), |round| {
        let snapshot = Arc::clone(&coming[round]);
        timed(|| {
            bench.app.handle(Event::Snapshot(snapshot));
            bench.draw();
        })
    });
    row("a snapshot taken in and drawn", &times, Duration::from_secs_f64(SHARE))
}

/// Time that all threads of a process have spent on a CPU.
fn cpu_time(pid: Pid) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let files = tasks.flatten().map(|task| task.path().join("schedstat"));
    let of = |text: String| text.split(' ').next()?.parse().ok();
    let spent = |file| std::fs::read_to_string(file).ok().and_then(of).unwrap_or(0);
    Duration::from_nanos(files.map(spent).sum())
}

/// The whole program in a terminal, on a recording that plays at its own pace: reading it is a part.
fn share() -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recording");
    let mut recorder = Recorder::create(&path).expect("a recording");
    (0..=2 * SECONDS).for_each(|second| recorder.write(&snapshot(second)).expect("a snapshot"));
    let [path, home] = [&path, &folder.path().to_owned()].map(|path| path.display().to_string());
    let program = env!("CARGO_BIN_EXE_chadthrottle");
    let mut session =
        Session::start((SIZE.width, SIZE.height), program, &["--replay", &path], &[("HOME", &home)]);
    session.see("worker-");
    std::thread::sleep(Duration::from_secs(SECONDS.into()));
    let (before, begun) = (cpu_time(session.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs((SECONDS - 2).into()));
    let share = (cpu_time(session.pid()) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    session.press("q");
    session.end();
    println!("\nThe whole program, a snapshot every second: {:.1} % of a core (promised: 3).", share * 100.0);
    share < SHARE
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(live::CROWD) {
        return live::play();
    }
    println!(
        "| {}x{}, {PROCESSES} processes, {} connections | median, ms | 99 %, ms | promised |",
        SIZE.width,
        SIZE.height,
        PROCESSES * CONNECTIONS
    );
    println!("|---|--:|--:|--:|");
    let mut bench = Bench::new();
    let holds =
        [frames(&mut bench), keys(&mut bench), ticks(&mut bench), lines(), share(), live::share_when_live()];
    if holds.iter().all(|holds| *holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
