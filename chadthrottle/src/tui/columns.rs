//! Columns of the table of processes: which of them fit, and where.

use super::fit::{Need, Place, fit};
use crate::model::SortBy;

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// Whether it is limited, and whether the limit holds.
    Mark,
    /// Process id, or how many processes.
    Pid,
    /// Its name, or the group's.
    Name,
    /// Its user.
    User,
    /// Bytes/s received.
    Down,
    /// Bytes/s sent.
    Up,
    /// Bytes received.
    Received,
    /// Bytes sent.
    Sent,
    /// Open sockets.
    Connections,
    /// Limit on download.
    DownLimit,
    /// Limit on upload.
    UpLimit,
    /// Rates of the last 60 s.
    Spark,
}

/// From left to right, with how important each is: those of the highest number leave first.
const COLUMNS: [(Column, u8); 12] = [
    (Column::Mark, 0),
    (Column::Pid, 2),
    (Column::Name, 0),
    (Column::User, 6),
    (Column::Down, 0),
    (Column::Up, 0),
    (Column::Received, 4),
    (Column::Sent, 5),
    (Column::Connections, 7),
    (Column::DownLimit, 1),
    (Column::UpLimit, 1),
    (Column::Spark, 3),
];

/// A column in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which.
    pub column: Column,
    /// Where it begins, from the left edge of the table.
    pub x: u16,
    /// How wide it is.
    pub width: u16,
}

impl Column {
    /// What stands above it.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Mark => "",
            Self::Pid => "PID",
            Self::Name => "PROCESS",
            Self::User => "USER",
            Self::Down => "↓/s",
            Self::Up => "↑/s",
            Self::Received => "↓ TOTAL",
            Self::Sent => "↑ TOTAL",
            Self::Connections => "CONN",
            Self::DownLimit => "↓ LIMIT",
            Self::UpLimit => "↑ LIMIT",
            Self::Spark => "60 s",
        }
    }

    /// The column whose header gives that order.
    pub fn of(sort: SortBy) -> Option<Self> {
        COLUMNS.iter().map(|(column, _)| *column).find(|column| column.sort() == sort)
    }

    /// By which its header orders the rows.
    pub fn sort(self) -> SortBy {
        match self {
            Self::Mark => SortBy::Limited,
            Self::Pid => SortBy::Pid,
            Self::Name => SortBy::Name,
            Self::User => SortBy::User,
            Self::Down => SortBy::Down,
            Self::Up => SortBy::Up,
            Self::Received => SortBy::Received,
            Self::Sent => SortBy::Sent,
            Self::Connections => SortBy::Connections,
            Self::DownLimit => SortBy::DownLimit,
            Self::UpLimit => SortBy::UpLimit,
            Self::Spark => SortBy::Rate,
        }
    }

    /// Numbers stand at the right.
    pub fn is_number(self) -> bool {
        !matches!(self, Self::Mark | Self::Name | Self::User | Self::Spark)
    }

    /// The least it needs, and the most that is of use.
    fn widths(self) -> (u16, u16) {
        match self {
            Self::Mark => (2, 2),
            Self::Pid => (7, 7),
            Self::Name => (13, 40),
            Self::User => (8, 12),
            Self::Connections => (5, 6),
            Self::Spark => (15, 30),
            _ => (8, 9),
        }
    }
}

/// The columns that fit into a table `width` wide.
pub fn place(width: u16) -> Vec<Placed> {
    let needs = COLUMNS.map(|(column, rank)| {
        let (least, most) = column.widths();
        Need { least, most, rank }
    });
    let name = COLUMNS.iter().position(|(column, _)| *column == Column::Name).unwrap_or(0);
    let places = fit(&needs, name, width).into_iter();
    places.map(|Place { index, x, width }| Placed { column: COLUMNS[index].0, x, width }).collect()
}

/// The orders that the sort keys go through: those of the columns shown, from left to right.
pub fn orders(width: u16) -> Vec<SortBy> {
    place(width).iter().map(|placed| placed.column.sort()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(width: u16) -> Vec<Column> {
        place(width).iter().map(|placed| placed.column).collect()
    }

    #[test]
    fn the_most_important_stay() {
        use Column::*;
        assert_eq!(shown(60), [Mark, Pid, Name, Down, Up, DownLimit, UpLimit]);
        assert_eq!(shown(80), [Mark, Pid, Name, Down, Up, DownLimit, UpLimit, Spark]);
        assert_eq!(shown(200).len(), COLUMNS.len());
        assert_eq!(shown(5), [Mark, Name, Down, Up]);
    }
}
