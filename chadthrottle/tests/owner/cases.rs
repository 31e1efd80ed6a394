//! What must hold.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use chadthrottle::{
    Kind,
    backend::Site,
    kernel::fault,
    model::{LimitId, PerDirection, Rate, Target},
    owner::{
        client::Client,
        protocol::{EndReason, LimitRequest, Reply, Request, VERSION},
        sweep,
    },
};
use nix::sys::signal::Signal;

use crate::house::{House, SOON, Sleeper, event, eventually, in_force, request, send, set, status};

pub const ALL: &[(&str, fn())] = &[
    ("started_on_demand_gone_after_the_last_limit", started_on_demand),
    ("the_owner_shares_nothing_with_its_client", shares_nothing),
    ("racing_clients_start_one_owner", racing_clients),
    ("coming_and_going_never_fails", coming_and_going),
    ("nobody_asks_for_anything", nobody_asks),
    ("a_killed_clients_limits_end", killed_client),
    ("a_signal_ends_everything", signals),
    ("the_janitor_cleans_up_after_a_killed_owner", killed_owner),
    ("a_killed_owner_and_janitor_are_swept", killed_both),
    ("a_killed_janitor_is_replaced", killed_janitor),
    ("death_and_panic_at_every_step_leave_nothing", faults),
    ("the_end_of_the_target_and_of_the_duration", ends),
    ("detach_change_and_clear", detach_change_clear),
    ("a_stopped_owner_is_said_to_be_stopped", stopped_owner),
    ("nonsense_is_dismissed_and_its_limits_end", nonsense),
    ("a_client_that_does_not_read_blocks_nobody", deaf_client),
    ("another_pid_namespace_is_refused", pid_namespace),
    ("another_site_is_refused", other_site),
    ("a_hostile_folder_is_refused", hostile_folder),
    ("an_owner_whose_files_were_removed_is_found_again", lost_files),
    ("an_owner_whose_folder_another_has_taken_ends", lost_folder),
    ("the_owner_does_not_live_under_its_clients_ulimits", inherited_limits),
];

fn started_on_demand() {
    let house = House::new();
    assert!(Client::connect(&house.dir).unwrap().is_none());
    assert!(!house.dir.exists(), "only looking makes nothing");
    let target = Sleeper::new();
    let mut client = house.client();
    let limit = set(&mut client, request(target.pid())).unwrap();
    assert_eq!((limit.owner_pid, limit.name.as_str()), (client.owner_pid(), "sleep"));
    assert_eq!(limit.client_pid, std::process::id());
    let mut other = Client::connect(&house.dir).unwrap().unwrap();
    assert_eq!(status(&mut other).len(), 1);
    assert_eq!(house.processes("janitor").len(), 1);
    assert_eq!(in_force(limit.owner_pid), ["download-1 2000000", "upload-1 1000000"]);
    client.close_and_wait(SOON).unwrap();
    assert!(in_force(limit.owner_pid).is_empty(), "the limit has ended when the wait is over");
    assert!(status(&mut other).is_empty());
    drop(other);
    eventually(SOON, "the owner, its janitor and its files are gone", || house.is_empty());
    assert!(Client::connect(&house.dir).unwrap().is_none());
}

fn shares_nothing() {
    let house = House::new();
    // A descriptor that every child inherits.
    let leak = fs::File::open("/dev/zero").unwrap();
    // SAFETY: sets a flag of a descriptor of ours.
    unsafe { libc::fcntl(leak.as_raw_fd(), libc::F_SETFD, 0) };
    let client = house.client();
    let pid = client.owner_pid();
    for role in ["owner", "janitor"] {
        let pid = house.processes(role)[0];
        let links: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .collect();
        assert!(!links.contains(&"/dev/zero".into()), "{role}: {links:?}");
        assert!(!links.iter().any(|link| link.to_string_lossy().starts_with("pipe:")), "{role}: {links:?}");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), PathBuf::from("/"));
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_ne!(fields[1], std::process::id().to_string(), "its parent is somebody else");
    assert_ne!(fields[3], nix::unistd::getsid(None).unwrap().to_string(), "its session is its own");
    let own = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ignored = own.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    assert_ne!(u64::from_str_radix(ignored, 16).unwrap() & (1 << (libc::SIGPIPE - 1)), 0);
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim(), "chadt-owner");
}

