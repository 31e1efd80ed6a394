//! The arguments, defined once: clap makes the parser and the help from this.
//!
//! Rates, targets and times stay text here. [`super::resolve`] gives them their meaning, so that a refusal
//! is worded and escaped in one way, wherever it comes from.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;

use super::completions::{self, Shell};
use crate::{model::Direction, tui::theme::ThemeName};

/// Blocks with a title each; the manual page takes them apart.
pub const AFTER_HELP: &str = "\
Targets:
  pid:1234              the process and the children it forks from now on (a bare number is a pid)
  tree:1234             also the descendants it already has
  name:firefox          by the name of the process, or the file name of what it runs
  exe:/usr/bin/curl     by the file it runs
  cgroup:/path          in that cgroup, or below
  unit:nginx.service    in that systemd unit
  container:4f2a9c0d    in that container, by the beginning of its id, or its name
  user:alice            by the real user id
  These mean processes that start later, too, and go on when none is left.
  remote:1.2.3.0/24     only traffic with these addresses; remote:[2001:db8::]/32
  port:443              only traffic with this remote port, or these: port:8000-8100
  Processes are joined by or, remote: and port: narrow what is held of them; alone they mean every process.

Rates:
  500K, 1.5MB, 500KB/s    bytes a second (K, M, G, T: powers of 1000)
  512Ki, 512KiB/s         bytes a second (powers of 1024)
  800kbit, 10Mbps, 1gbit  bits a second
  250000                  bytes a second
  none, unlimited, off    no limit
  From 1 KB/s to 1 Tbit/s. A limit counts IP bytes: the headers of the IP layer and up.

Exit codes:
  0 done, 1 failed, 2 usage, 3 not permitted, 4 target not found, 5 no backend can do it;
  `run` passes on its command's (128+n for signal n), or 125 it failed itself, 126 the command
  can't be executed, 127 there is no such command

Examples:
  chadthrottle --pid 1234 --download-limit 1M
  chadthrottle limit tree:1234 -d 10mbit -u 2mbit --duration 5m
  chadthrottle run -d 500K -- curl -O https://example.org/file";

/// Limits the network rate of a running process, upload and download, without touching anyone else.
#[derive(Debug, Parser)]
#[command(name = "chadthrottle", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Args {
    /// Limit this process; short for `limit pid:P`
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub pid: Option<String>,
    #[command(flatten)]
    pub rates: Rates,
    #[command(flatten)]
    pub duration: Duration,
    /// Show which backends there are, and which of them work here
    #[arg(long)]
    pub list_backends: bool,
    #[command(flatten)]
    pub screens: Screens,
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Args {
    /// Whether they ask for a limit in the short form.
    pub fn is_short_form(&self) -> bool {
        self.pid.is_some()
            || self.rates.download.is_some()
            || self.rates.upload.is_some()
            || self.duration.duration.is_some()
    }

    /// Whether they ask for the screens, which take a terminal.
    pub fn is_tui(&self) -> bool {
        let asked = self.command.is_none() && !self.is_short_form() && !self.list_backends;
        asked && (self.screens.replay.is_some() || io::stdin().is_terminal() && io::stdout().is_terminal())
    }
}

/// How the screens are shown.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Screens {
    /// Show a recording on the screens instead of this machine
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Time between two looks of the screens at the traffic: from 250ms to 10s
    #[arg(long, value_name = "TIME", default_value = "1s", conflicts_with = "replay")]
    #[arg(allow_hyphen_values = true)]
    pub refresh: String,
    /// Colours of the screens
    #[arg(long, value_name = "NAME", value_enum, default_value = "default")]
    pub theme: ThemeName,
}

/// How much.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Rates {
    /// What it may receive a second: 500K, 10mbit …
    #[arg(short, long = "download-limit", visible_alias = "download", value_name = "RATE")]
    #[arg(allow_hyphen_values = true)]
    pub download: Option<String>,
    /// What it may send a second: 500K, 10mbit …
    #[arg(short, long = "upload-limit", visible_alias = "upload", value_name = "RATE")]
    #[arg(allow_hyphen_values = true)]
    pub upload: Option<String>,
}

/// How long.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Duration {
    /// End the limit after this time: seconds, or 30s, 5m, 1h
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub duration: Option<String>,
}

