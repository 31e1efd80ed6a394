//! Steps as netlink messages.

use super::{
    Count, attributes,
    expressions::{add_rule, put_verdict},
    rule::{Bucket, Element, Field, Hook, Key, SetKind, Step, Value},
};
use crate::kernel::nl::Message;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFPROTO_UNSPEC: u8 = 0;
/// NFPROTO_INET and NFPROTO_NETDEV.
pub(super) const INET: u8 = 1;
pub(super) const NETDEV: u8 = 5;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_NEWOBJ: u16 = 18;
const NFT_MSG_GETOBJ: u16 = 19;
const NFT_MSG_DELOBJ: u16 = 20;

pub(super) const NFT_OBJECT_COUNTER: u32 = 1;
pub(super) const NFT_OBJECT_LIMIT: u32 = 4;

pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;

/// Elements that packets may add to a set.
const MOST_LEARNT: u32 = 65_536;

/// Elements of one message: an attribute holds 64 KiB at most.
const ELEMENTS_AT_ONCE: usize = 256;

/// What stands before and after the messages of a batch.
pub(super) fn batch() -> [Message; 2] {
    [NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END].map(|kind| {
        // struct nfgenmsg; here the subsystem stands in its last field.
        let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
        Message::new(kind, 0, &[NFPROTO_UNSPEC, 0, high, low])
    })
}

pub(super) fn message(kind: u16, flags: i32) -> Message {
    Message::new(NFNL_SUBSYS_NFTABLES << 8 | kind, flags as u16, &[INET, 0, 0, 0])
}

