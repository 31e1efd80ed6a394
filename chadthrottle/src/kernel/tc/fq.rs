//! Devices that keep a packet until the time it carries: those with the qdisc fq.

use std::collections::BTreeMap;

use super::{
    CREATE_NEW, RTM_GETQDISC, RTM_NEWQDISC, TC_H_ROOT, TC_HEADER, TCA_KIND, TCA_OPTIONS, Tc, explain,
    tc_header,
};
use crate::{
    error::Result,
    kernel::{nl::Attributes, rtnetlink},
};

/// A qdisc, as the kernel lists it.
struct Qdisc {
    device: u32,
    handle: u32,
    parent: u32,
    kind: String,
}

/// How a device sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Kind of its root qdisc: "noqueue", "fq_codel" …
    pub kind: String,
    /// Whether packets wait for their time: it is fq, or has one for each queue of the device and nothing else.
    pub keeps: bool,
}

impl Tc {
    /// How each device sends, by its number; one that is down may be missing.
    pub fn sending(&mut self) -> Result<BTreeMap<u32, Sending>> {
        let answers = self
            .0
            .dump(rtnetlink::tc(RTM_GETQDISC, 0, 0, 0, 0, 0))
            .map_err(|cause| explain(cause, "list the qdiscs of all network devices"))?;
        Ok(of_qdiscs(&answers.iter().filter_map(|answer| qdisc(answer)).collect::<Vec<_>>()))
    }

    /// fq as root qdisc with a handle of our own, for packets that all carry their time, however many these are. What
    /// has a later one than `horizon_us` from now is dropped.
    pub fn add_timed_fq(&mut self, device: u32, major: u32, horizon_us: u32) -> Result<()> {
        const TCA_FQ_PLIMIT: u16 = 1;
        const TCA_FQ_FLOW_PLIMIT: u16 = 2;
        const TCA_FQ_RATE_ENABLE: u16 = 5;
        const TCA_FQ_HORIZON: u16 = 14;
        const TCA_FQ_HORIZON_DROP: u16 = 15;
        const MANY: u32 = 10_000_000;
        let mut message = rtnetlink::tc(RTM_NEWQDISC, CREATE_NEW, device, major << 16, TC_H_ROOT, 0);
        message.text(TCA_KIND, "fq");
        message.nested(TCA_OPTIONS, |options| {
            options.words(TCA_FQ_PLIMIT, &[MANY]);
            options.words(TCA_FQ_FLOW_PLIMIT, &[MANY]);
            // The pacing of the socket that sent the packet, which a pair of veth leaves on it, is not ours.
            options.words(TCA_FQ_RATE_ENABLE, &[0]);
            options.words(TCA_FQ_HORIZON, &[horizon_us]);
            options.attribute(TCA_FQ_HORIZON_DROP, &[1]);
        });
        self.0.act(message).map_err(|cause| explain(cause, format!("add fq to network device {device}")))
    }

    /// fq as root qdisc in place of the kernel's own choice.
    pub fn add_fq(&mut self, device: u32) -> Result<()> {
        let mut message = rtnetlink::tc(RTM_NEWQDISC, CREATE_NEW, device, 1 << 16, TC_H_ROOT, 0);
        message.text(TCA_KIND, "fq");
        self.0.act(message).map_err(|cause| explain(cause, format!("add fq to network device {device}")))
    }
}

fn qdisc(answer: &[u8]) -> Option<Qdisc> {
    let (device, handle, parent, _) = tc_header(answer)?;
    Some(Qdisc { device, handle, parent, kind: Attributes::of(answer.get(TC_HEADER..)?).text(TCA_KIND)? })
}

fn of_qdiscs(all: &[Qdisc]) -> BTreeMap<u32, Sending> {
    let roots = all.iter().filter(|qdisc| qdisc.parent == TC_H_ROOT);
    let of = |root: &Qdisc| {
        let is_part = |part: &&Qdisc| {
            part.device == root.device && part.parent != TC_H_ROOT && part.parent >> 16 == root.handle >> 16
        };
        let mut parts = all.iter().filter(is_part).peekable();
        let by_queue = root.kind == "mq" && parts.peek().is_some() && parts.all(|part| part.kind == "fq");
        (root.device, Sending { kind: root.kind.clone(), keeps: root.kind == "fq" || by_queue })
    };
    roots.map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qdiscs(all: &[(u32, u32, u32, &str)]) -> BTreeMap<u32, Sending> {
        let one = |&(device, handle, parent, kind): &(u32, u32, u32, &str)| Qdisc {
            device,
            handle,
            parent,
            kind: kind.into(),
        };
        of_qdiscs(&all.iter().map(one).collect::<Vec<_>>())
    }

    #[test]
    fn fq_keeps_and_others_do_not() {
        let found = qdiscs(&[
            (1, 0, TC_H_ROOT, "noqueue"),
            (2, 0x8001_0000, TC_H_ROOT, "fq"),
            (2, 0xffff_0000, 0xffff_fff1, "clsact"),
            (3, 0, TC_H_ROOT, "fq_codel"),
        ]);
        let keeps: Vec<_> = found.iter().map(|(device, sending)| (*device, sending.keeps)).collect();
        assert_eq!(keeps, [(1, false), (2, true), (3, false)]);
        assert_eq!(found[&3].kind, "fq_codel");
    }

    #[test]
    fn all_queues_have_to_keep() {
        let both = [(2, 0, TC_H_ROOT, "mq"), (2, 0, 1, "fq"), (2, 0, 2, "fq"), (3, 0, 1, "fq_codel")];
        assert!(qdiscs(&both)[&2].keeps);
        let mixed = [(2, 0, TC_H_ROOT, "mq"), (2, 0, 1, "fq"), (2, 0, 2, "pfifo_fast")];
        assert!(!qdiscs(&mixed)[&2].keeps);
        assert!(!qdiscs(&[(2, 0, TC_H_ROOT, "mq")])[&2].keeps);
        // fq below a shaper, whose classes others may use too: not looked into.
        assert!(!qdiscs(&[(2, 1 << 16, TC_H_ROOT, "htb"), (2, 2 << 16, 1 << 16 | 5, "fq")])[&2].keeps);
    }
}