/// Taken by every command.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Limit upload with this backend or fail
    #[arg(long, global = true, value_name = "NAME")]
    #[arg(add = ArgValueCompleter::new(|word: &OsStr| completions::backends(Direction::Upload, word)))]
    pub upload_backend: Option<String>,
    /// Limit download with this backend or fail
    #[arg(long, global = true, value_name = "NAME")]
    #[arg(add = ArgValueCompleter::new(|word: &OsStr| completions::backends(Direction::Download, word)))]
    pub download_backend: Option<String>,
    /// When the best backend fails, fail too instead of taking the next
    #[arg(long, global = true)]
    pub no_fallback: bool,
    /// Accept a limit of which only one direction can be had
    #[arg(long, global = true)]
    pub partial: bool,
    /// Where the eBPF programs attach; only processes below it are seen and limited
    /// [default: the root of the cgroup2 mount]
    #[arg(long, global = true, value_name = "PATH")]
    pub cgroup_root: Option<PathBuf>,
    /// Where the process that holds the limits keeps its socket [default: /run/chadthrottle]
    #[arg(long, global = true, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// When to use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value = "auto")]
    pub color: Color,
    /// Log what is done, on stderr; twice for more (the variable RUST_LOG says it in detail)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Global {
    /// `--runtime-dir` or its default.
    pub fn runtime_dir(&self) -> &Path {
        self.runtime_dir.as_deref().unwrap_or(Path::new("/run/chadthrottle"))
    }
}

/// `--color`. Without docs on the variants: with them every `--help` takes two screens.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a command that is limited from its first packet
    ///
    /// Its input and output are its own, signals are passed on to it, its exit code becomes ours. The
    /// children it starts are limited with it. The limit ends with the command. Should chadthrottle
    /// itself be killed (SIGKILL), the limit ends and the command goes on without it.
    Run(Run),
    /// Limit what runs already, until Ctrl-C
    ///
    /// Also until SIGTERM, the end of the target or of --duration; then everything is undone. Several
    /// targets share one rate.
    Limit(Limit),
    /// Show what each process sends and receives, tick by tick
    ///
    /// One line for each process that moved something, or with --json everything, one object a tick. Until
    /// Ctrl-C or --count.
    Monitor(Monitor),
    /// Show the limits in force on this host, whoever set them
    Status(Json),
    /// End limits, and remove what a killed run left behind
    Clear(Clear),
    /// Show which processes and sockets a target means now, and why
    ///
    /// Limits nothing, and needs no rights for what one may see.
    Explain(Explain),
    /// Show what each backend needs, whether it is there, and how to get it
    Doctor(Json),
    /// Prove on this machine, between two private network namespaces, that limits hold
    Selftest(Json),
    /// Print the script by which a shell completes these words, with what runs at the moment
    ///
    /// For bash, in ~/.bashrc: source <(chadthrottle completions bash). For zsh, in ~/.zshrc, after compinit:
    /// source <(chadthrottle completions zsh). For fish, in ~/.config/fish/config.fish:
    /// chadthrottle completions fish | source
    Completions(Completions),
    /// Print the manual page: chadthrottle man | man -l -
    Man,
    /// The process that holds the limits; started when needed
    #[command(hide = true)]
    Owner(Owner),
    /// Cleans up when the owner was killed
    #[command(hide = true)]
    Janitor(Janitor),
    /// Sender and receiver of the self-test and the tests
    #[command(hide = true, disable_help_flag = true)]
    Traffic(Verbatim),
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    pub rates: Rates,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Arguments of `limit`.
#[derive(Debug, clap::Args)]
pub struct Limit {
    /// Whose traffic: pid:1234, name:firefox, unit:nginx.service …
    #[arg(required = true, value_name = "TARGET", allow_negative_numbers = true)]
    #[arg(add = ArgValueCompleter::new(completions::targets))]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub rates: Rates,
    #[command(flatten)]
    pub scope: Scope,
    /// The rates for each target by itself, instead of for all of them together
    #[arg(long)]
    pub each: bool,
    #[command(flatten)]
    pub duration: Duration,
    /// Also when nothing is there yet that a target means: a name that no process has, a unit that does not run
    #[arg(long)]
    pub wait: bool,
    /// Return at once; the limit stays until `clear`, the end of its target or of --duration. Another one
    /// on the very same targets replaces it
    #[arg(long)]
    pub detach: bool,
}

