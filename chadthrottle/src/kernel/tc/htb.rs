//! HTB: a device's queue, in which classes of packets have rates of their own.

use super::{
    CREATE, CREATE_NEW, RTM_DELQDISC, RTM_GETQDISC, RTM_NEWQDISC, TC_H_ROOT, TC_HEADER, TCA_KIND,
    TCA_OPTIONS, Tc, absent_is_fine, explain, tc_header,
};
use crate::{
    error::Result,
    kernel::{nl::Attributes, rtnetlink},
};

const RTM_NEWTCLASS: u16 = 40;
const RTM_DELTCLASS: u16 = 41;
const RTM_GETTCLASS: u16 = 42;

/// Least share in one round, bytes; without it HTB chooses one by the rate, and complains.
const QUANTUM: u32 = 3_000;

/// A class's place and rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Major and minor number.
    pub id: u32,
    /// The class, or qdisc (minor number 0), that it is a part of.
    pub parent: u32,
    /// Bytes/s that it has in any case.
    pub rate: u64,
    /// Bytes/s that it may have when its parent has them to spare.
    pub ceil: u64,
    /// Bytes that may leave at once after a pause.
    pub burst: u64,
    /// Who comes first (0) when there is something to spare, up to 7.
    pub priority: u32,
}

/// What waits in a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fifo {
    /// At most so many bytes.
    Bytes(u32),
    /// At most so many buffers.
    Packets(u32),
}

/// What a class did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCount {
    /// Bytes that left, with link headers.
    pub bytes: u64,
    /// Packets that left, as they are on the wire.
    pub packets: u32,
    /// Buffers that were refused for want of room.
    pub dropped: u32,
    /// Buffers that wait.
    pub waiting: u32,
    /// Bytes that wait, with link headers.
    pub waiting_bytes: u32,
}

/// A device's root qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootQdisc {
    /// "noqueue", "fq_codel" …
    pub kind: String,
    /// 0: the kernel's own choice.
    pub handle: u32,
}

impl Tc {
    /// What a device has for a root qdisc; `None`: nothing, as when it is down.
    pub fn root_qdisc(&mut self, device: u32) -> Result<Option<RootQdisc>> {
        let answers = self
            .0
            .dump(rtnetlink::tc(RTM_GETQDISC, 0, device, 0, 0, 0))
            .map_err(|cause| explain(cause, format!("list the qdiscs of network device {device}")))?;
        let root = answers.iter().find_map(|answer| {
            let (index, handle, parent, _) = tc_header(answer)?;
            let kind = Attributes::of(answer.get(TC_HEADER..)?).text(TCA_KIND)?;
            (index == device && parent == TC_H_ROOT).then_some(RootQdisc { kind, handle })
        });
        Ok(root)
    }

    /// HTB as root qdisc in place of the kernel's own choice. Packets of no class go to `default`; 0: they pass at
    /// once.
    ///
    /// # Errors
    /// When the device has somebody else's.
    pub fn add_htb(&mut self, device: u32, major: u32, default: u32) -> Result<()> {
        const TCA_HTB_INIT: u16 = 2;
        let mut message = rtnetlink::tc(RTM_NEWQDISC, CREATE_NEW, device, major << 16, TC_H_ROOT, 0);
        message.text(TCA_KIND, "htb");
        message.nested(TCA_OPTIONS, |options| {
            // Version, divisor for the quantum, default class, debug, packets that passed directly.
            options.words(TCA_HTB_INIT, &[3, 10, default & 0xffff, 0, 0]);
        });
        self.0.act(message).map_err(|cause| explain(cause, format!("add HTB to network device {device}")))
    }

    /// Removes our HTB, if it is still there; the kernel puts its own choice in its place.
    pub fn delete_htb(&mut self, device: u32, major: u32) -> Result<bool> {
        let ours = |root: RootQdisc| root.kind == "htb" && root.handle == major << 16;
        if !self.root_qdisc(device)?.is_some_and(ours) {
            return Ok(false);
        }
        absent_is_fine(self.0.act(rtnetlink::tc(RTM_DELQDISC, 0, device, major << 16, TC_H_ROOT, 0)))
            .map_err(|cause| explain(cause, format!("remove HTB from network device {device}")))
    }

