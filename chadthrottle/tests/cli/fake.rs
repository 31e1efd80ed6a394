//! An owner that limits nothing, and plays what a test wants.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use chadthrottle::{
    Error,
    model::{
        Counters, DirectionReport, Escape, LimitId, LimitReport, Notice, Process, ProcessKind, Snapshot,
        StatusReport, Target,
    },
    owner::protocol::{EndReason, LimitRequest, MonitorRequest, Reply, Request, VERSION},
};
use tempfile::TempDir;

/// How long it takes to free limits when a client goes.
pub const FREES: Duration = Duration::from_millis(150);

/// What happens to a limit that is asked for.
pub enum Play {
    /// It comes into force.
    Hold,
    /// It comes into force, after this.
    HoldAfter(Duration),
    /// It can't be had.
    Refuse(fn() -> Error),
    /// Traffic gets past it.
    Escape(&'static str),
    /// It ends.
    End(EndReason),
    /// The owner dies.
    Die,
    /// It is silent for so long, as if stopped.
    Stop(Duration),
}

/// What the clients did.
#[derive(Default)]
pub struct Seen {
    /// Limits asked for, with the name its process had then.
    pub limits: Vec<(LimitRequest, String)>,
    /// Lists of targets to clear.
    pub clears: Vec<Vec<Target>>,
    /// Requests to monitor.
    pub monitors: Vec<MonitorRequest>,
    /// Connections closed by their clients, and freed.
    pub freed: usize,
}

/// A fake owner in a runtime folder of its own.
pub struct FakeOwner {
    dir: TempDir,
    pub seen: Arc<Mutex<Seen>>,
}

impl FakeOwner {
    pub fn new(play: Play) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let listener = UnixListener::bind(dir.path().join("owner.sock")).expect("a socket");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (play, all_seen) = (Arc::new(play), Arc::clone(&seen));
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (play, seen) = (Arc::clone(&play), Arc::clone(&all_seen));
                thread::spawn(move || serve(stream, &play, &seen));
            }
        });
        Self { dir, seen }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn limits(&self) -> Vec<(LimitRequest, String)> {
        self.seen.lock().unwrap().limits.clone()
    }

    pub fn freed(&self) -> usize {
        self.seen.lock().unwrap().freed
    }
}

fn serve(mut stream: UnixStream, play: &Play, seen: &Mutex<Seen>) {
    let lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
    for line in lines.map_while(Result::ok) {
        let request = serde_json::from_str(&line).expect("a request");
        for reply in answer(request, play, seen) {
            let Some(reply) = reply else { return };
            let line = serde_json::to_string(&reply).expect("a reply") + "\n";
            // The client may be gone.
            let _ = stream.write_all(line.as_bytes());
            if let (Play::Stop(time), Reply::Limited { .. }) = (play, &reply) {
                thread::sleep(*time);
            }
        }
    }
    thread::sleep(FREES);
    seen.lock().unwrap().freed += 1;
}

/// Lines to send; `None` closes the connection.
fn answer(request: Request, play: &Play, seen: &Mutex<Seen>) -> Vec<Option<Reply>> {
    match request {
        Request::Hello { .. } => vec![Some(Reply::Hello { version: VERSION, pid: std::process::id() })],
        Request::Status => vec![Some(Reply::Status(StatusReport {
            limits: seen.lock().unwrap().limits.iter().map(|(limit, name)| report(limit, name)).collect(),
        }))],
        Request::Clear { targets } => {
            seen.lock().unwrap().clears.push(targets);
            vec![Some(Reply::Cleared { ended: vec![LimitId(1), LimitId(2)] })]
        }
        Request::Monitor(request) => {
            seen.lock().unwrap().monitors.push(request);
            let snapshots = [0.0, 1.0, 2.0].map(|elapsed| Some(Reply::Snapshot(Arc::new(snapshot(elapsed)))));
            [Some(Reply::Monitoring)].into_iter().chain(snapshots).chain([None]).collect()
        }
        Request::Change { .. } | Request::Move { .. } | Request::Remove { .. } => {
            panic!("nobody changes a limit")
        }
        Request::Limit(request) => {
            let name = name_of(&request.targets[0]);
            let limited = report(&request, &name);
            seen.lock().unwrap().limits.push((request, name));
            let notices = vec!["tried\nsomething".to_owned()];
            let hold = Some(Reply::Limited { limit: limited.clone(), notices });
            let id = limited.id;
            match play {
                Play::Hold => vec![hold],
                Play::HoldAfter(time) => {
                    thread::sleep(*time);
                    vec![hold]
                }
                Play::Refuse(why) => vec![Some(Reply::Error(why()))],
                Play::Escape(message) => {
                    let kind = chadthrottle::model::EscapeKind::Bypass;
                    vec![
                        hold,
                        Some(Reply::Escaped { id, escape: Escape { kind, message: (*message).into() } }),
                    ]
                }
                Play::End(reason) => vec![hold, Some(Reply::Ended { id, reason: *reason, last: limited })],
                Play::Die => vec![hold, None],
                // The sleep is in `serve`, after the answer.
                Play::Stop(_) => vec![hold],
            }
        }
    }
}

/// A process that receives 1 MB/s, one that ended, and the kernel's row.
fn snapshot(elapsed: f64) -> Snapshot {
    let process = |pid, name: &str| Process {
        pid,
        start_time: 5,
        name: name.into(),
        user: "alice".into(),
        alive: pid == 7,
        ..Process::default()
    };
    let mut curl = process(7, "cu\nrl");
    (curl.rx_bytes, curl.rx_rate, curl.connections) = (1_000_000 * elapsed as u64, 1_000_000, 1);
    let mut gone = process(8, "gone");
    gone.tx_bytes = 300;
    let kernel =
        Process { kind: ProcessKind::Kernel, name: "kernel".into(), tx_bytes: 5, ..Process::default() };
    Snapshot {
        interval: elapsed.min(1.0),
        elapsed,
        // The second has ended before the last tick.
        processes: if elapsed < 2.0 { vec![curl, gone, kernel] } else { vec![curl, kernel] },
        notices: vec![Notice { what: "a\nb".into(), why: "c".into(), mend: None }],
        ..Snapshot::default()
    }
}

fn name_of(target: &Target) -> String {
    let Some(pid) = target.pid() else { return String::new() };
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim_end().to_owned()).unwrap_or_default()
}

fn report(request: &LimitRequest, name: &str) -> LimitReport {
    let held = |rate| DirectionReport {
        rate,
        measured: Some(998_000),
        backend: "ebpf".into(),
        counters: Counters { dropped_packets: 7, ..Counters::default() },
        rungs: vec![chadthrottle::model::Rung {
            device: Some("eth0".into()),
            kind: chadthrottle::model::RungKind::IfbHtbWindow,
            reason: None,
        }],
    };
    LimitReport {
        id: LimitId(1),
        targets: request.targets.clone(),
        name: name.into(),
        processes: 1,
        sockets: 3,
        directions: chadthrottle::model::PerDirection {
            upload: request.rates.upload.map(held),
            download: request.rates.download.map(held),
        },
        detached: request.detach,
        client_pid: 4242,
        owner_pid: 4343,
        age: 5.0,
        remaining: request.duration,
        escapes: Vec::new(),
    }
}
