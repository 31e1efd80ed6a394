//! The owner's end of one client's connection. Nothing here ever waits for the client.

use std::{
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    poll::PollFlags,
    sys::socket::{MsgFlags, getsockopt, recv, send, sockopt::PeerCredentials},
    unistd::geteuid,
};

use super::{
    lines::Lines,
    protocol::{Reply, Request, VERSION},
};
use crate::{
    engine::{Asker, ClientId},
    error::{Context, Error, Kind, Result},
    kernel::process,
};

/// Longest request.
const LONGEST_REQUEST: usize = 1 << 20;
/// What may wait for a client that does not read; one status of all limits there can be fits.
const MOST_WAITING: usize = 16 << 20;
/// How long it may wait there without the client taking any of it.
const STALL: Duration = Duration::from_secs(5);

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// Who it is.
    pub asker: Asker,
    input: Lines,
    output: Vec<u8>,
    /// Since when it has taken none of the output.
    stalled_since: Option<Instant>,
    greeted: bool,
    /// It will say no more; what it has said is still answered.
    input_ended: bool,
    /// It is not listened to any more; what it was told still gets out.
    dismissed: bool,
    /// It can't be told anything any more.
    lost: bool,
}

impl Connection {
    /// Takes a client in if it may talk to us; else only tells it why not.
    pub fn new(stream: UnixStream, client: ClientId) -> Self {
        let admitted = admit(&stream);
        let pid = *admitted.as_ref().unwrap_or(&0);
        let mut connection = Self {
            stream,
            asker: Asker { client, pid },
            input: Lines::new(LONGEST_REQUEST),
            output: Vec::new(),
            stalled_since: None,
            greeted: false,
            input_ended: false,
            dismissed: false,
            lost: false,
        };
        match admitted {
            // It has gone before we got to it, which is no news.
            Err(error) if error.kind == Kind::NotFound => connection.lose(),
            Err(error) => connection.dismiss(error),
            Ok(_) => {}
        }
        connection
    }

    /// What to wait for.
    pub fn interest(&mut self) -> PollFlags {
        let mut flags = PollFlags::empty();
        // Who does not take the answers is not asked for more questions.
        let idle = self.output.is_empty() && !self.input.has_line();
        flags.set(PollFlags::POLLIN, !self.input_ended && !self.dismissed && idle);
        flags.set(PollFlags::POLLOUT, !self.output.is_empty());
        flags
    }

    /// When it has to be looked at although nothing came.
    pub fn due(&self) -> Option<Instant> {
        self.stalled_since.map(|since| since + STALL)
    }

    /// Reads and writes what is possible right now.
    pub fn exchange(&mut self, ready: PollFlags, now: Instant) {
        if ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.read();
        }
        if ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            // Nobody reads any more; requests that came before are still done.
            self.lost = true;
            self.output.clear();
        }
        self.flush(now);
    }

    fn read(&mut self) {
        let mut piece = [0; 65_536];
        match recv(self.stream.as_raw_fd(), &mut piece, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => self.input_ended = true,
            Ok(length) => self.input.push(&piece[..length]),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(_) => self.input_ended = true,
        }
        if self.input.too_long() && !self.dismissed {
            self.dismiss(Error::new(
                Kind::Usage,
                format!("a request is longer than {LONGEST_REQUEST} bytes"),
            ));
        }
    }

    /// Sends what the client takes right now.
    pub fn flush(&mut self, now: Instant) {
        while !self.output.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.stream.as_raw_fd(), &self.output, flags) {
                Ok(sent) => {
                    self.output.drain(..sent);
                    self.stalled_since = None;
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    let since = *self.stalled_since.get_or_insert(now);
                    if now.saturating_duration_since(since) >= STALL || self.output.len() > MOST_WAITING {
                        tracing::warn!("client {} does not read; it is let go", self.asker.pid);
                        self.lose();
                    }
                    return;
                }
                Err(_) => self.lose(),
            }
        }
        self.stalled_since = None;
    }

    fn lose(&mut self) {
        self.lost = true;
        self.dismissed = true;
        self.output.clear();
        self.stalled_since = None;
    }

    /// Whether a request waits that may be answered now.
    pub fn has_request(&mut self) -> bool {
        !self.dismissed && self.output.is_empty() && self.input.has_line()
    }

    /// The next request for the engine. Greetings are answered here, and so is nonsense.
    pub fn next_request(&mut self) -> Option<Request> {
        if !self.has_request() {
            return None;
        }
        let line = self.input.take()?;
        match serde_json::from_slice(&line) {
            Ok(Request::Hello { version: VERSION }) => {
                self.greeted = true;
                self.tell(&Reply::Hello { version: VERSION, pid: std::process::id() });
                None
            }
            Ok(Request::Hello { version }) => {
                self.dismiss(Error::failed(format!(
                    "the owner that runs here (process {}) speaks version {VERSION} of the protocol, this client \
                     version {version}: use the same version of chadthrottle, or end the owner's limits first",
                    std::process::id()
                )));
                None
            }
            Ok(request) if self.greeted => Some(request),
            Ok(_) => {
                self.dismiss(Error::new(Kind::Usage, "a client has to say hello first"));
                None
            }
            Err(cause) => {
                self.dismiss(Error::new(Kind::Usage, format!("this is no request: {cause}")));
                None
            }
        }
    }

    /// Whether it has said a proper hello.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Queues a line for the client.
    pub fn tell(&mut self, reply: &Reply) {
        if self.lost {
            return;
        }
        match serde_json::to_writer(&mut self.output, reply) {
            Ok(()) => self.output.push(b'\n'),
            Err(cause) => {
                tracing::error!("write a reply: {cause}");
                self.lose();
            }
        }
    }

    /// The last that the client is told.
    fn dismiss(&mut self, error: Error) {
        tracing::warn!("client {} is dismissed: {error}", self.asker.pid);
        self.tell(&Reply::Error(error));
        self.dismissed = true;
    }

    /// It will ask nothing more: its limits have to end now.
    pub fn has_left(&mut self) -> bool {
        self.dismissed || (self.input_ended && !self.input.has_line())
    }

    /// And there is nothing more to tell it: it can be closed.
    pub fn is_done(&mut self) -> bool {
        self.has_left() && self.output.is_empty()
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Process of a client that may talk to us.
fn admit(stream: &UnixStream) -> Result<u32> {
    let peer = getsockopt(stream, PeerCredentials).context("ask who the client is")?;
    if ![0, geteuid().as_raw()].contains(&peer.uid()) {
        return Err(Error::new(Kind::NotPermitted, format!("user {} may not talk to the owner", peer.uid())));
    }
    let pid = peer.pid().unsigned_abs();
    let elsewhere = || {
        Error::failed(
            "the owner runs in another PID namespace than this client, so that process ids mean different \
             processes: run chadthrottle where the owner runs, or use another --runtime-dir",
        )
    };
    // A process that can't be seen from here has the id 0.
    if pid == 0 {
        return Err(elsewhere());
    }
    if process::in_our_pid_namespace(pid)? { Ok(pid) } else { Err(elsewhere()) }
}
