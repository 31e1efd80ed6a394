//! act_police: packets of a priority pass while there is room, and are dropped when there is none.
//!
//! A filter (cls_basic with em_meta) finds the packets by their priority. Its actions count what it met, ask the police,
//! and count what passed. All filters that name the same police share its rate, at whatever device they are.
//! Layouts: include/uapi/linux/{pkt_cls,tc_ematch/tc_em_meta,tc_act/tc_gact}.h.

use super::{
    CREATE, CREATE_NEW, Hook, PREFERENCE, RTM_DELTFILTER, RTM_GETTFILTER, RTM_NEWTFILTER, TC_HEADER,
    TCA_KIND, TCA_OPTIONS, Tc, absent_is_fine, explain, filter_info, tc_header,
};
use crate::{
    error::Result,
    kernel::{
        nl::{Attributes, Message},
        rtnetlink,
    },
};

const RTM_NEWACTION: u16 = 48;
const KIND: &str = "basic";

const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_BASIC_EMATCHES: u16 = 2;
const TCA_BASIC_ACT: u16 = 3;

const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_PIPE: u32 = 3;

/// Places of the actions of a filter.
const MET: u16 = 1;
const ASKED: u16 = 2;
const PASSED: u16 = 3;

/// A rate that filters share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Police {
    /// Its number in the network namespace, not 0.
    pub index: u32,
    /// Bytes/s, with link headers.
    pub rate: u64,
    /// Bytes that may pass at once after a pause. A buffer that stands for many packets passes as a whole or not at all.
    pub burst: u64,
}

/// What a filter met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policed {
    /// Packets, as they are on the wire, that came.
    pub met_packets: u32,
    /// Bytes that came, with link headers.
    pub met_bytes: u64,
    /// Those of them that passed.
    pub passed_packets: u32,
    /// Their bytes.
    pub passed_bytes: u64,
}

impl Tc {
    /// Adds a filter to those for packets that leave a device: those of this priority pass only if the police lets them.
    /// It has its priority as handle. A police of that number that is there already stays as it is.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`] when the kernel lacks a classifier or an action that it takes, too.
    pub fn add_police(&mut self, device: u32, priority: u32, police: Police) -> Result<()> {
        let info = filter_info(PREFERENCE, (libc::ETH_P_ALL as u16).to_be());
        let mut message =
            rtnetlink::tc(RTM_NEWTFILTER, CREATE_NEW, device, priority, Hook::Egress.parent(), info);
        message.text(TCA_KIND, KIND);
        message.nested(TCA_OPTIONS, |options| {
            is_priority(options, priority);
            options.nested(TCA_BASIC_ACT, |actions| {
                actions.nested(MET, |action| count(action, TC_ACT_PIPE));
                actions.nested(ASKED, |action| ask(action, police));
                // The filters after it are asked, too.
                actions.nested(PASSED, |action| count(action, TC_ACT_UNSPEC));
            });
        });
        self.0
            .act(message)
            .map_err(|cause| explain(cause, format!("add a police to network device {device}")))
    }

    /// Gives a police that is there another rate.
    pub fn change_police(&mut self, police: Police) -> Result<()> {
        const TCA_ACT_TAB: u16 = 1;
        let mut message = Message::new(RTM_NEWACTION, CREATE | libc::NLM_F_REPLACE as u16, &[0; 4]);
        message.nested(TCA_ACT_TAB, |actions| actions.nested(1, |action| ask(action, police)));
        self.0
            .act(message)
            .map_err(|cause| explain(cause, format!("change the rate of police {:x}", police.index)))
    }

    /// Removes the filter of that priority, and its police with the last one. True when it was still there.
    pub fn delete_police(&mut self, device: u32, priority: u32) -> Result<bool> {
        let info = filter_info(PREFERENCE, (libc::ETH_P_ALL as u16).to_be());
        let mut message = rtnetlink::tc(RTM_DELTFILTER, 0, device, priority, Hook::Egress.parent(), info);
        message.text(TCA_KIND, KIND);
        absent_is_fine(self.0.act(message))
            .map_err(|cause| explain(cause, format!("remove a police from network device {device}")))
    }

    /// Removes all filters whose priorities have this major number. True when there was one.
    pub fn delete_all_police(&mut self, device: u32, major: u32) -> Result<bool> {
        let mut deleted = false;
        for (priority, _) in self.policed(device)? {
            if priority >> 16 == major {
                deleted |= self.delete_police(device, priority)?;
            }
        }
        Ok(deleted)
    }

    /// What each of a device's filters met, by its priority.
    pub fn policed(&mut self, device: u32) -> Result<Vec<(u32, Policed)>> {
        let message = rtnetlink::tc(RTM_GETTFILTER, 0, device, 0, Hook::Egress.parent(), 0);
        let answers = match self.0.dump(message) {
            Err(error) if error.kind == crate::error::Kind::NotFound => return Ok(Vec::new()),
            answers => answers
                .map_err(|cause| explain(cause, format!("list the filters of network device {device}")))?,
        };
        Ok(answers.iter().filter_map(|answer| policed(answer)).collect())
    }
}

