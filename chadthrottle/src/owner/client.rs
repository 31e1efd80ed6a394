//! A client's connection to the owner, which is started when it is needed and not there.

use std::{
    collections::VecDeque,
    io::{self, Read},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{MsgFlags, getsockopt, send, sockopt::PeerCredentials},
    unistd::geteuid,
};

use super::{
    lines::Lines,
    protocol::{Reply, Request, VERSION},
    runtime::Runtime,
    start::{self, Startup},
};
use crate::{
    backend::Site,
    error::{Context, Error, Kind, Result},
    kernel::process,
};

/// How long an owner may take to say hello, on a machine that is busy with something else.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take for anything else: opening a backend on a slow machine is the longest.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so long without a word it is looked whether it is stopped, and can't say anything.
const LOOK: Duration = Duration::from_secs(1);
/// How long to try to get an owner.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// A status of all limits there can be is a few megabytes.
const LONGEST_REPLY: usize = 64 << 20;

/// A connection. The limits that were set over it end with it, unless detached.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    input: Lines,
    events: VecDeque<Reply>,
    owner_pid: u32,
    /// Answers that were given up, and may come yet.
    late: usize,
    /// How long an answer may take; `None`: as long as it wants.
    patience: Option<Duration>,
}

/// How an attempt to connect went.
enum Attempt {
    Connected(Client),
    /// Nobody listens.
    Nobody,
    /// Somebody listened, and left before saying hello.
    Leaving,
}

impl Client {
    /// Connects to the owner that uses the runtime folder; `None`: there is none.
    pub fn connect(dir: &Path) -> Result<Option<Self>> {
        let Some(runtime) = Runtime::find(dir)? else { return Ok(None) };
        for _ in 0..50 {
            match Self::attempt(&runtime)? {
                Attempt::Connected(client) => return Ok(Some(client)),
                Attempt::Nobody => return Ok(None),
                Attempt::Leaving => thread::sleep(Duration::from_millis(10)),
            }
        }
        Ok(None)
    }

