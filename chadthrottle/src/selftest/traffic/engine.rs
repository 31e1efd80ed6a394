//! The event loop.

use std::{
    io::{self, Write},
    os::fd::AsFd,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::read,
};
use serde_json::{Value, json};

use super::{
    command::{Command, Stream},
    datagram::Datagrams,
    flow::{self, Flow, Listener, Runs},
    now,
    offspring::{self, Burst},
    wire::Header,
};
use crate::error::{Context, Result};

/// Seconds between two reports.
const TICK: f64 = 0.02;
/// Bytes moved at a time.
const BUFFER: usize = 256 * 1024;

/// Everything a traffic process does.
pub struct Engine {
    listeners: Vec<Listener>,
    flows: Vec<Flow>,
    datagrams: Vec<Datagrams>,
    bursts: Vec<Burst>,
    /// Without what TCP says about open connections, which is asked for with each report.
    runs: Runs,
    /// The beginning of a line from stdin; `None`: stdin is another process's.
    input: Option<Vec<u8>>,
    buffer: Vec<u8>,
    next_tick: f64,
}

/// What a command leads to.
enum Outcome {
    /// Goes on; with what is to be said besides "done".
    Done(Value),
    /// This is a new child, whose parent answers.
    Child,
    /// The process shall end.
    Stop,
}

impl Engine {
    /// Does nothing yet.
    pub fn new() -> Result<Self> {
        offspring::prepare()?;
        Ok(Self {
            listeners: Vec::new(),
            flows: Vec::new(),
            datagrams: Vec::new(),
            bursts: Vec::new(),
            runs: Runs::new(),
            input: Some(Vec::new()),
            buffer: vec![0; BUFFER],
            next_tick: now(),
        })
    }

    /// Does the commands, then serves until it is told to stop.
    pub fn run(&mut self, commands: &[String]) -> Result<()> {
        for command in commands {
            if let Outcome::Stop = self.execute(command.parse()?)? {
                return Ok(());
            }
        }
        say(&json!({"event": "ready", "pid": std::process::id(), "time": now()}))?;
        while self.turn()? {}
        self.tick()
    }

    /// Waits for something to do and does it. `false`: it is over.
    fn turn(&mut self) -> Result<bool> {
        let ready = self.wait()?;
        let mut ready = ready.into_iter();
        let mut is_ready = move || ready.next().unwrap_or(false);

        let stdin_ready = self.input.is_some() && is_ready();
        let mut accepted = Vec::new();
        for listener in self.listeners.iter_mut().filter(|listener| listener.accept > 0) {
            if is_ready() {
                accepted.extend(listener.next());
            }
        }
        let mut open = Vec::with_capacity(self.flows.len());
        for mut flow in self.flows.drain(..) {
            if !is_ready() || flow.serve(&mut self.buffer, &mut self.runs) {
                open.push(flow);
            } else {
                flow.finish(&mut self.runs);
            }
        }
        self.flows = open;
        self.flows.append(&mut accepted);
        for datagrams in &mut self.datagrams {
            if is_ready() {
                datagrams.receive(&mut self.buffer, &mut self.runs);
            }
            datagrams.send(&mut self.buffer, &mut self.runs);
        }
        let time = now();
        for burst in self.bursts.iter_mut().filter(|burst| burst.due <= time) {
            burst.next()?;
        }
        self.bursts.retain(|burst| burst.left > 0);
        if time >= self.next_tick {
            self.next_tick = (self.next_tick + TICK).max(time);
            self.tick()?;
        }
        if stdin_ready { self.read_commands() } else { Ok(true) }
    }

    /// Which descriptors are ready, in the order in which [`Engine::turn`] goes through them.
    fn wait(&self) -> Result<Vec<bool>> {
        let stdin = io::stdin();
        let mut polled = Vec::new();
        if self.input.is_some() {
            polled.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        for listener in self.listeners.iter().filter(|listener| listener.accept > 0) {
            polled.push(PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN));
        }
        for flow in &self.flows {
            let wanted = if flow.sends() { PollFlags::POLLOUT } else { PollFlags::POLLIN };
            polled.push(PollFd::new(flow.socket.as_fd(), wanted));
        }
        for datagrams in &self.datagrams {
            polled.push(PollFd::new(datagrams.socket.as_fd(), PollFlags::POLLIN));
        }
        let due = self.datagrams.iter().map(Datagrams::due);
        let due = due.chain(self.bursts.iter().map(|burst| burst.due)).fold(self.next_tick, f64::min);
        let wait = ((due - now()) * 1e3).ceil().clamp(0.0, TICK * 1e3) as u16;
        match poll(&mut polled, PollTimeout::from(wait)) {
            Err(Errno::EINTR) => return Ok(vec![false; polled.len()]),
            other => other.context("wait for sockets")?,
        };
        Ok(polled.iter().map(|descriptor| descriptor.any().unwrap_or(false)).collect())
    }

