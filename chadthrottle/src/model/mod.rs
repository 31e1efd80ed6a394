//! What the rest speaks of: directions, rates, targets, limits and the reports about them. No I/O.

pub mod cgroups;
mod direction;
mod explanation;
mod limit;
mod rate;
mod remote;
mod report;
mod target;
pub mod text;

pub use direction::{Direction, PerDirection};
pub use explanation::{ExplainedProcess, ExplainedSocket, Explanation, Reason};
pub use limit::{Limit, LimitId};
pub use rate::{MAX_RATE, MIN_RATE, Rate};
pub use remote::{Narrowing, Remote, Scope, address};
pub use report::{Counters, DirectionReport, Escape, EscapeKind, LimitReport, StatusReport};
pub use target::{KINDS, Target};