/// Arguments of `monitor`.
#[derive(Debug, clap::Args)]
pub struct Monitor {
    /// As JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Time between two ticks: seconds, or 500ms, 2s, 1m; from 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", conflicts_with = "replay")]
    #[arg(allow_hyphen_values = true)]
    pub interval: String,
    /// End after so many ticks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// An account of everything seen, at the end
    #[arg(long)]
    pub summary: bool,
    /// Only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub top: Option<u32>,
    /// Only what matches: `curl port:443 user:alice rate:>1M limited:yes -name:sshd`
    #[arg(long, value_name = "FILTER", allow_hyphen_values = true)]
    pub filter: Option<String>,
    /// What makes a row: process, tree, unit (or container), user, name
    #[arg(long, value_name = "BY", default_value = "process", add = ArgValueCompleter::new(completions::groupings))]
    pub group: String,
    /// Order of the rows: rate, down, up, total, received, sent, connections, limited, pid, name, user,
    /// down-limit, up-limit
    #[arg(long, value_name = "BY", default_value = "rate", add = ArgValueCompleter::new(completions::orders))]
    pub sort: String,
    /// The other way round
    #[arg(long)]
    pub reverse: bool,
    /// Each connection by itself
    #[arg(long, requires = "json")]
    pub connections: bool,
    /// Write all that is seen to a file, for --replay
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub record: Option<PathBuf>,
    /// Show a recording instead of this host: on a terminal at the pace of the recording, else at once
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
}

/// Arguments of `clear`.
#[derive(Debug, clap::Args)]
pub struct Clear {
    /// Only the limits on these; without: all
    #[arg(value_name = "TARGET", allow_negative_numbers = true)]
    #[arg(add = ArgValueCompleter::new(completions::targets))]
    pub targets: Vec<String>,
}

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// What is to be explained: name:firefox, unit:nginx.service …
    #[arg(required = true, value_name = "TARGET", allow_negative_numbers = true)]
    #[arg(add = ArgValueCompleter::new(completions::targets))]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Which remote addresses.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Scope {
    /// Only traffic with these remote addresses: all, internet, local (private, link-local, multicast …)
    /// [default: all]
    #[arg(long, value_name = "SCOPE", add = ArgValueCompleter::new(completions::scopes))]
    pub scope: Option<String>,
}

/// Arguments of commands that only show something.
#[derive(Debug, clap::Args)]
pub struct Json {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `owner`.
#[derive(Debug, clap::Args)]
pub struct Owner {
    /// Descriptor to say on how the start went
    #[arg(long)]
    pub ready_fd: Option<RawFd>,
}

/// Arguments of `janitor`.
#[derive(Debug, clap::Args)]
pub struct Janitor {
    /// Descriptor that knows the owner's process
    #[arg(long)]
    pub owner_pidfd: RawFd,
    /// Descriptor of what is to be settled for the owner's backend.
    #[arg(long)]
    pub estate_fd: Option<i32>,
}

/// Arguments that another room reads.
#[derive(Debug, clap::Args)]
pub struct Verbatim {
    /// Passed on
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        let args =
            Args::try_parse_from(["chadthrottle", "run", "-d", "1M", "curl", "-d", "x", "--pid"]).unwrap();
        let Some(Command::Run(run)) = args.command else { panic!("{args:?}") };
        assert_eq!(run.rates.download.as_deref(), Some("1M"));
        assert_eq!(run.command, ["curl", "-d", "x", "--pid"]);
        let args = Args::try_parse_from(["chadthrottle", "run", "-u", "1M", "--", "-x", "-d"]).unwrap();
        let Some(Command::Run(run)) = args.command else { panic!("{args:?}") };
        assert_eq!(run.command, ["-x", "-d"]);
        assert!(Args::try_parse_from(["chadthrottle", "run", "--unknown", "--", "true"]).is_err());
    }

    #[test]
    fn traffic_is_passed_on() {
        let args =
            Args::try_parse_from(["chadthrottle", "traffic", "--listen", "-h", "x", "--", "-d"]).unwrap();
        let Some(Command::Traffic(traffic)) = args.command else { panic!("{args:?}") };
        assert_eq!(traffic.args[..3], ["--listen", "-h", "x"]);
    }
}