    /// Makes a class, or changes the rates of the one of that id.
    pub fn set_class(&mut self, device: u32, class: Class) -> Result<()> {
        const TCA_HTB_PARMS: u16 = 1;
        const TCA_HTB_RATE64: u16 = 6;
        const TCA_HTB_CEIL64: u16 = 7;
        /// struct tc_ratespec, but for the rate: link layer 1 (Ethernet) spares the rate table.
        const RATE_SPEC: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
        let mut message = rtnetlink::tc(RTM_NEWTCLASS, CREATE, device, class.id, class.parent, 0);
        message.text(TCA_KIND, "htb");
        message.nested(TCA_OPTIONS, |options| {
            let mut parameters = Vec::new();
            for rate in [class.rate, class.ceil] {
                parameters.extend(RATE_SPEC);
                parameters.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
            }
            let [burst, ceil_burst] = [class.rate, class.ceil].map(|rate| {
                // As the time it takes, in the scheduler's ticks of 64 ns.
                let ticks = (u128::from(class.burst) * 1_000_000_000 / u128::from(rate.max(1))) >> 6;
                u32::try_from(ticks).unwrap_or(u32::MAX)
            });
            // Bursts, quantum, level (which the kernel knows), priority.
            for word in [burst, ceil_burst, QUANTUM, 0, class.priority] {
                parameters.extend(word.to_ne_bytes());
            }
            options.attribute(TCA_HTB_PARMS, &parameters);
            for (kind, rate) in [(TCA_HTB_RATE64, class.rate), (TCA_HTB_CEIL64, class.ceil)] {
                if rate > u64::from(u32::MAX) {
                    options.attribute(kind, &rate.to_ne_bytes());
                }
            }
        });
        self.0.act(message).map_err(|cause| explain(cause, format!("set the rate of class {:x}", class.id)))
    }

    /// Says how much may wait in a class without classes of its own.
    pub fn set_fifo(&mut self, device: u32, class: u32, fifo: Fifo) -> Result<()> {
        let mut message = rtnetlink::tc(RTM_NEWQDISC, CREATE, device, class << 16, class, 0);
        let (kind, limit) = match fifo {
            Fifo::Bytes(limit) => ("bfifo", limit),
            Fifo::Packets(limit) => ("pfifo", limit),
        };
        message.text(TCA_KIND, kind);
        message.words(TCA_OPTIONS, &[limit]); // struct tc_fifo_qopt
        self.0.act(message).map_err(|cause| explain(cause, format!("set the length of queue {class:x}")))
    }

    /// Gives a class a queue that is fair between flows, and short.
    pub fn set_fq_codel(&mut self, device: u32, class: u32) -> Result<()> {
        let mut message = rtnetlink::tc(RTM_NEWQDISC, CREATE, device, class << 16, class, 0);
        message.text(TCA_KIND, "fq_codel");
        self.0.act(message).map_err(|cause| explain(cause, format!("set the queue of class {class:x}")))
    }

    /// Removes a class and what it holds. True when it was still there.
    pub fn delete_class(&mut self, device: u32, class: u32) -> Result<bool> {
        absent_is_fine(self.0.act(rtnetlink::tc(RTM_DELTCLASS, 0, device, class, 0, 0)))
            .map_err(|cause| explain(cause, format!("remove class {class:x}")))
    }

    /// What each class of a device did.
    pub fn class_counts(&mut self, device: u32) -> Result<Vec<(u32, ClassCount)>> {
        let answers = self
            .0
            .dump(rtnetlink::tc(RTM_GETTCLASS, 0, device, 0, 0, 0))
            .map_err(|cause| explain(cause, format!("list the classes of network device {device}")))?;
        Ok(answers.iter().filter_map(|answer| count(answer)).collect())
    }
}

fn count(answer: &[u8]) -> Option<(u32, ClassCount)> {
    const TCA_STATS2: u16 = 7;
    const TCA_STATS_BASIC: u16 = 1;
    const TCA_STATS_QUEUE: u16 = 3;
    let (_, class, _, _) = tc_header(answer)?;
    let statistics = Attributes::of(answer.get(TC_HEADER..)?).within(TCA_STATS2)?;
    // struct gnet_stats_basic: bytes, packets; struct gnet_stats_queue: packets, bytes, drops, …
    let (basic, queue) = (statistics.get(TCA_STATS_BASIC)?, statistics.get(TCA_STATS_QUEUE)?);
    let word = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let count = ClassCount {
        bytes: u64::from_ne_bytes(basic.get(..8)?.try_into().ok()?),
        packets: word(basic, 8)?,
        dropped: word(queue, 8)?,
        waiting: word(queue, 0)?,
        waiting_bytes: word(queue, 4)?,
    };
    Some((class, count))
}
