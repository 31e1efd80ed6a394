//! A runtime folder with everything that a case needs around it.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use chadthrottle::{
    Result,
    backend::Site,
    model::{LimitReport, PerDirection, Rate, Target},
    owner::{
        client::Client,
        protocol::{LimitRequest, Reply, Request},
        sweep,
    },
};
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::fake;

/// How long anything may take that happens "at once" on a busy machine.
pub const SOON: Duration = Duration::from_secs(5);

/// The made-up kernels of all cases; set once, since owners inherit the environment.
fn kernels() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::Builder::new().prefix("chadt-owner-test-").tempdir().unwrap();
            // SAFETY: the first case to come here does it, and `get_or_init` lets no other read the variable,
            // which nothing else in this program does, before that.
            unsafe { env::set_var(fake::FOLDER, folder.path()) };
            folder
        })
        .path()
}

/// What an owner's made-up kernel holds: "upload-1 RATE" and the like, sorted.
pub fn in_force(owner: u32) -> Vec<String> {
    let prefix = format!("{owner}-");
    let mut found = Vec::new();
    for entry in fs::read_dir(kernels()).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_prefix(&prefix)) else {
            continue;
        };
        found.push(format!("{name} {}", fs::read_to_string(&path).unwrap()));
    }
    found.sort();
    found
}

/// Removes the made-up kernels: those of killed owners are still there.
pub fn demolish() {
    let _ = fs::remove_dir_all(kernels());
}

/// One case's runtime folder. Dropping it ends whatever still runs there.
pub struct House {
    _folder: TempDir,
    pub dir: PathBuf,
}

impl House {
    pub fn new() -> Self {
        kernels();
        let folder = tempfile::Builder::new().prefix("chadt-owner-test-").tempdir().unwrap();
        let dir = folder.path().join("run");
        Self { _folder: folder, dir }
    }

    pub fn client(&self) -> Client {
        Client::connect_or_start(&self.dir, &Site::default()).unwrap()
    }

    /// Names of the files in the runtime folder, sorted.
    pub fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Owners and janitors of this house, by their command lines.
    pub fn processes(&self, role: &str) -> Vec<u32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            let Ok(line) = fs::read(path.join("cmdline")) else { continue };
            let mut words = line.split(|&byte| byte == 0);
            let is_ours = words.next() == Some(b"chadthrottle")
                && words.next() == Some(role.as_bytes())
                && words.nth(1) == Some(self.dir.as_os_str().as_encoded_bytes());
            if is_ours {
                found.push(pid);
            }
        }
        found
    }

    /// No process and no file of ours is left.
    pub fn is_empty(&self) -> bool {
        self.files().is_empty() && self.processes("owner").is_empty() && self.processes("janitor").is_empty()
    }

    /// This program as a client in a process of its own, which has set a limit when this returns.
    pub fn other_client(&self, environment: &[(&str, &str)]) -> Child {
        let mut child = Command::new(env::current_exe().unwrap())
            .arg("client")
            .arg(&self.dir)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        child
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("owner.log")).unwrap_or_default();
            eprintln!("files: {:?}\nthe owner's log: {log}", self.files());
        }
        let left = || [self.processes("owner"), self.processes("janitor")].concat();
        let begun = Instant::now();
        while !left().is_empty() && begun.elapsed() < SOON {
            left().into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
            std::thread::sleep(Duration::from_millis(5));
        }
        // Their cgroups are in their journals. What is in the way of that is what some case is about.
        let _ = sweep(&self.dir);
    }
}

/// Sets a limit on itself, says so, and stays until its stdin ends.
pub fn play_client(dir: &Path) -> Result<()> {
    let mut client = Client::connect_or_start(dir, &Site::default())?;
    set(&mut client, request(std::process::id()))?;
    println!("limited");
    let _ = std::io::stdin().read_line(&mut String::new());
    Ok(())
}

pub fn send(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

pub fn request(pid: u32) -> LimitRequest {
    LimitRequest {
        targets: vec![Target::Pid(pid)],
        scope: chadthrottle::model::Scope::All,
        wait: false,
        rates: PerDirection { upload: Rate::new(1_000_000), download: Rate::new(2_000_000) },
        backends: PerDirection::default(),
        no_fallback: false,
        partial: false,
        duration: None,
        detach: false,
        site: Site::default(),
    }
}

pub fn set(client: &mut Client, request: LimitRequest) -> Result<LimitReport> {
    match client.request(&Request::Limit(request))? {
        Reply::Limited { limit, notices } => {
            assert!(notices.is_empty(), "{notices:?}");
            Ok(limit)
        }
        other => panic!("{other:?}"),
    }
}

pub fn status(client: &mut Client) -> Vec<LimitReport> {
    match client.request(&Request::Status).unwrap() {
        Reply::Status(status) => status.limits,
        other => panic!("{other:?}"),
    }
}

/// A process to be limited.
pub struct Sleeper(pub Child);

impl Sleeper {
    pub fn new() -> Self {
        Self(Command::new("sleep").arg("300").spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next event; a failure if none comes in time.
pub fn event(client: &mut Client, patience: Duration) -> Reply {
    if !client.has_buffered() {
        let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        let patience = u16::try_from(patience.as_millis()).unwrap();
        assert_eq!(poll(&mut fds, patience).unwrap(), 1, "no event came");
    }
    client.next_event().unwrap().expect("the owner is gone")
}

/// Waits until it holds; a failure if it takes longer.
#[track_caller]
pub fn eventually(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience, "not in {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
