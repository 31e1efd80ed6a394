//! The binary on a recording: what it draws, how fast it answers, and how it leaves the terminal.

use std::{io::Write, time::Duration};

use chadthrottle::{
    monitor::recording::Recorder,
    tui::{self, theme::ThemeName},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{pty::Session, scene::Scene, stage::template};

/// A recording of a minute, played in three seconds; its last picture stays.
fn recording() -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recording");
    let mut recorder = Recorder::create(&path).expect("a recording");
    for mut snapshot in Scene::default().until(60) {
        snapshot.interval = snapshot.interval.min(0.05);
        recorder.write(&snapshot).expect("a snapshot");
    }
    let path = path.to_str().expect("a name").to_owned();
    (folder, path)
}

fn start(size: (u16, u16), variables: &[(&str, &str)]) -> (TempDir, Session) {
    let (folder, path) = recording();
    let home = folder.path().to_str().expect("a name").to_owned();
    let variables = [&[("HOME", home.as_str())], variables].concat();
    let session = Session::start(size, env!("CARGO_BIN_EXE_chadthrottle"), &["--replay", &path], &variables);
    (folder, session)
}

#[test]
fn screens_come_and_go_with_keys() {
    let (folder, mut session) = start((100, 30), &[]);
    session.see("curl");
    for (key, text) in [
        ("3", "tree:5150"),
        ("4", "INTERFACE"),
        ("5", "found out by trying"),
        ("?", "Keys of the screen Backends"),
        ("\x1b", "found out by trying"),
        ("1", "PROCESS"),
        ("/name:nginx\r", "hides"),
        ("\r", "/usr/sbin/nginx"),
        ("\x1b", "PROCESS"),
        ("t", "recording"),
    ] {
        session.press(key);
        session.see(text);
    }
    session.press("q");
    assert!(session.end().success());
    assert!(folder.path().join(".local/state/chadthrottle/tui.log").exists());
}

/// What was recorded before the file was cut off can be seen, and that there should be more.
#[test]
fn a_recording_that_was_cut_off() {
    let (folder, path) = recording();
    let whole = std::fs::read(&path).expect("it is there");
    std::fs::write(&path, &whole[..whole.len() - 100]).expect("it can be cut");
    let home = folder.path().to_str().expect("a name").to_owned();
    let arguments = ["--replay", path.as_str()];
    let mut session =
        Session::start((120, 30), env!("CARGO_BIN_EXE_chadthrottle"), &arguments, &[("HOME", home.as_str())]);
    session.see("ends in the middle of a snapshot");
    session.see("curl");
    session.press("q");
    assert!(session.end().success());
}

#[test]
fn a_terminal_that_can_do_nothing_is_refused() {
    let (_folder, mut session) = start((80, 24), &[("TERM", "dumb")]);
    session.see("TERM=dumb");
    assert_eq!(session.end().code(), Some(2));
}

#[test]
fn signals_leave_the_terminal_as_it_was() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        let (_folder, mut session) = start((80, 24), &[]);
        session.see("curl");
        session.signal(signal);
        assert!(session.end().success(), "{signal}");
    }
}

