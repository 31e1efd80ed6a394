//! Headers of rtnetlink's messages. Layouts: include/uapi/linux/rtnetlink.h.

use super::nl::Message;

fn message(kind: u16, flags: u16, words: &[u32]) -> Message {
    let header: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Message::new(kind, flags, &header)
}

/// About a device; `flags_on` are the IFF_* to be set.
pub(super) fn link(kind: u16, flags: u16, index: u32, flags_on: u32) -> Message {
    message(kind, flags, &[0, index, flags_on, flags_on])
}

/// About a qdisc, class or filter.
pub(super) fn tc(kind: u16, flags: u16, device: u32, handle: u32, parent: u32, info: u32) -> Message {
    message(kind, flags, &[0, device, handle, parent, info])
}
