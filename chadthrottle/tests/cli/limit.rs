//! `limit`, `status` and `clear` against a played owner.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use chadthrottle::{Error, Kind, model::Target, owner::protocol::EndReason};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    chadthrottle, eventually,
    fake::{FREES, FakeOwner, Play},
    finish,
};

/// Something to limit.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("60").spawn().expect("sleep starts"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client that holds a limit, and the rest of its stderr.
fn holding(owner: &FakeOwner, args: &[&str]) -> (Child, BufReader<ChildStderr>, String) {
    let mut client = chadthrottle(owner.dir(), args).spawn().unwrap();
    let mut stderr = BufReader::new(client.stderr.take().unwrap());
    let mut lines = String::new();
    while !lines.contains("limited ") {
        assert_ne!(stderr.read_line(&mut lines).unwrap(), 0, "{lines}");
    }
    (client, stderr, lines)
}

fn signal(client: &Child, signal: Signal) {
    kill(Pid::from_raw(client.id() as i32), signal).unwrap();
}

#[test]
fn an_owner_that_does_not_answer_is_noticed_in_time() {
    let (owner, sleeper) = (FakeOwner::new(Play::Stop(Duration::from_secs(12))), Sleeper::new());
    let (mut client, mut stderr, _) = holding(&owner, &["limit", &sleeper.pid().to_string(), "-d", "1M"]);
    let start = Instant::now();
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("has not answered for 3 s") && line.contains("nothing is limited"), "{line}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    line.clear();
    stderr.read_line(&mut line).unwrap();
    assert!(line.ends_with("its owner answers again\n"), "{line}");
    signal(&client, Signal::SIGINT);
    assert_eq!(client.wait().unwrap().code(), Some(0));
}

#[test]
fn one_line_when_it_is_in_force_and_gone_when_the_process_is() {
    for name in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (owner, sleeper) = (FakeOwner::new(Play::Hold), Sleeper::new());
        let pid = sleeper.pid();
        let (mut client, _stderr, lines) =
            holding(&owner, &["--pid", &pid.to_string(), "--download-limit", "1M", "--upload-limit", "none"]);
        assert_eq!(
            lines,
            format!(
                "notice: tried\\nsomething\nlimited pid:{pid} (sleep): download 1 MB/s (8 Mbit/s), upload unlimited; \
                 ebpf; 3 sockets of 1 process\n"
            )
        );
        assert_eq!(owner.freed(), 0);
        let start = Instant::now();
        signal(&client, name);
        assert_eq!(client.wait().unwrap().code(), Some(0), "{name}");
        assert!(start.elapsed() >= FREES, "it did not wait for the limit's end");
        eventually("the limit is freed", || owner.freed() == 1);
    }
}

#[test]
fn nohup_means_what_it_says() {
    let (owner, sleeper) = (FakeOwner::new(Play::Hold), Sleeper::new());
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_chadthrottle"), "--runtime-dir"]);
    shell.arg(owner.dir()).args(["--pid", &sleeper.pid().to_string(), "-d", "1M"]);
    let mut client = shell.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
    let mut stderr = BufReader::new(client.stderr.take().unwrap());
    let mut lines = String::new();
    while !lines.contains("limited ") {
        assert_ne!(stderr.read_line(&mut lines).unwrap(), 0, "{lines}");
    }
    signal(&client, Signal::SIGHUP);
    std::thread::sleep(FREES);
    assert!(client.try_wait().unwrap().is_none(), "SIGHUP ended it");
    signal(&client, Signal::SIGTERM);
    assert_eq!(client.wait().unwrap().code(), Some(0));
}

