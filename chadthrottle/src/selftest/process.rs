//! Child processes of the self-test and the tests: traffic, and the command line itself.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;

use super::{cgroup::Cgroup, interrupt, meter::Meter, traffic};
use crate::{
    error::{Context, Error, Kind, Result},
    kernel::netns::Namespace,
};

/// Longest wait for an answer of a child.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a wait looks whether it was interrupted.
const SLICE: Duration = Duration::from_millis(50);

/// Where a child runs.
#[derive(Clone, Copy, Default)]
pub struct Place<'a> {
    /// `None`: where its parent is.
    pub namespace: Option<&'a Namespace>,
    /// `None`: where its parent is.
    pub cgroup: Option<&'a Cgroup>,
}

impl Place<'_> {
    /// Lets `command` start there, die with the thread that starts it, and be nobody's foreground job, so
    /// that Ctrl-C reaches only its parent.
    pub fn contain<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        command.process_group(0);
        // SAFETY: the closure only calls prctl, which is async-signal-safe.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        if let Some(cgroup) = self.cgroup {
            cgroup.contain(command)?;
        }
        if let Some(namespace) = self.namespace {
            namespace.contain(command)?;
        }
        Ok(command)
    }
}

/// A child whose lines are collected; killed when dropped.
pub struct Process<T: Default + Send + 'static> {
    child: Child,
    name: String,
    log: Arc<Log<T>>,
}

struct Log<T> {
    state: Mutex<T>,
    news: Condvar,
}

impl<T> Log<T> {
    fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of a child's streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Results.
    Stdout,
    /// Messages.
    Stderr,
    /// The end of both.
    End,
}

impl<T: Default + Send + 'static> Process<T> {
    /// Starts `command` at `place`; `take` puts each line of its stdout and stderr away.
    pub fn spawn(
        name: &str,
        mut command: Command,
        place: Place<'_>,
        take: fn(&mut T, Stream, &str),
    ) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = place.contain(&mut command)?.spawn().context(format!("start {name}"))?;
        let log = Arc::new(Log { state: Mutex::new(T::default()), news: Condvar::new() });
        if let Some(stdout) = child.stdout.take() {
            read_lines(stdout, Stream::Stdout, Arc::clone(&log), take);
        }
        if let Some(stderr) = child.stderr.take() {
            read_lines(stderr, Stream::Stderr, Arc::clone(&log), take);
        }
        Ok(Self { child, name: name.to_owned(), log })
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its stdin, until it is taken.
    pub fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.child.stdin.as_mut()
    }

    /// What was put away so far.
    pub fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.log.lock())
    }

    /// Waits until `wanted` finds what it wants in what was put away.
    pub fn wait_for<R>(&self, what: &str, mut wanted: impl FnMut(&mut T) -> Option<R>) -> Result<R> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.log.lock();
        loop {
            if let Some(found) = wanted(&mut state) {
                return Ok(found);
            }
            interrupt::check()?;
            if Instant::now() > deadline {
                return Err(Error::failed(format!("{}: waited in vain for {what}", self.name)));
            }
            let waited = self.log.news.wait_timeout(state, SLICE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a signal; a process that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Waits for its end; kills it when that does not come.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().context(format!("wait for {}", self.name))? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!("{} does not end", self.name)));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl<T: Default + Send + 'static> Drop for Process<T> {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// On a thread of its own, which ends with the last process that holds the other end of the pipe.
fn read_lines<T: Send + 'static>(
    pipe: impl std::io::Read + Send + 'static,
    stream: Stream,
    log: Arc<Log<T>>,
    take: fn(&mut T, Stream, &str),
) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(std::io::Result::ok) {
            take(&mut log.lock(), stream, &line);
            log.news.notify_all();
        }
        take(&mut log.lock(), Stream::End, "");
        log.news.notify_all();
    });
}

/// What a traffic process said.
#[derive(Default)]
pub struct Said {
    /// Its measurements.
    pub meter: Meter,
    /// Its other events, oldest first.
    pub events: Vec<Value>,
    /// What it complained about.
    pub complaints: Vec<String>,
}

/// A traffic process; see [`super::traffic`].
pub struct Traffic(Process<Said>);

