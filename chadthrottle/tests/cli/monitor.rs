//! `monitor`: what it shows of what the owner counts, recordings, and that it needs no rights.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use serde_json::Value;

use crate::{
    chadthrottle, eventually,
    fake::{FakeOwner, Play},
    finish, outcome,
};

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn json_has_the_shape_of_the_contract() {
    let owner = FakeOwner::new(Play::Hold);
    let args = ["monitor", "--json", "--count", "2", "--summary", "--interval", "250ms"];
    let (code, stdout, stderr) = finish(chadthrottle(owner.dir(), &args));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stderr, "warning: a\\nb: c\n");
    let lines = lines(&stdout);
    assert_eq!(
        lines.iter().map(|line| line["kind"].as_str().unwrap()).collect::<Vec<_>>(),
        ["tick", "tick", "summary"]
    );
    assert!(lines.iter().all(|line| line["schema"] == "chadthrottle/1"));
    let curl = &lines[0]["processes"][0];
    for (key, value) in
        [("pid", Value::from(7)), ("start_time", 5.into()), ("name", "cu\nrl".into()), ("alive", true.into())]
    {
        assert_eq!(curl[key], value, "{key}");
    }
    for key in [
        "exe",
        "cmdline",
        "user",
        "cgroup",
        "unit",
        "container",
        "rx_bytes",
        "tx_bytes",
        "rx_rate",
        "tx_rate",
        "connections",
    ] {
        assert!(curl.get(key).is_some(), "{key}");
    }
    for key in ["time", "interval", "limits", "interfaces"] {
        assert!(lines[0].get(key).is_some(), "{key}");
    }
    assert_eq!(lines[0]["processes"][2]["name"], "kernel");
    assert_eq!(lines[1]["processes"].as_array().unwrap().len(), 2);
    // The one that ended is in the account, without rates.
    let summary = lines[2]["processes"].as_array().unwrap();
    assert_eq!(summary.len(), 3);
    assert!(summary.iter().any(|process| process["name"] == "gone" && process["tx_bytes"] == 300));
    assert!(summary.iter().all(|process| process.get("rx_rate").is_none()));
    let request = &owner.seen.lock().unwrap().monitors[0];
    assert_eq!((request.interval, request.connections), (0.25, false));
}

#[test]
fn a_table_has_a_line_for_what_moved() {
    let owner = FakeOwner::new(Play::Hold);
    let (code, stdout, _) = finish(chadthrottle(owner.dir(), &["monitor", "--count", "1", "--summary"]));
    assert_eq!(code, 0);
    let words: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0][..4], ["TIME", "PID", "NAME", "USER"]);
    assert_eq!(words[1][1..8], ["7", "cu\\nrl", "alice", "1.00", "MB/s", "0", "B/s"], "{stdout}");
    assert!(words[2].contains(&"(interfaces)"), "{stdout}");
    assert!(stdout.contains("gone (ended)") && stdout.contains("In 1s"), "{stdout}");
    let args = ["monitor", "--count", "1", "--group", "user", "--filter", "name:cu"];
    let (_, stdout, _) = finish(chadthrottle(owner.dir(), &args));
    assert!(stdout.contains("PROCESSES") && stdout.contains(" 1  alice "), "{stdout}");
}

#[test]
fn the_owners_end_is_an_error() {
    let owner = FakeOwner::new(Play::Hold);
    let (code, stdout, stderr) = finish(chadthrottle(owner.dir(), &["monitor", "--json", "--summary"]));
    let lines = lines(&stdout);
    assert_eq!((code, lines.len()), (1, 3), "{stderr}");
    assert_eq!(lines[2]["kind"], "summary", "what was seen is told all the same");
    assert!(stderr.contains("which counted, is gone"), "{stderr}");
}

