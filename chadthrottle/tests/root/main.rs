//! Trials that need root: real traffic between private network namespaces, limited by the real command.
//!
//! One at a time, because each looks at the whole machine before and after. Not root: all are skipped, and
//! say why; with `CHADT_REQUIRE_ROOT=1` a skipped one fails. `CHADT_BIN` names the binary under test.

mod accuracy;
mod actor;
mod awkward;
mod backends;
mod bursts;
mod cleanup;
mod command;
mod coverage;
mod crowds;
mod departures;
mod devices;
mod exact;
mod examples;
mod foreign;
mod hidden;
mod independence;
mod instrument;
mod kernels;
mod live;
mod lossless;
mod many;
mod monitor;
mod moving;
mod pacing;
mod places;
#[allow(dead_code, reason = "the tests of the screens alone use more of it")]
#[path = "../tui/pty.rs"]
mod pty;
mod raw;
mod rights;
mod rows;
mod scopes;
mod screens;
mod sharing;
mod support;
mod targets;
mod windows;

use libtest_mimic::Arguments;
use nix::sys::signal::{SigHandler, Signal, signal};

fn main() -> std::process::ExitCode {
    if let Some(code) = actor::play() {
        return code;
    }
    // A script that starts the trials with `&` has them ignore SIGINT, and nohup SIGHUP, and so all that they start; a
    // shell that was started so can't trap it.
    for which in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        // SAFETY: the default action takes no handler.
        unsafe { signal(which, SigHandler::SigDfl) }.expect("these signals have a default action");
    }
    // A connection that whoever runs the tests left open would be limited with each process that a trial limits.
    chadthrottle::kernel::process::keep_descriptors();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let themes = [
        instrument::trials(),
        kernels::trials(),
        accuracy::trials(),
        lossless::trials(),
        departures::trials(),
        devices::trials(),
        windows::trials(),
        pacing::trials(),
        bursts::trials(),
        coverage::trials(),
        sharing::trials(),
        independence::trials(),
        command::trials(),
        examples::trials(),
        cleanup::trials(),
        hidden::trials(),
        live::trials(),
        places::trials(),
        rights::trials(),
        many::trials(),
        monitor::trials(),
        rows::trials(),
        targets::trials(),
        scopes::trials(),
        crowds::trials(),
        backends::trials(),
        foreign::trials(),
        awkward::trials(),
        moving::trials(),
        screens::trials(),
    ];
    let conclusion = libtest_mimic::run(&arguments, themes.into_iter().flatten().collect());
    support::tell_slowest();
    conclusion.exit_code()
}
