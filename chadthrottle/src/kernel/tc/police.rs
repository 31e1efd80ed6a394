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
        self.0
            .act(filter(device, priority, police))
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

/// A filter that asks a police about packets of a priority.
fn filter(device: u32, priority: u32, police: Police) -> Message {
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
    message
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

#[cfg(test)]
mod tests {
    use super::*;

    /// struct nlmsghdr, which no answer has any more.
    const NETLINK_HEADER: usize = 16;
    const POLICE: Police = Police { index: 7, rate: 1_000_000, burst: 250_000 };

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap())
    }

    #[test]
    fn a_filter_asks_its_police_between_two_counts() {
        let bytes = filter(3, 0xc4ad_0009, POLICE).finish(0, 1);
        let message = &bytes[NETLINK_HEADER..];
        let info = u32::from(PREFERENCE) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
        assert_eq!(tc_header(message), Some((3, 0xc4ad_0009, Hook::Egress.parent(), info)));
        let options = Attributes::of(&message[TC_HEADER..]).within(TCA_OPTIONS).unwrap();
        let actions = options.within(TCA_BASIC_ACT).unwrap();
        let kinds: Vec<_> = actions
            .all()
            .map(|(at, action)| (at, Attributes::of(action).text(TCA_ACT_KIND).unwrap()))
            .collect();
        assert_eq!(kinds, [(MET, "gact".into()), (ASKED, "police".into()), (PASSED, "gact".into())]);
        let next = |at| word(actions.within(at).unwrap().within(TCA_ACT_OPTIONS).unwrap().get(2).unwrap(), 2);
        assert_eq!((next(MET), next(PASSED)), (TC_ACT_PIPE, TC_ACT_UNSPEC));
        // The match ends with the priority.
        let matches = options.within(TCA_BASIC_EMATCHES).unwrap().within(2).unwrap().get(1).unwrap();
        assert_eq!(word(matches, matches.len() / 4 - 1), 0xc4ad_0009);
    }

    #[test]
    fn a_police_has_its_rate_and_drops_the_rest() {
        let asked = |police| {
            let mut message = Message::new(RTM_NEWACTION, 0, &[]);
            ask(&mut message, police);
            message.finish(0, 1)[NETLINK_HEADER..].to_vec()
        };
        let bytes = asked(POLICE);
        let options = Attributes::of(&bytes).within(TCA_ACT_OPTIONS).unwrap();
        let parameters = options.get(1).unwrap();
        // struct tc_police.
        assert_eq!(parameters.len(), 56);
        assert_eq!((word(parameters, 0), word(parameters, 1)), (7, TC_ACT_SHOT));
        // A quarter of a second, in ticks of 64 ns.
        assert_eq!(word(parameters, 3), 250_000_000 / 64);
        assert_eq!(word(parameters, 7), 1_000_000);
        assert_eq!(options.get(8), None, "a rate of 32 bits needs no other");

        let rate = 5_000_000_000;
        let bytes = asked(Police { rate, ..POLICE });
        let options = Attributes::of(&bytes).within(TCA_ACT_OPTIONS).unwrap();
        assert_eq!(word(options.get(1).unwrap(), 7), u32::MAX);
        assert_eq!(options.get(8), Some(&rate.to_ne_bytes()[..]));
    }

    fn answer(preference: u16, kind: &str) -> Vec<u8> {
        let info = filter_info(preference, (libc::ETH_P_ALL as u16).to_be());
        let mut message = rtnetlink::tc(RTM_NEWTFILTER, 0, 3, 9, Hook::Egress.parent(), info);
        message.text(TCA_KIND, kind);
        message.nested(TCA_OPTIONS, |options| {
            options.nested(TCA_BASIC_ACT, |actions| {
                for (place, bytes, packets) in [(MET, 9_000_u64, 6_u32), (PASSED, 3_000, 2)] {
                    let basic = [&bytes.to_ne_bytes()[..], &packets.to_ne_bytes()[..]].concat();
                    actions.nested(place, |action| action.nested(4, |stats| stats.attribute(1, &basic)));
                }
            });
        });
        message.finish(0, 1)[NETLINK_HEADER..].to_vec()
    }

    #[test]
    fn only_filters_of_ours_are_read() {
        let counts = Policed { met_packets: 6, met_bytes: 9_000, passed_packets: 2, passed_bytes: 3_000 };
        assert_eq!(policed(&answer(PREFERENCE, KIND)), Some((9, counts)));
        assert_eq!(policed(&answer(1, KIND)), None);
        assert_eq!(policed(&answer(PREFERENCE, "bpf")), None);
        assert_eq!(policed(&answer(PREFERENCE, KIND)[..30]), None);
    }
}
