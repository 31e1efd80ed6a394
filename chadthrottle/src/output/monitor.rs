//! What processes move, as text and as JSON.

use std::{
    collections::{HashMap, HashSet},
    time::SystemTime,
};

use serde::Serialize;
use serde_json::Value;

use super::{
    escape, number,
    table::{Align, Table},
};
use crate::{
    error::{Error, Result},
    model::{
        Connection, Direction, Filter, Grouping, Interface, LimitReport, Notice, Process, ProcessKey,
        ProcessKind, Row, RowKey, Snapshot, SortBy, Source,
        group::{group, row_limit, sort},
        snapshot::rfc3339,
    },
};

/// Names are cut to this many characters in tables.
const WIDEST_NAME: usize = 40;

/// Which rows are shown, and how.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Which processes.
    pub filter: Filter,
    /// What makes a row.
    pub grouping: Grouping,
    /// Their order.
    pub sort: SortBy,
    /// Against it.
    pub reverse: bool,
    /// At most so many.
    pub top: Option<usize>,
    /// With each connection by itself.
    pub connections: bool,
}

impl View {
    /// The rows of a snapshot; `wanted` says whether one is worth a line.
    fn rows(&self, snapshot: &Snapshot, wanted: impl Fn(&Row) -> bool) -> Vec<Row> {
        let mut rows = group(snapshot, &self.filter.select(snapshot), self.grouping);
        rows.retain(wanted);
        sort(&mut rows, snapshot, self.sort, self.reverse);
        rows.truncate(self.top.unwrap_or(usize::MAX));
        rows
    }
}

/// A tick of JSON.
#[derive(Serialize)]
pub struct Tick<'a> {
    #[serde(with = "rfc3339")]
    time: SystemTime,
    interval: f64,
    elapsed: f64,
    source: Source,
    processes: Vec<&'a Process>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Group>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Vec<&'a Connection>>,
    limits: &'a [LimitReport],
    interfaces: &'a [Interface],
    notices: &'a [Notice],
}

/// A row of several processes.
#[derive(Serialize)]
struct Group {
    kind: &'static str,
    name: String,
    pids: Vec<u32>,
    alive: bool,
    rx_bytes: u64,
    tx_bytes: u64,
    rx_rate: u64,
    tx_rate: u64,
    connections: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    children: Vec<Self>,
}

impl Group {
    fn of(row: &Row, snapshot: &Snapshot) -> Self {
        Self {
            kind: match row.key {
                RowKey::Process(ProcessKey { kind: ProcessKind::Process, .. }) => "process",
                RowKey::Process(ProcessKey { kind: ProcessKind::Kernel, .. }) => "kernel",
                RowKey::Process(ProcessKey { kind: ProcessKind::Other, .. }) => "other",
                RowKey::Container(_) => "container",
                RowKey::Unit(_) => "unit",
                RowKey::Cgroup(_) => "cgroup",
                RowKey::User(_) => "user",
                RowKey::Name(_) => "name",
            },
            name: row.label.clone(),
            pids: row.members.iter().map(|index| snapshot.processes[*index].pid).collect(),
            alive: row.alive,
            rx_bytes: row.traffic.rx_bytes,
            tx_bytes: row.traffic.tx_bytes,
            rx_rate: row.traffic.rx_rate,
            tx_rate: row.traffic.tx_rate,
            connections: row.connections,
            children: row.children.iter().map(|child| Self::of(child, snapshot)).collect(),
        }
    }
}

/// A snapshot as a line of JSON has it.
pub fn tick<'a>(snapshot: &'a Snapshot, view: &View) -> Tick<'a> {
    let rows = view.rows(snapshot, |_| true);
    let mut processes = Vec::new();
    let mut indices: Vec<usize> = rows.iter().flat_map(|row| row.members.iter().copied()).collect();
    if view.grouping == Grouping::Process {
        indices.truncate(rows.len());
    } else {
        indices.sort_unstable();
        indices.dedup();
    }
    processes.extend(indices.iter().map(|index| &snapshot.processes[*index]));
    // There may be thousands of connections.
    let owners: HashSet<ProcessKey> = processes.iter().map(|process| process.key()).collect();
    let shown = |connection: &&Connection| {
        view.filter.matches_connection(connection) && owners.contains(&connection.owner)
    };
    Tick {
        time: snapshot.time,
        interval: snapshot.interval,
        elapsed: snapshot.elapsed,
        source: snapshot.source,
        groups: (view.grouping != Grouping::Process)
            .then(|| rows.iter().map(|row| Group::of(row, snapshot)).collect()),
        connections: view.connections.then(|| snapshot.connections.iter().filter(shown).collect()),
        processes,
        limits: &snapshot.limits,
        interfaces: &snapshot.interfaces,
        notices: &snapshot.notices,
    }
}