fn new(kind: u16) -> Message {
    message(kind, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
}

/// The messages for one step in a table of that family.
pub(super) fn step(family: u8, table: &str, step: &Step) -> Vec<Message> {
    in_inet(table, family, step).into_iter().map(|message| message.with_family(family)).collect()
}

fn in_inet(table: &str, family: u8, step: &Step) -> Vec<Message> {
    vec![match step {
        Step::AddTable => add_table(table),
        Step::AddChain(name, hook) => add_chain(table, name, *hook),
        Step::AddArrivals { chain, device, priority } => {
            // NF_INET_INGRESS, NF_NETDEV_INGRESS.
            let hook = if family == NETDEV { 0 } else { 5 };
            add_base_chain(table, chain, hook, *priority, Some(device))
        }
        Step::DeleteChain(name) => named(message(NFT_MSG_DELCHAIN, 0), table, 3, name),
        Step::FlushChain(name) => named(message(NFT_MSG_DELRULE, 0), table, 2, name),
        Step::AddRule(chain, parts) => add_rule(table, chain, parts),
        Step::AddSet(name, kind) => add_set(table, name, kind),
        Step::AddElements(set, elements) => {
            return elements.chunks(ELEMENTS_AT_ONCE).map(|chunk| add_elements(table, set, chunk)).collect();
        }
        Step::DeleteElements(set, keys) => {
            return keys.chunks(ELEMENTS_AT_ONCE).map(|chunk| delete_elements(table, set, chunk)).collect();
        }
        Step::FlushSet(name) => named(message(NFT_MSG_DELSETELEM, 0), table, 2, name),
        Step::AddLimit(name, bucket) => add_limit(table, name, *bucket),
        Step::DeleteLimit(name) => object(message(NFT_MSG_DELOBJ, 0), table, name, NFT_OBJECT_LIMIT),
        Step::AddCounter(name) => {
            let mut message = object(new(NFT_MSG_NEWOBJ), table, name, NFT_OBJECT_COUNTER);
            message.nested(NFTA_OBJ_DATA, |_| {});
            message
        }
        Step::DeleteCounter(name) => object(message(NFT_MSG_DELOBJ, 0), table, name, NFT_OBJECT_COUNTER),
    }]
}

/// Table and name, in attributes 1 and `attribute`.
pub(super) fn named(mut message: Message, table: &str, attribute: u16, name: &str) -> Message {
    message.text(1, table);
    message.text(attribute, name);
    message
}

pub(super) fn word(message: &mut Message, attribute: u16, value: u32) {
    message.attribute(attribute, &value.to_be_bytes());
}

pub(super) fn long(message: &mut Message, attribute: u16, value: u64) {
    message.attribute(attribute, &value.to_be_bytes());
}

fn add_table(table: &str) -> Message {
    const NFTA_TABLE_FLAGS: u16 = 2;
    const NFT_TABLE_F_OWNER: u32 = 2;
    let mut message = new(NFT_MSG_NEWTABLE);
    message.text(1, table);
    word(&mut message, NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
    message
}

fn add_chain(table: &str, name: &str, hook: Option<(Hook, i32)>) -> Message {
    match hook {
        None => named(new(NFT_MSG_NEWCHAIN), table, 3, name),
        Some((Hook::Input, priority)) => add_base_chain(table, name, 1, priority, None),
        Some((Hook::Output, priority)) => add_base_chain(table, name, 3, priority, None),
    }
}

fn add_base_chain(table: &str, name: &str, hook: u32, priority: i32, device: Option<&str>) -> Message {
    const NFTA_CHAIN_HOOK: u16 = 4;
    const NFTA_CHAIN_TYPE: u16 = 7;
    const NFTA_HOOK_HOOKNUM: u16 = 1;
    const NFTA_HOOK_PRIORITY: u16 = 2;
    const NFTA_HOOK_DEV: u16 = 3;
    let mut message = named(new(NFT_MSG_NEWCHAIN), table, 3, name);
    message.nested(NFTA_CHAIN_HOOK, |inner| {
        word(inner, NFTA_HOOK_HOOKNUM, hook);
        word(inner, NFTA_HOOK_PRIORITY, priority as u32);
        if let Some(device) = device {
            inner.text(NFTA_HOOK_DEV, device);
        }
    });
    message.text(NFTA_CHAIN_TYPE, "filter");
    message
}

fn add_set(table: &str, name: &str, kind: &SetKind) -> Message {
    const NFTA_SET_FLAGS: u16 = 3;
    const NFTA_SET_KEY_TYPE: u16 = 4;
    const NFTA_SET_KEY_LEN: u16 = 5;
    const NFTA_SET_DATA_TYPE: u16 = 6;
    const NFTA_SET_DATA_LEN: u16 = 7;
    const NFTA_SET_ID: u16 = 10;
    const NFTA_SET_DESC: u16 = 9;
    const NFTA_SET_DESC_SIZE: u16 = 1;
    const NFT_SET_MAP: u32 = 0x8;
    const NFT_SET_TIMEOUT: u32 = 0x10;
    const NFT_SET_EVAL: u32 = 0x20;
    /// As nft(8) numbers marks, which are as long.
    const NUMBER: u32 = 19;
    const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
    let mut message = named(new(NFT_MSG_NEWSET), table, 2, name);
    let flags = [
        (kind.value != Value::None, NFT_SET_MAP),
        (kind.timeout, NFT_SET_TIMEOUT),
        (kind.learns, NFT_SET_EVAL),
    ];
    let flags = flags.iter().filter(|(set, _)| *set).fold(0, |sum, (_, flag)| sum | flag);
    let length: usize = kind.fields.iter().map(|field| field.length().next_multiple_of(4)).sum();
    // One field alone is not padded.
    let length = if let [only] = kind.fields[..] { only.length() } else { length };
    word(&mut message, NFTA_SET_FLAGS, flags);
    word(&mut message, NFTA_SET_KEY_TYPE, key_type(&kind.fields));
    word(&mut message, NFTA_SET_KEY_LEN, length as u32);
    let value = match kind.value {
        Value::None => None,
        Value::Verdict => Some((NFT_DATA_VERDICT, 16)),
        Value::Priority => Some((NUMBER, 4)),
    };
    if let Some((kind, length)) = value {
        word(&mut message, NFTA_SET_DATA_TYPE, kind);
        word(&mut message, NFTA_SET_DATA_LEN, length);
    }
    if kind.learns {
        message.nested(NFTA_SET_DESC, |description| word(description, NFTA_SET_DESC_SIZE, MOST_LEARNT));
    }
    // Must be there; sets are named by their names.
    word(&mut message, NFTA_SET_ID, 1);
    message
}

/// As nft(8) numbers them, which is the only one to look at it. Only these can be fields of a key.
fn key_type(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |sum, field| {
        let number = match field {
            Field::Family => 2,
            Field::Protocol => 12,
            Field::Length => 4,
            Field::Mark | Field::Priority => 19,
            Field::Ipv4 { .. } => 7,
            Field::Ipv6 { .. } => 8,
            Field::Port { .. } => 13,
            Field::Cgroup { .. } => 46,
        };
        sum << 6 | number
    })
}

fn elements(kind: u16, flags: i32, table: &str, set: &str, fill: impl FnOnce(&mut Message)) -> Message {
    const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    let mut message = named(message(kind, flags), table, 2, set);
    message.nested(NFTA_SET_ELEM_LIST_ELEMENTS, fill);
    message
}

fn put_key(element: &mut Message, key: &Key) {
    const NFTA_SET_ELEM_KEY: u16 = 1;
    element.nested(NFTA_SET_ELEM_KEY, |data| data.attribute(NFTA_DATA_VALUE, &key.0));
}

fn add_elements(table: &str, set: &str, list: &[Element]) -> Message {
    const NFTA_SET_ELEM_DATA: u16 = 2;
    const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
    elements(NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, table, set, |message| {
        for each in list {
            message.nested(NFTA_LIST_ELEM, |element| {
                put_key(element, &each.key);
                if let Some(verdict) = &each.verdict {
                    element.nested(NFTA_SET_ELEM_DATA, |data| put_verdict(data, verdict));
                }
                if let Some(priority) = each.priority {
                    element.nested(NFTA_SET_ELEM_DATA, |data| {
                        data.attribute(NFTA_DATA_VALUE, &priority.to_ne_bytes());
                    });
                }
                if let Some(timeout) = each.timeout_ms {
                    long(element, NFTA_SET_ELEM_TIMEOUT, timeout);
                }
            });
        }
    })
}

fn delete_elements(table: &str, set: &str, keys: &[Key]) -> Message {
    elements(NFT_MSG_DELSETELEM, 0, table, set, |message| {
        for key in keys {
            message.nested(NFTA_LIST_ELEM, |element| put_key(element, key));
        }
    })
}

const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;

fn object(message: Message, table: &str, name: &str, kind: u32) -> Message {
    let mut message = named(message, table, NFTA_OBJ_NAME, name);
    word(&mut message, NFTA_OBJ_TYPE, kind);
    message
}

fn add_limit(table: &str, name: &str, Bucket { rate, burst }: Bucket) -> Message {
    const PER_SECOND: u64 = 1;
    const NFT_LIMIT_PKT_BYTES: u32 = 1;
    const NFT_LIMIT_F_INV: u32 = 1;
    let mut message = object(new(NFT_MSG_NEWOBJ), table, name, NFT_OBJECT_LIMIT);
    message.nested(NFTA_OBJ_DATA, |data| {
        long(data, 1, rate);
        long(data, 2, PER_SECOND);
        word(data, 3, burst);
        word(data, 4, NFT_LIMIT_PKT_BYTES);
        word(data, 5, NFT_LIMIT_F_INV);
    });
    message
}

/// Asks for all counters of a table.
pub(super) fn list_counters(table: &str) -> Message {
    let mut message = message(NFT_MSG_GETOBJ, 0);
    message.text(NFTA_OBJ_TABLE, table);
    word(&mut message, NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
    message
}

/// An answer's counter, if it is one of that table: kernels may list others too.
pub(super) fn counter(table: &str, answer: &[u8]) -> Option<(String, Count)> {
    let attributes = attributes(answer)?;
    if attributes.text(NFTA_OBJ_TABLE)? != table
        || attributes.get(NFTA_OBJ_TYPE)? != NFT_OBJECT_COUNTER.to_be_bytes()
    {
        return None;
    }
    let data = attributes.within(NFTA_OBJ_DATA)?;
    let long = |kind| Some(u64::from_be_bytes(data.get(kind)?.try_into().ok()?));
    Some((attributes.text(NFTA_OBJ_NAME)?, Count { bytes: long(1)?, packets: long(2)? }))
}

/// Asks for all chains of a family.
pub(super) fn list_chains(family: u8) -> Message {
    message(NFT_MSG_GETCHAIN, 0).with_family(family)
}

/// Asks for all rules of a table.
pub(super) fn list_rules(family: u8, table: &str) -> Message {
    let mut message = message(NFT_MSG_GETRULE, 0);
    message.text(1, table);
    message.with_family(family)
}

/// The chain of an answer's rule, if it is one of that table.
pub(super) fn chain_of_rule(table: &str, answer: &[u8]) -> Option<String> {
    let attributes = attributes(answer)?;
    (attributes.text(1)? == table).then(|| attributes.text(2))?
}
