//! By what limits are held at a device: an HTB tree, or a police. All else is the same for both.

use super::plan::MAJOR;
use crate::{
    backend::{
        gate::{self, Gate},
        tree::{Branch, Rest, Tree},
    },
    error::{Error, Kind, Result},
    kernel::{
        journal::Object,
        tc::{Device, Tc, htb::ClassCount},
    },
    model::{Direction, LimitId},
};

/// Holds classes of packets at a device.
pub(super) trait Means: Sized + Copy {
    /// Whether packets wait.
    const QUEUES: bool;
    /// End of the name of the IFB for downloads.
    const SUFFIX: &str;
    /// For messages.
    const WHAT: &str;

    /// The backend's name in that direction.
    fn name(direction: Direction) -> &'static str;

    /// What it is called in the names of its tables, of which a direction has its own.
    fn table(direction: Direction) -> &'static str {
        Self::name(direction)
    }

    /// What it will make at a device of the user's.
    ///
    /// # Errors
    /// When something of somebody else's stands in its place.
    fn objects(tc: &mut Tc, namespace: u64, device: &Device) -> Result<Vec<Object>>;

    /// Makes it at a device, or at the IFB; it holds nobody yet.
    fn make(tc: &mut Tc, device: u32, direction: Direction) -> Result<Self>;

    /// Holds a limit's classes to `rate` (IP bytes/s); `room` bytes may wait.
    fn set_branch(self, tc: &mut Tc, branch: Branch, rate: u64, room: u32) -> Result<()>;

    /// Holds them no more.
    fn cut_branch(self, tc: &mut Tc, branch: Branch) -> Result<()>;

    /// What each class did.
    fn counts(self, tc: &mut Tc) -> Result<Vec<(u32, ClassCount)>>;

    /// Whether it is still there, and holds these.
    fn stands(self, tc: &mut Tc, branches: impl Iterator<Item = Branch>) -> Result<bool>;

    /// Bytes that a limit lets through at once after a pause.
    fn credit(rate: u64) -> u64;
}

impl Means for Tree {
    const QUEUES: bool = true;
    const SUFFIX: &str = "tc";
    const WHAT: &str = "HTB";

    fn name(direction: Direction) -> &'static str {
        match direction {
            Direction::Upload => "tc_htb",
            Direction::Download => "ifb_tc",
        }
    }

    fn objects(tc: &mut Tc, namespace: u64, device: &Device) -> Result<Vec<Object>> {
        if let Some(root) = tc.root_qdisc(device.index)?.filter(|root| root.handle != 0) {
            let message = format!(
                "{} has a root qdisc of somebody else ({} {:x}:), which stays: what leaves there would not be held",
                device.name,
                root.kind,
                root.handle >> 16
            );
            return Err(Error::new(Kind::NoBackend, message));
        }
        Ok(vec![Object::Htb { namespace, device: device.index, major: MAJOR }])
    }

    fn make(tc: &mut Tc, device: u32, direction: Direction) -> Result<Self> {
        let rest = match direction {
            Direction::Upload => Rest::HasAClass,
            Direction::Download => Rest::Passes,
        };
        Self::plant(tc, device, MAJOR, rest)
    }

    fn set_branch(self, tc: &mut Tc, branch: Branch, rate: u64, room: u32) -> Result<()> {
        self.set_branch(tc, branch, rate, room)
    }

    fn cut_branch(self, tc: &mut Tc, branch: Branch) -> Result<()> {
        self.cut_branch(tc, branch)
    }

    fn counts(self, tc: &mut Tc) -> Result<Vec<(u32, ClassCount)>> {
        self.counts(tc)
    }

    fn stands(self, tc: &mut Tc, branches: impl Iterator<Item = Branch>) -> Result<bool> {
        self.stands(tc, branches)
    }

    fn credit(rate: u64) -> u64 {
        // Bursts of both classes, and what a buffer that stands for many packets is over.
        rate / 10 + 2 * 65_536
    }
}

impl Means for Gate {
    const QUEUES: bool = false;
    const SUFFIX: &str = "po";
    const WHAT: &str = "police";

    fn name(_: Direction) -> &'static str {
        "tc_police"
    }

    fn table(direction: Direction) -> &'static str {
        match direction {
            Direction::Upload => "tc_police-upload",
            Direction::Download => "tc_police-download",
        }
    }

    fn objects(tc: &mut Tc, namespace: u64, device: &Device) -> Result<Vec<Object>> {
        let police = Object::Police { namespace, device: device.index, major: MAJOR };
        match tc.ingress_kind(device.index)? {
            None => Ok(vec![Object::Clsact { namespace, device: device.index }, police]),
            Some(kind) if kind == "clsact" => Ok(vec![police]),
            Some(kind) => {
                let message = format!(
                    "{} has an {kind} qdisc of somebody else, which stays: what leaves there would not be held",
                    device.name
                );
                Err(Error::new(Kind::NoBackend, message))
            }
        }
    }

    fn make(tc: &mut Tc, device: u32, direction: Direction) -> Result<Self> {
        Self::build(tc, device, direction)
    }

    fn set_branch(self, tc: &mut Tc, branch: Branch, rate: u64, _: u32) -> Result<()> {
        self.set_branch(tc, branch, rate)
    }

    fn cut_branch(self, tc: &mut Tc, branch: Branch) -> Result<()> {
        self.cut_branch(tc, branch)
    }

    fn counts(self, tc: &mut Tc) -> Result<Vec<(u32, ClassCount)>> {
        self.counts(tc)
    }

    fn stands(self, tc: &mut Tc, branches: impl Iterator<Item = Branch>) -> Result<bool> {
        self.stands(tc, branches)
    }

    fn credit(rate: u64) -> u64 {
        gate::burst(rate) + 65_536
    }
}

/// The classes of limits.
pub(super) fn branches<'a>(limits: impl Iterator<Item = &'a LimitId>) -> impl Iterator<Item = Branch> {
    limits.map(|id| super::plan::branch(*id))
}
