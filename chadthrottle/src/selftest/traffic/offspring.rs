//! Children of a traffic process, and its next life after `exec`.

use std::{
    convert::Infallible,
    ffi::CString,
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    os::fd::AsRawFd,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigHandler, Signal, signal},
    },
    unistd::{ForkResult, execv, fork},
};

use super::{
    command::{Stream, Way},
    flow::{self, Flow, Runs},
    wire::Header,
};
use crate::error::{Context, Error, Kind, Result};

/// Short-lived children, one after the other.
#[derive(Clone, Debug)]
pub struct Burst {
    /// Where each uploads to.
    pub address: SocketAddr,
    /// Children yet to come.
    pub left: u64,
    /// Seconds between two.
    pub every: f64,
    /// What each uploads.
    pub bytes: u64,
    /// The run they upload for.
    pub run: u64,
    /// Time of the next one.
    pub due: f64,
}

impl Burst {
    /// Starts the next child.
    pub fn next(&mut self) -> Result<()> {
        self.left -= 1;
        self.due += self.every;
        if child()? {
            let code = i32::from(self.upload().is_err());
            // SAFETY: ends the process; nothing of this fork needs an orderly end.
            unsafe { libc::_exit(code) }
        }
        Ok(())
    }

    fn upload(&self) -> std::io::Result<()> {
        let header = Header { way: Way::Put, run: self.run, rate: 0, size: 0, congestion: String::new() };
        let mut socket = flow::open(Stream::Tcp, self.address)?;
        socket.write_all(&header.bytes())?;
        std::io::copy(&mut std::io::repeat(0).take(self.bytes), &mut socket)?;
        socket.shutdown(Shutdown::Write)?;
        // The server closes when it has everything.
        socket.read(&mut [0]).map(drop)
    }
}

/// Children are reaped by the kernel, and writing to a closed connection is an error and no signal.
pub fn prepare() -> Result<()> {
    // SAFETY: no handlers are installed, both signals are only ignored.
    unsafe {
        signal(Signal::SIGCHLD, SigHandler::SigIgn).context("ignore SIGCHLD")?;
        signal(Signal::SIGPIPE, SigHandler::SigIgn).context("ignore SIGPIPE")?;
    }
    Ok(())
}

/// Forks; `true` in the child, which dies with its parent.
pub fn child() -> Result<bool> {
    // SAFETY: this program has one thread, so the child may do whatever the parent might.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { .. } => Ok(false),
        ForkResult::Child => {
            set_pdeathsig(Signal::SIGKILL).context("ask to die with the parent")?;
            Ok(true)
        }
    }
}

/// Runs this program anew with the open connections.
pub fn execute(flows: &[Flow], runs: &Runs) -> Result<Infallible> {
    let mut arguments = vec!["chadthrottle".to_owned(), "traffic".to_owned()];
    for (run, totals) in runs {
        let totals = serde_json::to_string(totals)
            .map_err(|cause| Error::caused(Kind::Failed, "write totals", &cause))?;
        arguments.push(format!("totals {run} {totals}"));
    }
    for flow in flows {
        fcntl(&flow.socket, FcntlArg::F_SETFD(FdFlag::empty())).context("keep a socket over exec")?;
        let way = if flow.sends() { "send" } else { "receive" };
        arguments.push(format!("adopt {} {way} run={}", flow.socket.as_raw_fd(), flow.run));
    }
    let arguments = arguments.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let arguments =
        arguments.map_err(|cause| Error::caused(Kind::Failed, "write the arguments of exec", &cause))?;
    execv(c"/proc/self/exe", &arguments).context("execute /proc/self/exe")
}
