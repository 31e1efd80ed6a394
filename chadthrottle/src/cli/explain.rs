//! `explain`: which processes and sockets targets mean right now, and why. Limits nothing, asks no owner.

use std::{net::SocketAddr, path::Path};

use super::{
    args::{Explain, Global},
    resolve,
};
use crate::{
    error::{Error, Kind, Result},
    kernel::{
        facts::{self, Facts},
        matching::{Census, Match, Why},
        process,
        socket_table::{Reader, Socket},
    },
    model::{ExplainedProcess, ExplainedSocket, Explanation, Narrowing, Reason, Target, cgroups},
    output::{self, explain as text},
};

/// `chadthrottle explain`. [`Kind::NotFound`] when nothing matches.
pub fn explain(_: &Global, args: &Explain) -> Result<u8> {
    let targets = resolve::targets(&args.targets)?;
    let scope = resolve::scope(&args.scope)?;
    let proc = Path::new(process::PROC);
    let census = Census::take(proc)?;
    for target in &targets {
        if let Target::Container(wanted) = target {
            census.container(wanted)?;
        }
    }
    let narrowing = Narrowing::new(scope, &targets);
    let mut reader = Reader::new(proc);
    let found = census.matches(&targets);
    let describe = |each: &Match| {
        let facts = census.processes.get(&each.pid)?;
        let sockets = reader.of(each.pid);
        // Whose sockets these are is only known if it is still the same process.
        let same = process::lives(proc, facts.pid, facts.start_time).unwrap_or(false);
        same.then(|| describe(facts, each, sockets, &narrowing))
    };
    let processes: Vec<_> = found.iter().filter_map(describe).collect();
    let by_exe = targets.iter().any(|target| matches!(target, Target::Name(_) | Target::Exe(_)));
    let hidden = census.processes.values().filter(|facts| by_exe && facts.is_hidden).count() as u32;
    let explanation = Explanation { targets, scope, processes, hidden };
    if args.json {
        output::json("explain", &explanation)?;
    } else if !explanation.processes.is_empty() {
        output::result(&text::explain(&explanation))?;
        output::message(&text::summary(&explanation));
    }
    if explanation.processes.is_empty() {
        let all: Vec<_> = explanation.targets.iter().map(ToString::to_string).collect();
        let mut message = format!("no process matches {} now", all.join(" "));
        if hidden > 0 {
            message.push_str(
                "; the executables of some processes are hidden from us: with CAP_SYS_PTRACE more may match",
            );
        }
        return Err(Error::new(Kind::NotFound, message));
    }
    Ok(0)
}

fn describe(
    facts: &Facts,
    found: &Match,
    sockets: Option<Vec<Socket>>,
    narrowing: &Narrowing,
) -> ExplainedProcess {
    let unit = facts.cgroups.iter().find_map(|each| match each.controllers.as_str() {
        "" | "name=systemd" => cgroups::unit(&each.path),
        _ => None,
    });
    let container = facts.cgroups.iter().find_map(|each| cgroups::containers(&each.path).pop());
    ExplainedProcess {
        pid: facts.pid,
        start_time: facts.start_time,
        name: String::from_utf8_lossy(&facts.comm).into_owned(),
        exe: facts.exe.as_ref().map(|exe| exe.path.to_string_lossy().into_owned()),
        user: facts::user_name(facts.uid).unwrap_or_else(|| facts.uid.to_string()),
        cgroup: facts.cgroup().map(ToOwned::to_owned),
        unit: unit.map(ToOwned::to_owned),
        container: container.map(|container| container.id),
        why: found
            .why
            .iter()
            .map(|(target, why)| Reason { target: target.clone(), because: because(why) })
            .collect(),
        sockets: sockets
            .map(|sockets| sockets.into_iter().map(|socket| with_verdict(socket, narrowing)).collect()),
    }
}

fn with_verdict(socket: Socket, narrowing: &Narrowing) -> ExplainedSocket {
    let Socket { protocol, local, remote, state } = socket;
    let holds = |remote: SocketAddr| narrowing.holds(remote);
    // A listener's connections, and what an unconnected socket sends, have each their own far end.
    let matches = if narrowing.is_everything() { Some(true) } else { remote.map(holds) };
    ExplainedSocket { protocol, local, remote, state, matches }
}

fn because(why: &Why) -> String {
    match why {
        Why::Itself => "it was named".into(),
        Why::Descendant(root) => format!("it descends from process {root}"),
        Why::Name => "its name is that".into(),
        Why::FileName => "the file name of its executable is that".into(),
        Why::Runs => "it runs that file".into(),
        Why::RanBefore => "it runs an earlier file of that path".into(),
        Why::Cgroup(path) => format!("it is in {path}"),
        Why::Unit(path) => format!("it is in {path}"),
        Why::Container(container) => format!("it is in {} container {}", container.runtime, container.id),
        Why::User(uid) => format!("its real user id is {uid}"),
        Why::Everybody => "every process is meant".into(),
    }
}