/// A snapshot as a table: a line for each row that moved something in the interval.
pub fn table(snapshot: &Snapshot, view: &View) -> String {
    let rows = view.rows(snapshot, |row| row.traffic.rate() > 0);
    let mut table = Table::new(&[
        ("TIME", Align::Left),
        (if is_of_processes(view.grouping) { "PID" } else { "PROCESSES" }, Align::Right),
        ("NAME", Align::Left),
        ("USER", Align::Left),
        ("DOWN", Align::Right),
        ("UP", Align::Right),
        ("RECEIVED", Align::Right),
        ("SENT", Align::Right),
        ("CONNECTIONS", Align::Right),
        ("DOWN LIMIT", Align::Right),
        ("UP LIMIT", Align::Right),
    ]);
    let time = humantime::format_rfc3339_seconds(snapshot.time).to_string();
    let time = time.split_once('T').map_or(time.as_str(), |(_, time)| time).to_owned();
    for row in &rows {
        add_row(&mut table, row, 0, snapshot, view, &time);
    }
    let all = snapshot.interface_traffic();
    let limit = |_| "-".to_owned();
    table.row(vec![
        time.clone(),
        "-".into(),
        "(interfaces)".into(),
        "-".into(),
        number::byte_rate(all.rx_rate),
        number::byte_rate(all.tx_rate),
        number::bytes(all.rx_bytes),
        number::bytes(all.tx_bytes),
        "-".into(),
        limit(Direction::Download),
        limit(Direction::Upload),
    ]);
    table.render() + "\n"
}

fn is_of_processes(grouping: Grouping) -> bool {
    matches!(grouping, Grouping::Process | Grouping::Tree)
}

fn add_row(table: &mut Table, row: &Row, depth: usize, snapshot: &Snapshot, view: &View, time: &str) {
    let first = row.first(snapshot);
    let limit =
        |direction| row_limit(row, snapshot, direction).map_or_else(|| "-".to_owned(), number::byte_rate);
    let of_processes = is_of_processes(view.grouping);
    let users: std::collections::BTreeSet<&str> =
        row.members.iter().map(|index| snapshot.processes[*index].user.as_str()).collect();
    let ended = if row.alive { "" } else { " (ended)" };
    table.row(vec![
        time.to_owned(),
        match (of_processes, first.kind) {
            (true, ProcessKind::Process) => first.pid.to_string(),
            (true, _) => "-".into(),
            (false, _) => row.members.len().to_string(),
        },
        format!("{}{}{ended}", "  ".repeat(depth), short_name(&row.label)),
        if of_processes || users.len() == 1 { escape(&first.user) } else { format!("{} users", users.len()) },
        number::byte_rate(row.traffic.rx_rate),
        number::byte_rate(row.traffic.tx_rate),
        number::bytes(row.traffic.rx_bytes),
        number::bytes(row.traffic.tx_bytes),
        row.connections.to_string(),
        limit(Direction::Download),
        limit(Direction::Upload),
    ]);
    if view.grouping == Grouping::Tree {
        for child in row.children.iter().filter(|child| child.traffic.rate() > 0) {
            add_row(table, child, depth + 1, snapshot, view, time);
        }
    }
}

fn short_name(name: &str) -> String {
    match name.char_indices().nth(WIDEST_NAME) {
        // Of a path the end tells more.
        Some(_) if name.starts_with('/') => {
            let from = name.char_indices().rev().nth(WIDEST_NAME - 2).map_or(0, |(at, _)| at);
            format!("…{}", escape(&name[from..]))
        }
        Some((end, _)) => format!("{}…", escape(&name[..end])),
        None => escape(name),
    }
}

/// Adds up what was seen, for the account at the end.
#[derive(Default)]
pub struct Account {
    last: Option<Snapshot>,
    processes: HashMap<ProcessKey, Process>,
}

impl Account {
    /// Takes a snapshot in.
    pub fn add(&mut self, snapshot: &Snapshot, filter: &Filter) {
        // What was chosen once stays, and goes on to be written down.
        for index in filter.select(snapshot) {
            let process = &snapshot.processes[index];
            self.processes.insert(process.key(), process.clone());
        }
        for process in &snapshot.processes {
            if let Some(known) = self.processes.get_mut(&process.key()) {
                *known = process.clone();
            }
        }
        let mut last = snapshot.clone();
        (last.processes, last.connections) = (Vec::new(), Vec::new());
        self.last = Some(last);
    }

    /// Everything that was seen, as one snapshot; its rates are those over the whole time.
    fn close(self) -> Snapshot {
        let mut whole = self.last.unwrap_or_default();
        let seconds = whole.elapsed;
        let rate = |bytes: u64| if seconds > 0.0 { (bytes as f64 / seconds).round() as u64 } else { 0 };
        whole.interval = seconds;
        whole.processes = self.processes.into_values().collect();
        for process in &mut whole.processes {
            (process.rx_rate, process.tx_rate) = (rate(process.rx_bytes), rate(process.tx_bytes));
        }
        whole.processes.sort_by_key(Process::key);
        whole
    }

    /// As a document of JSON: every process seen, without rates.
    pub fn json(self, view: &View) -> Result<Value> {
        let whole = self.close();
        // Chosen they have been already, each in its time.
        let view = View { filter: Filter::default(), connections: false, ..view.clone() };
        let failed = |cause| Error::failed(format!("write the summary as JSON: {cause}"));
        let mut document = serde_json::to_value(tick(&whole, &view)).map_err(failed)?;
        for list in ["processes", "groups", "interfaces"] {
            strip_rates(document.get_mut(list));
        }
        Ok(document)
    }

    /// As a table.
    pub fn table(self, view: &View) -> String {
        let whole = self.close();
        let view = View { filter: Filter::default(), ..view.clone() };
        let time = number::span(whole.elapsed);
        format!("In {time}, with the averages of that time:\n{}", table(&whole, &view))
    }
}

fn strip_rates(list: Option<&mut Value>) {
    for object in list.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        object.retain(|key, _| !matches!(key.as_str(), "rx_rate" | "tx_rate"));
        strip_rates(object.get_mut("children"));
    }
}
