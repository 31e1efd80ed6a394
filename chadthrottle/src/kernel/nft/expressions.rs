//! Rules as netlink messages: what each of their parts is in the kernel's little machine of registers.

use super::{
    encode::{
        NFT_MSG_NEWRULE, NFT_OBJECT_COUNTER, NFT_OBJECT_LIMIT, NFTA_DATA_VALUE, NFTA_DATA_VERDICT,
        NFTA_LIST_ELEM, long, message, named, word,
    },
    rule::{Compare, Field, Part, Verdict},
};
use crate::kernel::nl::Message;

const NFT_REG_VERDICT: u32 = 0;
/// The first of sixteen registers of four bytes.
const FIRST_REGISTER: u32 = 8;

/// NFT_META_PRIORITY.
const META_PRIORITY: u32 = 2;

/// Adds a rule at the end of a chain.
pub(super) fn add_rule(table: &str, chain: &str, parts: &[Part]) -> Message {
    const NFTA_RULE_EXPRESSIONS: u16 = 4;
    let mut message =
        named(message(NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND), table, 2, chain);
    message.nested(NFTA_RULE_EXPRESSIONS, |list| parts.iter().for_each(|each| part(list, each)));
    message
}

/// Adds an expression to the list.
fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    const NFTA_EXPR_NAME: u16 = 1;
    const NFTA_EXPR_DATA: u16 = 2;
    list.nested(NFTA_LIST_ELEM, |element| {
        element.text(NFTA_EXPR_NAME, name);
        element.nested(NFTA_EXPR_DATA, fill);
    });
}

fn part(list: &mut Message, part: &Part) {
    match part {
        Part::If(field, compare, value) => {
            load(list, *field, FIRST_REGISTER);
            if *compare == Compare::AtMost {
                // Compared byte by byte, so in network byte order.
                swap(list, FIRST_REGISTER);
                let swapped: Vec<u8> = value.iter().rev().copied().collect();
                let value = if cfg!(target_endian = "little") { &swapped } else { value };
                compare_with(list, FIRST_REGISTER, *compare, value);
            } else {
                compare_with(list, FIRST_REGISTER, *compare, value);
            }
        }
        Part::Among { fields, set, not } => look_up(list, fields, set, None, *not),
        Part::Dispatch { fields, map } => look_up(list, fields, map, Some(NFT_REG_VERDICT), false),
        Part::SetPriority(priority) => {
            put_word(list, FIRST_REGISTER, *priority);
            set_priority(list, FIRST_REGISTER);
        }
        Part::SetPriorityFrom { fields, map } => {
            look_up(list, fields, map, Some(FIRST_REGISTER), false);
            set_priority(list, FIRST_REGISTER);
        }
        Part::Learn { fields, map, priority, timeout_ms } => {
            learn(list, fields, map, *priority, *timeout_ms);
        }
        Part::Forward(device) => {
            put_word(list, FIRST_REGISTER, *device);
            expression(list, "fwd", |data| word(data, 1, FIRST_REGISTER));
        }
        Part::Over(limit) => refer(list, limit, NFT_OBJECT_LIMIT),
        Part::Count(counter) => refer(list, counter, NFT_OBJECT_COUNTER),
        Part::Do(verdict) => act(list, verdict),
    }
}

/// Brings a field into a register.
fn load(list: &mut Message, field: Field, register: u32) {
    const META_LEN: u32 = 0;
    const META_MARK: u32 = 3;
    const META_NFPROTO: u32 = 15;
    const META_L4PROTO: u32 = 16;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    const SOCKET_CGROUPV2: u32 = 3;
    let meta = |list: &mut Message, key: u32| {
        expression(list, "meta", |data| {
            word(data, 1, register);
            word(data, 2, key);
        });
    };
    let payload = |list: &mut Message, base: u32, offset: u32| {
        expression(list, "payload", |data| {
            for (attribute, value) in [(1, register), (2, base), (3, offset), (4, field.length() as u32)] {
                word(data, attribute, value);
            }
        });
    };
    match field {
        Field::Family => meta(list, META_NFPROTO),
        Field::Protocol => meta(list, META_L4PROTO),
        Field::Length => meta(list, META_LEN),
        Field::Mark => meta(list, META_MARK),
        Field::Priority => meta(list, META_PRIORITY),
        Field::Ipv4 { destination } => payload(list, NETWORK, if destination { 16 } else { 12 }),
        Field::Ipv6 { destination } => payload(list, NETWORK, if destination { 24 } else { 8 }),
        Field::Port { destination } => payload(list, TRANSPORT, if destination { 2 } else { 0 }),
        Field::Cgroup { level } => expression(list, "socket", |data| {
            for (attribute, value) in [(1, SOCKET_CGROUPV2), (2, register), (3, level)] {
                word(data, attribute, value);
            }
        }),
    }
}

/// Turns four bytes of the machine's order into network byte order.
fn swap(list: &mut Message, register: u32) {
    const HTON: u32 = 1;
    expression(list, "byteorder", |data| {
        for (attribute, value) in [(1, register), (2, register), (3, HTON), (4, 4), (5, 4)] {
            word(data, attribute, value);
        }
    });
}

