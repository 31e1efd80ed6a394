//! Orders of rows.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Direction, Row, Snapshot, group::no_such};
use crate::error::{Error, Result};

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SortBy {
    /// Both rates together.
    #[default]
    Rate,
    /// Bytes/s received.
    Down,
    /// Bytes/s sent.
    Up,
    /// Bytes in both directions.
    Total,
    /// Bytes received.
    Received,
    /// Bytes sent.
    Sent,
    /// Open sockets.
    Connections,
    /// Process id.
    Pid,
    /// Label.
    Name,
    /// User.
    User,
    /// Whether it is limited.
    Limited,
    /// The lowest limit on download; those without come after all others.
    DownLimit,
    /// The lowest limit on upload; those without come after all others.
    UpLimit,
}

impl SortBy {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Rate,
        Self::Down,
        Self::Up,
        Self::Total,
        Self::Received,
        Self::Sent,
        Self::Connections,
        Self::Pid,
        Self::Name,
        Self::User,
        Self::Limited,
        Self::DownLimit,
        Self::UpLimit,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Down => "down",
            Self::Up => "up",
            Self::Total => "total",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::Connections => "connections",
            Self::Pid => "pid",
            Self::Name => "name",
            Self::User => "user",
            Self::Limited => "limited",
            Self::DownLimit => "down-limit",
            Self::UpLimit => "up-limit",
        }
    }

    /// Whether the largest come first unless asked otherwise: so it is with numbers that say how much.
    pub fn is_descending(self) -> bool {
        !matches!(self, Self::Pid | Self::Name | Self::User | Self::DownLimit | Self::UpLimit)
    }
}

impl fmt::Display for SortBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SortBy {
    type Err = Error;

    /// The names that [`fmt::Display`] gives. Errors are [`crate::error::Kind::Usage`] and list them.
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|by| by.name() == text)
            .ok_or_else(|| no_such("order", text, &Self::ALL.map(Self::name)))
    }
}

/// Orders rows and all that is below them; equal ones by what moves more, then by their keys, so that the order
/// is the same in every snapshot. `reversed`: against [`SortBy::is_descending`].
pub fn sort(rows: &mut [Row], snapshot: &Snapshot, by: SortBy, reversed: bool) {
    rows.sort_by(|one, other| {
        let order = compare(one, other, snapshot, by);
        let order = if by.is_descending() != reversed { order.reverse() } else { order };
        order
            .then_with(|| other.traffic.bytes().cmp(&one.traffic.bytes()))
            .then_with(|| one.key.cmp(&other.key))
    });
    for row in rows {
        sort(&mut row.children, snapshot, by, reversed);
    }
}

fn compare(one: &Row, other: &Row, snapshot: &Snapshot, by: SortBy) -> Ordering {
    let number = |of: fn(&Row) -> u64| of(one).cmp(&of(other));
    let limit = |row: &Row, direction| row_limit(row, snapshot, direction).unwrap_or(u64::MAX);
    match by {
        SortBy::Rate => number(|row| row.traffic.rate()),
        SortBy::Down => number(|row| row.traffic.rx_rate),
        SortBy::Up => number(|row| row.traffic.tx_rate),
        SortBy::Total => number(|row| row.traffic.bytes()),
        SortBy::Received => number(|row| row.traffic.rx_bytes),
        SortBy::Sent => number(|row| row.traffic.tx_bytes),
        SortBy::Connections => number(|row| row.connections.into()),
        SortBy::Limited => number(|row| row.limited.into()),
        SortBy::Pid => one.first(snapshot).pid.cmp(&other.first(snapshot).pid),
        SortBy::Name => one.label.to_lowercase().cmp(&other.label.to_lowercase()),
        SortBy::User => one.first(snapshot).user.cmp(&other.first(snapshot).user),
        SortBy::DownLimit => limit(one, Direction::Download).cmp(&limit(other, Direction::Download)),
        SortBy::UpLimit => limit(one, Direction::Upload).cmp(&limit(other, Direction::Upload)),
    }
}

/// The lowest limit that holds any member of a row in one direction, bytes/s.
pub fn row_limit(row: &Row, snapshot: &Snapshot, direction: Direction) -> Option<u64> {
    let members = row.members.iter().filter_map(|index| {
        snapshot.rate_limit(&snapshot.processes[*index], direction).map(|rate| rate.bytes_per_second())
    });
    members.min()
}
