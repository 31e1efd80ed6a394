//! Rows out of a snapshot: processes by themselves, or put together, in an order.
//!
//! The steps are [`Filter::select`](super::Filter::select), [`group`], [`sort`]; all are pure.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{Direction, Process, ProcessKey, ProcessKind, Snapshot, Traffic, text::quote};
use crate::error::{Error, Kind, Result};

/// What makes a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// Each process.
    #[default]
    Process,
    /// Each process with its descendants, as a tree.
    Tree,
    /// Each container, systemd unit, or cgroup that is neither.
    Unit,
    /// Each user.
    User,
    /// All processes of one name.
    Name,
}

impl Grouping {
    /// In the order in which a key goes through them.
    pub const ALL: [Self; 5] = [Self::Process, Self::Tree, Self::Unit, Self::User, Self::Name];

    /// The one after this; after the last comes the first.
    pub fn next(self) -> Self {
        let at = Self::ALL.iter().position(|grouping| *grouping == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Tree => "tree",
            Self::Unit => "unit",
            Self::User => "user",
            Self::Name => "name",
        }
    }
}

impl fmt::Display for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Grouping {
    type Err = Error;

    /// The names that [`fmt::Display`] gives. Errors are [`Kind::Usage`] and list them.
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|grouping| grouping.name() == text)
            .ok_or_else(|| no_such("grouping", text, &Self::ALL.map(Self::name)))
    }
}

fn no_such(kind: &str, text: &str, names: &[&str]) -> Error {
    Error::new(Kind::Usage, format!("{} is no {kind}; there are {}", quote(text), names.join(", ")))
}

/// Names a row, the same one in every snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowKey {
    /// A process, or the row `kernel` or `other`; in a tree with its descendants.
    Process(ProcessKey),
    /// A container, by its id.
    Container(String),
    /// A systemd unit, by its name.
    Unit(String),
    /// A cgroup that is neither, by its path.
    Cgroup(String),
    /// A user, by name.
    User(String),
    /// Processes of one name.
    Name(String),
}

/// A line of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The same one in every snapshot.
    pub key: RowKey,
    /// What to call it. Not escaped.
    pub label: String,
    /// Indices into [`Snapshot::processes`] of all that it sums up; the one that it stands for comes first.
    pub members: Vec<usize>,
    /// Sum over the members.
    pub traffic: Traffic,
    /// Open sockets of the members.
    pub connections: u32,
    /// Whether any member lives.
    pub alive: bool,
    /// Whether a limit holds any member.
    pub limited: bool,
    /// In a tree the processes below; else the members, when there are several.
    pub children: Vec<Row>,
}

impl Row {
    fn of(snapshot: &Snapshot, key: RowKey, label: String, members: Vec<usize>, children: Vec<Row>) -> Self {
        let mut row = Self {
            key,
            label,
            members,
            traffic: Traffic::default(),
            connections: 0,
            alive: false,
            limited: false,
            children,
        };
        for process in row.members.iter().map(|index| &snapshot.processes[*index]) {
            row.traffic += process.traffic();
            row.connections = row.connections.saturating_add(process.connections);
            row.alive |= process.alive;
            row.limited |= !process.limits.is_empty();
        }
        row
    }

    fn process(snapshot: &Snapshot, index: usize) -> Self {
        let process = &snapshot.processes[index];
        let key = RowKey::Process(process.key());
        Self::of(snapshot, key, process.name.clone(), vec![index], Vec::new())
    }

    /// The process that the row stands for, or the first of those that it sums up.
    pub fn first<'a>(&self, snapshot: &'a Snapshot) -> &'a Process {
        &snapshot.processes[self.members[0]]
    }
}

/// Rows of the chosen processes, which are indices into [`Snapshot::processes`].
///
/// Processes that have nothing to show ([`Process::is_idle`]) make no rows, except in a tree, where they
/// hold together what is below them. The first process of the machine is left out of trees: it is above all.
pub fn group(snapshot: &Snapshot, chosen: &[usize], grouping: Grouping) -> Vec<Row> {
    match grouping {
        Grouping::Tree => trees(snapshot, chosen),
        Grouping::Process => busy(snapshot, chosen).map(|index| Row::process(snapshot, index)).collect(),
        _ => sums(snapshot, chosen, grouping),
    }
}

