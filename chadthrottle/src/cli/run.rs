//! `run`: starts a command that is limited from its first packet.
//!
//! The child is forked first and waits; it is put under the limit, and only then becomes the command.
//! So there is no moment at which the command runs without its limit, and when the limit can't be had
//! the command never runs at all.
//!
//! When this process is killed by SIGKILL, the limit ends and the command goes on: ending a command that
//! someone else may depend on would be the greater harm, and the limit belongs to this process.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        prctl,
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction},
        signalfd::siginfo,
    },
    unistd::{ForkResult, Pid, execvp, fork, getpgid, getpgrp, pipe2},
};

use super::{
    args::{Global, Run},
    resolve,
    session::{self, Pulse, Wake},
    signals::Signals,
};
use crate::{
    error::{Context, Error, Kind, Result},
    model::{Target, text::quote},
    output::{self, limits},
    owner::client::Client,
};

/// Exit code for our own failure.
pub const FAILED: u8 = 125;
/// Exit code when the command is there and can't be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit code when there is no such command.
const NOT_THERE: u8 = 127;

/// Passed on to the command.
const FORWARDED: [Signal; 9] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// `chadthrottle run … -- CMD ARG…`.
pub fn run(global: &Global, args: &Run) -> Result<u8> {
    let mut request = resolve::request(global, &args.rates, Vec::new())?;
    let command = Command::new(&args.command)?;
    let mut client = Client::connect_or_start(global.runtime_dir(), &request.site)?;
    let child = Waiting::fork(&command)?;
    request.targets = vec![Target::Pid(child.pid.as_raw().unsigned_abs())];
    // Until the answer is there a signal just ends this process, and the child with it.
    let limit = session::limit(&mut client, request)?;
    tracing::info!("{}", limits::limited(&limit));
    let signals = Signals::watch(FORWARDED.into_iter().chain([Signal::SIGCHLD]))?;
    let pid = child.pid;
    if let Err(errno) = child.release()? {
        let why = std::io::Error::from(errno);
        output::error(&Error::caused(Kind::Failed, format!("run {}", command.shown), &why), None);
        session::leave(client);
        return Ok(if errno == Errno::ENOENT { NOT_THERE } else { NOT_EXECUTABLE });
    }
    let mut client = Some(client);
    let mut pulse = Pulse::new();
    loop {
        match session::wait(&signals, client.as_mut(), std::slice::from_ref(&limit), &mut pulse)? {
            Wake::Signal(signal) if signal.ssi_signo == Signal::SIGCHLD as u32 => {
                if let Some(code) = exit_code(pid)? {
                    if let Some(client) = client {
                        session::leave(client);
                    }
                    return Ok(code);
                }
            }
            Wake::Signal(signal) => pass_on(&signal, pid),
            Wake::Ended(_, reason) => {
                // That the command itself has ended is told by SIGCHLD.
                if reason != crate::owner::protocol::EndReason::TargetEnded {
                    output::warning(&format!(
                        "{}; the command goes on without it",
                        session::ended(&limit, reason)
                    ));
                }
                client = None;
            }
            Wake::OwnerGone => {
                output::warning(&format!("{}; the command goes on without it", session::owner_gone(&limit)));
                client = None;
            }
        }
    }
}

/// The command as the kernel takes it.
struct Command {
    words: Vec<CString>,
    /// File name of the command, as the kernel will name the process.
    name: CString,
    shown: String,
}

impl Command {
    fn new(words: &[OsString]) -> Result<Self> {
        let words: Vec<_> = words.iter().map(|word| c_string(word)).collect::<Result<_>>()?;
        let first = words.first().map(|word| word.to_bytes()).unwrap_or_default();
        let name = Path::new(OsStr::from_bytes(first)).file_name().unwrap_or_default();
        Ok(Self { name: c_string(name)?, shown: quote(&String::from_utf8_lossy(first)), words })
    }
}

fn c_string(word: &OsStr) -> Result<CString> {
    CString::new(word.as_bytes()).map_err(|error| Error::caused(Kind::Usage, "pass on an argument", &error))
}

/// A child that becomes the command when it is told to, and ends when its parent does before that.
struct Waiting {
    pid: Pid,
    go: File,
    report: File,
}

