//! What clients and the owner say to each other: one JSON object a line.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    backend::Site,
    error::Error,
    model::{
        Direction, Escape, LimitId, LimitReport, PerDirection, Rate, Scope, Snapshot, StatusReport, Target,
    },
};

/// Changes when either side would misunderstand the other; a client of another version is told so.
pub const VERSION: u32 = 2;

/// Asks for a limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitRequest {
    /// Whose traffic, in the client's PID namespace; any of these, sharing the rates.
    pub targets: Vec<Target>,
    /// Of that, which remote addresses.
    #[serde(default)]
    pub scope: Scope,
    /// Set it also when nothing is there yet that a target means.
    #[serde(default)]
    pub wait: bool,
    /// At least one is set.
    pub rates: PerDirection<Option<Rate>>,
    /// Backends asked for by name; `None`: the best that works.
    pub backends: PerDirection<Option<String>>,
    /// Fail instead of falling to the next backend.
    pub no_fallback: bool,
    /// Accept that one direction can't be had.
    pub partial: bool,
    /// Seconds after which it ends by itself.
    pub duration: Option<f64>,
    /// Stays when the client goes. A detached limit that has the very same targets and scope is changed instead.
    pub detach: bool,
    /// Where the client wants the backends to work; an owner at work elsewhere refuses.
    pub site: Site,
}

/// Asks for snapshots of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitorRequest {
    /// Seconds between two of them, 0.1 to 3600.
    pub interval: f64,
    /// With each connection by itself.
    pub connections: bool,
    /// The first rates come at once, not only after a whole interval.
    #[serde(default)]
    pub eager: bool,
    /// Where the eBPF programs that count are to be attached; an owner at work elsewhere refuses.
    pub site: Site,
}

/// A client's line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// First line of every connection; later on it asks for a sign of life.
    Hello {
        /// [`VERSION`] of the client.
        version: u32,
    },
    /// Answered by [`Reply::Limited`].
    Limit(LimitRequest),
    /// New rates for a limit in force, without a gap. Answered by [`Reply::Limited`].
    Change {
        /// Which.
        id: LimitId,
        /// At least one is set.
        rates: PerDirection<Option<Rate>>,
    },
    /// One direction of a limit goes to another backend without a gap: the new one holds it before the old one lets
    /// go, and where the new one can't, the old one stays. Answered by [`Reply::Limited`].
    Move {
        /// Which.
        id: LimitId,
        /// The direction.
        direction: Direction,
        /// Name of the new backend.
        backend: String,
    },
    /// Answered by [`Reply::Status`].
    Status,
    /// Answered by [`Reply::Monitoring`]; then [`Reply::Snapshot`] comes, until the connection ends. Asking again
    /// changes what is asked for, and does not begin the totals anew.
    Monitor(MonitorRequest),
    /// Ends the limits whose targets are all in the list; an empty list means every limit. Answered by
    /// [`Reply::Cleared`].
    Clear {
        /// Which.
        targets: Vec<Target>,
    },
    /// Ends one limit. Answered by [`Reply::Cleared`].
    Remove {
        /// Which.
        id: LimitId,
    },
}

/// Why a limit ended without its client's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The last process of the target ended.
    TargetEnded,
    /// Its duration is over.
    Duration,
    /// Somebody said `clear`.
    Cleared,
    /// The owner is shutting down.
    OwnerStopped,
}

/// The owner's line: answers in the order of the requests, and events of the client's own limits in
/// between.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// [`VERSION`] of the owner.
        version: u32,
        /// Its process.
        pid: u32,
    },
    /// The limit is in force and verified.
    Limited {
        /// As it is now.
        limit: LimitReport,
        /// Backends that were tried and failed, a direction that could not be had …
        notices: Vec<String>,
    },
    /// To [`Request::Status`].
    Status(StatusReport),
    /// To [`Request::Monitor`].
    Monitoring,
    /// Event: what the network did, for a client that monitors. A client that does not keep up gets fewer of them,
    /// over longer intervals.
    Snapshot(Arc<Snapshot>),
    /// To [`Request::Clear`].
    Cleared {
        /// Limits that were ended.
        ended: Vec<LimitId>,
    },
    /// The request failed and changed nothing.
    Error(Error),
    /// Event: traffic got past a limit of this client.
    Escaped {
        /// Which limit.
        id: LimitId,
        /// How.
        escape: Escape,
    },
    /// Event: a limit of this client is over.
    Ended {
        /// Which limit.
        id: LimitId,
        /// Why.
        reason: EndReason,
        /// As it was.
        last: LimitReport,
    },
}

/// How the line of a [`Reply::Snapshot`] begins.
const SNAPSHOT: &[u8] = br#"{"reply":"snapshot","#;