    /// Does the complete lines that stdin has. `false`: it is over.
    fn read_commands(&mut self) -> Result<bool> {
        let mut bytes = [0; 4096];
        let length = read(io::stdin(), &mut bytes).context("read stdin")?;
        if length == 0 {
            return Ok(false);
        }
        let Some(input) = &mut self.input else { return Ok(true) };
        input.extend_from_slice(&bytes[..length]);
        while let Some(end) = self.input.as_ref().and_then(|input| input.iter().position(|&b| b == b'\n')) {
            let line: Vec<u8> = self.input.iter_mut().flat_map(|input| input.drain(..=end)).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            let outcome = line.parse().and_then(|command| self.execute(command));
            let mut answer = match outcome {
                Ok(Outcome::Done(answer)) => answer,
                Ok(Outcome::Child) => return Ok(true),
                Ok(Outcome::Stop) => return Ok(false),
                Err(error) => json!({"event": "failed", "error": error.to_string()}),
            };
            answer["command"] = line.into();
            say(&answer)?;
        }
        Ok(true)
    }

    fn execute(&mut self, command: Command) -> Result<Outcome> {
        let mut answer = json!({"event": "done"});
        match command {
            Command::Listen { stream, address, accept } => {
                let listener =
                    Listener::new(stream, address, accept).context(format!("listen at {address}"))?;
                self.listeners.push(listener);
            }
            Command::ListenDatagrams { address } => {
                self.datagrams.push(Datagrams::listen(address).context(format!("listen at {address}"))?);
            }
            Command::Connect { stream, address, way, flows, congestion, rate, run } => {
                let header = Header { way, run, rate, size: 0, congestion };
                for _ in 0..flows {
                    let flow =
                        Flow::connect(stream, address, &header).context(format!("connect to {address}"))?;
                    self.flows.push(flow);
                }
            }
            Command::Datagrams { address, way, rate, size, run } => {
                let header = Header { way, run, rate, size, congestion: String::new() };
                let datagrams = Datagrams::connect(address, header).context("open a UDP socket")?;
                self.datagrams.push(datagrams);
            }
            Command::Close => self.close(),
            Command::TimeConnect { address, count } => {
                let mut times = Vec::new();
                for _ in 0..count {
                    let before = now();
                    flow::open(Stream::Tcp, address).context(format!("connect to {address}"))?;
                    times.push((now() - before) * 1e3);
                }
                answer["ms"] = times.into();
            }
            Command::ForkTake => {
                if self.fork()? {
                    self.listeners.clear();
                    return Ok(Outcome::Child);
                }
                self.flows.clear();
                self.datagrams.retain(Datagrams::serves);
            }
            Command::Fork(inner) => {
                if self.fork()? {
                    self.listeners.clear();
                    self.flows.clear();
                    self.datagrams.clear();
                    self.execute(*inner)?;
                    return Ok(Outcome::Child);
                }
            }
            Command::Prefork { children } => {
                for _ in 0..children {
                    if self.fork()? {
                        self.flows.clear();
                        self.datagrams.clear();
                        return Ok(Outcome::Child);
                    }
                }
                self.listeners.clear();
            }
            Command::Burst { address, count, every_ms, bytes, run } => {
                let every = every_ms as f64 / 1e3;
                self.bursts.push(Burst { address, left: count, every, bytes, run, due: now() });
            }
            Command::Exec => match offspring::execute(&self.flows, &self.runs)? {},
            Command::Adopt { descriptor, sends, run } => {
                self.flows.push(Flow::adopt(descriptor, sends, run).context("adopt a connection")?);
            }
            Command::Totals { run, totals } => {
                self.runs.insert(run, totals);
            }
            Command::Stop => return Ok(Outcome::Stop),
        }
        Ok(Outcome::Done(answer))
    }

    /// Forks; `true` in the child, which has nobody to tell it anything and counts from zero.
    fn fork(&mut self) -> Result<bool> {
        let parent = std::process::id();
        if !offspring::child()? {
            return Ok(false);
        }
        self.input = None;
        self.runs.clear();
        self.bursts.clear();
        say(&json!({"event": "forked", "pid": std::process::id(), "parent": parent}))?;
        Ok(true)
    }

    /// Gives up everything that transfers.
    fn close(&mut self) {
        for flow in self.flows.drain(..) {
            flow.finish(&mut self.runs);
        }
        self.datagrams.retain(Datagrams::serves);
        self.bursts.clear();
    }

    fn tick(&self) -> Result<()> {
        let mut runs = self.runs.clone();
        for flow in &self.flows {
            flow.add_to(&mut runs);
        }
        say(&json!({"event": "tick", "pid": std::process::id(), "time": now(), "runs": runs}))
    }
}

/// One line, in one write, so that the lines of a family of processes do not mix.
fn say(event: &Value) -> Result<()> {
    let mut line = event.to_string();
    line.push('\n');
    io::stdout().lock().write_all(line.as_bytes()).context("write to stdout")
}