#[test]
fn what_was_asked_for_arrives() {
    let (owner, sleeper) = (FakeOwner::new(Play::Hold), Sleeper::new());
    let (pid, tree) = (sleeper.pid().to_string(), format!("tree:{}", sleeper.pid()));
    let (code, stdout, stderr) = finish(chadthrottle(
        owner.dir(),
        &[
            "limit",
            &pid,
            &tree,
            &pid,
            "-d",
            "10mbit",
            "-u",
            "500K",
            "--duration",
            "5m",
            "--detach",
            "--partial",
            "--no-fallback",
            "--upload-backend",
            "ebpf",
            "--cgroup-root",
            "/proc/../tmp",
        ],
    ));
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    assert!(stderr.contains("download 1.25 MB/s (10 Mbit/s), upload 500 KB/s (4 Mbit/s); ebpf;"), "{stderr}");
    let (request, _) = owner.limits().remove(0);
    assert_eq!(request.targets, [Target::Pid(sleeper.pid()), Target::Tree(sleeper.pid())]);
    assert_eq!(request.rates.download.map(|rate| rate.bytes_per_second()), Some(1_250_000));
    assert_eq!(request.rates.upload.map(|rate| rate.bytes_per_second()), Some(500_000));
    assert_eq!((request.duration, request.detach), (Some(300.0), true));
    assert_eq!((request.partial, request.no_fallback), (true, true));
    assert_eq!(
        (request.backends.upload.as_deref(), request.backends.download.as_deref()),
        (Some("ebpf"), None)
    );
    assert_eq!(request.site.cgroup_root.as_deref(), Some("/tmp".as_ref()));
}

#[test]
fn each_target_by_itself_with_all_that_narrow_it() {
    let (owner, one, other) = (FakeOwner::new(Play::Hold), Sleeper::new(), Sleeper::new());
    let (one, other) = (one.pid().to_string(), other.pid().to_string());
    let words = ["limit", &one, "port:443", &other, "--each", "--scope", "local", "-d", "1M", "--detach"];
    let (code, _, stderr) = finish(chadthrottle(owner.dir(), &words));
    assert_eq!(code, 0, "{stderr}");
    let asked: Vec<Vec<String>> = owner
        .limits()
        .iter()
        .map(|(request, _)| request.targets.iter().map(ToString::to_string).collect())
        .collect();
    assert_eq!(
        asked,
        [[format!("pid:{one}"), "port:443".into()], [format!("pid:{other}"), "port:443".into()]]
    );
    assert!(owner.limits().iter().all(|(request, _)| request.scope == chadthrottle::model::Scope::Local));
    assert!(stderr.contains(&format!("limited pid:{other} port:443 --scope local (sleep)")), "{stderr}");
}

#[test]
fn ends_with_its_limit_and_says_why() {
    for (reason, why) in [
        (EndReason::TargetEnded, "(sleep) has ended, and the limit with it"),
        (EndReason::Duration, "its time is up"),
        (EndReason::Cleared, "it was cleared"),
    ] {
        let (owner, sleeper) = (FakeOwner::new(Play::End(reason)), Sleeper::new());
        let (code, _, stderr) =
            finish(chadthrottle(owner.dir(), &["limit", &sleeper.pid().to_string(), "-u", "1M"]));
        assert!(code == 0 && stderr.contains(why), "{reason:?}: {code}, {stderr}");
    }
}

#[test]
fn a_lost_limit_is_a_failure() {
    for play in [Play::Die, Play::End(EndReason::OwnerStopped)] {
        let (owner, sleeper) = (FakeOwner::new(play), Sleeper::new());
        let (code, _, stderr) =
            finish(chadthrottle(owner.dir(), &["limit", &sleeper.pid().to_string(), "-u", "1M"]));
        assert!(
            code == 1 && stderr.contains("is gone: its owner (process 4343) has ended"),
            "{code}, {stderr}"
        );
    }
}

