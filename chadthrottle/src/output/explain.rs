//! What targets mean, as text.

use super::{
    cell, escape, number,
    table::{Align, Table},
};
use crate::model::{ExplainedProcess, ExplainedSocket, Explanation};

/// A row for each process, then its sockets.
pub fn explain(explanation: &Explanation) -> String {
    let mut table = Table::new(&[
        ("PID", Align::Right),
        ("NAME", Align::Left),
        ("USER", Align::Left),
        ("SOCKETS", Align::Right),
        ("WHY", Align::Left),
    ]);
    for process in &explanation.processes {
        let sockets = process.sockets.as_ref();
        for (index, reason) in process.why.iter().enumerate() {
            let first = |text: String| if index == 0 { text } else { String::new() };
            table.row(vec![
                first(process.pid.to_string()),
                first(cell(&process.name)),
                first(cell(&process.user)),
                first(sockets.map_or_else(|| "hidden".to_owned(), |sockets| sockets.len().to_string())),
                format!("{}: {}", cell(&reason.target.to_string()), cell(&reason.because)),
            ]);
        }
    }
    let sockets: String = explanation.processes.iter().map(of_process).collect();
    if sockets.is_empty() { table.render() } else { table.render() + "\n" + &sockets }
}

fn of_process(process: &ExplainedProcess) -> String {
    let mut table = Table::new(&[("", Align::Left); 6]);
    for socket in process.sockets.iter().flatten() {
        table.row(vec![
            format!("  {}", process.pid),
            socket.protocol.to_owned(),
            socket.local.to_string(),
            socket.remote.map_or_else(|| "not connected".to_owned(), |remote| format!("to {remote}")),
            socket.state.unwrap_or_default().to_owned(),
            verdict(socket).to_owned(),
        ]);
    }
    table.render()
}

fn verdict(socket: &ExplainedSocket) -> &'static str {
    match socket.matches {
        Some(true) => "matches",
        Some(false) => "does not match: another remote address or port",
        None => "matches with some remote addresses",
    }
}

/// `2 processes with 5 sockets match`, and what could not be seen.
pub fn summary(explanation: &Explanation) -> String {
    let processes = explanation.processes.len() as u32;
    let sockets = explanation.processes.iter().flat_map(|process| process.sockets.iter().flatten());
    let matching = sockets.filter(|socket| socket.matches != Some(false)).count() as u32;
    let mut text = format!(
        "{} with {} match",
        number::count(processes, "process", "processes"),
        number::count(matching, "socket", "sockets"),
    );
    if explanation.hidden > 0 {
        text.push_str(&format!(
            "; the executable of {} is hidden from us: with CAP_SYS_PTRACE more may match",
            number::count(explanation.hidden, "process", "processes")
        ));
    }
    escape(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Reason, Scope, Target};

    #[test]
    fn hostile_names_stay_in_their_cells() {
        let socket = |remote: Option<&str>, matches| ExplainedSocket {
            protocol: "tcp",
            local: "10.0.0.1:4000".parse().unwrap(),
            remote: remote.map(|remote| remote.parse().unwrap()),
            state: Some("established"),
            matches,
        };
        let hostile = "a\nb\u{202e}\x1b[2J".to_owned() + &"x".repeat(4096);
        let process = ExplainedProcess {
            pid: 7,
            start_time: 1,
            name: hostile.clone(),
            exe: None,
            user: hostile.clone(),
            cgroup: None,
            unit: None,
            container: None,
            why: vec![
                Reason { target: Target::Unit("a\nb.service".into()), because: hostile },
                Reason { target: Target::Pid(7), because: "it was named".into() },
            ],
            sockets: Some(vec![socket(Some("[2001:db8::1]:443"), Some(true)), socket(None, None)]),
        };
        let explanation = Explanation {
            targets: vec![Target::Pid(7)],
            scope: Scope::All,
            processes: vec![process],
            hidden: 3,
        };
        let text = explain(&explanation);
        assert!(!text.contains(['\u{202e}', '\r']) && !text.contains("\x1b[2J"), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines.iter().all(|line| line.len() < 400), "{text}");
        assert!(lines[1].trim_start().starts_with("7  a\\nb\\u{202e}\\u{1b}[2J"), "{text}");
        assert_eq!(lines[2].trim(), "pid:7: it was named");
        assert!(lines[4].contains("to [2001:db8::1]:443  established  matches"), "{text}");
        assert!(lines[5].contains("not connected") && lines[5].ends_with("some remote addresses"), "{text}");
        let line = summary(&explanation);
        assert!(
            line.starts_with("1 process with 2 sockets match; ") && line.contains("3 processes"),
            "{line}"
        );
    }
}