fn racing_clients() {
    for _ in 0..5 {
        let house = House::new();
        let clients: Vec<Client> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| house.client())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let owners: std::collections::BTreeSet<_> = clients.iter().map(Client::owner_pid).collect();
        assert_eq!(owners.len(), 1, "{owners:?}");
        // Those that came too late are just leaving.
        let owners: Vec<_> = owners.into_iter().collect();
        eventually(SOON, "one owner is left", || house.processes("owner") == owners);
    }
}

fn coming_and_going() {
    let house = House::new();
    let target = Sleeper::new();
    thread::scope(|scope| {
        for worker in 0..4 {
            let (house, target) = (&house, &target);
            scope.spawn(move || {
                for round in 0..12 {
                    let mut client = house.client();
                    set(&mut client, request(target.pid())).unwrap();
                    client.close_and_wait(SOON).unwrap();
                    // Around the moment at which the owner leaves.
                    thread::sleep(Duration::from_millis(60 + 15 * worker + 7 * (round % 5)));
                }
            });
        }
    });
    eventually(SOON, "all is gone", || house.is_empty());
}

fn nobody_asks() {
    let house = House::new();
    let begun = Instant::now();
    let mut client = house.client();
    assert!(client.next_event().unwrap().is_none(), "the owner has left");
    assert!(begun.elapsed() >= Duration::from_millis(1900) && begun.elapsed() < Duration::from_secs(10));
    eventually(SOON, "all is gone", || house.is_empty());
    // A connection that never says anything does not keep it, either.
    let client = house.client();
    let silent = UnixStream::connect(house.dir.join("owner.sock")).unwrap();
    drop(client);
    eventually(3 * SOON, "all is gone", || house.is_empty());
    drop(silent);
}

fn killed_client() {
    let house = House::new();
    let mut observer = house.client();
    let mut client = house.other_client(&[]);
    assert_eq!(status(&mut observer).len(), 1);
    client.kill().unwrap();
    eventually(SOON, "the limit has ended", || status(&mut observer).is_empty());
    assert!(in_force(observer.owner_pid()).is_empty());
    client.wait().unwrap();
}

fn signals() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let house = House::new();
        let target = Sleeper::new();
        let mut client = house.client();
        let limit = set(&mut client, request(target.pid())).unwrap();
        send(client.owner_pid(), signal);
        match event(&mut client, SOON) {
            Reply::Ended { id, reason: EndReason::OwnerStopped, last } => {
                assert_eq!((id, last.targets), (limit.id, limit.targets));
            }
            other => panic!("{other:?}"),
        }
        assert!(client.next_event().unwrap().is_none());
        assert!(in_force(limit.owner_pid).is_empty());
        eventually(SOON, "all is gone", || house.is_empty());
    }
}

fn killed_owner() {
    let house = House::new();
    let target = Sleeper::new();
    let mut client = house.client();
    set(&mut client, request(target.pid())).unwrap();
    send(client.owner_pid(), Signal::SIGKILL);
    assert!(client.next_event().unwrap().is_none());
    eventually(SOON, "the janitor has swept and is gone", || house.is_empty());
    // And the next one starts as if nothing had been.
    let mut client = house.client();
    assert!(status(&mut client).is_empty());
}

fn killed_both() {
    let house = House::new();
    for swept in [true, false] {
        let client = house.client();
        for pid in house.processes("janitor").into_iter().chain([client.owner_pid()]) {
            send(pid, Signal::SIGKILL);
        }
        eventually(SOON, "both are dead", || {
            house.processes("owner").is_empty() && house.processes("janitor").is_empty()
        });
        assert!(house.files().contains(&"owner.sock".to_owned()), "{:?}", house.files());
        assert!(Client::connect(&house.dir).unwrap().is_none(), "a dead owner's socket is no owner");
        if swept {
            let removed = sweep(&house.dir).unwrap();
            // And its cgroup, where it could make one.
            let files: Vec<_> = removed.iter().filter(|what| what.starts_with("file ")).collect();
            assert_eq!(files, [&format!("file {}", house.dir.join("owner.sock").display())]);
            assert!(
                removed.iter().all(|what| files.contains(&what) || what.starts_with("cgroup ")),
                "{removed:?}"
            );
            assert!(house.is_empty(), "{:?}", house.files());
            assert!(sweep(&house.dir).unwrap().is_empty());
        }
    }
    let client = house.client();
    // A sweep touches nothing of a living owner.
    assert!(sweep(&house.dir).unwrap().is_empty());
    assert_eq!(Client::connect(&house.dir).unwrap().unwrap().owner_pid(), client.owner_pid());
    drop(client);
    eventually(3 * SOON, "all is gone, of the dead too", || house.is_empty());
}

