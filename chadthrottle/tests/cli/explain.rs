//! `explain` over processes of the test's own, without any rights.

use std::{
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{chadthrottle, eventually, finish};

/// A process that is ended when the test is.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn answer(args: &[&str]) -> (i32, String, String) {
    let empty = tempfile::tempdir().unwrap();
    finish(chadthrottle(empty.path(), args))
}

fn explain(args: &[&str]) -> Value {
    let words = [&["explain", "--json"], args].concat();
    let (code, stdout, stderr) = answer(&words);
    assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
    serde_json::from_str(&stdout).unwrap()
}

/// A copy of `sleep` under a name of its own, running.
fn sleeper(folder: &tempfile::TempDir, name: &str) -> Sleeper {
    let file = folder.path().join(name);
    let found = Command::new("sh").args(["-c", "command -v sleep"]).output().unwrap();
    std::fs::copy(String::from_utf8(found.stdout).unwrap().trim_end(), &file).unwrap();
    let child = Command::new(&file).arg0("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let exe = format!("/proc/{}/exe", child.id());
    eventually("it runs", || std::fs::read_link(&exe).is_ok_and(|exe| exe == file));
    Sleeper(child)
}

#[test]
fn by_name_file_and_user() {
    let folder = tempfile::tempdir().unwrap();
    // Longer than the kernel keeps names.
    let name = "chadt-explain-with-a-long-name";
    let process = sleeper(&folder, name);
    let exe = folder.path().canonicalize().unwrap().join(name);
    let exe_target = format!("exe:{}", exe.display());
    let report = explain(&[&format!("name:{name}"), &exe_target, "--scope", "internet"]);
    assert_eq!((&report["schema"], &report["kind"]), (&json!("chadthrottle/1"), &json!("explain")));
    assert_eq!(report["targets"], json!([format!("name:{name}"), exe_target]));
    assert_eq!(report["scope"], "internet");
    let processes = report["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 1, "{report}");
    assert_eq!(processes[0]["pid"], process.0.id());
    assert_eq!((&processes[0]["name"], &processes[0]["exe"]), (&json!(&name[..15]), &json!(exe)));
    let because: Vec<_> = processes[0]["why"].as_array().unwrap().iter().map(|why| &why["because"]).collect();
    assert_eq!(because, ["the file name of its executable is that", "it runs that file"]);
    assert_eq!(processes[0]["sockets"], json!([]));

    let mine = format!("user:{}", nix::unistd::getuid());
    let mine = explain(&[&mine]);
    let pids: Vec<_> = mine["processes"].as_array().unwrap().iter().map(|each| &each["pid"]).collect();
    assert!(pids.contains(&&json!(process.0.id())), "{pids:?}");
    // Its first fifteen bytes are no name of it.
    let (code, stdout, stderr) = answer(&["explain", "name:chadt-explain-with"]);
    assert_eq!((code, stdout.as_str()), (4, ""));
    assert!(stderr.contains("no process matches name:chadt-explain-with now"), "{stderr}");
}

#[test]
fn sockets_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stream = TcpStream::connect(address).unwrap();
    let here = stream.local_addr().unwrap().to_string();
    let me = format!("pid:{}", std::process::id());
    let matches = |narrowing: &[&str]| {
        let report = explain(&[&[me.as_str()], narrowing].concat());
        let sockets = report["processes"][0]["sockets"].as_array().unwrap().clone();
        let ours = sockets.into_iter().find(|socket| socket["local"] == here.as_str()).unwrap();
        assert_eq!((&ours["protocol"], &ours["state"]), (&json!("tcp"), &json!("established")));
        ours["matches"].clone()
    };
    let port = format!("port:{}", address.port());
    for (narrowing, expected) in [
        (&[][..], true),
        (&[port.as_str()], true),
        (&["port:1"], false),
        (&["port:1", &port], true),
        (&["remote:127.0.0.0/8", &port], true),
        (&["remote:[2001:db8::]/32"], false),
        (&["--scope", "local"], true),
        (&["--scope", "internet"], false),
    ] {
        assert_eq!(matches(narrowing), json!(expected), "{narrowing:?}");
    }
}

#[test]
fn a_hostile_name_stays_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let name = "chadt-\u{202e}\n\x1b[2Jx";
    let process = sleeper(&folder, name);
    let exe = format!("exe:{}", folder.path().canonicalize().unwrap().join(name).display());
    for target in [format!("name:{name}"), exe] {
        let (code, stdout, stderr) = answer(&["explain", &target]);
        assert_eq!(code, 0, "{stderr}");
        for text in [&stdout, &stderr] {
            assert!(!text.contains(['\u{202e}', '\x1b']), "{text}");
        }
        assert_eq!(stdout.lines().count(), 2, "{stdout}");
        let (code, stdout, _) = answer(&["explain", "--json", &target]);
        assert!(code == 0 && stdout.is_ascii() && stdout.lines().count() == 1, "{stdout}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report["targets"][0], json!(target));
        assert_eq!(report["processes"][0]["pid"], process.0.id());
    }
}

#[test]
fn what_can_not_be() {
    for (args, code, why) in [
        (&["explain"][..], 2, "TARGET"),
        (&["explain", "pid:2147483647"], 4, "no process matches pid:2147483647 now"),
        (&["explain", "user:4294967295"], 4, "no process can have the user id 4294967295"),
        (&["explain", "user:no-such-user-here"], 4, "there is no user 'no-such-user-here'"),
        (&["explain", "container:00000000ffffffff"], 4, "no running container fits"),
        (&["explain", "pid:1", "--scope", "lan"], 2, "scopes are all, internet, local"),
        (&["explain", "cgroup:/no/such/cgroup"], 4, "no process matches"),
    ] {
        let (got, stdout, stderr) = answer(args);
        assert!(got == code && stdout.is_empty() && stderr.contains(why), "{args:?}: {got} {stderr}");
    }
}
