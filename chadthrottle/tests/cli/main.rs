//! Drives the real binary without any rights: what it refuses, what it prints, how it behaves towards
//! signals and an owner that is played by the test.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{SigHandler, Signal, signal};

mod arguments;
mod completions;
mod explain;
mod fake;
mod limit;
mod monitor;
mod run;
mod schema;

/// The binary, with its surroundings' wishes about logs and colours taken away.
fn chadthrottle(runtime_dir: &Path, args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chadthrottle"));
    for name in ["RUST_LOG", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command.arg("--runtime-dir").arg(runtime_dir).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A script that starts the tests with `&` has them ignore SIGINT, which a shell of theirs can't trap then.
    // SAFETY: signal(2) is all that happens between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for which in [Signal::SIGINT, Signal::SIGQUIT] {
                signal(which, SigHandler::SigDfl)?;
            }
            Ok(())
        });
    }
    command
}

/// Exit code, stdout, stderr; a signal is an exit code below 0.
fn outcome(output: &Output) -> (i32, String, String) {
    use std::os::unix::process::ExitStatusExt;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("output is UTF-8");
    let code = output.status.code().unwrap_or_else(|| -output.status.signal().expect("a code or a signal"));
    (code, text(&output.stdout), text(&output.stderr))
}

/// Runs it to its end.
fn finish(mut command: Command) -> (i32, String, String) {
    outcome(&command.output().expect("the binary starts"))
}

/// Waits until `condition` holds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is in a file that may not be there yet.
fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