impl Reply {
    /// What the owner's line says; fails when it is none.
    pub fn from_line(line: &[u8]) -> serde_json::Result<Self> {
        // Megabytes every second, where there is much to watch. To find out by the tag what it is would mean to hold
        // it in memory piece by piece first; so its beginning is looked at, and the tag is skipped like any other
        // field that is not known.
        if line.starts_with(SNAPSHOT) {
            return serde_json::from_slice(line).map(|snapshot| Self::Snapshot(Arc::new(snapshot)));
        }
        serde_json::from_slice(line)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::{
        error::Kind,
        model::{Counters, DirectionReport, EscapeKind},
    };

    /// One line there, and the same back.
    fn round_trip<T: Serialize + DeserializeOwned + Debug>(value: &T) -> T {
        let line = serde_json::to_string(value).unwrap();
        assert!(!line.contains('\n'), "{line}");
        let back: T = serde_json::from_str(&line).unwrap();
        assert_eq!(format!("{value:?}"), format!("{back:?}"));
        back
    }

    #[test]
    fn requests() {
        let limit = LimitRequest {
            targets: vec![Target::Pid(i32::MAX as u32), Target::Tree(1)],
            scope: Scope::Local,
            wait: true,
            rates: PerDirection { upload: Rate::new(1_000), download: None },
            backends: PerDirection { upload: None, download: Some("a \"name\"\n".into()) },
            no_fallback: true,
            partial: true,
            duration: Some(0.125),
            detach: true,
            site: Site { cgroup_root: Some("/sys/fs/cgroup/chadt-x".into()) },
        };
        let rates = PerDirection { upload: Rate::new(crate::model::MAX_RATE), download: None };
        for request in [
            Request::Hello { version: VERSION },
            Request::Limit(limit),
            Request::Change { id: LimitId(u64::MAX), rates },
            Request::Move { id: LimitId(7), direction: Direction::Upload, backend: "nftables".into() },
            Request::Status,
            Request::Monitor(MonitorRequest {
                interval: 0.25,
                connections: true,
                eager: true,
                site: Site::default(),
            }),
            Request::Remove { id: LimitId(7) },
            Request::Clear { targets: Vec::new() },
            Request::Clear { targets: vec![Target::Tree(7)] },
        ] {
            assert_eq!(round_trip(&request), request);
        }
    }

    #[test]
    fn snapshots_are_read_without_a_detour() {
        let full = crate::model::snapshot::tests::full();
        let line = serde_json::to_vec(&Reply::Snapshot(Arc::new(full))).unwrap();
        assert!(line.starts_with(SNAPSHOT), "{}", String::from_utf8_lossy(&line));
        let [short, long] = [Reply::from_line(&line).unwrap(), serde_json::from_slice(&line).unwrap()];
        assert_eq!(format!("{short:?}"), format!("{long:?}"));
        assert!(Reply::from_line(br#"{"reply":"snapshot","time":1}"#).is_err());
        assert!(matches!(Reply::from_line(br#"{"reply":"monitoring"}"#), Ok(Reply::Monitoring)));
    }

    #[test]
    fn replies() {
        let direction = DirectionReport {
            rate: Rate::new(1_000).unwrap(),
            measured: None,
            backend: "ebpf".into(),
            counters: Counters { passed_bytes: u64::MAX, ..Counters::default() },
            rungs: vec![crate::model::Rung {
                device: Some("eth0".into()),
                kind: crate::model::RungKind::WindowBucket,
                reason: Some("no ifb".into()),
            }],
        };
        let escape = Escape { kind: EscapeKind::Bypass, message: "lines\nof text".into() };
        let limit = LimitReport {
            id: LimitId(1 << 63),
            targets: vec![Target::Pid(1)],
            scope: Scope::Internet,
            name: "tmux: server (é)".into(),
            processes: 1,
            sockets: 2,
            directions: PerDirection { upload: Some(direction), download: None },
            detached: false,
            client_pid: 3,
            owner_pid: 4,
            age: 1.5,
            remaining: Some(0.1),
            escapes: vec![escape.clone()],
        };
        let error = Error { kind: Kind::NoBackend, message: "m".into(), causes: vec!["c".into()] };
        for reply in [
            Reply::Hello { version: VERSION, pid: 1 },
            Reply::Limited { limit: limit.clone(), notices: vec!["n".into()] },
            Reply::Status(StatusReport { limits: vec![limit.clone()] }),
            Reply::Monitoring,
            Reply::Snapshot(Arc::new(crate::model::snapshot::tests::full())),
            Reply::Cleared { ended: vec![LimitId(1)] },
            Reply::Error(error),
            Reply::Escaped { id: LimitId(1), escape },
            Reply::Ended { id: LimitId(1), reason: EndReason::TargetEnded, last: limit },
        ] {
            round_trip(&reply);
        }
    }
}