fn busy<'a>(snapshot: &'a Snapshot, chosen: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    chosen.iter().copied().filter(|index| !snapshot.processes[*index].is_idle())
}

/// Key and label of what a process belongs to.
fn affiliation(process: &Process, grouping: Grouping) -> (RowKey, String) {
    if process.kind != ProcessKind::Process {
        return (RowKey::Process(process.key()), process.name.clone());
    }
    match grouping {
        Grouping::User => (RowKey::User(process.user.clone()), process.user.clone()),
        Grouping::Name => (RowKey::Name(process.name.clone()), process.name.clone()),
        _ => match (&process.container, &process.unit) {
            (Some(container), _) => (RowKey::Container(container.clone()), container.clone()),
            (None, Some(unit)) => (RowKey::Unit(unit.clone()), unit.clone()),
            (None, None) => (RowKey::Cgroup(process.cgroup.clone()), process.cgroup.clone()),
        },
    }
}

fn sums(snapshot: &Snapshot, chosen: &[usize], grouping: Grouping) -> Vec<Row> {
    let mut groups = BTreeMap::<RowKey, (String, Vec<usize>)>::new();
    for index in busy(snapshot, chosen) {
        let (key, label) = affiliation(&snapshot.processes[index], grouping);
        groups.entry(key).or_insert_with(|| (label, Vec::new())).1.push(index);
    }
    let row = |(key, (label, members)): (RowKey, (String, Vec<usize>))| {
        let children = match members.len() {
            1 => Vec::new(),
            _ => members.iter().map(|index| Row::process(snapshot, *index)).collect(),
        };
        Row::of(snapshot, key, label, members, children)
    };
    groups.into_iter().map(row).collect()
}

/// The first process of the machine, or of its container.
const INIT: u32 = 1;

fn trees(snapshot: &Snapshot, chosen: &[usize]) -> Vec<Row> {
    let processes = &snapshot.processes;
    // Ids are used again: of those that had one, the last that is no younger than the child was its parent.
    let mut by_pid = HashMap::<u32, Vec<usize>>::new();
    for (index, process) in processes.iter().enumerate() {
        if process.kind == ProcessKind::Process {
            by_pid.entry(process.pid).or_default().push(index);
        }
    }
    let parent_of = |index: usize| -> Option<usize> {
        let child = &processes[index];
        if child.kind != ProcessKind::Process || child.parent == INIT || child.parent == child.pid {
            return None;
        }
        let candidates = by_pid.get(&child.parent)?.iter().copied();
        candidates
            .filter(|parent| processes[*parent].start_time <= child.start_time)
            .max_by_key(|parent| processes[*parent].start_time)
    };
    // Who is shown: the chosen, and whoever is above them.
    let mut shown = HashSet::new();
    let mut children = HashMap::<usize, Vec<usize>>::new();
    let mut roots = Vec::new();
    for mut index in busy(snapshot, chosen) {
        while shown.insert(index) {
            match parent_of(index) {
                Some(parent) => {
                    children.entry(parent).or_default().push(index);
                    index = parent;
                }
                None => {
                    roots.push(index);
                    break;
                }
            }
        }
    }
    let chosen: HashSet<usize> = chosen.iter().copied().collect();
    let mut rows: Vec<Row> = roots.iter().map(|root| tree(snapshot, *root, &children, &chosen)).collect();
    rows.sort_by(|one, other| one.key.cmp(&other.key));
    rows
}

fn tree(
    snapshot: &Snapshot,
    index: usize,
    children: &HashMap<usize, Vec<usize>>,
    chosen: &HashSet<usize>,
) -> Row {
    let below: Vec<Row> = children
        .get(&index)
        .into_iter()
        .flatten()
        .map(|child| tree(snapshot, *child, children, chosen))
        .collect();
    let process = &snapshot.processes[index];
    // Who is only here because of those below adds nothing of its own.
    let mut members = vec![index];
    members.extend(below.iter().flat_map(|row| row.members.iter().copied()));
    let key = RowKey::Process(process.key());
    let mut row = Row::of(snapshot, key, process.name.clone(), members, below);
    if !chosen.contains(&index) {
        row.traffic = Traffic::default();
        row.children.iter().for_each(|child| row.traffic += child.traffic);
        row.connections = row.children.iter().map(|child| child.connections).sum();
        row.limited = row.children.iter().any(|child| child.limited);
    }
    row
}

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SortBy {
    /// Both rates together.
    #[default]
    Rate,
    /// Bytes/s received.
    Down,
    /// Bytes/s sent.
    Up,
    /// Bytes in both directions.
    Total,
    /// Bytes received.
    Received,
    /// Bytes sent.
    Sent,
    /// Open sockets.
    Connections,
    /// Process id.
    Pid,
    /// Label.
    Name,
    /// User.
    User,
    /// Whether it is limited.
    Limited,
    /// The lowest limit on download; those without come after all others.
    DownLimit,
    /// The lowest limit on upload; those without come after all others.
    UpLimit,
}

