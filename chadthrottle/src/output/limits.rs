//! Limits in force, as text.

use super::{
    WARNING, escape, number,
    table::{Align, Table},
};
use crate::model::{DirectionReport, LimitReport, Rung, StatusReport};

/// `pid:1234 (curl)`.
pub fn subject(limit: &LimitReport) -> String {
    match limit.name.as_str() {
        "" => limit.subject(),
        name => format!("{} ({})", limit.subject(), escape(name)),
    }
}

/// `limited pid:1234 (curl): download 1 MB/s (8 Mbit/s), upload unlimited; ebpf; 3 sockets of 1 process`.
pub fn limited(limit: &LimitReport) -> String {
    let directions = &limit.directions;
    let rate = |name: &str, direction: &Option<_>| match direction {
        Some(crate::model::DirectionReport { rate, .. }) => format!("{name} {rate}"),
        None => format!("{name} unlimited"),
    };
    let backends = match (&directions.download, &directions.upload) {
        (Some(download), Some(upload)) if download.backend != upload.backend => {
            format!("download by {}, upload by {}", escape(&download.backend), escape(&upload.backend))
        }
        (Some(direction), _) | (None, Some(direction)) => escape(&direction.backend),
        (None, None) => "no backend".to_owned(),
    };
    format!(
        "limited {}: {}, {}; {backends}; {} of {}",
        subject(limit),
        rate("download", &directions.download),
        rate("upload", &directions.upload),
        number::count(limit.sockets, "socket", "sockets"),
        number::count(limit.processes, "process", "processes"),
    )
}

/// A row for each direction of each limit, then a line for each way in which traffic got past one.
pub fn status(report: &StatusReport) -> String {
    let mut table = Table::new(&[
        ("TARGET", Align::Left),
        ("NAME", Align::Left),
        ("DIRECTION", Align::Left),
        ("LIMIT", Align::Right),
        ("MEASURED", Align::Right),
        ("DROPPED", Align::Right),
        ("DELAYED", Align::Right),
        ("QUEUE", Align::Right),
        ("MARKED", Align::Right),
        ("BACKEND", Align::Left),
        ("HELD BY", Align::Left),
        ("OWNER", Align::Right),
        ("CLIENT", Align::Right),
        ("AGE", Align::Right),
        ("LEFT", Align::Right),
    ]);
    let (mut notes, mut escapes) = (String::new(), String::new());
    for limit in &report.limits {
        for (direction, held) in limit.directions.iter() {
            let Some(held) = held else { continue };
            table.row(vec![
                limit.subject(),
                escape(&limit.name),
                direction.to_string(),
                held.rate.to_string(),
                held.measured.map_or_else(|| "-".to_owned(), number::rate),
                held.counters.dropped_packets.to_string(),
                held.counters.delayed_packets.to_string(),
                held.counters
                    .queue_us
                    .map_or_else(|| "-".to_owned(), |us| format!("{} ms", us.div_ceil(1_000))),
                held.counters.marked_packets.to_string(),
                escape(&held.backend),
                rungs(held),
                limit.owner_pid.to_string(),
                if limit.detached { "detached".to_owned() } else { limit.client_pid.to_string() },
                number::time(limit.age),
                limit.remaining.map_or_else(|| "-".to_owned(), number::time),
            ]);
            for rung in &held.rungs {
                let Some(reason) = &rung.reason else { continue };
                let place =
                    rung.device.as_deref().map(|name| format!(" on {}", escape(name))).unwrap_or_default();
                notes.push_str(&format!(
                    "note: {}: {direction}{place} is held by {}: {}\n",
                    subject(limit),
                    rung.kind,
                    escape(reason)
                ));
            }
        }
        for escape in &limit.escapes {
            let (subject, message) = (subject(limit), super::escape(&escape.message));
            escapes.push_str(&format!("{WARNING}warning:{WARNING:#} {subject}: {message}\n"));
        }
    }
    table.render() + &notes + &escapes
}

/// `ifb+htb+window`, or `eth0: ifb+htb+window, lo: bucket` where devices differ.
fn rungs(held: &DirectionReport) -> String {
    let Some(first) = held.rungs.first() else { return "-".to_owned() };
    if held.rungs.iter().all(|rung| rung.kind == first.kind) {
        return first.kind.to_string();
    }
    let one = |rung: &Rung| match &rung.device {
        Some(device) => format!("{}: {}", escape(device), rung.kind),
        None => rung.kind.to_string(),
    };
    held.rungs.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Counters, DirectionReport, Escape, EscapeKind, LimitId, PerDirection, Rate, RungKind, Scope,
        StatusReport, Target,
    };

    fn limit() -> LimitReport {
        let held = DirectionReport {
            rate: Rate::new(1_000_000).unwrap(),
            measured: Some(998_000),
            backend: "ebpf".into(),
            counters: Counters { dropped_packets: 7, ..Counters::default() },
            rungs: Vec::new(),
        };
        LimitReport {
            id: LimitId(1),
            targets: vec![Target::Pid(1234)],
            scope: Scope::All,
            name: "cu\x1brl".into(),
            processes: 1,
            sockets: 3,
            directions: PerDirection { upload: None, download: Some(held) },
            detached: false,
            client_pid: 99,
            owner_pid: 98,
            age: 61.0,
            remaining: None,
            escapes: Vec::new(),
        }
    }

    #[test]
    fn one_line() {
        assert_eq!(
            limited(&limit()),
            "limited pid:1234 (cu\\u{1b}rl): download 1 MB/s (8 Mbit/s), upload unlimited; ebpf; \
             3 sockets of 1 process"
        );
        let mut both = limit();
        both.targets.push(Target::Tree(5));
        both.processes = 2;
        both.directions.upload = both.directions.download.clone();
        assert!(limited(&both).contains("pid:1234 tree:5 ("));
        assert!(limited(&both).ends_with("upload 1 MB/s (8 Mbit/s); ebpf; 3 sockets of 2 processes"));
        both.directions.upload.as_mut().unwrap().backend = "other".into();
        assert!(limited(&both).contains("; download by ebpf, upload by other;"));
    }

    #[test]
    fn rungs_where_they_differ() {
        let mut limit = limit();
        let held = limit.directions.download.as_mut().unwrap();
        let rung = |device: &str, kind, reason: Option<&str>| Rung {
            device: Some(device.into()),
            kind,
            reason: reason.map(Into::into),
        };
        held.rungs = vec![rung("eth0", RungKind::IfbHtbWindow, None)];
        assert_eq!(rungs(held), "ifb+htb+window");
        held.rungs.push(rung("tun0", RungKind::Bucket, Some("no\nclsact")));
        assert_eq!(rungs(held), "eth0: ifb+htb+window, tun0: bucket");
        let text = status(&StatusReport { limits: vec![limit] });
        assert!(
            text.ends_with("note: pid:1234 (cu\\u{1b}rl): download on tun0 is held by bucket: no\\nclsact\n"),
            "{text}"
        );
    }

    #[test]
    fn table() {
        let mut limit = limit();
        limit.escapes.push(Escape { kind: EscapeKind::Bypass, message: "more\nmoved".into() });
        let text = status(&StatusReport { limits: vec![limit] });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let words: Vec<_> = lines[1].split_whitespace().collect();
        let expected = "pid:1234 cu\\u{1b}rl download 1 MB/s (8 Mbit/s) 998 KB/s (7.98 Mbit/s) 7 0 - 0 ebpf - 98 99 1m01s -";
        assert_eq!(words.join(" "), expected);
        assert!(lines[2].ends_with("pid:1234 (cu\\u{1b}rl): more\\nmoved"), "{text}");
    }
}
