//! A limit as a backend sees it: one direction, one rate, what it holds.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Direction, Narrowing, Rate, Scope, Target};

/// Names a limit among all on this host. Both directions of one limit have the same id.
/// Never used twice by one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LimitId(pub u64);

impl fmt::Display for LimitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One direction of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Shared by both directions.
    pub id: LimitId,
    /// Which way.
    pub direction: Direction,
    /// How much.
    pub rate: Rate,
    /// Whose traffic: any of these; all share the one rate.
    pub targets: Vec<Target>,
    /// Of that, which remote addresses.
    pub scope: Scope,
}

impl Limit {
    /// Which packets of its processes it is about.
    pub fn narrowing(&self) -> Narrowing {
        Narrowing::new(self.scope, &self.targets)
    }
}
