//! What the screens want of the owner, and what comes back. A thread of its own talks to the owner,
//! so that no key waits for it.

use crate::{
    error::Result,
    model::{Direction, Escape, LimitId, LimitReport, PerDirection, Rate},
    output::backends::BackendReport,
    owner::protocol::{EndReason, LimitRequest},
};

/// Rates of a limit.
pub type Rates = PerDirection<Option<Rate>>;

/// Something to do, in the order in which it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Names it, for [`Answer`].
    pub number: u64,
    /// Process id of the owner whose limits the step names: another one gives the same ids to other limits. `None`: it
    /// names none.
    pub owner: Option<u32>,
    /// What.
    pub step: Step,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Brings a limit into force.
    Set(LimitRequest),
    /// Gives a limit new rates; a direction without one stays as it is.
    Change {
        /// Which.
        id: LimitId,
        /// At least one.
        rates: Rates,
    },
    /// Brings a limit into force, and then ends the one that it takes the place of.
    Replace {
        /// Which ends.
        old: LimitId,
        /// What comes.
        request: LimitRequest,
    },
    /// Lets another backend hold a direction of a limit, the new one first.
    Move {
        /// Which.
        id: LimitId,
        /// The direction.
        direction: Direction,
        /// Name of the new backend.
        backend: String,
    },
    /// Ends a limit.
    Remove {
        /// Which.
        id: LimitId,
    },
    /// Sets limits so that they stay when this client goes.
    Keep(Vec<LimitRequest>),
    /// Looks which backends there are, and what they need.
    Probe,
}

/// How an order went.
#[derive(Debug)]
pub struct Answer {
    /// Of which order.
    pub number: u64,
    /// What came of it.
    pub result: Result<Outcome>,
}

/// What came of an order.
#[derive(Debug)]
pub enum Outcome {
    /// In force and verified: the last limit that was asked for. And what the user should know about it.
    Limited(Box<LimitReport>, Vec<String>),
    /// Ended, or made to stay.
    Done,
    /// What backends there are.
    Backends(Vec<BackendReport>),
}

/// What happens to limits that were set here.
#[derive(Debug)]
pub enum News {
    /// Traffic gets past one.
    Escaped(LimitId, Escape),
    /// One is over.
    Ended(EndReason, Box<LimitReport>),
    /// The owner is gone, and all limits with it.
    OwnerGone,
}

/// The rates of a limit in force.
pub fn rates_of(report: &LimitReport) -> Rates {
    PerDirection::from_fn(|direction| report.directions.get(direction).as_ref().map(|held| held.rate))
}