impl Traffic {
    /// Starts one with `commands`, and waits until they are done.
    pub fn spawn(program: &Path, name: &str, place: Place<'_>, commands: &[String]) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("traffic").args(commands);
        let process = Process::spawn(name, command, place, |said: &mut Said, stream, line| match stream {
            Stream::Stdout => match serde_json::from_str::<Value>(line) {
                Ok(event) if event["event"] == "tick" => {
                    if let Ok(tick) = serde_json::from_value(event) {
                        said.meter.add(&tick);
                    }
                }
                Ok(event) => said.events.push(event),
                Err(_) => said.complaints.push(line.to_owned()),
            },
            Stream::Stderr => said.complaints.push(line.to_owned()),
            Stream::End => said.events.push(Value::Null),
        })?;
        let traffic = Self(process);
        traffic.await_event("ready")?;
        Ok(traffic)
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process<Said> {
        &mut self.0
    }

    /// Lets it do a command; its answer.
    pub fn tell(&mut self, command: &str) -> Result<Value> {
        self.send(command)?;
        let answer = self.await_event_where("an answer", |event| event["command"] == command)?;
        match answer["event"].as_str() {
            Some("done") => Ok(answer),
            _ => Err(Error::failed(format!("{}: {}", self.0.name, answer["error"]))),
        }
    }

    /// Lets it do a command that it does not answer as the same program: `exec`, `stop`.
    pub fn send(&mut self, command: &str) -> Result<()> {
        let name = self.0.name.clone();
        let Some(stdin) = self.0.stdin() else {
            return Err(Error::failed(format!("{name}: has no stdin any more")));
        };
        writeln!(stdin, "{command}").context(format!("{name}: write '{command}'"))
    }

    /// Waits for the next event of that name and takes it.
    pub fn await_event(&self, name: &str) -> Result<Value> {
        self.await_event_where(name, |event| event["event"] == name)
    }

    fn await_event_where(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = self.0.wait_for(what, |said| {
            if let Some(place) = said.events.iter().position(&wanted) {
                return Some(Ok(said.events.remove(place)));
            }
            let ended = said.events.last().is_some_and(Value::is_null);
            ended.then(|| Err(said.complaints.join("; ")))
        })?;
        found.map_err(|complaints| Error::failed(format!("{} ended: {complaints}", self.0.name)))
    }

    /// Its measurements so far.
    pub fn meter(&self) -> Meter {
        self.0.look(|said| said.meter.clone())
    }

    /// Its measurements, once there are some from `time` or later.
    pub fn meter_at(&self, time: f64) -> Result<Meter> {
        sleep_until(time)?;
        self.0.wait_for("a report", |said| (said.meter.latest() >= time).then(|| said.meter.clone()))
    }
}

/// Sleeps until a time of CLOCK_MONOTONIC, in seconds; fails when a signal asks to end.
pub fn sleep_until(time: f64) -> Result<()> {
    loop {
        interrupt::check()?;
        let left = time - traffic::now();
        if left <= 0.0 {
            return Ok(());
        }
        thread::sleep(Duration::from_secs_f64(left).min(SLICE));
    }
}

/// What a command of ours said.
#[derive(Default)]
pub struct Output {
    /// Results.
    pub stdout: Vec<String>,
    /// Messages, each with the time at which it was read, in seconds of CLOCK_MONOTONIC.
    pub stderr: Vec<(f64, String)>,
    /// Streams that have ended.
    pub ended: u32,
}

/// A call of the command line.
pub struct Call(Process<Output>);

impl Call {
    /// Starts `command`, which is our program with arguments.
    pub fn spawn(command: Command, place: Place<'_>) -> Result<Self> {
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let name = format!("chadthrottle {}", arguments.join(" "));
        let process =
            Process::spawn(&name, command, place, |output: &mut Output, stream, line| match stream {
                Stream::Stdout => output.stdout.push(line.to_owned()),
                Stream::Stderr => output.stderr.push((traffic::now(), line.to_owned())),
                Stream::End => output.ended += 1,
            })?;
        Ok(Self(process))
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process<Output> {
        &mut self.0
    }

    /// Waits for a line on stderr that begins with `start`; the time at which it was read, and the line.
    pub fn await_message(&self, start: &str) -> Result<(f64, String)> {
        let found = self.0.wait_for(&format!("'{start} …'"), |output| {
            let line = output.stderr.iter().find(|(_, line)| line.starts_with(start)).cloned();
            match line {
                Some(line) => Some(Ok(line)),
                None if output.ended >= 2 => Some(Err(output.messages())),
                None => None,
            }
        })?;
        found.map_err(|messages| Error::new(Kind::Failed, format!("{} ended: {messages}", self.0.name)))
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<(ExitStatus, Output)> {
        let status = self.0.wait()?;
        self.0.wait_for("the end of its output", |output| (output.ended >= 2).then_some(()))?;
        let output = std::mem::take(&mut *self.0.log.lock());
        Ok((status, output))
    }
}

impl Output {
    /// stderr as one line.
    pub fn messages(&self) -> String {
        let lines: Vec<_> = self.stderr.iter().map(|(_, line)| line.as_str()).collect();
        lines.join("; ")
    }
}