impl SortBy {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Rate,
        Self::Down,
        Self::Up,
        Self::Total,
        Self::Received,
        Self::Sent,
        Self::Connections,
        Self::Pid,
        Self::Name,
        Self::User,
        Self::Limited,
        Self::DownLimit,
        Self::UpLimit,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Down => "down",
            Self::Up => "up",
            Self::Total => "total",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::Connections => "connections",
            Self::Pid => "pid",
            Self::Name => "name",
            Self::User => "user",
            Self::Limited => "limited",
            Self::DownLimit => "down-limit",
            Self::UpLimit => "up-limit",
        }
    }

    /// Whether the largest come first unless asked otherwise: so it is with numbers that say how much.
    pub fn is_descending(self) -> bool {
        !matches!(self, Self::Pid | Self::Name | Self::User | Self::DownLimit | Self::UpLimit)
    }
}

impl fmt::Display for SortBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SortBy {
    type Err = Error;

    /// The names that [`fmt::Display`] gives. Errors are [`Kind::Usage`] and list them.
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|by| by.name() == text)
            .ok_or_else(|| no_such("order", text, &Self::ALL.map(Self::name)))
    }
}

/// Orders rows and all that is below them; equal ones by what moves more, then by their keys, so that the order
/// is the same in every snapshot. `reversed`: against [`SortBy::is_descending`].
pub fn sort(rows: &mut [Row], snapshot: &Snapshot, by: SortBy, reversed: bool) {
    rows.sort_by(|one, other| {
        let order = compare(one, other, snapshot, by);
        let order = if by.is_descending() != reversed { order.reverse() } else { order };
        order
            .then_with(|| other.traffic.bytes().cmp(&one.traffic.bytes()))
            .then_with(|| one.key.cmp(&other.key))
    });
    for row in rows {
        sort(&mut row.children, snapshot, by, reversed);
    }
}

fn compare(one: &Row, other: &Row, snapshot: &Snapshot, by: SortBy) -> Ordering {
    let number = |of: fn(&Row) -> u64| of(one).cmp(&of(other));
    let limit = |row: &Row, direction| row_limit(row, snapshot, direction).unwrap_or(u64::MAX);
    match by {
        SortBy::Rate => number(|row| row.traffic.rate()),
        SortBy::Down => number(|row| row.traffic.rx_rate),
        SortBy::Up => number(|row| row.traffic.tx_rate),
        SortBy::Total => number(|row| row.traffic.bytes()),
        SortBy::Received => number(|row| row.traffic.rx_bytes),
        SortBy::Sent => number(|row| row.traffic.tx_bytes),
        SortBy::Connections => number(|row| row.connections.into()),
        SortBy::Limited => number(|row| row.limited.into()),
        SortBy::Pid => one.first(snapshot).pid.cmp(&other.first(snapshot).pid),
        SortBy::Name => one.label.to_lowercase().cmp(&other.label.to_lowercase()),
        SortBy::User => one.first(snapshot).user.cmp(&other.first(snapshot).user),
        SortBy::DownLimit => limit(one, Direction::Download).cmp(&limit(other, Direction::Download)),
        SortBy::UpLimit => limit(one, Direction::Upload).cmp(&limit(other, Direction::Upload)),
    }
}

/// The lowest limit that holds any member of a row in one direction, bytes/s.
pub fn row_limit(row: &Row, snapshot: &Snapshot, direction: Direction) -> Option<u64> {
    let members = row.members.iter().filter_map(|index| {
        snapshot.rate_limit(&snapshot.processes[*index], direction).map(|rate| rate.bytes_per_second())
    });
    members.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        LimitId,
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
                Process {
                    kind: ProcessKind::Kernel,
                    name: "kernel".into(),
                    rx_bytes: 5,
                    ..Process::default()
                },
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
}
