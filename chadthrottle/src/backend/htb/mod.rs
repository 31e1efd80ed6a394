//! The backends `tc_htb` (uploads) and `ifb_tc` (downloads): packets wait in an HTB tree until it is their turn; and
//! `tc_police`, which drops instead.
//!
//! - `plan`: what the tables hold that find the class of a packet, as data.
//! - `place`: trees and tables of one network namespace; `devices`: on which devices they are.
//! - `means`: by what a class is held at a device.
//! - `requirements`: what they need, for the probe and `doctor`.
//!
//! The tree is `super::tree`'s, the police `super::gate`'s; crowds and old sockets are those of every backend without
//! eBPF (`super::crowded`).

mod devices;
mod means;
mod place;
mod plan;
mod requirements;

use super::{Driver, Priority, Requirement, Site, basics, crowded::Crowded, gate::Gate, tree::Tree};
use crate::model::Direction;

/// The line in the table of the one for uploads.
pub const TC_HTB: Driver = Driver {
    name: "tc_htb",
    priority: Priority::Good,
    directions: &[Direction::Upload],
    probe: |site| requirements::probe::<Tree>(site, Direction::Upload),
    requirements: |site| requirements::list::<Tree>(site, Direction::Upload),
    open: |site, direction| {
        let probe = |site: &_| requirements::probe::<Tree>(site, Direction::Upload);
        Ok(Box::new(Crowded::<place::Room<Tree>>::open(site, direction, probe)?))
    },
};

/// The line in the table of the one for downloads.
pub const IFB_TC: Driver = Driver {
    name: "ifb_tc",
    priority: Priority::Good,
    directions: &[Direction::Download],
    probe: |site| requirements::probe::<Tree>(site, Direction::Download),
    requirements: |site| requirements::list::<Tree>(site, Direction::Download),
    open: |site, direction| {
        let probe = |site: &_| requirements::probe::<Tree>(site, Direction::Download);
        Ok(Box::new(Crowded::<place::Room<Tree>>::open(site, direction, probe)?))
    },
};

/// The line in the table of the one for both that drops.
pub const TC_POLICE: Driver = Driver {
    name: "tc_police",
    priority: Priority::Fallback,
    directions: &Direction::ALL,
    probe: |site| basics::first_missing(&police_requirements(site)),
    requirements: police_requirements,
    open: |site, direction| match direction {
        Direction::Upload => {
            let probe = |site: &_| requirements::probe::<Gate>(site, Direction::Upload);
            Ok(Box::new(Crowded::<place::Room<Gate>>::open(site, direction, probe)?))
        }
        Direction::Download => {
            let probe = |site: &_| requirements::probe::<Gate>(site, Direction::Download);
            Ok(Box::new(Crowded::<place::Room<Gate>>::open(site, direction, probe)?))
        }
    },
};

/// What both directions need, each thing once.
fn police_requirements(site: &Site) -> Vec<Requirement> {
    let mut all = requirements::list::<Gate>(site, Direction::Upload);
    for more in requirements::list::<Gate>(site, Direction::Download) {
        if !all.iter().any(|known| known.name == more.name && known.state == more.state) {
            all.push(more);
        }
    }
    all
}