    /// Connects to the owner, and starts one to work at `site` if there is none.
    pub fn connect_or_start(dir: &Path, site: &Site) -> Result<Self> {
        let site = absolute(site)?;
        let begun = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            let runtime = Runtime::create(dir)?;
            match Self::attempt(&runtime)? {
                Attempt::Connected(client) => return Ok(client),
                Attempt::Leaving => {}
                Attempt::Nobody => match start::owner(&runtime, &site)? {
                    Startup::Ready => continue,
                    // Another client starts one right now, or the last one is about to leave.
                    Startup::Busy => {}
                    Startup::Failed { error } => return Err(error),
                },
            }
            if begun.elapsed() > START_PATIENCE {
                return Err(Error::failed(format!(
                    "another process holds the lock in {} but does not answer",
                    runtime.path().display()
                )));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    fn attempt(runtime: &Runtime) -> Result<Attempt> {
        let path = runtime.socket();
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::ECONNREFUSED)) => {
                return Ok(Attempt::Nobody);
            }
            Err(cause) => return Err(cause).context(format!("connect to the owner at {}", path.display())),
        };
        let peer = getsockopt(&stream, PeerCredentials).context("ask who the owner is")?;
        if ![0, geteuid().as_raw()].contains(&peer.uid()) {
            let message = format!("user {} listens at {}, not our owner", peer.uid(), path.display());
            return Err(Error::new(Kind::NotPermitted, message));
        }
        let owner_pid = peer.pid().unsigned_abs();
        let mut client = Self {
            stream,
            input: Lines::new(LONGEST_REPLY),
            events: VecDeque::new(),
            owner_pid,
            late: 0,
            patience: None,
        };
        client.set_patience(HELLO_PATIENCE)?;
        if !client.send(&Request::Hello { version: VERSION })? {
            return Ok(Attempt::Leaving);
        }
        match client.receive()? {
            None => Ok(Attempt::Leaving),
            Some(Reply::Hello { version: VERSION, .. }) => Ok(Attempt::Connected(client)),
            Some(Reply::Hello { version, .. }) => Err(Error::failed(format!(
                "the owner (process {owner_pid}) speaks version {version} of the protocol, we speak {VERSION}"
            ))),
            Some(Reply::Error(error)) => Err(error),
            Some(other) => Err(unexpected(&other)),
        }
    }

    /// The owner's process.
    pub fn owner_pid(&self) -> u32 {
        self.owner_pid
    }

    /// Asks, and waits for the answer; [`Reply::Error`] comes back as the error it holds. Events that
    /// arrive before are kept for [`Client::next_event`].
    pub fn request(&mut self, request: &Request) -> Result<Reply> {
        self.set_patience(PATIENCE)?;
        let sent = self.send(request)?;
        loop {
            let received = self.receive().inspect_err(|_| self.late += 1)?;
            let is_answer = |reply: &Reply| !is_event(reply) && !matches!(reply, Reply::Hello { .. });
            if self.late > 0 && received.as_ref().is_some_and(is_answer) {
                self.late -= 1;
                continue;
            }
            match received {
                Some(event) if is_event(&event) => self.events.push_back(event),
                // To an earlier `ping`.
                Some(Reply::Hello { .. }) => {}
                Some(Reply::Error(error)) => return Err(error),
                Some(reply) if sent => return Ok(reply),
                Some(reply) => return Err(unexpected(&reply)),
                None => return Err(Error::failed(format!("the owner (process {}) is gone", self.owner_pid))),
            }
        }
    }

    /// Asks for a sign of life, which comes as the event [`Reply::Hello`].
    pub fn ping(&mut self) -> Result<()> {
        self.set_patience(PATIENCE)?;
        // That nobody listens is noticed by whoever waits for the answer.
        self.send(&Request::Hello { version: VERSION }).map(|_| ())
    }

    /// The next event, for which it waits; `None` when the owner is gone.
    pub fn next_event(&mut self) -> Result<Option<Reply>> {
        self.next_event_by(None)
    }

    /// [`Client::next_event`]; an error when none comes within `patience`.
    pub fn next_event_within(&mut self, patience: Duration) -> Result<Option<Reply>> {
        self.next_event_by(Some(patience))
    }

    fn next_event_by(&mut self, patience: Option<Duration>) -> Result<Option<Reply>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        self.patience = patience;
        match self.receive()? {
            Some(reply) if self.late > 0 && !is_event(&reply) && !matches!(reply, Reply::Hello { .. }) => {
                self.late -= 1;
                Ok(Some(reply))
            }
            Some(Reply::Error(error)) => Err(error),
            Some(reply) if !is_event(&reply) && !matches!(reply, Reply::Hello { .. }) => {
                Err(unexpected(&reply))
            }
            event => Ok(event),
        }
    }

    /// Whether [`Client::next_event`] has something without the descriptor being readable.
    pub fn has_buffered(&mut self) -> bool {
        !self.events.is_empty() || self.input.has_line()
    }

    /// Ends the client's limits and waits until they have ended. An error if that takes longer than
    /// `patience`; they end all the same as soon as the owner gets to it.
    pub fn close_and_wait(mut self, patience: Duration) -> Result<()> {
        // The owner may be gone already, which is just as well.
        let _ = self.stream.shutdown(Shutdown::Write);
        let begun = Instant::now();
        loop {
            let left = patience.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            self.limit_waits(left)?;
            match self.stream.read(&mut [0; 4096]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                Err(cause) => return Err(cause).context("wait for the owner"),
            }
            if begun.elapsed() >= patience {
                return Err(self.silent());
            }
        }
    }

    /// How long the next answer may take.
    fn set_patience(&mut self, patience: Duration) -> Result<()> {
        self.patience = Some(patience);
        self.limit_waits(patience)
    }

    /// How long one call of the kernel may wait.
    fn limit_waits(&self, most: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(most)).context("set a time limit for the owner")?;
        self.stream.set_write_timeout(Some(most)).context("set a time limit for the owner")
    }

    /// False: the owner does not listen any more; it may have said something before.
    fn send(&self, request: &Request) -> Result<bool> {
        let mut line = serde_json::to_vec(request)
            .map_err(|cause| Error::failed(format!("write a request: {cause}")))?;
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            // Whatever the program does about SIGPIPE, it is not sent.
            match send(self.stream.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Ok(false),
                Err(nix::Error::EAGAIN) => return Err(self.silent()),
                Err(cause) => return Err(cause).context("talk to the owner"),
            }
        }
        Ok(true)
    }

    /// The owner's next line; `None` when it has closed the connection.
    fn receive(&mut self) -> Result<Option<Reply>> {
        let begun = Instant::now();
        self.limit_waits(LOOK)?;
        loop {
            if let Some(line) = self.input.take() {
                return Reply::from_line(&line).map(Some).map_err(|cause| {
                    let message =
                        format!("the owner (process {}) said what is no reply: {cause}", self.owner_pid);
                    Error::failed(message)
                });
            }
            if self.input.too_long() {
                return Err(Error::failed(format!(
                    "the owner (process {}) never stops talking",
                    self.owner_pid
                )));
            }
            let mut piece = [0; 16_384];
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(length) => self.input.push(&piece[..length]),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    // Whoever waits for events waits for as long as it takes.
                    let Some(patience) = self.patience else { continue };
                    if begun.elapsed() >= patience || process::is_stopped(self.owner_pid) {
                        return Err(self.silent());
                    }
                }
                Err(cause) => return Err(cause).context("listen to the owner"),
            }
        }
    }

    fn silent(&self) -> Error {
        let pid = self.owner_pid;
        Error::failed(if process::is_stopped(pid) {
            format!(
                "the owner (process {pid}) is stopped, and nothing is limited meanwhile: 'kill -CONT {pid}' lets it go \
                 on, 'kill -KILL {pid}' ends it and its limits"
            )
        } else {
            format!("the owner (process {pid}) does not answer")
        })
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_event(reply: &Reply) -> bool {
    matches!(reply, Reply::Escaped { .. } | Reply::Ended { .. } | Reply::Snapshot(_))
}

fn unexpected(reply: &Reply) -> Error {
    Error::failed(format!("the owner said what was not asked: {reply:?}"))
}

/// The owner works in another folder.
fn absolute(site: &Site) -> Result<Site> {
    let resolve =
        |path: &PathBuf| path.canonicalize().context(format!("find the cgroup root {}", path.display()));
    Ok(Site { cgroup_root: site.cgroup_root.as_ref().map(resolve).transpose()? })
}
