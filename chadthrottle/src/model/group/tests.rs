use super::*;
use crate::model::{
    Direction, LimitId, SortBy,
    snapshot::tests::{limit, process},
};

/// sshd(10) -> bash(20, idle) -> curl(30), wget(40); nginx(50), nginx(60) of one unit; kernel.
fn snapshot() -> Snapshot {
    let mut bash = process(20, 10, "bash");
    (bash.rx_bytes, bash.rx_rate, bash.connections) = (0, 0, 0);
    let mut curl = process(30, 20, "curl");
    curl.user = "alice".into();
    curl.unit = None;
    curl.limits = vec![LimitId(1)];
    let mut wget = process(40, 20, "wget");
    wget.container = Some("c0ffee".into());
    wget.user = "alice".into();
    wget.alive = false;
    let (first, mut second) = (process(50, 1, "nginx"), process(60, 1, "nginx"));
    second.user = "www".into();
    Snapshot {
        processes: vec![
            process(10, 1, "sshd"),
            bash,
            curl,
            wget,
            first,
            second,
            Process { kind: ProcessKind::Kernel, name: "kernel".into(), rx_bytes: 5, ..Process::default() },
        ],
        limits: vec![limit(1, Some(7000), None)],
        ..Snapshot::default()
    }
}

fn all(snapshot: &Snapshot) -> Vec<usize> {
    (0..snapshot.processes.len()).collect()
}

/// `label=received bytes`, with what is below in parentheses.
fn shape(rows: &[Row]) -> String {
    let one = |row: &Row| match shape(&row.children) {
        below if below.is_empty() => format!("{}={}", row.label, row.traffic.rx_bytes),
        below => format!("{}={}({below})", row.label, row.traffic.rx_bytes),
    };
    rows.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn shown(snapshot: &Snapshot, chosen: &[usize], grouping: Grouping) -> String {
    shape(&group(snapshot, chosen, grouping))
}

#[test]
fn sums_of_each_kind() {
    let snapshot = snapshot();
    let all = all(&snapshot);
    for (grouping, expected) in [
        (Grouping::Process, "sshd=10 curl=30 wget=40 nginx=50 nginx=60 kernel=5"),
        (Grouping::Tree, "kernel=5 sshd=80(bash=70(curl=30 wget=40)) nginx=50 nginx=60"),
        (
            Grouping::Unit,
            "kernel=5 c0ffee=40 nginx.service=110(nginx=50 nginx=60) sshd.service=10 \
             /system.slice/curl.service=30",
        ),
        (Grouping::User, "kernel=5 alice=70(curl=30 wget=40) root=60(sshd=10 nginx=50) www=60"),
        (Grouping::Name, "kernel=5 curl=30 nginx=110(nginx=50 nginx=60) sshd=10 wget=40"),
    ] {
        let mut rows = group(&snapshot, &all, grouping);
        // Trees do not say in which order children come.
        if grouping == Grouping::Tree {
            sort(&mut rows, &snapshot, SortBy::Pid, false);
        }
        assert_eq!(shape(&rows), expected, "{grouping}");
    }
}

#[test]
fn a_tree_shows_who_is_above_the_chosen_but_counts_only_those() {
    let snapshot = snapshot();
    assert_eq!(shown(&snapshot, &[3], Grouping::Tree), "sshd=40(bash=40(wget=40))");
    let rows = group(&snapshot, &[3], Grouping::Tree);
    assert_eq!(rows[0].connections, 1);
    assert!(!rows[0].limited && rows[0].alive);
    assert!(shown(&snapshot, &[1], Grouping::Tree).is_empty());
}

#[test]
fn a_parent_is_not_younger_than_its_child_and_circles_end() {
    let mut snapshot = snapshot();
    // The id 20 was used again; the young one is nobody's parent here.
    let mut again = process(20, 1, "again");
    again.start_time = 100_000;
    snapshot.processes.push(again);
    let all = all(&snapshot);
    assert!(shown(&snapshot, &all, Grouping::Tree).contains("bash=70("));
    for (one, other) in [(0, 1), (1, 0)] {
        snapshot.processes[one].parent = snapshot.processes[other].pid;
        snapshot.processes[one].start_time = 5;
    }
    let rows = group(&snapshot, &all, Grouping::Tree);
    assert!(rows.iter().any(|row| row.label == "nginx"));
}

#[test]
fn orders() {
    let snapshot = snapshot();
    let names = |by, reversed| {
        let mut rows = group(&snapshot, &all(&snapshot), Grouping::Process);
        sort(&mut rows, &snapshot, by, reversed);
        rows.iter().map(|row| row.label.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(SortBy::Rate, false), "nginx nginx wget curl sshd kernel");
    assert_eq!(names(SortBy::Rate, true), "kernel sshd curl wget nginx nginx");
    assert_eq!(names(SortBy::Name, false), "curl kernel nginx nginx sshd wget");
    assert_eq!(names(SortBy::Pid, true), "nginx nginx wget curl sshd kernel");
    assert!(names(SortBy::Limited, false).starts_with("curl "));
    assert!(names(SortBy::DownLimit, false).starts_with("curl "));
    assert!(names(SortBy::User, false).ends_with(" nginx"));
    let mut rows = group(&snapshot, &all(&snapshot), Grouping::User);
    sort(&mut rows, &snapshot, SortBy::Received, false);
    assert_eq!(shape(&rows), "alice=70(wget=40 curl=30) root=60(nginx=50 sshd=10) www=60 kernel=5");
    assert_eq!(row_limit(&rows[0], &snapshot, Direction::Download), Some(7000));
    assert_eq!(row_limit(&rows[0], &snapshot, Direction::Upload), None);
}

#[test]
fn names_are_read_back() {
    for grouping in Grouping::ALL {
        assert_eq!(grouping.to_string().parse::<Grouping>().unwrap(), grouping);
    }
    for by in SortBy::ALL {
        assert_eq!(by.to_string().parse::<SortBy>().unwrap(), by);
    }
    assert_eq!(Grouping::Name.next(), Grouping::Process);
    let error = "x".parse::<SortBy>().unwrap_err();
    assert!(error.message.contains("'x' is no order; there are rate, down,"), "{error}");
}
