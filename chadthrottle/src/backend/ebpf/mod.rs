//! The eBPF backend: a token bucket in the kernel, at the sockets of the limited processes.
//!
//! - `holder`: what is in the kernel, once for both directions: setting, changing, lifting.
//! - `members`: which processes are under which limit.
//! - `rules`: what processes must be to come under a limit.
//! - `neighbours`: other owners at the same place.
//! - `pacing`: connections that were open already send no faster than the limit.
//! - `queue`: downloads without loss, where that can be had.
//! - `check`: the live check.
//! - `requirements`: what it needs, for the probe and `doctor`.

use std::{
    cell::RefCell,
    os::fd::{OwnedFd, RawFd},
    rc::{Rc, Weak},
    time::Duration,
};

use super::{Applied, Backend, Checked, Driver, Priority, Site};
use crate::{
    error::Result,
    kernel::{bpf::counters::Taps, fault},
    model::{Counters, Direction, Limit, LimitId, Notice},
};

mod check;
mod departures;
mod holder;
mod members;
mod neighbours;
pub mod pacing;
mod queue;
mod requirements;
mod rules;

use holder::Holder;

/// This backend's line in the table.
pub const DRIVER: Driver = Driver {
    name: "ebpf",
    priority: Priority::Best,
    directions: &Direction::ALL,
    probe: requirements::probe,
    requirements: requirements::list,
    open,
};

fn open(site: &Site, direction: Direction) -> Result<Box<dyn Backend>> {
    Ok(match direction {
        Direction::Upload => Box::new(EbpfUpload(OneDirection::open(site, direction)?)),
        Direction::Download => Box::new(EbpfDownload(OneDirection::open(site, direction)?)),
    })
}

/// Holds what processes send.
pub struct EbpfUpload(OneDirection);

/// Holds what processes receive.
pub struct EbpfDownload(OneDirection);

/// Both drivers are this: programs, maps and tags are the same ones, in the kernel once.
struct OneDirection {
    holder: Rc<RefCell<Holder>>,
    direction: Direction,
}

thread_local! {
    /// The other direction's holder, if it is open.
    static OPEN: RefCell<Weak<RefCell<Holder>>> = const { RefCell::new(Weak::new()) };
}

/// The holder at work there, or a bare one.
fn holder(site: &Site) -> Result<Rc<RefCell<Holder>>> {
    OPEN.with_borrow_mut(|open| match open.upgrade().filter(|holder| holder.borrow().is_at(site)) {
        Some(holder) => Ok(holder),
        None => {
            let holder = Rc::new(RefCell::new(Holder::open_bare(site)?));
            *open = Rc::downgrade(&holder);
            Ok(holder)
        }
    })
}

impl OneDirection {
    fn open(site: &Site, direction: Direction) -> Result<Self> {
        let holder = holder(site)?;
        let mut work = holder.borrow_mut();
        if !work.is_equipped() {
            // Not the probe's business: whoever asks for the backends may have an owner at work.
            neighbours::make_way(&work.cgroup)?;
            work.equip()?;
        }
        drop(work);
        Ok(Self { holder, direction })
    }
}

/// The programs that count, as long as this lives. They are of one piece with those that limit, so that what a
/// limit refuses is not counted.
pub struct Counting(Rc<RefCell<Holder>>);

/// What [`count`] gives.
pub struct Counted {
    /// Keeps the programs attached.
    pub counting: Counting,
    /// What to read by.
    pub taps: Taps,
    /// What is not counted right, for want of what.
    pub lacks: Vec<Notice>,
    /// Whether the packets of all processes of the host are seen.
    pub sees_all: bool,
}

/// Begins to count what every process moves.
pub fn count(site: &Site) -> Result<Counted> {
    let holder = holder(site)?;
    let (taps, lacks) = holder.borrow_mut().start_counting()?;
    // In a test there is nobody else in the namespace.
    let sees_all = holder.borrow().sees_all() || fault::setting("SEES_ALL").is_some();
    Ok(Counted { counting: Counting(holder), taps, lacks, sees_all })
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.borrow_mut().loaded.stop_counting();
    }
}

macro_rules! forward {
    ($($driver:ty),*) => { $(
        impl Backend for $driver {
            fn apply(&mut self, limit: &Limit) -> Result<Applied> {
                self.0.holder.borrow_mut().apply(limit)
            }
            fn narrows(&self) -> bool {
                true
            }
            fn remove(&mut self, id: LimitId) -> Result<()> {
                self.0.holder.borrow_mut().remove(id, self.0.direction)
            }
            fn stats(&mut self, id: LimitId) -> Result<Counters> {
                self.0.holder.borrow_mut().stats(id, self.0.direction)
            }
            fn check(&mut self, id: LimitId) -> Result<Checked> {
                self.0.holder.borrow_mut().check(id, self.0.direction)
            }
            fn renew(&mut self) -> Result<()> {
                self.0.holder.borrow_mut().renew()
            }
            fn follow(&mut self) -> Result<Option<Duration>> {
                if self.0.direction == Direction::Upload { self.0.holder.borrow_mut().follow() } else { Ok(None) }
            }
            fn estate(&self) -> Result<Option<OwnedFd>> {
                if self.0.direction == Direction::Upload { self.0.holder.borrow().estate().map(Some) } else { Ok(None) }
            }
            fn members(&mut self) -> Result<Vec<(LimitId, Vec<u32>)>> {
                self.0.holder.borrow().members()
            }
            fn ended(&mut self) -> Result<Vec<LimitId>> {
                self.0.holder.borrow_mut().ended()
            }
            fn wake_fd(&self) -> Option<RawFd> {
                Some(self.0.holder.borrow().wake_fd())
            }
            fn clear(&mut self) -> Result<()> {
                self.0.holder.borrow_mut().clear(self.0.direction)
            }
        }
    )* };
}

forward!(EbpfUpload, EbpfDownload);
