//! Trials that need root: real traffic between private network namespaces, limited by the real command.
//!
//! One at a time, because each looks at the whole machine before and after. Not root: all are skipped, and
//! say why; with `CHADT_REQUIRE_ROOT=1` a skipped one fails. `CHADT_BIN` names the binary under test.

mod accuracy;
mod actor;
mod backends;
mod cleanup;
mod command;
mod coverage;
mod exact;
mod independence;
mod instrument;
mod live;
mod lossless;
mod many;
mod monitor;
mod moving;
mod places;
mod raw;
mod rights;
mod sharing;
mod support;
mod targets;
mod windows;

use libtest_mimic::Arguments;

fn main() -> std::process::ExitCode {
    if let Some(code) = actor::play() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let themes = [
        instrument::trials(),
        accuracy::trials(),
        lossless::trials(),
        windows::trials(),
        coverage::trials(),
        sharing::trials(),
        independence::trials(),
        command::trials(),
        cleanup::trials(),
        live::trials(),
        places::trials(),
        rights::trials(),
        many::trials(),
        monitor::trials(),
        targets::trials(),
        backends::trials(),
        moving::trials(),
    ];
    let conclusion = libtest_mimic::run(&arguments, themes.into_iter().flatten().collect());
    support::tell_slowest();
    conclusion.exit_code()
}
