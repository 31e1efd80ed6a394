//! The monitors that are compared: how they are started, what they cost, what they say.

use std::{fs, path::Path, process::Command, time::Instant};

use chadthrottle::{
    Error, Kind, Result,
    kernel::netns::Namespace,
    selftest::{
        cgroup::Cgroup,
        process::{Place, Process, Stream},
    },
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// A monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Ours.
    Chadthrottle,
    /// <https://github.com/raboof/nethogs>
    Nethogs,
    /// <https://github.com/imsnif/bandwhich>
    Bandwhich,
}

impl Which {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Chadthrottle, Self::Nethogs, Self::Bandwhich];

    /// As it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chadthrottle => "chadthrottle",
            Self::Nethogs => "nethogs",
            Self::Bandwhich => "bandwhich",
        }
    }

    /// Whether it is here.
    pub fn is_installed(self) -> bool {
        let on_path = || {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(self.name()).is_file())
        };
        self == Self::Chadthrottle || on_path()
    }
}

/// A tool's lines, and when the first came.
#[derive(Default)]
pub struct Lines {
    lines: Vec<String>,
    first: Option<Instant>,
}

/// Processor time and memory of all processes of a tool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Of the processor so far.
    pub seconds: f64,
    /// MB: what each has for itself, and its part of what it shares (Pss).
    pub memory: f64,
}

/// A monitor at work.
pub struct Tool {
    which: Which,
    process: Process<Lines>,
    begun: Instant,
    runtime: TempDir,
}

impl Tool {
    /// Starts it where the load is; `more` is for ours.
    pub fn start(which: Which, namespace: &Namespace, cgroup: &Cgroup, more: &[&str]) -> Result<Self> {
        let runtime = tempfile::Builder::new().prefix("chadt-bench-").tempdir();
        let runtime = runtime.map_err(|cause| Error::caused(Kind::Failed, "make a folder", &cause))?;
        // The one device of the namespace.
        let device = "chadt-c";
        let mut command;
        match which {
            Which::Chadthrottle => {
                command = Command::new(env!("CARGO_BIN_EXE_chadthrottle"));
                command.args(["monitor", "--json", "--interval", "1", "--runtime-dir"]).arg(runtime.path());
                command.arg("--cgroup-root").arg(cgroup.path()).args(more);
            }
            Which::Nethogs => {
                // Trace, total bytes, each second, without waiting for the terminal.
                command = Command::new(which.name());
                command.args(["-t", "-v", "2", "-d", "1", device]);
            }
            Which::Bandwhich => {
                command = Command::new(which.name());
                command.args(["--raw", "--no-resolve", "--interface", device]);
            }
        }
        let begun = Instant::now();
        let place = Place { namespace: Some(namespace), cgroup: None };
        let process =
            Process::spawn(which.name(), command, place, |log: &mut Lines, stream, line| match stream {
                Stream::Stdout => {
                    log.first.get_or_insert_with(Instant::now);
                    log.lines.push(line.to_owned());
                }
                Stream::Stderr => eprintln!("  {line}"),
                Stream::End => {}
            })?;
        let tool = Self { which, process, begun, runtime };
        if which == Which::Chadthrottle {
            tool.first_line()?;
        }
        Ok(tool)
    }

    /// Seconds from its start to its first line.
    pub fn first_line(&self) -> Result<f64> {
        let first = self.process.wait_for("a first line", |log| log.first)?;
        Ok(first.saturating_duration_since(self.begun).as_secs_f64())
    }

    /// Its processes: with ours the owner, too.
    fn pids(&self) -> Vec<u32> {
        let folder = self.runtime.path().display().to_string();
        let pid_of = |name: &str| name.parse::<u32>().ok();
        let mut pids: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| pid_of(entry.file_name().to_str()?))
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&folder)
            })
            .collect();
        if self.which != Which::Chadthrottle {
            pids.push(self.process.pid());
        }
        pids
    }

    /// What it has cost so far.
    pub fn cost(&mut self) -> Result<Cost> {
        let mut cost = Cost::default();
        for pid in self.pids() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let field = |number: usize| fields.get(number - 3).and_then(|word| word.parse::<f64>().ok());
            // User and system time in hundredths of a second.
            cost.seconds += (field(14).unwrap_or(0.0) + field(15).unwrap_or(0.0)) / 100.0;
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let part = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next());
            cost.memory += part.and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0) / 1e3;
        }
        Ok(cost)
    }

    /// Ends it; bytes in both directions that it showed for a process.
    pub fn finish(self, pid: u32) -> Result<u64> {
        self.process.signal(Signal::SIGINT);
        let begun = Instant::now();
        let stopped = |tool: &Self| !Path::new(&format!("/proc/{}/fd/0", tool.process.pid())).exists();
        while !stopped(&self) && begun.elapsed().as_secs() < 5 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // The owner goes after its last client.
        while self.which == Which::Chadthrottle && !self.pids().is_empty() && begun.elapsed().as_secs() < 5 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(self.process.look(|log| match self.which {
            Which::Chadthrottle => summed(&log.lines, pid),
            Which::Nethogs => traced(&log.lines, pid),
            Which::Bandwhich => rated(&log.lines),
        }))
    }
}

/// Of our summary.
fn summed(lines: &[String], pid: u32) -> u64 {
    let last: Value = lines.last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    let processes = last["processes"].as_array().into_iter().flatten();
    processes
        .filter(|process| process["pid"] == pid)
        .map(|process| process["rx_bytes"].as_u64().unwrap_or(0) + process["tx_bytes"].as_u64().unwrap_or(0))
        .sum()
}

/// `program/PID/UID<tab>sent<tab>received`, totals.
fn traced(lines: &[String], pid: u32) -> u64 {
    let mark = format!("/{pid}/");
    let total = |line: &String| {
        let mut words = line.split('\t');
        words.next().filter(|name| name.contains(&mark))?;
        let (sent, received) = (words.next()?.parse::<f64>().ok()?, words.next()?.parse::<f64>().ok()?);
        Some((sent + received) as u64)
    };
    lines.iter().filter_map(total).max().unwrap_or(0)
}

/// `process: <TIME> "NAME" up/down Bps: SENT/RECEIVED connections: N`, each second. Names are all it has; the load's is
/// this program's.
fn rated(lines: &[String]) -> u64 {
    let own = std::env::current_exe().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let own: String = own.unwrap_or_default().chars().take(15).collect();
    let bytes = |line: &String| {
        let rest = line.strip_prefix("process: ")?;
        let (name, rates) = rest.split_once("up/down Bps: ")?;
        name.contains(&own).then_some(())?;
        let (sent, received) = rates.split_whitespace().next()?.split_once('/')?;
        Some(sent.parse::<u64>().ok()? + received.parse::<u64>().ok()?)
    };
    lines.iter().filter_map(bytes).sum()
}
