//! `run` against a played owner.

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use chadthrottle::{Error, model::Target, owner::protocol::EndReason};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    chadthrottle, content, eventually,
    fake::{FREES, FakeOwner, Play},
    finish, outcome,
};

const NOTICE: &str = "notice: tried\\nsomething\n";

fn run(owner: &FakeOwner, command: &[&str]) -> (i32, String, String) {
    finish(chadthrottle(owner.dir(), &[&["run", "-d", "1M", "--"], command].concat()))
}

/// In a process group of its own, as a shell does it: where the tests themselves have no shell, theirs is an orphan, and
/// the kernel lets nobody in there be stopped from the terminal.
fn spawn(owner: &FakeOwner, script: &str, file: &Path) -> Child {
    let file = file.to_str().unwrap();
    let mut command = chadthrottle(owner.dir(), &["run", "-d", "1M", "--", "sh", "-c", script, "sh", file]);
    command.process_group(0).spawn().unwrap()
}

fn signal(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id() as i32), signal).unwrap();
}

#[test]
fn its_exit_code_is_ours() {
    let owner = FakeOwner::new(Play::Hold);
    for (script, expected) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -PIPE $$", 141),
        ("kill -INT $$", 130),
        ("kill -40 $$", 168),
    ] {
        let (code, stdout, stderr) = run(&owner, &["sh", "-c", script]);
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (expected, "", NOTICE), "{script}");
    }
    eventually("every limit is freed", || owner.freed() == 7);
    assert!(owner.limits().iter().all(|(_, name)| name == "sh"), "the limit was shown under another name");
}

#[test]
fn input_and_output_are_its_own() {
    let owner = FakeOwner::new(Play::Hold);
    let mut command = chadthrottle(owner.dir(), &["run", "-u", "1M", "sh", "-c", "cat; echo -n err >&2"]);
    let mut process = command.stdin(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(b"in\0\xc3\xa9").unwrap();
    let (code, stdout, stderr) = outcome(&process.wait_with_output().unwrap());
    assert_eq!((code, stdout.as_str(), stderr), (0, "in\0é", format!("{NOTICE}err")));
}

#[test]
fn no_limit_no_command() {
    let owner = FakeOwner::new(Play::Refuse(|| Error::failed("no luck")));
    let file = owner.dir().join("ran");
    let (code, stdout, stderr) = run(&owner, &["touch", file.to_str().unwrap()]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (125, "", "error: no luck\n"));
    let Target::Pid(pid) = owner.limits()[0].0.targets[0] else { panic!("not a pid") };
    eventually("the waiting process ends", || !Path::new(&format!("/proc/{pid}")).exists());
    assert!(!file.exists());
}

#[test]
fn the_command_waits_for_its_limit() {
    let owner = FakeOwner::new(Play::HoldAfter(Duration::from_secs(3)));
    let file = owner.dir().join("ran");
    let mut process = spawn(&owner, "echo > $1", &file);
    eventually("the limit is asked for", || !owner.limits().is_empty());
    std::thread::sleep(Duration::from_millis(100));
    assert!(!file.exists(), "the command ran before its limit");
    assert!(process.wait().unwrap().success());
    assert!(file.exists());
    // Killed while it waits, it takes the command along.
    fs::remove_file(&file).unwrap();
    let mut process = spawn(&owner, "echo > $1", &file);
    eventually("the limit is asked for", || owner.limits().len() == 2);
    process.kill().unwrap();
    process.wait().unwrap();
    let Target::Pid(pid) = owner.limits()[1].0.targets[0] else { panic!("not a pid") };
    let gone = || {
        // Nobody may be there to reap it.
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    };
    eventually("the waiting process ends", gone);
    assert!(!file.exists());
}

#[test]
fn commands_that_are_none() {
    let owner = FakeOwner::new(Play::Hold);
    let (code, _, stderr) = run(&owner, &["/no/such\ncommand"]);
    assert!(
        code == 127 && stderr.contains("error: run '/no/such\\ncommand': No such file"),
        "{code}, {stderr}"
    );
    let (code, _, stderr) = run(&owner, &["/"]);
    assert!(code == 126 && stderr.contains("error: run '/': Permission denied"), "{code}, {stderr}");
    let file = owner.dir().join("text");
    fs::write(&file, "text").unwrap();
    let (code, _, stderr) = run(&owner, &[file.to_str().unwrap()]);
    assert_eq!(code, 126, "{stderr}");
    eventually("every limit is freed", || owner.freed() == 3);
}

#[test]
fn signals_are_passed_on() {
    for (name, sent) in [
        ("TERM", Signal::SIGTERM),
        ("INT", Signal::SIGINT),
        ("HUP", Signal::SIGHUP),
        ("USR1", Signal::SIGUSR1),
    ] {
        let owner = FakeOwner::new(Play::Hold);
        let file = owner.dir().join("state");
        let script = format!("trap 'exit 42' {name}; echo ready > $1; while :; do sleep 0.02; done");
        let mut process = spawn(&owner, &script, &file);
        eventually("the trap is set", || content(&file) == "ready\n");
        signal(&process, sent);
        assert_eq!(process.wait().unwrap().code(), Some(42), "{name}");
    }
}

#[test]
fn stops_and_goes_on_with_its_command() {
    let owner = FakeOwner::new(Play::Hold);
    let file = owner.dir().join("state");
    let mut process = spawn(&owner, "echo > $1; sleep 0.2; exit 3", &file);
    eventually("the command runs", || file.exists());
    let Target::Pid(command) = owner.limits()[0].0.targets[0] else { panic!("not a pid") };
    let stopped = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    signal(&process, Signal::SIGTSTP);
    eventually("both stop", || stopped(process.id()) && stopped(command));
    signal(&process, Signal::SIGCONT);
    assert_eq!(process.wait().unwrap().code(), Some(3));
}

#[test]
fn the_command_outlives_its_limit() {
    for play in [Play::Die, Play::End(EndReason::Cleared)] {
        let owner = FakeOwner::new(play);
        let (code, stdout, stderr) = run(&owner, &["sh", "-c", "sleep 0.2; echo done; exit 3"]);
        assert_eq!((code, stdout.as_str()), (3, "done\n"));
        assert!(stderr.contains("warning: the limit on pid:"), "{stderr}");
        assert!(stderr.contains("the command goes on without it"), "{stderr}");
    }
}

#[test]
fn killed_it_frees_the_limit_and_the_command_goes_on() {
    let owner = FakeOwner::new(Play::Hold);
    let file = owner.dir().join("state");
    let mut process = spawn(&owner, "echo ready > $1; sleep 0.5; echo done > $1", &file);
    eventually("the command runs", || content(&file) == "ready\n");
    process.kill().unwrap();
    process.wait().unwrap();
    std::thread::sleep(FREES);
    eventually("the limit is freed", || owner.freed() == 1);
    eventually("the command goes on", || content(&file) == "done\n");
}
