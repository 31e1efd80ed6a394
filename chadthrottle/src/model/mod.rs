//! What the rest speaks of: directions, rates, targets, limits and the reports about them, snapshots of the
//! traffic and what is made of these. No I/O.

pub mod cgroups;
mod direction;
mod explanation;
pub mod filter;
pub mod group;
mod limit;
mod rate;
mod remote;
mod report;
pub mod snapshot;
mod target;
pub mod text;

pub use direction::{Direction, PerDirection};
pub use explanation::{ExplainedProcess, ExplainedSocket, Explanation, Reason};
pub use filter::Filter;
pub use group::{Grouping, Row, RowKey, SortBy};
pub use limit::{Limit, LimitId};
pub use rate::{MAX_RATE, MIN_RATE, Rate};
pub use remote::{Narrowing, Ports, Remote, Scope, address};
pub use report::{Counters, DirectionReport, Escape, EscapeKind, LimitReport, Rung, RungKind, StatusReport};
pub use snapshot::{
    Connection, Interface, Notice, Process, ProcessKey, ProcessKind, Protocol, Snapshot, Source, State,
    Traffic,
};
pub use target::{KINDS, Target};
