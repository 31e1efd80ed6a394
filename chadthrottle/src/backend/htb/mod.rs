//! The backends `tc_htb` (uploads) and `ifb_tc` (downloads): packets wait in an HTB tree until it is their turn.
//!
//! - `plan`: what the tables hold that find the class of a packet, as data.
//! - `place`: trees and tables of one network namespace; `devices`: on which devices they are.
//! - `requirements`: what they need, for the probe and `doctor`.
//!
//! The tree is `super::tree`'s, crowds and old sockets are those of every backend without eBPF (`super::crowded`).

mod devices;
mod place;
mod plan;
mod requirements;

use super::{Driver, Priority, crowded::Crowded};
use crate::model::Direction;

/// The line in the table of the one for uploads.
pub const TC_HTB: Driver = Driver {
    name: "tc_htb",
    priority: Priority::Good,
    directions: &[Direction::Upload],
    probe: |site| requirements::probe(site, Direction::Upload),
    requirements: |site| requirements::list(site, Direction::Upload),
    open: |site, direction| {
        let probe = |site: &_| requirements::probe(site, Direction::Upload);
        Ok(Box::new(Crowded::<place::Room>::open(site, direction, probe)?))
    },
};

/// The line in the table of the one for downloads.
pub const IFB_TC: Driver = Driver {
    name: "ifb_tc",
    priority: Priority::Good,
    directions: &[Direction::Download],
    probe: |site| requirements::probe(site, Direction::Download),
    requirements: |site| requirements::list(site, Direction::Download),
    open: |site, direction| {
        let probe = |site: &_| requirements::probe(site, Direction::Download);
        Ok(Box::new(Crowded::<place::Room>::open(site, direction, probe)?))
    },
};
