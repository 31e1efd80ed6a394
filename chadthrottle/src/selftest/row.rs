//! One measurement: a transfer at full speed, limited while it runs, and let go again.

use std::{fmt, path::Path, process::Command};

use nix::sys::signal::Signal;
use serde::Serialize;

use super::{
    lab::{Lab, Version},
    meter::{DATAGRAM_HEADERS_V4, Meter},
    process::{Call, Place, Traffic},
    traffic::{Totals, now},
    workplace::Workplace,
};
use crate::{error::Result, model::Direction};

/// The limit, bytes/s: light enough for a small machine, heavy enough that one buffer does not matter.
pub const LIMIT: u64 = 5_000_000;

/// Where the server listens; every row has namespaces of its own.
const PORT: u16 = 5000;
/// Names the row's traffic to its two ends.
const RUN: u64 = 1;
/// Payload bytes of a datagram.
const DATAGRAM: u64 = 1200;

// Seconds.
/// From the start of the transfer to the measurement of its speed.
const WARM_UP: f64 = 0.2;
/// Length of the measurements without the limit.
const FREE: f64 = 0.4;
/// Length of the measurement with the limit; its first second is measured apart.
const LIMITED: f64 = 5.0;
/// Longest that a report is waited for, from which the measurement with the limit begins.
const LATE: f64 = 0.1;
/// From the end of the limit to full speed. A TCP sender whose last packets were dropped waits for its
/// retransmission timer first, which doubles with each further loss.
const RECOVERY: f64 = 3.0;
/// Length of each of the measurements after the limit.
const LOOK: f64 = 0.2;

/// Received TCP payload over the limit. The limit counts headers, which are 3.5 % of a full packet.
const TCP_HOLDS: std::ops::RangeInclusive<f64> = 0.88..=1.05;
/// Received IP bytes of UDP over the limit.
const UDP_HOLDS: std::ops::RangeInclusive<f64> = 0.95..=1.02;
/// Most of the limit that may be received in the first second.
const FIRST_SECOND: f64 = 1.3;
/// Times the limit that a transfer without it must reach, before and after.
const FULL_SPEED: f64 = 2.0;

/// What is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// One TCP connection that is open before the limit.
    Tcp,
    /// Eight of them.
    TcpEight,
    /// Datagrams at three times the limit.
    Udp,
    /// One TCP connection over IPv6.
    TcpV6,
}

impl Scenario {
    fn version(self) -> Version {
        if self == Self::TcpV6 { Version::V6 } else { Version::V4 }
    }

    /// Commands of the server and of the client.
    fn commands(self, lab: &Lab, direction: Direction) -> (String, String) {
        let server = lab.server_at(self.version(), PORT);
        let way = match direction {
            Direction::Upload => "put",
            Direction::Download => "get",
        };
        match self {
            Self::Udp => {
                // The payload of three times the limit.
                let rate = 3 * LIMIT * DATAGRAM / (DATAGRAM + DATAGRAM_HEADERS_V4);
                let client = format!("udp {server} {way} rate={rate} size={DATAGRAM} run={RUN}");
                (format!("listen udp {server}"), client)
            }
            Self::Tcp | Self::TcpEight | Self::TcpV6 => {
                let flows = if self == Self::TcpEight { 8 } else { 1 };
                let client = format!("connect tcp {server} {way} flows={flows} run={RUN}");
                (format!("listen tcp {server}"), client)
            }
        }
    }

    /// Bytes that count: payload for TCP, IP bytes for UDP.
    fn received(self, totals: &Totals) -> u64 {
        match self {
            Self::Udp => totals.rx + totals.rx_datagrams * DATAGRAM_HEADERS_V4,
            Self::Tcp | Self::TcpEight | Self::TcpV6 => totals.arrived,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP, 1 connection",
            Self::TcpEight => "TCP, 8 connections",
            Self::Udp => "UDP at 3x the limit",
            Self::TcpV6 => "TCP over IPv6",
        })
    }
}

/// What all rows of a scenario share.
pub struct Stage<'a> {
    /// Our program.
    pub program: &'a Path,
    /// Where the limited processes and the owner are.
    pub workplace: &'a Workplace,
    /// What is transferred.
    pub scenario: Scenario,
}

/// A line of the report. Rates are bytes/s at the receiver.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Name of the backend.
    pub backend: &'static str,
    /// Of the limit.
    pub direction: Direction,
    /// What was transferred.
    pub traffic: Scenario,
    /// The limit.
    pub limit: u64,
    /// Before the limit.
    pub before: f64,
    /// The first second of the limit.
    pub first_second: f64,
    /// Seconds 2 to 5 of the limit.
    pub measured: f64,
    /// Payload bytes that TCP sent again during seconds 1 to 5.
    pub retransmitted: u64,
    /// After the limit, as soon as it is free again.
    pub after: f64,
    /// The verdict.
    pub holds: bool,
    /// Why it does not hold.
    pub reason: Option<String>,
}

impl Row {
    /// Whether a speed is one that the limit does not allow.
    fn is_free(&self, rate: f64) -> bool {
        rate >= FULL_SPEED * self.limit as f64
    }
}