/// As behind a connection that stands still: what is drawn goes nowhere, and the program waits for the terminal.
#[test]
fn a_terminal_that_takes_nothing_does_not_keep_it() {
    let (folder, path) = recording();
    let large = nix::pty::Winsize { ws_row: 100, ws_col: 300, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = nix::pty::openpty(Some(&large), None).expect("a pseudo terminal");
    let stdio = || std::process::Stdio::from(pair.slave.try_clone().expect("a descriptor"));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_chadthrottle"));
    command.args(["--replay", &path]).env("HOME", folder.path()).env("TERM", "xterm-256color");
    let mut child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("it starts");
    let mut keys = std::fs::File::from(pair.master);
    let waits_to_write = || {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap_or_default();
        call.starts_with(&format!("{} ", nix::libc::SYS_write))
    };
    let begun = std::time::Instant::now();
    while !waits_to_write() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it can go on drawing");
        // Another theme: everything is drawn anew.
        keys.write_all(b"T").expect("a key");
        std::thread::sleep(Duration::from_millis(5));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("it runs");
    let begun = std::time::Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if begun.elapsed() > Duration::from_secs(20) {
            child.kill().expect("it runs");
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_terminal_that_others_had_is_taken_over_again() {
    let (_folder, mut session) = start((80, 24), &[]);
    session.see("curl");
    session.signal(Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", session.pid());
    session.until("stopped", |_| std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T ")));
    session.set_modes_of_a_shell();
    session.signal(Signal::SIGCONT);
    session.until_raw();
    session.press("4");
    session.see("INTERFACE");
    session.press("q");
    assert!(session.end().success());
}

/// There is no shell here that would let it go on, so the kernel does not stop it.
#[test]
fn it_gives_the_terminal_back_to_be_stopped() {
    let (_folder, mut session) = start((80, 24), &[]);
    session.see("curl");
    session.signal(Signal::SIGTSTP);
    session.press("4");
    session.see("INTERFACE");
    session.press("q");
    let (status, raw) = session.end_with_all();
    assert!(status.success());
    let raw = String::from_utf8_lossy(&raw);
    assert_eq!(raw.matches("\x1b[?1049h").count(), 2, "taken over");
    assert_eq!(raw.matches("\x1b[?1049l").count(), 2, "given back");
}

/// The console of the kernel is one.
#[test]
fn a_terminal_with_one_screen_is_wiped() {
    let (_folder, mut session) = start((80, 24), &[("TERM", "linux")]);
    session.see("curl");
    session.press("q");
    let (status, raw) = session.end_with_all();
    assert!(status.success());
    let raw = String::from_utf8_lossy(&raw);
    let (before, _) = raw.split_once("curl").expect("a row");
    assert!(before.contains("\x1b[2J"), "{before:?}");
    let (_, after) = raw.rsplit_once("curl").expect("a row");
    assert!(after.contains("\x1b[2J\x1b[1;1H"), "{after:?}");
}

/// Tells the test that it is the program in the terminal.
const PANICS: &str = "CHADT_TEST_PANICS";

#[test]
fn a_panic_leaves_the_terminal_as_it_was() {
    if std::env::var_os(PANICS).is_some() {
        let options = tui::Options {
            feed: Box::new(|| panic!("on purpose")),
            runtime_dir: "/nowhere".into(),
            template: template(),
            theme: ThemeName::Default,
            ascii: false,
            read_only: None,
            words: Vec::new(),
        };
        let result = tui::run(options);
        unreachable!("the screens went on after a panic: {result:?}");
    }
    let program = std::env::current_exe().expect("this program");
    let words = ["--exact", "binary::a_panic_leaves_the_terminal_as_it_was", "--nocapture"];
    let session = Session::start((80, 24), program, &words, &[(PANICS, "1")]);
    let (status, raw) = session.end_with_all();
    assert_eq!(status.code(), Some(101));
    // Said where it can be read: after the terminal was given back.
    let raw = String::from_utf8_lossy(&raw);
    let (_, after) = raw.rsplit_once("\x1b[?1049l").expect("it had taken the terminal over");
    assert!(after.contains("on purpose"), "{raw:?}");
}

#[test]
fn resize_storms() {
    let (_folder, mut session) = start((80, 24), &[]);
    session.see("curl");
    for round in 0u16..60 {
        session.resize(20 + round * 37 % 400, 3 + round * 23 % 120);
        std::thread::sleep(Duration::from_millis(u64::from(round % 7)));
    }
    session.resize(60, 15);
    session.until("the smallest screen", |text| text.contains("1 Proc") && text.contains("/ filter"));
    session.press("\x03");
    assert!(session.end().success());
}

#[test]
fn without_colours_and_letters() {
    let (_folder, mut session) = start((60, 15), &[("NO_COLOR", "1"), ("TERM", "linux"), ("LANG", "C")]);
    session.see("curl");
    session.press("q");
    let raw = session.raw();
    assert!(raw.is_ascii());
    let text = String::from_utf8(raw).expect("ASCII");
    let colour = |code: &str| {
        let codes: Vec<_> = code.split(';').collect();
        codes.iter().any(|code| {
            matches!(*code, "38" | "48") || matches!(code.parse(), Ok(30..=37 | 40..=47 | 90..=107))
        })
    };
    let sequences = text.split("\x1b[").filter_map(|rest| rest.split_once('m')).map(|(code, _)| code);
    let plain = |code: &&str| code.bytes().all(|byte| byte.is_ascii_digit() || byte == b';');
    let coloured: Vec<_> = sequences.filter(plain).filter(|code| colour(code)).collect();
    assert!(coloured.is_empty(), "{coloured:?}");
    assert!(session.end().success());
}

#[test]
fn keys_are_answered_at_once() {
    let (_folder, mut session) = start((200, 60), &[]);
    session.see("curl");
    let mut times = Vec::new();
    for _ in 0..20 {
        session.press("3");
        times.push(session.see("SET BY"));
        session.press("1");
        times.push(session.see("PROCESS"));
    }
    times.sort();
    // Half of them: the machine may be busy with something else.
    assert!(times[20] < Duration::from_millis(50), "{times:?}");
    session.press("q");
    assert!(session.end().success());
}

#[test]
fn without_a_terminal_it_says_so() {
    let (_folder, path) = recording();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_chadthrottle"))
        .args(["--replay", &path])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("need a terminal"));
}
