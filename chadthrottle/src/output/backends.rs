//! What backends there are, and what they need.

use serde::Serialize;

use super::{
    escape,
    table::{Align, Table},
};
use crate::{
    backend::{Priority, Probe, Requirement},
    model::Direction,
    monitor::health::Health,
};

/// A backend as it was found.
#[derive(Debug, Serialize)]
pub struct BackendReport {
    /// As users write it.
    pub name: &'static str,
    /// For auto-selection.
    pub priority: Priority,
    /// What it can limit.
    pub directions: &'static [Direction],
    /// Whether it would hold here.
    pub available: Probe,
    /// Everything it needs; empty unless `doctor` asked.
    pub requirements: Vec<Requirement>,
}

/// The table of `--list-backends`.
pub fn list(backends: &[BackendReport]) -> String {
    let section = |heading: &str, direction: Direction| {
        let mut text = format!("{heading} Backends:\n");
        for backend in backends.iter().filter(|backend| backend.directions.contains(&direction)) {
            text.push_str(&format!("  {:<11} {}\n", backend.name, verdict(backend)));
        }
        text
    };
    format!("{}\n{}", section("Upload", Direction::Upload), section("Download", Direction::Download))
}

/// The text of `doctor`.
pub fn doctor(backends: &[BackendReport], monitor: &Health) -> String {
    let mut text = String::new();
    for backend in backends {
        let directions: Vec<_> = backend.directions.iter().map(ToString::to_string).collect();
        text.push_str(&format!("{} ({}) {}\n", backend.name, directions.join(", "), verdict(backend)));
        text.push_str(&each(&backend.requirements));
        if let (true, Probe::Unavailable { mend: Some(mend), .. }) =
            (backend.requirements.is_empty(), &backend.available)
        {
            text.push_str(&format!("  mend: {}\n", escape(mend)));
        }
    }
    let verdict = match monitor.source {
        Some(source) => format!("✅ counts by {source}"),
        None => "❌ nobody can count".into(),
    };
    text.push_str(&format!("monitor {verdict}\n{}", each(&monitor.requirements)));
    text
}

fn each(requirements: &[Requirement]) -> String {
    let mut table = Table::new(&[("", Align::Left); 4]);
    for requirement in requirements {
        let (sign, reason, mend) = state(&requirement.state);
        let reason = if reason.is_empty() { escape(&requirement.found) } else { escape(reason) };
        table.row(vec![String::new(), sign.to_owned(), escape(&requirement.name), reason]);
        if let Some(mend) = mend {
            table.row(vec![String::new(), String::new(), String::new(), format!("mend: {}", escape(mend))]);
        }
    }
    table.render()
}

/// `[priority: Best] ❌ unavailable: reason`.
fn verdict(backend: &BackendReport) -> String {
    let (sign, reason, _) = state(&backend.available);
    let word = match backend.available {
        Probe::Ready => return format!("[priority: {:?}] {sign} available", backend.priority),
        Probe::Unavailable { .. } => "unavailable",
        Probe::Unknown { .. } => "unknown",
    };
    format!("[priority: {:?}] {sign} {word}: {}", backend.priority, escape(reason))
}

/// Sign, reason and mend.
fn state(probe: &Probe) -> (&'static str, &str, Option<&str>) {
    match probe {
        Probe::Ready => ("✅", "", None),
        Probe::Unavailable { reason, mend } => ("❌", reason, mend.as_deref()),
        Probe::Unknown { reason } => ("❓", reason, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Source;

    fn backend(name: &'static str, available: Probe) -> BackendReport {
        BackendReport {
            name,
            priority: Priority::Best,
            directions: &Direction::ALL,
            available,
            requirements: Vec::new(),
        }
    }

    #[test]
    fn the_form_of_the_contract() {
        let unavailable = Probe::Unavailable { reason: "kernel has no act_police".into(), mend: None };
        let text = list(&[
            backend("ebpf", Probe::Ready),
            backend("tc_police", unavailable),
            backend("other", Probe::Unknown { reason: "not\nallowed".into() }),
        ]);
        let one = "  ebpf        [priority: Best] ✅ available\n  \
                   tc_police   [priority: Best] ❌ unavailable: kernel has no act_police\n  \
                   other       [priority: Best] ❓ unknown: not\\nallowed\n";
        assert_eq!(text, format!("Upload Backends:\n{one}\nDownload Backends:\n{one}"));
    }

    #[test]
    fn every_requirement_with_its_mend() {
        let requirement =
            |name: &str, found: &str, state| Requirement { name: name.into(), found: found.into(), state };
        let mut ebpf = backend("ebpf", Probe::Ready);
        ebpf.requirements = vec![
            requirement("kernel", "6.18", Probe::Ready),
            requirement(
                "CAP_BPF",
                "",
                Probe::Unavailable { reason: "missing".into(), mend: Some("sudo chadthrottle".into()) },
            ),
            requirement("BTF", "", Probe::Unknown { reason: "unreadable".into() }),
        ];
        let monitor = Health {
            source: Some(Source::SockDiag),
            requirements: vec![requirement("by eBPF", "", Probe::Unknown { reason: "who knows".into() })],
        };
        let text = doctor(&[ebpf], &monitor);
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "ebpf (upload, download) [priority: Best] ✅ available",
                "✅ kernel 6.18",
                "❌ CAP_BPF missing",
                "mend: sudo chadthrottle",
                "❓ BTF unreadable",
                "monitor ✅ counts by sock_diag",
                "❓ by eBPF who knows",
            ]
        );
    }
}