fn compare_with(list: &mut Message, register: u32, compare: Compare, value: &[u8]) {
    expression(list, "cmp", |data| {
        word(data, 1, register);
        let operator = match compare {
            Compare::Is => 0,
            Compare::IsNot => 1,
            Compare::AtMost => 3,
        };
        word(data, 2, operator);
        data.nested(3, |data| data.attribute(NFTA_DATA_VALUE, value));
    });
}

/// Brings a key's fields into registers from the first one on; the next that is free.
fn load_all(list: &mut Message, fields: &[Field]) -> u32 {
    let mut register = FIRST_REGISTER;
    for field in fields {
        load(list, *field, register);
        register += field.length().div_ceil(4) as u32;
    }
    register
}

/// What is found goes to the register `found`.
fn look_up(list: &mut Message, fields: &[Field], set: &str, found: Option<u32>, not: bool) {
    const NFTA_LOOKUP_SET: u16 = 1;
    const NFTA_LOOKUP_SREG: u16 = 2;
    const NFTA_LOOKUP_DREG: u16 = 3;
    const NFTA_LOOKUP_FLAGS: u16 = 5;
    const NFT_LOOKUP_F_INV: u32 = 1;
    load_all(list, fields);
    expression(list, "lookup", |data| {
        data.text(NFTA_LOOKUP_SET, set);
        word(data, NFTA_LOOKUP_SREG, FIRST_REGISTER);
        if let Some(register) = found {
            word(data, NFTA_LOOKUP_DREG, register);
        }
        if not {
            word(data, NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
        }
    });
}

/// Brings a number of the machine's order into a register.
fn put_word(list: &mut Message, register: u32, value: u32) {
    expression(list, "immediate", |data| {
        word(data, 1, register);
        data.nested(2, |data| data.attribute(NFTA_DATA_VALUE, &value.to_ne_bytes()));
    });
}

fn set_priority(list: &mut Message, register: u32) {
    const NFTA_META_KEY: u16 = 2;
    const NFTA_META_SREG: u16 = 3;
    expression(list, "meta", |data| {
        word(data, NFTA_META_KEY, META_PRIORITY);
        word(data, NFTA_META_SREG, register);
    });
}

fn learn(list: &mut Message, fields: &[Field], map: &str, priority: u32, timeout_ms: u64) {
    const NFTA_DYNSET_SET_NAME: u16 = 1;
    const NFTA_DYNSET_OP: u16 = 3;
    const NFTA_DYNSET_SREG_KEY: u16 = 4;
    const NFTA_DYNSET_SREG_DATA: u16 = 5;
    const NFTA_DYNSET_TIMEOUT: u16 = 6;
    const NFT_DYNSET_OP_UPDATE: u32 = 1;
    let value = load_all(list, fields);
    put_word(list, value, priority);
    expression(list, "dynset", |data| {
        data.text(NFTA_DYNSET_SET_NAME, map);
        word(data, NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
        word(data, NFTA_DYNSET_SREG_KEY, FIRST_REGISTER);
        word(data, NFTA_DYNSET_SREG_DATA, value);
        long(data, NFTA_DYNSET_TIMEOUT, timeout_ms);
    });
}

fn refer(list: &mut Message, name: &str, kind: u32) {
    expression(list, "objref", |data| {
        word(data, 1, kind);
        data.text(2, name);
    });
}

fn act(list: &mut Message, verdict: &Verdict) {
    match verdict {
        Verdict::Vanish { queue, xtables: false } => {
            const NFTA_QUEUE_NUM: u16 = 1;
            expression(list, "queue", |data| data.attribute(NFTA_QUEUE_NUM, &queue.to_be_bytes()));
        }
        Verdict::Vanish { queue, xtables: true } => {
            const NFTA_TARGET_NAME: u16 = 1;
            const NFTA_TARGET_REV: u16 = 2;
            const NFTA_TARGET_INFO: u16 = 3;
            // struct xt_NFQ_info, padded as xtables does.
            let [low, high] = queue.to_ne_bytes();
            expression(list, "target", |data| {
                data.text(NFTA_TARGET_NAME, "NFQUEUE");
                word(data, NFTA_TARGET_REV, 0);
                data.attribute(NFTA_TARGET_INFO, &[low, high, 0, 0, 0, 0, 0, 0]);
            });
        }
        _ => expression(list, "immediate", |data| {
            word(data, 1, NFT_REG_VERDICT);
            data.nested(2, |data| put_verdict(data, verdict));
        }),
    }
}

/// A verdict, as data of an expression or an element.
pub(super) fn put_verdict(data: &mut Message, verdict: &Verdict) {
    const NFTA_VERDICT_CODE: u16 = 1;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    let (code, chain): (i32, _) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        // Written above.
        Verdict::Vanish { .. } => (3, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    data.nested(NFTA_DATA_VERDICT, |data| {
        word(data, NFTA_VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            data.text(NFTA_VERDICT_CHAIN, chain);
        }
    });
}
