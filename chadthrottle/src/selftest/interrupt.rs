//! SIGINT, SIGTERM and SIGHUP ask the self-test to end: the wait that is under way fails, and the guards
//! undo everything on the way out.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::{
    libc::c_int,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use crate::error::{Context, Error, Result};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn ask(_: c_int) {
    ASKED.store(true, Ordering::Relaxed);
}

/// From here on the signals only ask.
pub fn listen() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(ask), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }.context(format!("handle {signal}"))?;
    }
    Ok(())
}

/// Fails once a signal has asked.
pub fn check() -> Result<()> {
    if ASKED.load(Ordering::Relaxed) { Err(Error::failed("interrupted")) } else { Ok(()) }
}
