//! The eBPF backend: a token bucket in the kernel, at the sockets of the limited processes.

use super::{Backend, Driver, Priority, Probe, Requirement, Site};
use crate::{
    error::{Error, Result},
    model::Direction,
};

/// This backend's line in the table.
pub const DRIVER: Driver =
    Driver { name: "ebpf", priority: Priority::Best, directions: &Direction::ALL, probe, requirements, open };

fn probe(_site: &Site) -> Probe {
    Probe::Unknown { reason: "being built".into() }
}

fn requirements(_site: &Site) -> Vec<Requirement> {
    Vec::new()
}

fn open(_site: &Site, _direction: Direction) -> Result<Box<dyn Backend>> {
    Err(Error::failed("being built"))
}
