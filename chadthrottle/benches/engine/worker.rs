//! The benchmark's own processes: senders of small datagrams, and crowds of processes to set limits on.
//! They are this program again, with `worker` as its first argument.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    net::UdpSocket,
    os::fd::AsRawFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use chadthrottle::{Error, Kind, Result, selftest::process::Place};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        resource::{Resource, setrlimit},
        signal::{Signal, kill},
        socket::{setsockopt, sockopt::RcvBuf},
    },
    unistd::{ForkResult, fork},
};

use crate::ping;

/// Payload of the datagrams, in bytes.
pub const PAYLOAD: usize = 64;

/// Datagrams that a busy member of a crowd sends every [`PAUSE`].
const HANDFUL: usize = 10;
const PAUSE: Duration = Duration::from_millis(10);

/// A child of ours that does what lines on its stdin say, and answers each with a line.
pub struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Sends small datagrams, each socket to itself, when told to `send hot` (over the first of its
    /// `sockets`) or `send all` (over all in turn), until told to `rest`.
    pub fn sender(place: Place<'_>, sockets: usize) -> Result<Self> {
        Self::spawn(place, &["sender", &sockets.to_string()]).map(|(worker, _)| worker)
    }

    /// `count` processes that do nothing, but for the first `talkers` of them, which send a few
    /// datagrams now and then between `talk` and `rest`; and their ids.
    pub fn crowd(place: Place<'_>, count: usize, talkers: usize) -> Result<(Self, Vec<u32>)> {
        let (worker, line) = Self::spawn(place, &["crowd", &count.to_string(), &talkers.to_string()])?;
        let pids: Vec<_> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        if pids.len() == count {
            Ok((worker, pids))
        } else {
            Err(Error::failed("start a crowd: some are missing"))
        }
    }

    /// Sends datagrams to `address` back.
    pub fn echo(place: Place<'_>, address: &str) -> Result<Self> {
        Self::spawn(place, &["echo", address]).map(|(worker, _)| worker)
    }

    /// Answers a number with the median round trip to `address` in so many milliseconds, in µs.
    pub fn pinger(place: Place<'_>, address: &str) -> Result<Self> {
        Self::spawn(place, &["pinger", address]).map(|(worker, _)| worker)
    }

    fn spawn(place: Place<'_>, arguments: &[&str]) -> Result<(Self, String)> {
        let failed = |cause: io::Error| Error::caused(Kind::Failed, "start a worker", &cause);
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        command.arg("worker").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = place.contain(&mut command)?.spawn().map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::failed("start a worker: no pipes"));
        };
        let mut worker = Self { child, stdin, stdout: BufReader::new(stdout) };
        let line = worker.answer()?;
        Ok((worker, line))
    }

    /// A pinger's median round trip in the next `ms` milliseconds, in µs.
    pub fn median_us(&mut self, ms: u32) -> Result<f64> {
        let answer = self.ask(&ms.to_string())?;
        answer.parse().map_err(|_| Error::failed(format!("a pinger says '{answer}'")))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it do something.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.ask(command).map(drop)
    }

    /// Lets it do something; its answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.stdin, "{command}")
            .map_err(|cause| Error::caused(Kind::Failed, "talk to a worker", &cause))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(length) if length > 0 => Ok(line.trim_end().to_owned()),
            _ => Err(Error::failed("a worker ended")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's side.
pub fn main(arguments: &[String]) -> io::Result<()> {
    let word = |at: usize| arguments.get(at).map_or("", String::as_str);
    let number = |at: usize| arguments.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
    match arguments.first().map(String::as_str) {
        Some("sender") => sender(number(1)),
        Some("crowd") => crowd(number(1), number(2)),
        Some("echo") => ping::echo(word(1)),
        Some("pinger") => ping::pinger(word(1)),
        _ => Err(io::Error::other("no such worker")),
    }
}

/// A socket that sends to itself; what it received is lost as soon as a few datagrams wait.
fn to_itself() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(socket.local_addr()?)?;
    setsockopt(&socket, RcvBuf, &1)?;
    Ok(socket)
}

const REST: u32 = 0;
const HOT: u32 = 1;
const ALL: u32 = 2;

fn sender(sockets: usize) -> io::Result<()> {
    let room = sockets as u64 + 64;
    setrlimit(Resource::RLIMIT_NOFILE, room, room)?;
    let sockets = (0..sockets).map(|_| to_itself()).collect::<io::Result<Vec<_>>>()?;
    static WHAT: AtomicU32 = AtomicU32::new(REST);
    thread::spawn(move || {
        loop {
            let some = match WHAT.load(Ordering::Relaxed) {
                HOT => &sockets[..1],
                ALL => &sockets[..],
                _ => {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            for socket in some.iter().cycle().take(some.len().max(1000)) {
                // Nothing is refused at these rates, and nothing would be changed by it.
                let _ = socket.send(&[0; PAYLOAD]);
            }
        }
    });
    println!("ready");
    for line in io::stdin().lines() {
        let what = match line?.as_str() {
            "send hot" => HOT,
            "send all" => ALL,
            _ => REST,
        };
        WHAT.store(what, Ordering::Relaxed);
        println!("done");
    }
    Ok(())
}

fn crowd(count: usize, talkers: usize) -> io::Result<()> {
    let mut pids = Vec::new();
    for number in 0..count {
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => pids.push(child),
            ForkResult::Child => member(number < talkers),
        }
    }
    let talkers = pids[..talkers].to_vec();
    let all = |signal| talkers.iter().try_for_each(|pid| kill(*pid, signal));
    all(Signal::SIGSTOP)?;
    println!("{}", pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    for line in io::stdin().lines() {
        all(if line? == "talk" { Signal::SIGCONT } else { Signal::SIGSTOP })?;
        println!("done");
    }
    Ok(())
}

/// Ends with its parent.
fn member(talker: bool) -> ! {
    let parent_lives = set_pdeathsig(Signal::SIGKILL).is_ok() && nix::unistd::getppid().as_raw() != 1;
    let socket = if talker { to_itself().ok() } else { None };
    for fd in [io::stdin().as_raw_fd(), io::stdout().as_raw_fd()] {
        // SAFETY: never used again in this process.
        unsafe { libc::close(fd) };
    }
    if !parent_lives {
        std::process::exit(0);
    }
    loop {
        let Some(socket) = &socket else {
            nix::unistd::pause();
            continue;
        };
        for _ in 0..HANDFUL {
            let _ = socket.send(&[0; PAYLOAD]);
        }
        thread::sleep(PAUSE);
    }
}