fn killed_janitor() {
    let house = House::new();
    let target = Sleeper::new();
    let mut client = house.client();
    set(&mut client, request(target.pid())).unwrap();
    for _ in 0..2 {
        let janitor = house.processes("janitor")[0];
        send(janitor, Signal::SIGKILL);
        eventually(3 * SOON, "there is another", || {
            let now = house.processes("janitor");
            now.len() == 1 && now[0] != janitor
        });
    }
    send(client.owner_pid(), Signal::SIGKILL);
    eventually(SOON, "the new one has swept", || {
        house.processes("janitor").is_empty() && !house.files().contains(&"owner.sock".to_owned())
    });
}

fn faults() {
    for point in fault::POINTS.iter().filter(|point| point.starts_with("owner.")) {
        for how in ["CHADT_FAULT_PANIC", "CHADT_FAULT_KILL"] {
            let house = House::new();
            let mut child = house.other_client(&[(how, point)]);
            drop(child.stdin.take());
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert!(!child.wait().unwrap().success(), "{how} {point}: {said}");
            assert!(said.contains("the owner"), "{how} {point}: {said}");
            eventually(SOON, "no process is left", || {
                house.processes("owner").is_empty() && house.processes("janitor").is_empty()
            });
            if how.ends_with("KILL") {
                sweep(&house.dir).unwrap();
            }
            let left: Vec<_> = house.files().into_iter().filter(|name| name != "owner.log").collect();
            assert!(left.is_empty(), "{how} {point}: {left:?}");
            // The next one works.
            let target = Sleeper::new();
            set(&mut house.client(), request(target.pid())).unwrap();
        }
    }
}

/// The shortest of some times: a busy machine makes single ones longer.
fn shortest(mut time: impl FnMut() -> Duration) -> Duration {
    (0..5).map(|_| time()).min().unwrap_or_default()
}

fn ends() {
    let house = House::new();
    let mut client = house.client();
    let target = Sleeper::new();
    let timed = LimitRequest { duration: Some(0.3), ..request(target.pid()) };
    let late = shortest(|| {
        let begun = Instant::now();
        set(&mut client, timed.clone()).unwrap();
        let set_after = begun.elapsed();
        match event(&mut client, SOON) {
            Reply::Ended { reason: EndReason::Duration, .. } => {}
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        begun.elapsed() - set_after
    });
    assert!(late < Duration::from_millis(340), "{late:?}");
    let late = shortest(|| {
        let target = Sleeper::new();
        let limit = set(&mut client, request(target.pid())).unwrap();
        let begun = Instant::now();
        drop(target);
        match event(&mut client, SOON) {
            Reply::Ended { id, reason: EndReason::TargetEnded, .. } => assert_eq!(id, limit.id),
            other => panic!("{other:?}"),
        }
        begun.elapsed()
    });
    assert!(late < Duration::from_millis(300), "{late:?}");
    assert!(status(&mut client).is_empty());
    let error = set(&mut client, request(i32::MAX as u32)).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "and the connection lives on");
    assert!(status(&mut client).is_empty());
}

