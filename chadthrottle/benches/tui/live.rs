//! The screens on real processes with real connections, in a network namespace and a cgroup of their own.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use chadthrottle::{
    Error, Kind, Result,
    kernel::cgroup,
    owner::client::Client,
    selftest::{cgroup::Cgroup, lab::Lab, process::Place},
};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{ForkResult, Pid, fork, geteuid},
};

use super::{CONNECTIONS, PROCESSES, SHARE, SIZE, cpu_time, pty::Session};

/// This program with this word is the crowd.
pub const CROWD: &str = "crowd";
/// Processes of which the connections are used, twice a second.
const TALKERS: u32 = 50;
/// Until everything was looked at once, and over how long is measured.
const BEFORE: Duration = Duration::from_secs(15);
const WINDOW: Duration = Duration::from_secs(20);

/// The crowd; all of it ends with the first.
struct Crowd(Child);

impl Crowd {
    fn start(place: Place<'_>) -> Result<Self> {
        let failed = |cause: io::Error| Error::caused(Kind::Failed, "start a crowd", &cause);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg(CROWD).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut crowd = Self(place.contain(&mut command)?.spawn().map_err(failed)?);
        let mut ready = String::new();
        if let Some(stdout) = crowd.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut ready).map_err(failed)?;
        }
        if ready.is_empty() { Err(Error::failed("the crowd ended")) } else { Ok(crowd) }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the crowd does.
pub fn play() -> ExitCode {
    let (mut ready, told) = io::pipe().expect("a pipe");
    let first = nix::unistd::getpid();
    for number in 0..PROCESSES {
        // SAFETY: this process has one thread.
        match unsafe { fork() }.expect("a process") {
            ForkResult::Parent { .. } => {}
            ForkResult::Child => {
                prctl::set_pdeathsig(Signal::SIGKILL).expect("to end with the first");
                if nix::unistd::getppid() != first {
                    return ExitCode::FAILURE;
                }
                return one(number, told);
            }
        }
    }
    drop(told);
    ready.read_exact(&mut [0; PROCESSES as usize]).expect("everybody is there");
    println!("ready");
    // Until nobody wants it any more.
    let _ = io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

fn one(number: u32, mut told: io::PipeWriter) -> ExitCode {
    let name = std::ffi::CString::new(format!("worker-{number}")).expect("a name");
    prctl::set_name(&name).expect("a name");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("its address");
    let mut pairs: Vec<(TcpStream, TcpStream)> = (0..CONNECTIONS / 2)
        .map(|_| (TcpStream::connect(address).expect("an end"), listener.accept().expect("the other").0))
        .collect();
    drop(listener);
    told.write_all(&[0]).expect("a word");
    drop(told);
    loop {
        let used = if number < TALKERS { pairs.len() } else { 0 };
        for (near, far) in &mut pairs[..used] {
            near.write_all(&[7; 1000]).expect("written");
            far.read_exact(&mut [0; 1000]).expect("read");
        }
        thread::sleep(Duration::from_millis(if used > 0 { 500 } else { 60_000 }));
    }
}

/// The whole program on the crowd; whether it keeps the promise.
pub fn share_when_live() -> bool {
    if !geteuid().is_root() {
        println!("\nAs root the same is measured on real processes, too.");
        return true;
    }
    match measure() {
        Ok((screens, owner)) => {
            println!(
                "\nThe same on {PROCESSES} real processes with {} connections: {:.1} % of a core (promised: 3), and the \
                 owner, which counts, {:.1} %.",
                PROCESSES * CONNECTIONS,
                screens * 100.0,
                owner * 100.0
            );
            screens < SHARE
        }
        Err(error) => {
            println!("\nOn real processes: {error}");
            false
        }
    }
}

fn measure() -> Result<(f64, f64)> {
    let cgroup = Cgroup::new(&cgroup::mount()?, &format!("chadt-bench-{}", std::process::id()))?;
    let lab = Lab::new()?;
    let place = Place { namespace: Some(&lab.client), cgroup: Some(&cgroup) };
    let _crowd = Crowd::start(place)?;
    let folder = tempfile::tempdir()
        .map_err(|cause| Error::caused(Kind::Failed, "make a folder for the owner", &cause))?;
    let [dir, root] = [folder.path(), cgroup.path()].map(|path: &Path| path.display().to_string());
    let words = ["--runtime-dir", &dir, "--cgroup-root", &root];
    let program = env!("CARGO_BIN_EXE_chadthrottle");
    let mut session = Session::start((SIZE.width, SIZE.height), program, &words, &[("HOME", &dir)]);
    session.see(&format!("{PROCESSES} processes"));
    thread::sleep(BEFORE);
    let client = Client::connect(folder.path())?.ok_or_else(|| Error::failed("there is no owner"))?;
    let processes = [session.pid(), Pid::from_raw(client.owner_pid().cast_signed())];
    drop(client);
    let before = processes.map(cpu_time);
    let begun = Instant::now();
    thread::sleep(WINDOW);
    let time = begun.elapsed().as_secs_f64();
    let after = processes.map(cpu_time);
    let [screens, owner] = [0, 1].map(|index| (after[index] - before[index]).as_secs_f64() / time);
    session.press("q");
    session.end();
    // The owner's own cgroup lies in ours, and goes a moment after it.
    let patience = Instant::now();
    let is_gone = || {
        let entries = std::fs::read_dir(cgroup.path()).map(|entries| entries.flatten().collect::<Vec<_>>());
        !entries.is_ok_and(|entries| entries.iter().any(|entry| entry.path().is_dir()))
    };
    while !is_gone() && patience.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(100));
    }
    Ok((screens, owner))
}