#[test]
fn what_is_recorded_is_replayed() {
    let owner = FakeOwner::new(Play::Hold);
    let file = owner.dir().join("recording");
    let path = file.to_str().unwrap();
    let (code, live, _) =
        finish(chadthrottle(owner.dir(), &["monitor", "--json", "--count", "2", "--record", path]));
    assert_eq!(code, 0);
    assert!(owner.seen.lock().unwrap().monitors[0].connections, "a recording has everything");
    let nobody = tempfile::tempdir().unwrap();
    let (code, replayed, _) = finish(chadthrottle(nobody.path(), &["monitor", "--json", "--replay", path]));
    assert_eq!((code, replayed), (0, live));
    let (code, top, _) =
        finish(chadthrottle(nobody.path(), &["monitor", "--json", "--replay", path, "--top", "1"]));
    assert_eq!((code, lines(&top)[0]["processes"].as_array().unwrap().len()), (0, 1));
    fs::write(&file, "nonsense\n").unwrap();
    let (code, _, stderr) = finish(chadthrottle(nobody.path(), &["monitor", "--replay", path]));
    assert!(code == 1 && stderr.contains("no recorded snapshot"), "{stderr}");
}

#[test]
fn without_an_owner_it_counts_itself_and_says_so() {
    // A folder that nobody can be an owner in.
    let above = tempfile::tempdir().unwrap();
    let file = above.path().join("file");
    fs::write(&file, "").unwrap();
    let args = ["monitor", "--json", "--count", "1", "--interval", "0.1", "--connections"];
    let (code, stdout, stderr) = finish(chadthrottle(&file, &args));
    assert_eq!(code, 0, "{stderr}");
    let lines = lines(&stdout);
    assert_eq!(lines[0]["source"], "sock_diag");
    assert!(lines[0]["connections"].is_array());
    assert!(stderr.contains("not what is on the wire: ") && stderr.contains("is not a folder"), "{stderr}");
}

#[test]
fn it_ends_at_a_signal_and_when_nobody_reads() {
    let above = tempfile::tempdir().unwrap();
    let file = above.path().join("file");
    fs::write(&file, "").unwrap();
    let mut command = chadthrottle(&file, &["monitor", "--json", "--interval", "0.1", "--summary"]);
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    // It has begun to wait when it blocks the signal.
    let blocked = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap_or("0").trim();
        u64::from_str_radix(mask, 16).unwrap_or(0) & 1 << 14 != 0
    };
    eventually("it blocks SIGTERM", blocked);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let (code, stdout, _) = outcome(&child.wait_with_output().unwrap());
    assert_eq!((code, lines(&stdout).last().unwrap()["kind"].as_str()), (0, Some("summary")));

    let mut command = chadthrottle(&file, &["monitor", "--json", "--interval", "0.1"]);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn ticks_that_nobody_reads_are_left_out_and_that_is_said() {
    let above = tempfile::tempdir().unwrap();
    let file = above.path().join("file");
    fs::write(&file, "").unwrap();
    let mut command = chadthrottle(&file, &["monitor", "--json", "--interval", "0.1"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    // So small that it is full after a few ticks.
    nix::fcntl::fcntl(&stdout, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(6));
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).count());
    let mut told = String::new();
    while !told.contains("ticks were left out") {
        assert_ne!(stderr.read_line(&mut told).unwrap(), 0, "{told}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(reader.join().unwrap() > 0);
}

#[test]
fn bad_input_is_refused() {
    let empty = tempfile::tempdir().unwrap();
    for (args, why) in [
        (&["--interval", "1ms"][..], "less than 100 ms"),
        (&["--interval", "soon"], "accepted are 1, 0.5, 250ms"),
        (&["--filter", "rate:fast"], "is no rate"),
        (&["--filter", "colour:red"], "keys are pid, name"),
        (&["--group", "colour"], "there are process, tree, unit"),
        (&["--sort", "colour"], "there are rate, down"),
        (&["--count", "0"], "--count"),
        (&["--connections"], "--json"),
        (&["--replay", "a", "--record", "b"], "--record"),
    ] {
        let args: Vec<_> = ["monitor"].iter().chain(args).collect();
        let (code, stdout, stderr) = finish(chadthrottle(empty.path(), &args));
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(why), "{args:?}: {stderr}");
    }
}