/// Measures one row. Fails when there was nothing to measure; a limit that can't be set is a verdict.
pub fn measure(stage: &Stage<'_>, backend: &'static str, direction: Direction) -> Result<Row> {
    let lab = Lab::new()?;
    let (serve, transfer) = stage.scenario.commands(&lab, direction);
    let place = Place { namespace: Some(&lab.server), cgroup: None };
    let server = Traffic::spawn(stage.program, "the server", place, &[serve])?;
    let place = Place { namespace: Some(&lab.client), ..stage.workplace.place() };
    let client = Traffic::spawn(stage.program, "the client", place, &[transfer])?;
    let (receiver, sender) = match direction {
        Direction::Upload => (&server, &client),
        Direction::Download => (&client, &server),
    };
    let received = |meter: &Meter, from: f64, to: f64| {
        meter.rate(RUN, from, to, |totals| stage.scenario.received(totals)).round()
    };
    let retransmitted = |time: f64| -> Result<u64> { Ok(sender.meter_at(time)?.totals(RUN).retransmitted) };

    let from = now() + WARM_UP;
    let before = received(&receiver.meter_at(from + FREE)?, from, from + FREE);
    let mut row = Row {
        backend,
        direction,
        traffic: stage.scenario,
        limit: LIMIT,
        before,
        first_second: 0.0,
        measured: 0.0,
        retransmitted: 0,
        after: 0.0,
        holds: false,
        reason: None,
    };

    let mut call = Call::spawn(limit(stage, backend, direction, client.pid()), Place::default())?;
    let from = match call.await_message("limited") {
        Ok((time, _)) => time,
        Err(error) => {
            super::interrupt::check()?;
            row.reason = Some(format!("can't be set: {error}"));
            return Ok(row);
        }
    };
    let again = retransmitted(from)?;
    let meter = receiver.meter_at(from + LIMITED + LATE)?;
    let from = meter.report_after(RUN, from);
    row.first_second = received(&meter, from, from + 1.0);
    row.measured = received(&meter, from + 1.0, from + LIMITED);
    row.retransmitted = retransmitted(from + LIMITED)?.saturating_sub(again);

    call.process().signal(Signal::SIGINT);
    let (status, output) = call.finish()?;
    let mut from = now();
    let until = from + RECOVERY;
    while from < until && !row.is_free(row.after) {
        row.after = received(&receiver.meter_at(from + LOOK)?, from, from + LOOK);
        from += LOOK;
    }
    row.reason = if status.success() {
        verdict(&row)
    } else {
        Some(format!("ending it failed: {}", output.messages()))
    };
    row.holds = row.reason.is_none();
    Ok(row)
}

/// The call that a user would make.
fn limit(stage: &Stage<'_>, backend: &str, direction: Direction, pid: u32) -> Command {
    let mut command = Command::new(stage.program);
    command.args(["limit", &format!("pid:{pid}")]);
    command.args([&format!("--{direction}-limit"), &LIMIT.to_string()]);
    command.args([&format!("--{direction}-backend"), backend]);
    command.arg("--cgroup-root").arg(stage.workplace.cgroup());
    command.arg("--runtime-dir").arg(stage.workplace.runtime_dir());
    command
}

/// `None`: it holds; otherwise why not.
fn verdict(row: &Row) -> Option<String> {
    let limit = row.limit as f64;
    let share = row.measured / limit;
    let first = row.first_second / limit;
    let udp = row.traffic == Scenario::Udp;
    let holds = if udp { UDP_HOLDS } else { TCP_HOLDS };
    // What TCP received beyond a gap, while it recovers from the switch, counts when the gap is closed: the
    // rest of the first second may show in the later ones.
    let caught_up = if udp { 0.0 } else { (1.0 - first).max(0.0) / (LIMITED - 1.0) };
    if !row.is_free(row.before) {
        Some(format!("the transfer alone is too slow to tell: {:.2} of the limit", row.before / limit))
    } else if first > FIRST_SECOND {
        Some(format!("{first:.2} of the limit in the first second"))
    } else if share < *holds.start() || share - caught_up > *holds.end() {
        Some(format!("{share:.2} of the limit"))
    } else if !row.is_free(row.after) {
        Some(format!("still slow after the limit: {:.2} of it", row.after / limit))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(traffic: Scenario, before: f64, first: f64, measured: f64, after: f64) -> Row {
        Row {
            backend: "ebpf",
            direction: Direction::Upload,
            traffic,
            limit: 1000,
            before: before * 1e3,
            first_second: first * 1e3,
            measured: measured * 1e3,
            retransmitted: 0,
            after: after * 1e3,
            holds: false,
            reason: None,
        }
    }

    #[test]
    fn a_limit_holds_within_the_tolerances() {
        assert_eq!(verdict(&row(Scenario::Tcp, 100.0, 1.3, 0.88, 100.0)), None);
        assert_eq!(verdict(&row(Scenario::Udp, 3.0, 1.0, 1.02, 3.0)), None);
        assert_eq!(verdict(&row(Scenario::Tcp, 9.0, 0.6, 1.14, 9.0)), None);
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        for (row, reason) in [
            (row(Scenario::Tcp, 1.0, 1.0, 1.0, 9.0), "too slow to tell: 1.00"),
            (row(Scenario::Tcp, 9.0, 1.4, 1.0, 9.0), "1.40 of the limit in the first second"),
            (row(Scenario::Tcp, 9.0, 1.0, 0.5, 9.0), "0.50 of the limit"),
            (row(Scenario::Tcp, 9.0, 1.0, 1.06, 9.0), "1.06 of the limit"),
            (row(Scenario::Udp, 9.0, 0.6, 1.04, 9.0), "1.04 of the limit"),
            (row(Scenario::Udp, 9.0, 1.0, 1.0, 1.0), "still slow after the limit: 1.00"),
        ] {
            let said = verdict(&row).unwrap_or_default();
            assert!(said.contains(reason), "'{said}' has no '{reason}'");
        }
    }
}