fn detach_change_clear() {
    let house = House::new();
    let target = Sleeper::new();
    let mut client = house.client();
    let detached = LimitRequest { detach: true, ..request(target.pid()) };
    let first = set(&mut client, detached.clone()).unwrap();
    client.close_and_wait(SOON).unwrap();
    thread::sleep(Duration::from_millis(300));
    let mut client = Client::connect(&house.dir).unwrap().expect("a detached limit keeps the owner");
    assert_eq!(status(&mut client)[0].id, first.id);
    let rates = PerDirection { upload: Rate::new(5_000), download: None };
    match client.request(&Request::Change { id: first.id, rates }).unwrap() {
        Reply::Limited { limit, .. } => {
            assert_eq!(limit.directions.upload.unwrap().rate, Rate::new(5_000).unwrap());
            assert_eq!(limit.directions.download.unwrap().rate, Rate::new(2_000_000).unwrap());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(set(&mut client, detached).unwrap().id, first.id);
    // The reply to clear comes, and the event of the own limit before it.
    let own = set(&mut client, request(target.pid())).unwrap();
    let targets = vec![Target::Pid(target.pid())];
    match client.request(&Request::Clear { targets }).unwrap() {
        Reply::Cleared { ended } => assert_eq!(ended, [first.id, own.id]),
        other => panic!("{other:?}"),
    }
    assert!(client.has_buffered());
    match event(&mut client, SOON) {
        Reply::Ended { id, reason: EndReason::Cleared, .. } => assert_eq!(id, own.id),
        other => panic!("{other:?}"),
    }
    drop(client);
    eventually(SOON, "all is gone", || house.is_empty());
}

fn stopped_owner() {
    let house = House::new();
    let mut client = house.client();
    let target = Sleeper::new();
    set(&mut client, request(target.pid())).unwrap();
    let owner = client.owner_pid();
    send(owner, Signal::SIGSTOP);
    let begun = Instant::now();
    for error in [Client::connect(&house.dir).unwrap_err(), client.request(&Request::Status).unwrap_err()] {
        let message = error.to_string();
        assert!(
            message.contains("is stopped") && message.contains(&format!("kill -CONT {owner}")),
            "{message}"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    send(owner, Signal::SIGCONT);
    // The answer that was given up is no answer to the next question.
    let refused = client.request(&Request::Remove { id: LimitId(u64::MAX) }).unwrap_err();
    assert_eq!(refused.kind, Kind::NotFound, "{refused}");
    let mut client = Client::connect(&house.dir).unwrap().unwrap();
    assert_eq!(status(&mut client).len(), 1, "its first client is still there");
}

/// What the owner says to these bytes until it closes the connection.
fn say(house: &House, bytes: &[u8]) -> Vec<Reply> {
    let mut stream = UnixStream::connect(house.dir.join("owner.sock")).unwrap();
    stream.set_read_timeout(Some(3 * SOON)).unwrap();
    // It may be closed before all is written.
    let _ = stream.write_all(bytes);
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

fn nonsense() {
    let house = House::new();
    let target = Sleeper::new();
    let mut observer = house.client();
    set(&mut observer, request(target.pid())).unwrap();
    let hello = serde_json::to_string(&Request::Hello { version: VERSION }).unwrap() + "\n";
    let limit = serde_json::to_string(&Request::Limit(request(target.pid()))).unwrap() + "\n";
    let later = serde_json::to_string(&Request::Hello { version: VERSION + 1 }).unwrap() + "\n";
    let huge = vec![b'x'; 3 << 20];
    let deep = vec![b'['; 100_000];
    let cases: [(&str, Vec<u8>, usize); 8] = [
        ("no request", [b"GET / HTTP/1.1\r\n\r\n".as_slice()].concat(), 1),
        ("no request", b"\n".to_vec(), 1),
        ("no request", b"\xff\xfe\n".to_vec(), 1),
        ("no request", [&deep[..], b"\n"].concat(), 1),
        ("longer than", huge.clone(), 1),
        ("hello first", limit.clone().into_bytes(), 1),
        ("version", later.into_bytes(), 1),
        ("no request", [hello.as_bytes(), limit.as_bytes(), b"{}\n"].concat(), 3),
    ];
    for (expected, bytes, replies) in cases {
        let mut said = say(&house, &bytes);
        assert_eq!(said.len(), replies, "{expected}: {said:?}");
        match said.pop() {
            Some(Reply::Error(error)) => assert!(error.message.contains(expected), "{error}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(status(&mut observer).len(), 1, "{expected}: only the observer's limit is left");
    }
}

fn deaf_client() {
    let house = House::new();
    let target = Sleeper::new();
    let mut observer = house.client();
    set(&mut observer, request(target.pid())).unwrap();
    let mut deaf = UnixStream::connect(house.dir.join("owner.sock")).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let mut line = serde_json::to_vec(&Request::Hello { version: VERSION }).unwrap();
    line.push(b'\n');
    deaf.write_all(&line).unwrap();
    line = serde_json::to_vec(&Request::Limit(request(target.pid()))).unwrap();
    line.push(b'\n');
    deaf.write_all(&line).unwrap();
    eventually(SOON, "its limit is set", || status(&mut observer).len() == 2);
    // Asks on and on, and never listens.
    let ask = b"{\"request\":\"status\"}\n".repeat(1000);
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut taken = 0;
    while status(&mut observer).len() == 2 {
        let asked = Instant::now();
        taken += deaf.write(&ask).unwrap_or(0);
        status(&mut observer);
        slowest = slowest.max(asked.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(60), "it is still there");
        thread::sleep(Duration::from_millis(5));
    }
    // Who waits for a client that does not read waits for as long as it is borne: five seconds.
    assert!(slowest < Duration::from_secs(3), "others waited {slowest:?} for it");
    assert!(taken < 2 << 20, "the owner took in {taken} bytes of questions it can't answer");
    assert_eq!(status(&mut observer).len(), 1);
}

fn pid_namespace() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a PID namespace needs root");
        return;
    }
    let house = House::new();
    let _client = house.client();
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .arg("client")
        .arg(&house.dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("another PID namespace"), "{said}");
}

fn other_site() {
    let house = House::new();
    let target = Sleeper::new();
    let root = fs::canonicalize(std::env::temp_dir()).unwrap();
    let site = Site { cgroup_root: Some(root.join(".")) };
    let mut client = Client::connect_or_start(&house.dir, &site).unwrap();
    let there = LimitRequest { site: Site { cgroup_root: Some(root.clone()) }, ..request(target.pid()) };
    set(&mut client, there).unwrap();
    let error = set(&mut client, request(target.pid())).unwrap_err();
    assert!(error.message.contains(&format!("works at cgroup root {}", root.display())), "{error}");
    assert!(error.message.contains("not at the root of the cgroup2 mount"), "{error}");
}

fn hostile_folder() {
    let house = House::new();
    fs::create_dir(&house.dir).unwrap();
    fs::set_permissions(&house.dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(Client::connect(&house.dir).is_err());
    assert!(Client::connect_or_start(&house.dir, &Site::default()).is_err());
    assert!(sweep(&house.dir).is_err());
    assert!(house.is_empty(), "nothing was made in it");
}

fn lost_files() {
    let house = House::new();
    let target = Sleeper::new();
    let mut client = house.client();
    let limit = set(&mut client, request(target.pid())).unwrap();
    let found = || Client::connect(&house.dir).is_ok_and(|other| other.is_some());
    let removals: [&dyn Fn(); 3] = [
        &|| fs::remove_file(house.dir.join("owner.sock")).unwrap(),
        &|| fs::remove_file(house.dir.join("owner.lock")).unwrap(),
        &|| fs::remove_dir_all(&house.dir).unwrap(),
    ];
    for remove in removals {
        remove();
        eventually(3 * SOON, "it can be found", || found() && house.dir.join("owner.lock").exists());
        let mut other = Client::connect(&house.dir).unwrap().unwrap();
        assert_eq!(status(&mut other)[0].id, limit.id);
    }
    assert_eq!(house.processes("owner").len(), 1);
    // What was made again is in the journal: the janitor finds it.
    send(limit.owner_pid, Signal::SIGKILL);
    eventually(3 * SOON, "only the log is left", || house.files().iter().all(|name| name == "owner.log"));
}

fn lost_folder() {
    let house = House::new();
    let targets = [Sleeper::new(), Sleeper::new()];
    let mut first = house.client();
    set(&mut first, request(targets[0].pid())).unwrap();
    // Too fast for the first owner to notice.
    fs::remove_dir_all(&house.dir).unwrap();
    let mut second = house.client();
    if second.owner_pid() == first.owner_pid() {
        eprintln!("skipped: the first owner was faster");
        return;
    }
    set(&mut second, request(targets[1].pid())).unwrap();
    match event(&mut first, 3 * SOON) {
        Reply::Ended { reason: EndReason::OwnerStopped, .. } => {}
        other => panic!("{other:?}"),
    }
    eventually(SOON, "one owner is left", || house.processes("owner") == [second.owner_pid()]);
    let mut third =
        Client::connect(&house.dir).unwrap().expect("the first one took nothing of the second along");
    assert_eq!(status(&mut third).len(), 1);
    assert!(house.files().contains(&"owner.lock".to_owned()));
}

fn inherited_limits() {
    let house = House::new();
    // The owner is started by a shell's child, whose limits it would inherit.
    let script = "ulimit -S -t 60; ulimit -S -n 64; exec nice -n 5 \"$0\" client \"$1\"";
    let mut client = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(&house.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "limited\n");
    let owner = house.processes("owner")[0];
    let limits = fs::read_to_string(format!("/proc/{owner}/limits")).unwrap();
    for (name, inherited) in [("Max cpu time", "60"), ("Max open files", "64")] {
        let words = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let (soft, hard) = words.trim().split_once(' ').unwrap();
        assert!(soft != inherited && hard.trim().starts_with(soft), "{name}: {words}");
    }
    if nix::unistd::geteuid().is_root() {
        let stat = fs::read_to_string(format!("/proc/{owner}/stat")).unwrap();
        let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap();
        assert_eq!(nice, "-15");
        // The same for its session, where the kernel has such groups.
        if let Ok(group) = fs::read_to_string(format!("/proc/{owner}/autogroup")) {
            assert!(group.trim_end().ends_with(" nice -15"), "{group}");
        }
    } else {
        eprintln!("skipped: raising the priority needs root");
    }
    drop(client.stdin.take());
    client.wait().unwrap();
}
