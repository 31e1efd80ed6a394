//! One process or group by itself: who belongs to it, and its connections.

use std::{cmp::Reverse, collections::HashSet};

use ratatui::layout::{Rect, Size};

use super::{
    app::{Screen, processes::Entry},
    layout,
};
use crate::model::{Connection, Grouping, Process, ProcessKind, RowKey, Snapshot};

/// What the detail screen is about. It stays the same when rows come and go.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// The row.
    pub key: RowKey,
    /// What to call it. Not escaped.
    pub label: String,
    /// Whether a process means its descendants, too.
    pub with_descendants: bool,
}

impl Subject {
    /// What a line of the table of processes is about.
    pub fn of(entry: &Entry, grouping: Grouping) -> Self {
        let row = &entry.row;
        let with_descendants = grouping == Grouping::Tree && row.members.len() > 1;
        Self { key: row.key.clone(), label: row.label.clone(), with_descendants }
    }

    /// Indices of its processes; the one that it stands for comes first. Empty when they are gone.
    pub fn members(&self, snapshot: &Snapshot) -> Vec<usize> {
        let processes = &snapshot.processes;
        let mut members: Vec<usize> =
            (0..processes.len()).filter(|index| belongs(&processes[*index], &self.key)).collect();
        if self.with_descendants {
            add_descendants(processes, &mut members);
        }
        members
    }

    /// Its connections, those that move most first.
    pub fn connections<'a>(&self, snapshot: &'a Snapshot) -> Vec<&'a Connection> {
        let members = self.members(snapshot);
        let keys: HashSet<_> = members.iter().map(|index| snapshot.processes[*index].key()).collect();
        let mut connections: Vec<_> =
            snapshot.connections.iter().filter(|connection| keys.contains(&connection.owner)).collect();
        connections.sort_by_cached_key(|connection| {
            let traffic = connection.traffic();
            (Reverse(traffic.rate()), Reverse(traffic.bytes()), connection.id)
        });
        connections
    }
}

fn belongs(process: &Process, key: &RowKey) -> bool {
    if let RowKey::Process(key) = key {
        return process.key() == *key;
    }
    let is = |own: &Option<String>, wanted: &String| own.as_ref() == Some(wanted);
    process.kind == ProcessKind::Process
        && match key {
            RowKey::Process(_) => false,
            RowKey::Container(id) => is(&process.container, id),
            RowKey::Unit(unit) => process.container.is_none() && is(&process.unit, unit),
            RowKey::Cgroup(path) => {
                process.container.is_none() && process.unit.is_none() && process.cgroup == *path
            }
            RowKey::User(user) => process.user == *user,
            RowKey::Name(name) => process.name == *name,
        }
}

fn add_descendants(processes: &[Process], members: &mut Vec<usize>) {
    let mut pids: HashSet<u32> = members.iter().map(|index| processes[*index].pid).collect();
    loop {
        let before = members.len();
        for (index, process) in processes.iter().enumerate() {
            let is_child = process.kind == ProcessKind::Process && pids.contains(&process.parent);
            if is_child && !members.contains(&index) {
                members.push(index);
                pids.insert(process.pid);
            }
        }
        if members.len() == before {
            return;
        }
    }
}

/// Parts of the detail screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// Facts about the process.
    pub facts: Rect,
    /// Its limits.
    pub limits: Rect,
    /// Its rates over time; empty where there is no room.
    pub chart: Rect,
    /// Its connections, with a heading.
    pub connections: Rect,
}

/// Parts of the detail screen in a terminal of that size.
pub fn areas(size: Size) -> Areas {
    let body = layout::areas(size, Screen::Detail).body;
    let chart = match body.height {
        ..15 => 0,
        15..26 => 7,
        _ => 7 + (body.height - 20) / 3,
    };
    let facts = if body.height < 15 { 4 } else { 6 };
    let limits = if body.height < 26 { 2 } else { 3 };
    let mut y = body.y;
    let mut part = |height: u16| {
        let height = height.min(body.bottom().saturating_sub(y));
        let part = Rect::new(body.x, y, body.width, height);
        y += height;
        part
    };
    let (facts, limits, chart) = (part(facts), part(limits), part(chart));
    Areas { facts, limits, chart, connections: part(u16::MAX) }
}

/// How many connections are seen.
pub fn connections_seen(size: Size) -> usize {
    usize::from(areas(size).connections.height.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::{connection, process};

    fn subject(key: RowKey, with_descendants: bool) -> Subject {
        Subject { key, label: String::new(), with_descendants }
    }

    #[test]
    fn who_belongs() {
        let (mut shell, mut curl, other) =
            (process(10, 1, "sh"), process(20, 10, "curl"), process(30, 1, "curl"));
        shell.unit = None;
        curl.container = Some("c0ffee".into());
        let (shell_key, curl_key) = (shell.key(), curl.key());
        let mut fast = connection(&curl, "[::1]:1", Some("[::1]:2"));
        fast.rx_rate = 9;
        let snapshot = Snapshot {
            connections: vec![connection(&shell, "[::1]:3", None), connection(&other, "[::1]:4", None), fast],
            processes: vec![curl, shell, other],
            ..Snapshot::default()
        };
        for (key, with_descendants, expected) in [
            (RowKey::Process(shell_key), false, vec![1]),
            (RowKey::Process(shell_key), true, vec![1, 0]),
            (RowKey::Process(curl_key), true, vec![0]),
            (RowKey::Container("c0ffee".into()), false, vec![0]),
            (RowKey::Unit("curl.service".into()), false, vec![2]),
            (RowKey::Cgroup("/system.slice/sh.service".into()), false, vec![1]),
            (RowKey::User("root".into()), false, vec![0, 1, 2]),
            (RowKey::Name("curl".into()), false, vec![0, 2]),
        ] {
            assert_eq!(subject(key.clone(), with_descendants).members(&snapshot), expected, "{key:?}");
        }
        let shown = subject(RowKey::Process(shell_key), true).connections(&snapshot).len();
        assert_eq!(shown, 2);
        assert_eq!(subject(RowKey::User("root".into()), false).connections(&snapshot)[0].rx_rate, 9);
    }
}
