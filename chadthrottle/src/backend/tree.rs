//! The HTB tree of a device: a class for each limit, in the order in which packets should leave. One for all that have
//! queues: the eBPF backend's IFB, `tc_htb` and `ifb_tc`.

use std::collections::HashSet;

use crate::{
    error::Result,
    kernel::tc::{
        Tc,
        htb::{Class, ClassCount, Fifo},
    },
};

/// A class counts the Ethernet header, a limit does not: full packets are 1514 bytes to one, 1500 to the other.
pub(super) const FRAME: u64 = 1_514;
pub(super) const PACKET: u64 = 1_500;

/// What a class catches up with after it was empty: this part of a second. A late timer, and bbr, which all but stops
/// every ten seconds to measure its round trip. No second is more than this above the rate.
const BURST: u64 = 12;

/// Rate of a class whose limit is over, bytes/s: what is in it leaves at once.
pub(super) const RELEASED: u64 = 10_000_000_000;
/// Rate of the class of everybody else, bytes/s: more than any device has.
const NO_LIMIT: u64 = 100_000_000_000;
const NO_LIMIT_BURST: u64 = 16 * 1024 * 1024;
/// What may wait there where there is no fq_codel, buffers.
const NO_LIMIT_QUEUE: u32 = 1_000;

/// Minor number of that class.
const REST: u32 = 0xfffe;
/// Limits have the minor numbers from 1 to this; their two queues those above, each by as much again.
const MINORS: u32 = 0x5000;
/// Part of the rate that small packets of TCP have in any case.
const URGENT_SHARE: u64 = 10;
/// What of them may wait, bytes.
const URGENT_QUEUE: u32 = 64 * 1024;

/// What becomes of packets of no class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// They pass at once: there should be none.
    Passes,
    /// They have a class of their own, without a limit.
    HasAClass,
}

/// A limit's classes: one for both of its queues, which share the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    both: u32,
    /// What waits its turn.
    pub bulk: u32,
    /// Small packets of TCP, by which connections are opened and data is acknowledged: they do not wait behind it.
    pub urgent: u32,
}

impl Branch {
    /// The limit with that number; of those in force at a time, no more than 20,000 apart, each has its own.
    pub fn new(major: u32, number: u64) -> Self {
        let minor = (number % u64::from(MINORS - 1)) as u32 + 1;
        let both = major << 16 | minor;
        Self { both, bulk: both + MINORS, urgent: both + 2 * MINORS }
    }
}

/// Our HTB on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    device: u32,
    major: u32,
}

impl Tree {
    /// Puts it in the place of the kernel's own root qdisc; on error nothing is left.
    pub fn plant(tc: &mut Tc, device: u32, major: u32, rest: Rest) -> Result<Self> {
        let tree = Self { device, major };
        let default = match rest {
            Rest::Passes => 0,
            Rest::HasAClass => major << 16 | REST,
        };
        tc.add_htb(device, major, default)?;
        if rest == Rest::HasAClass
            && let Err(error) = tree.make_rest(tc, default)
        {
            tc.delete_htb(device, major)?;
            return Err(error);
        }
        Ok(tree)
    }

    fn make_rest(self, tc: &mut Tc, id: u32) -> Result<()> {
        let class = Class { rate: NO_LIMIT, ceil: NO_LIMIT, burst: NO_LIMIT_BURST, ..self.class(id, 1) };
        tc.set_class(self.device, class)?;
        match tc.set_fq_codel(self.device, id) {
            Ok(()) => Ok(()),
            Err(_) => tc.set_fifo(self.device, id, Fifo::Packets(NO_LIMIT_QUEUE)),
        }
    }

    /// A class right below the root, for `rate` IP bytes/s in full packets.
    fn class(self, id: u32, rate: u64) -> Class {
        let rate = (u128::from(rate) * u128::from(FRAME) / u128::from(PACKET)) as u64;
        let burst = (rate / BURST).max(2 * FRAME);
        Class { id, parent: self.major << 16, rate, ceil: rate, burst, priority: 0 }
    }

    /// Gives a class without classes of its own this rate (IP bytes/s), and makes it if it is not there; `room` bytes
    /// may wait in it.
    pub fn set_leaf(self, tc: &mut Tc, id: u32, rate: u64, room: u32) -> Result<()> {
        tc.set_class(self.device, self.class(id, rate))?;
        tc.set_fifo(self.device, id, Fifo::Bytes(room))
    }

    /// The same for a limit's classes.
    pub fn set_branch(self, tc: &mut Tc, branch: Branch, rate: u64, room: u32) -> Result<()> {
        let both = self.class(branch.both, rate);
        let urgent = (both.rate / URGENT_SHARE).max(1);
        let queues =
            [(branch.urgent, urgent, 0, URGENT_QUEUE), (branch.bulk, (both.rate - urgent).max(1), 1, room)];
        tc.set_class(self.device, both)?;
        for (id, rate, priority, room) in queues {
            tc.set_class(self.device, Class { id, parent: both.id, rate, priority, ..both })?;
            tc.set_fifo(self.device, id, Fifo::Bytes(room))?;
        }
        Ok(())
    }

    /// Removes a class, and what it holds.
    pub fn cut_leaf(self, tc: &mut Tc, id: u32) -> Result<()> {
        tc.delete_class(self.device, id).map(drop)
    }

    /// Removes a limit's classes, and what they hold.
    pub fn cut_branch(self, tc: &mut Tc, branch: Branch) -> Result<()> {
        for id in [branch.bulk, branch.urgent, branch.both] {
            tc.delete_class(self.device, id)?;
        }
        Ok(())
    }

    /// What each class did.
    pub fn counts(self, tc: &mut Tc) -> Result<Vec<(u32, ClassCount)>> {
        tc.class_counts(self.device)
    }

    /// Whether it is still there, with the classes of these limits.
    pub fn stands(self, tc: &mut Tc, mut branches: impl Iterator<Item = Branch>) -> Result<bool> {
        let ours = |kind: &str, handle| kind == "htb" && handle == self.major << 16;
        if !tc.root_qdisc(self.device)?.is_some_and(|root| ours(&root.kind, root.handle)) {
            return Ok(false);
        }
        let there: HashSet<u32> = tc.class_counts(self.device)?.into_iter().map(|(class, _)| class).collect();
        let has = |branch: Branch| {
            [branch.both, branch.bulk, branch.urgent].iter().all(|class| there.contains(class))
        };
        Ok(branches.all(has))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_classes_have_the_same_id() {
        let mut ids = std::collections::HashSet::from([REST, 0xffff, 0]);
        for number in 0..u64::from(MINORS - 1) {
            let branch = Branch::new(0xabcd, number);
            for id in [branch.both, branch.bulk, branch.urgent] {
                assert_eq!(id >> 16, 0xabcd);
                assert!(ids.insert(id & 0xffff), "{number}: {id:x}");
            }
        }
    }
}