#[test]
fn an_escape_is_a_warning() {
    let (owner, sleeper) = (FakeOwner::new(Play::Escape("2 MB\x1b[2J passed by")), Sleeper::new());
    let (mut client, mut stderr, _) = holding(&owner, &["limit", &sleeper.pid().to_string(), "-u", "1M"]);
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let expected = format!("warning: pid:{} (sleep): 2 MB\\u{{1b}}[2J passed by\n", sleeper.pid());
    assert_eq!(line, expected);
    signal(&client, Signal::SIGINT);
    assert_eq!(client.wait().unwrap().code(), Some(0));
}

#[test]
fn the_exit_code_tells_the_kind() {
    let refusals: [(fn() -> Error, i32); 4] = [
        (|| Error::failed("no luck"), 1),
        (|| Error::new(Kind::NotPermitted, "no luck"), 3),
        (|| Error::new(Kind::NotFound, "no luck"), 4),
        (|| Error::new(Kind::NoBackend, "no luck\nebpf: none\x07"), 5),
    ];
    for (refusal, expected) in refusals {
        let (owner, sleeper) = (FakeOwner::new(Play::Refuse(refusal)), Sleeper::new());
        let (code, stdout, stderr) =
            finish(chadthrottle(owner.dir(), &["limit", &sleeper.pid().to_string(), "-u", "1M"]));
        assert_eq!((code, stdout.as_str()), (expected, ""), "{stderr}");
        assert!(stderr.starts_with("error: no luck") && !stderr.contains('\x07'), "{stderr}");
    }
}

#[test]
fn status_shows_it_and_clear_ends_it() {
    let (owner, sleeper) = (FakeOwner::new(Play::Hold), Sleeper::new());
    let pid = sleeper.pid();
    let (mut client, ..) = holding(&owner, &["limit", &pid.to_string(), "-d", "1M", "--duration", "1h"]);
    let (code, stdout, stderr) = finish(chadthrottle(owner.dir(), &["status"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines: Vec<Vec<_>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let head = "TARGET NAME DIRECTION LIMIT MEASURED DROPPED DELAYED QUEUE MARKED BACKEND HELD BY OWNER CLIENT AGE LEFT";
    let row = format!(
        "pid:{pid} sleep download 1 MB/s (8 Mbit/s) 998 KB/s (7.98 Mbit/s) 7 0 - 0 ebpf ifb+htb+window 4343 4242 5s 1h00m"
    );
    assert_eq!([lines[0].join(" "), lines[1].join(" ")], [head.to_owned(), row]);
    let (code, stdout, stderr) = finish(chadthrottle(owner.dir(), &["status", "--json"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let limit = &report["limits"][0];
    assert_eq!(limit["targets"], serde_json::json!([format!("pid:{pid}")]));
    assert_eq!(limit["directions"]["download"]["rate"], 1_000_000);
    assert_eq!(limit["directions"]["upload"], serde_json::Value::Null);
    let (code, stdout, stderr) = finish(chadthrottle(owner.dir(), &["clear", "tree:5", "6"]));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", "cleared 2 limits\n"));
    assert_eq!(owner.seen.lock().unwrap().clears, [[Target::Tree(5), Target::Pid(6)]]);
    signal(&client, Signal::SIGTERM);
    client.wait().unwrap();
}

#[test]
fn clear_does_not_deny_a_limit_that_is_shared() {
    let (owner, sleeper) = (FakeOwner::new(Play::Hold), Sleeper::new());
    let me = std::process::id().to_string();
    let pid = sleeper.pid().to_string();
    let (mut client, _stderr, _) = holding(&owner, &["limit", &me, &pid, "-d", "1M"]);
    let (code, _, stderr) = finish(chadthrottle(owner.dir(), &["clear", &pid]));
    let both = format!("pid:{me} pid:{pid}");
    let error = format!("error: a limit on all of {both} is still in force: `clear {both}` ends it\n");
    assert_eq!(code, 1);
    assert!(stderr.ends_with(&error), "{stderr}");
    assert_eq!(finish(chadthrottle(owner.dir(), &["clear", &pid, &me])).0, 0);
    signal(&client, Signal::SIGINT);
    client.wait().unwrap();
}
