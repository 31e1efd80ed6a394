//! What the rest speaks of: directions, rates, targets, limits and the reports about them, snapshots of the
//! traffic and what is made of these. No I/O.

pub mod cgroups;
mod connection;
mod direction;
mod explanation;
pub mod filter;
pub mod group;
mod limit;
mod order;
mod rate;
mod remote;
mod report;
pub mod snapshot;
mod target;
pub mod text;

pub use connection::{Connection, Protocol, State};
pub use direction::{Direction, PerDirection};
pub use explanation::{ExplainedProcess, ExplainedSocket, Explanation, Reason};
pub use filter::Filter;
pub use group::{Grouping, Row, RowKey};
pub use limit::{Limit, LimitId};
pub use order::SortBy;
pub use rate::{MAX_RATE, MIN_RATE, Rate};
pub use remote::{Narrowing, Ports, Remote, Scope, address};
pub use report::{Counters, DirectionReport, Escape, EscapeKind, LimitReport, Rung, RungKind, StatusReport};
pub use snapshot::{Interface, Notice, Process, ProcessKey, ProcessKind, Snapshot, Source, Traffic};
pub use target::{KINDS, Target};