impl Waiting {
    /// Returns when the child goes by the command's name.
    fn fork(command: &Command) -> Result<Self> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).context("make a pipe");
        let ((go_in, go_out), (report_in, report_out)) = (pipe()?, pipe()?);
        // SAFETY: the process has one thread, so the child may do whatever its parent may.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                drop((go_out, report_in));
                become_command(command, go_in, report_out)
            }
            ForkResult::Parent { child: pid } => {
                // Whoever started us may have left SIGCHLD ignored; then there would be nothing to wait for.
                let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
                // SAFETY: the default action runs no code of this process.
                unsafe { sigaction(Signal::SIGCHLD, &default) }
                    .context("watch for the end of the command")?;
                drop((go_in, report_out));
                let mut waiting = Self { pid, go: go_out.into(), report: report_in.into() };
                waiting.report.read_exact(&mut [0]).context("start the command's process")?;
                Ok(waiting)
            }
        }
    }

    /// Lets it become the command. The inner error says why it could not.
    fn release(mut self) -> Result<Result<(), Errno>> {
        self.go.write_all(&[0]).context("start the command")?;
        let mut errno = Vec::new();
        self.report.read_to_end(&mut errno).context("start the command")?;
        Ok(match <[u8; 4]>::try_from(errno) {
            Ok(errno) => Err(Errno::from_raw(i32::from_ne_bytes(errno))),
            // Closed by exec, or with the child killed: then its end says the rest.
            Err(_) => Ok(()),
        })
    }
}

/// The child's part.
fn become_command(command: &Command, go: OwnedFd, report: OwnedFd) -> ! {
    let (mut go, mut report) = (File::from(go), File::from(report));
    // Else it would be limited, and shown, under our own name.
    let _ = prctl::set_name(&command.name);
    let told = report.write_all(&[0]).and_then(|()| go.read_exact(&mut [0]));
    if told.is_ok() {
        // Rust's runtime ignores SIGPIPE, and that would be inherited.
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action runs no code of this process.
        let _ = unsafe { sigaction(Signal::SIGPIPE, &default) };
        let Err(errno) = execvp(&command.words[0], &command.words);
        let _ = report.write_all(&(errno as i32).to_ne_bytes());
    }
    // SAFETY: ends the process without running anything of it; nothing is left to be cleaned up here.
    unsafe { libc::_exit(FAILED.into()) }
}

/// The code to exit with, when the command has ended. Asked of libc, because nix has no name for a real-time signal
/// and takes an end by one for an error.
fn exit_code(pid: Pid) -> Result<Option<u8>> {
    let mut status = 0;
    // SAFETY: `status` is valid for a write of its type.
    let ended = unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::WNOHANG) };
    if Errno::result(ended).context("wait for the command")? == 0 {
        return Ok(None);
    }
    // The kernel keeps eight bits of a code; signals go to 64.
    Ok(if libc::WIFEXITED(status) {
        Some(libc::WEXITSTATUS(status) as u8)
    } else if libc::WIFSIGNALED(status) {
        Some(128 + libc::WTERMSIG(status) as u8)
    } else {
        None
    })
}

fn pass_on(signal: &siginfo, pid: Pid) {
    let Ok(name) = Signal::try_from(signal.ssi_signo as i32) else { return };
    let same_group = getpgid(Some(pid)) == Ok(getpgrp());
    if !child_has_it(name, signal.ssi_code, same_group)
        && let Err(error) = kill(pid, name)
    {
        tracing::info!(%error, "could not pass {name} on to process {pid}");
    }
    if name == Signal::SIGTSTP {
        // Stop as well, so that the shell gets its terminal back.
        if let Err(error) = raise(Signal::SIGSTOP) {
            tracing::info!(%error, "could not stop");
        }
    }
}

/// Keys of the terminal signal every process of the foreground group: passing it on again would make two of one.
fn child_has_it(signal: Signal, code: i32, same_group: bool) -> bool {
    same_group
        && code == libc::SI_KERNEL
        && matches!(signal, Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTSTP | Signal::SIGWINCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_c_arrives_once() {
        assert!(child_has_it(Signal::SIGINT, libc::SI_KERNEL, true));
        assert!(!child_has_it(Signal::SIGINT, libc::SI_KERNEL, false));
        assert!(!child_has_it(Signal::SIGINT, libc::SI_USER, true));
        assert!(!child_has_it(Signal::SIGTERM, libc::SI_KERNEL, true));
        assert!(!child_has_it(Signal::SIGHUP, libc::SI_KERNEL, true));
    }

    #[test]
    fn named_like_its_file() {
        let command = Command::new(&["/usr/bin/curl".into(), "-O".into()]).unwrap();
        assert_eq!((command.name.to_bytes(), command.words.len()), (&b"curl"[..], 2));
        assert_eq!(Command::new(&["..".into()]).unwrap().name.to_bytes(), b"");
        assert_eq!(Command::new(&["a\0b".into()]).err().map(|error| error.kind), Some(Kind::Usage));
    }
}
