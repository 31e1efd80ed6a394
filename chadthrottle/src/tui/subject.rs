//! What a row stands for, when it is to be limited.

use crate::{
    model::{
        Connection, LimitReport, Narrowing, Process, ProcessKind, RowKey, Snapshot, Target, text::escape,
    },
    output::number,
};

/// Something that a limit can be set on.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// For the user.
    pub label: String,
    /// For the owner.
    pub targets: Vec<Target>,
}

/// A target of a kind that takes its value as text; `None` where this version does not know the kind.
fn target(kind: &str, value: &str) -> Option<Vec<Target>> {
    format!("{kind}:{value}").parse().ok().map(|target| vec![target])
}

/// What can be limited by way of a row, the narrowest first. Empty: it is no process.
pub fn choices(snapshot: &Snapshot, key: &RowKey, members: &[usize]) -> Vec<Choice> {
    let mut choices = Vec::new();
    let mut offer = |label: String, targets: Option<Vec<Target>>| {
        if let Some(targets) = targets.filter(|targets| !targets.is_empty()) {
            choices.push(Choice { label, targets });
        }
    };
    match key {
        RowKey::Process(key) => {
            let process = snapshot.process(*key).filter(|process| is_limitable(process));
            let Some(process) = process else { return choices };
            offer("this process and what it starts later".into(), Some(vec![Target::Pid(process.pid)]));
            offer("it and all its children".into(), Some(vec![Target::Tree(process.pid)]));
            let name = &process.name;
            offer(format!("everything named {}", escape(name)), target("name", name));
            if let Some(container) = &process.container {
                offer(format!("its container {}", short(container)), target("container", container));
            }
            if let Some(unit) = &process.unit {
                offer(format!("its unit {}", escape(unit)), target("unit", unit));
            }
            offer(format!("everything of user {}", escape(&process.user)), target("user", &process.user));
        }
        RowKey::Container(id) => offer(format!("container {}", short(id)), target("container", id)),
        RowKey::Unit(unit) => offer(format!("unit {}", escape(unit)), target("unit", unit)),
        RowKey::Cgroup(path) => offer(format!("cgroup {}", escape(path)), target("cgroup", path)),
        RowKey::User(user) => offer(format!("everything of user {}", escape(user)), target("user", user)),
        RowKey::Name(name) => offer(format!("everything named {}", escape(name)), target("name", name)),
    }
    if !matches!(key, RowKey::Process(_)) {
        let processes = members.iter().map(|index| &snapshot.processes[*index]);
        let pids: Vec<_> = processes
            .filter(|process| is_limitable(process))
            .map(|process| Target::Pid(process.pid))
            .collect();
        let count = number::count(pids.len() as u32, "process", "processes");
        offer(format!("the {count} it has now, together"), Some(pids));
    }
    choices
}

/// The narrowest that can be limited by way of a connection: what its process has with the same far end. Or why there
/// is nothing.
pub fn connection_choice(snapshot: &Snapshot, connection: &Connection) -> Result<Choice, &'static str> {
    let owner = snapshot.process(connection.owner).filter(|process| is_limitable(process));
    let Some(owner) = owner else { return Err("no process that still runs owns this connection") };
    let Some(remote) = connection.remote else {
        return Err("it has no far end to tell its traffic by; t limits the process");
    };
    let mut targets = vec![Target::Pid(owner.pid)];
    targets.extend(target("remote", &remote.ip().to_string()).into_iter().flatten());
    // What has no ports is limited by its address.
    if remote.port() != 0 {
        targets.extend(target("port", &remote.port().to_string()).into_iter().flatten());
    }
    let alike = |other: &&Connection| other.owner == connection.owner && other.remote == Some(remote);
    let label = match snapshot.connections.iter().filter(alike).count() {
        0 | 1 => format!("its traffic with {remote}"),
        many => format!("its traffic with {remote} ({many} connections)"),
    };
    Ok(Choice { label, targets })
}

/// Whether targets are about some far ends only.
pub fn is_narrow(targets: &[Target]) -> bool {
    !targets.iter().all(Target::names_processes)
}

/// Whether a limit holds a connection of a process that it holds.
pub fn is_about(limit: &LimitReport, connection: &Connection) -> bool {
    let narrowing = Narrowing::new(limit.scope, &limit.targets);
    connection.remote.map_or(narrowing.is_everything(), |remote| narrowing.holds(remote))
}

/// Container ids as their own tools show them.
fn short(id: &str) -> String {
    escape(&id.chars().take(12).collect::<String>())
}

/// Whether it is a process that still runs.
pub fn is_limitable(process: &Process) -> bool {
    process.kind == ProcessKind::Process && process.alive
}

/// Of the limits that hold a row, the one that its keys are about: what was set on the row itself, then what is about
/// all of its traffic, then what was set last.
pub fn limit_of<'a>(snapshot: &'a Snapshot, key: &RowKey, members: &[usize]) -> Option<&'a LimitReport> {
    let holds = |limit: &&LimitReport| {
        members.iter().any(|index| snapshot.processes[*index].limits.contains(&limit.id))
    };
    let choices = choices(snapshot, key, members);
    let direct = |limit: &LimitReport| choices.iter().any(|choice| is_same(&choice.targets, &limit.targets));
    snapshot
        .limits
        .iter()
        .filter(holds)
        .max_by_key(|limit| (direct(limit), !is_narrow(&limit.targets), limit.id))
}

/// Whether two lists name the same targets.
pub fn is_same(one: &[Target], other: &[Target]) -> bool {
    one.len() == other.len() && one.iter().all(|target| other.contains(target))
}
