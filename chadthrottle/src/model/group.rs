//! Rows out of a snapshot: processes by themselves, or put together, in an order.
//!
//! The steps are [`Filter::select`](super::Filter::select), [`group`], [`sort`]; all are pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

pub use super::order::{row_limit, sort};
use super::{Process, ProcessKey, ProcessKind, Snapshot, Traffic, text::quote};
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

pub(super) fn no_such(kind: &str, text: &str, names: &[&str]) -> Error {
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

#[cfg(test)]
mod tests;
