//! What the rest speaks of: directions, rates, targets, limits and the reports about them. No I/O.

mod direction;
mod limit;
mod rate;
mod report;
mod target;
pub mod text;

pub use direction::{Direction, PerDirection};
pub use limit::{Limit, LimitId};
pub use rate::{MAX_RATE, MIN_RATE, Rate};
pub use report::{Counters, DirectionReport, Escape, EscapeKind, LimitReport, StatusReport};
pub use target::Target;
