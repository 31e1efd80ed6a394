//! The nftables backend: a token bucket of nf_tables that drops, for the sockets of a cgroup of the limit's own.
//!
//! - `plan`: what the table holds, as data.
//! - `place`: the table of one network namespace.
//! - `requirements`: what it needs, for the probe and `doctor`.
//!
//! The processes are moved to a leaf below their cgroup ([`super::crowd`]); sockets that are older than the limit are
//! known by their addresses ([`super::addresses`]). The table vanishes with this process, and holds nobody without a
//! sign of life. Processes in several network namespaces are held in each of them by itself (`super::crowded`).

mod place;
mod plan;
mod requirements;

use super::{Driver, Priority, crowded::Crowded};
use crate::model::Direction;

/// This backend's line in the table.
pub const DRIVER: Driver = Driver {
    name: "nftables",
    priority: Priority::Better,
    directions: &Direction::ALL,
    probe: requirements::probe,
    requirements: requirements::list,
    open: |site, direction| {
        Ok(Box::new(Crowded::<place::Table>::open(site, direction, requirements::probe)?))
    },
};