/// Matches packets of a priority.
fn is_priority(options: &mut Message, priority: u32) {
    const TCA_EMATCH_TREE_HDR: u16 = 1;
    const TCA_EMATCH_TREE_LIST: u16 = 2;
    const TCF_EM_META: u16 = 4;
    const TCA_EM_META_HDR: u16 = 1;
    const TCA_EM_META_RVALUE: u16 = 3;
    /// An integer; which one.
    const PRIORITY: u16 = 0x1006;
    const VALUE: u16 = 0x1000;
    // One match: its number, kind, flags, nothing; then attributes of its own.
    let mut found = Vec::new();
    let mut put = |bytes: &[u16]| found.extend(bytes.iter().flat_map(|half| half.to_ne_bytes()));
    put(&[0, TCF_EM_META, 0, 0]);
    // What is compared (is equal to: 0) with what.
    put(&[4 + 8, TCA_EM_META_HDR, PRIORITY, 0, VALUE, 0]);
    put(&[4 + 4, TCA_EM_META_RVALUE]);
    found.extend(priority.to_ne_bytes());
    options.nested(TCA_BASIC_EMATCHES, |tree| {
        // How many, and which program made them.
        tree.attribute(TCA_EMATCH_TREE_HDR, &[1_u16, 0].map(u16::to_ne_bytes).concat());
        tree.nested(TCA_EMATCH_TREE_LIST, |list| list.attribute(1, &found));
    });
}

/// An action that counts, and says what is next.
fn count(action: &mut Message, next: u32) {
    const TCA_GACT_PARMS: u16 = 2;
    action.text(TCA_ACT_KIND, "gact");
    action.nested(TCA_ACT_OPTIONS, |options| {
        // struct tc_gact: number (the kernel's choice), capabilities, action, two counts.
        options.words(TCA_GACT_PARMS, &[0, 0, next, 0, 0]);
    });
}

/// An action that asks a police: the next action, or the end.
fn ask(action: &mut Message, police: Police) {
    const TCA_POLICE_TBF: u16 = 1;
    const TCA_POLICE_RATE: u16 = 2;
    const TCA_POLICE_RESULT: u16 = 5;
    const TCA_POLICE_RATE64: u16 = 8;
    /// A table of times, which must be there and which the kernel does not use.
    const TABLE: [u8; 1024] = [0; 1024];
    /// struct tc_ratespec, but for the rate: a valid shift for the table; link layer 1 is Ethernet.
    const RATE_SPEC: [u8; 8] = [3, 1, 0, 0, 0, 0, 0, 0];
    action.text(TCA_ACT_KIND, "police");
    action.nested(TCA_ACT_OPTIONS, |options| {
        // The burst as the time it takes, in the scheduler's ticks of 64 ns.
        let ticks = (u128::from(police.burst) * 1_000_000_000 / u128::from(police.rate.max(1))) >> 6;
        let mut parameters = Vec::new();
        // Number, what becomes of what has no room, a limit nobody uses, burst, and no largest packet.
        for word in [police.index, TC_ACT_SHOT, 0, u32::try_from(ticks).unwrap_or(u32::MAX), u32::MAX] {
            parameters.extend(word.to_ne_bytes());
        }
        parameters.extend(RATE_SPEC);
        parameters.extend(u32::try_from(police.rate).unwrap_or(u32::MAX).to_ne_bytes());
        // No peak rate; three counts.
        parameters.extend([0; 12 + 12]);
        options.attribute(TCA_POLICE_TBF, &parameters);
        options.attribute(TCA_POLICE_RATE, &TABLE);
        options.words(TCA_POLICE_RESULT, &[TC_ACT_PIPE]);
        if police.rate > u64::from(u32::MAX) {
            options.attribute(TCA_POLICE_RATE64, &police.rate.to_ne_bytes());
        }
    });
}

fn policed(answer: &[u8]) -> Option<(u32, Policed)> {
    let (_, priority, _, info) = tc_header(answer)?;
    let attributes = Attributes::of(answer.get(TC_HEADER..)?);
    if (info >> 16) as u16 != PREFERENCE || priority == 0 || attributes.text(TCA_KIND)? != KIND {
        return None;
    }
    let actions = attributes.within(TCA_OPTIONS)?.within(TCA_BASIC_ACT)?;
    let (met_bytes, met_packets) = counted(actions.within(MET)?)?;
    let (passed_bytes, passed_packets) = counted(actions.within(PASSED)?)?;
    Some((priority, Policed { met_packets, met_bytes, passed_packets, passed_bytes }))
}

/// Bytes and packets that came to an action.
fn counted(action: Attributes<'_>) -> Option<(u64, u32)> {
    const TCA_ACT_STATS: u16 = 4;
    const TCA_STATS_BASIC: u16 = 1;
    let basic = action.within(TCA_ACT_STATS)?.get(TCA_STATS_BASIC)?;
    let bytes = u64::from_ne_bytes(basic.get(..8)?.try_into().ok()?);
    Some((bytes, u32::from_ne_bytes(basic.get(8..12)?.try_into().ok()?)))
}
