//! Bad input, help, and the commands that need no owner.

use chadthrottle::{backend::DRIVERS, model::Direction};
use std::{fs::File, os::unix::ffi::OsStrExt};

use crate::{chadthrottle, finish};

fn answer(args: &[&str]) -> (i32, String, String) {
    let empty = tempfile::tempdir().unwrap();
    finish(chadthrottle(empty.path(), args))
}

#[test]
fn bad_input_is_refused_with_what_would_be_accepted() {
    const RATES: &[&str] = &["500K", "10mbit", "none"];
    const TARGETS: &[&str] = &["pid:1234", "tree:1234", "name:firefox", "unit:nginx.service", "port:443"];
    const TIMES: &[&str] = &["30s", "5m", "1h"];
    for (args, why, shown) in [
        (&["limit", "1", "-d", "0"][..], "0 would stop all traffic", RATES),
        (&["limit", "1", "-d", "-5M"], "not negative", RATES),
        (&["limit", "1", "-d", ""], "it is empty", RATES),
        (&["limit", "1", "-u", "5 parsecs"], "unknown unit 'parsecs'", RATES),
        (&["limit", "1", "-u", "2tbit"], "more than 1 Tbit/s", RATES),
        (&["limit", "1", "-u", "999"], "less than 1 KB/s (8 kbit/s), below which TCP no longer moves", RATES),
        (&["limit", "1", "--upload", "10Mb"], "write 10Mbit for bits or 10MB for bytes", RATES),
        (&["limit", "1", "--download", "1\x1b]0;x\x07M"], "\\u{1b}]0;x\\u{7}M", RATES),
        (&["--pid", "1", "--download-limit", "fast"], "--download-limit: 'fast' is no rate", RATES),
        (&["run", "-u", "fast", "--", "true"], "--upload-limit: 'fast' is no rate", RATES),
        (&["limit", "host:firefox", "-d", "1M"], "unknown kind 'host'", TARGETS),
        (&["limit", "", "-d", "1M"], "it is empty", TARGETS),
        (&["limit", "0", "-d", "1M"], "begin at 1", TARGETS),
        (&["limit", "-7", "-d", "1M"], "begin at 1", TARGETS),
        (&["limit", "5", "tree:99999999999", "-d", "1M"], "end at 2147483647", TARGETS),
        (&["limit", "pid:1\u{202e}2", "-d", "1M"], "1\\u{202e}2", TARGETS),
        (&["--pid", "0", "-d", "1M"], "begin at 1", TARGETS),
        (&["--pid", "-7", "-d", "1M"], "begin at 1", TARGETS),
        (&["--pid", "tree:5", "-d", "1M"], "--pid takes a process id", &["limit tree:5"]),
        (&["clear", "5x"], "'5x' is no process id", TARGETS),
        (&["limit", "1", "-d", "1M", "--duration", "0"], "not above 0", TIMES),
        (&["limit", "1", "-d", "1M", "--duration", "-3"], "not above 0", TIMES),
        (&["--pid", "1", "-d", "1M", "--duration", "soon"], "does not begin with a number", TIMES),
        (&["limit", "1", "-d", "1M", "--duration", "1w"], "unknown unit 'w'", TIMES),
        (&["limit", "1"], "nothing to limit", &["-d 1M", "-u 500K"]),
        (&["limit", "1", "-d", "none", "-u", "unlimited"], "nothing to limit", &["-d 1M"]),
        (&["--pid", "1"], "nothing to limit", &["-d 1M"]),
        (&["run", "--", "true"], "nothing to limit", &["-d 1M"]),
        (&["limit", "1", "-u", "1M", "--upload-backend", "x\n"], "unknown upload backend 'x\\n'", &["ebpf"]),
        (
            &["--download-backend", "magic", "limit", "1", "-d", "1M"],
            "unknown download backend 'magic'",
            &["ebpf"],
        ),
        (&["-d", "1M"], "which process?", &["--pid"]),
        (&["--duration", "5"], "which process?", &["--pid"]),
        (&["--pid", "1", "-d", "1M", "status"], "take no command", &[]),
        (&["--list-backends", "status"], "take no command", &[]),
        (&["--list-backends", "--pid", "1"], "limits nothing", &[]),
        (&["limit", "-d", "1M"], "TARGET", &[]),
        (&["run", "-d", "1M"], "CMD", &[]),
        (&["limit", "1", "-d"], "--download-limit", &[]),
        (&["limit", "1", "-d", "1M", "--frobnicate"], "--frobnicate", &[]),
        (&["frobnicate"], "frobnicate", &[]),
        (&["status", "--color", "pink"], "pink", &["auto", "always", "never"]),
    ] {
        let (code, stdout, stderr) = answer(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(why), "{args:?}: {stderr}");
        assert!(shown.iter().all(|accepted| stderr.contains(accepted)), "{args:?}: {stderr}");
        assert!(!stderr.contains(|c: char| c.is_control() && c != '\n'), "{args:?}: {stderr:?}");
    }
    let empty = tempfile::tempdir().unwrap();
    let (code, _, stderr) = finish(chadthrottle(empty.path(), &[std::ffi::OsStr::from_bytes(b"a\xff")]));
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn without_arguments_the_help() {
    let (code, stdout, stderr) = answer(&[]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("Usage: chadthrottle"), "{stderr}");
    assert!(stderr.trim_end().ends_with("without one there is `chadthrottle monitor`."), "{stderr}");
}

#[test]
fn help_offers_what_is_there_and_nothing_else() {
    let mut help = String::new();
    for args in
        [&["--help"][..], &["run", "--help"], &["limit", "-h"], &["help", "status"], &["clear", "--help"]]
    {
        let (code, stdout, stderr) = answer(args);
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        help.push_str(&stdout);
    }
    for present in [
        "--pid",
        "run",
        "limit",
        "status",
        "clear",
        "explain",
        "doctor",
        "selftest",
        "monitor",
        "--list-backends",
        "tree:1234",
        "name:",
        "exe:",
        "cgroup:",
        "unit:",
        "container:",
        "user:",
        "--wait",
        "completions",
        "man ",
        "--scope",
        "--each",
        "remote:",
        "port:",
    ] {
        assert!(help.contains(present), "{present}");
    }
    for absent in ["nftables", "tc_", "owner", "janitor", "traffic\n", "TUI"] {
        assert!(!help.contains(absent), "the help offers {absent}");
    }
}

#[test]
fn backends_are_listed_in_the_form_of_the_contract() {
    let (code, stdout, stderr) = answer(&["--list-backends"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let mut lines = stdout.lines();
    for (direction, heading) in
        [(Direction::Upload, "Upload Backends:"), (Direction::Download, "Download Backends:")]
    {
        assert_eq!(lines.next(), Some(heading), "{stdout}");
        for driver in DRIVERS.iter().filter(|driver| driver.directions.contains(&direction)) {
            let line = lines.next().unwrap_or_default();
            let name = format!("  {:<11} [priority: {:?}] ", driver.name, driver.priority);
            let verdict = line.strip_prefix(&name).unwrap_or_else(|| panic!("{line}"));
            let known = verdict == "✅ available"
                || verdict.strip_prefix("❌ unavailable: ").is_some_and(|reason| !reason.is_empty())
                || verdict.strip_prefix("❓ unknown: ").is_some_and(|reason| !reason.is_empty());
            assert!(known, "{line}");
        }
        assert!(lines.next().unwrap_or_default().is_empty(), "{stdout}");
    }
    assert_eq!(lines.next(), None, "{stdout}");
}

#[test]
fn doctor_names_every_backend() {
    let (code, stdout, _) = answer(&["doctor"]);
    assert!(code == 0 && stdout.starts_with("ebpf (upload, download) [priority: Best] "), "{stdout}");
    let (code, stdout, _) = answer(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &report["schema"], &report["kind"]), (0, &"chadthrottle/1".into(), &"doctor".into()));
    assert_eq!(report["backends"][0]["name"], "ebpf");
    assert_eq!(report["backends"][0]["directions"], serde_json::json!(["upload", "download"]));
}

#[test]
fn no_owner_no_limits() {
    assert_eq!(answer(&["status"]), (0, String::new(), "no limits in force\n".into()));
    let empty = "{\"schema\":\"chadthrottle/1\",\"kind\":\"status\",\"limits\":[]}\n";
    assert_eq!(answer(&["status", "--json"]), (0, empty.into(), String::new()));
    let (code, stdout, stderr) = answer(&["clear"]);
    assert!(code == 0 && stdout.is_empty() && stderr.contains("no limits in force"), "{stderr}");
    let (code, _, stderr) = answer(&["clear", "tree:5", "5"]);
    assert!(code == 0 && stderr.contains("no limit in force on tree:5 pid:5"), "{stderr}");
}

#[test]
fn colours_only_where_they_are_wanted() {
    assert!(!answer(&["--help"]).1.contains('\x1b'));
    assert!(answer(&["--color", "always", "--help"]).1.contains('\x1b'));
    assert!(answer(&["limit", "1", "--color=always"]).2.starts_with("\x1b[1m\x1b[31merror:"));
}

#[test]
fn nobody_reads_the_results() {
    let empty = tempfile::tempdir().unwrap();
    for args in [&["status", "--json"][..], &["--list-backends"], &["--help"], &["doctor"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = chadthrottle(empty.path(), args);
        command.stdout(writer);
        let (code, _, stderr) = finish(command);
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
    }
    let mut command = chadthrottle(empty.path(), &["status", "--json"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let (code, _, stderr) = finish(command);
    assert!(code == 1 && stderr.starts_with("error: write to stdout: "), "{stderr}");
}
