//! Limits that are only about traffic with some far ends: by scope, address or remote port. Which packets those are is
//! in the limit's id, and in the map `REMOTES`; so a packet under other limits only pays for the look at an id.
//!
//! Decided with each packet, for whatever is not connected sends and receives anywhere. A TCP connection is asked once.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    macros::map,
    maps::HashMap,
    programs::{SkBuffContext, sk_buff::SkBuff},
};
use chadthrottle_common::{
    abi::{APPLIES_KNOWN, DOWNLOAD, MAX_LIMITS, MAX_NESTED, Tag, UPLOAD},
    remote::{Address, LISTED_ONLY, Remotes, SELECTIVE, is_local, scope_excludes},
};

use crate::{
    kernel::{field, global},
    limit::is_tcp,
    packet,
    sockets::AF_INET6,
};

/// BPF_F_NO_PREALLOC: few limits have an entry.
#[map]
static REMOTES: HashMap<u64, Remotes> = HashMap::with_max_entries(MAX_LIMITS, 1);

/// Where a connection is established, in bpf_sock.
const TCP_ESTABLISHED: u32 = 1;

/// Limits that hold one packet, and zeros in between.
pub type Limits = [u64; MAX_NESTED];

/// The far end of a packet.
pub struct FarEnd {
    pub address: Address,
    /// 0: it has none.
    pub port: u16,
}

impl FarEnd {
    /// From an IPv4 address and a port as they are on the wire.
    #[inline(always)]
    pub fn v4(address: u32, port: u16) -> Self {
        Self { address: Address::v4(u32::from_be(address)), port: u16::from_be(port) }
    }

    /// From an IPv6 address, its first eight bytes and its last, and a port as they are on the wire.
    #[inline(always)]
    pub fn v6([high, low]: [u64; 2], port: u16) -> Self {
        Self { address: Address::from_wire(high, low), port: u16::from_be(port) }
    }

    /// Of a connected socket; zeros: it is not.
    ///
    /// # Safety
    /// `socket` is a `struct sock` of which the verifier knows the type.
    #[inline(always)]
    pub unsafe fn of_socket(socket: *const c_void) -> Self {
        // SAFETY: the caller's; offsets come from the kernel's BTF.
        unsafe {
            let port = field(socket, global::SK_REMOTE_PORT());
            if field::<u16>(socket, global::SK_FAMILY()) == AF_INET6 {
                let at = global::SK_REMOTE6();
                return Self::v6([field(socket, at), field(socket, at + size_of::<u64>())], port);
            }
            match field::<u32>(socket, global::SK_REMOTE()) {
                0 => Self::v6([0; 2], 0),
                address => Self::v4(address, port),
            }
        }
    }
}

/// Whether any of the limits is not about all packets.
#[inline(always)]
pub fn are_selective(limits: &Limits) -> bool {
    let mut bits = 0;
    for id in limits {
        bits |= *id;
    }
    bits & SELECTIVE != 0
}

/// 1 when a limit is about traffic with a far end, else 0.
///
/// A function of its own, global and of plain numbers: the verifier looks at it once, and takes nothing for known of what
/// it answers. In place it would follow each combination of answers to the end of the program, and there would be no
/// room on the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn limit_applies(id: u64, high: u64, low: u64, port: u64) -> u64 {
    let address = Address { high, low };
    let mut excluded = scope_excludes(id, is_local(address));
    if id & LISTED_ONLY != 0 {
        // SAFETY: an entry is freed a second after its limit ended.
        excluded |= match unsafe { REMOTES.get(id) } {
            Some(remotes) => remotes.exclude(address, port as u16),
            // The limit is over.
            None => 1,
        };
    }
    excluded ^ 1
}

/// Bit by bit, which limits are about traffic with that far end.
#[inline(always)]
fn which(limits: &Limits, far_end: &FarEnd) -> u64 {
    let FarEnd { address: Address { high, low }, port } = *far_end;
    let mut bits = 0;
    for (slot, id) in limits.iter().enumerate() {
        bits |= limit_applies(*id, high, low, port.into()) << slot;
    }
    bits
}

/// These of the limits, and zeros.
#[inline(always)]
fn only(limits: &Limits, bits: u64) -> Limits {
    let mut some = [0; MAX_NESTED];
    for (slot, (id, some)) in limits.iter().zip(&mut some).enumerate() {
        let id = *id & (bits >> slot & 1).wrapping_neg();
        let halves: *mut u32 = ptr::from_mut(some).cast();
        // SAFETY: a number's two halves. Of one that is put together the verifier knows nothing; else it would remember
        // which of them it has found to be zero, and follow each combination.
        unsafe {
            ptr::write_volatile(halves, id as u32);
            ptr::write_volatile(halves.add(1), (id >> 32) as u32);
        }
    }
    some
}

/// The limits that are about traffic with that far end.
#[inline(always)]
pub fn narrow(limits: &Limits, far_end: &FarEnd) -> Limits {
    only(limits, which(limits, far_end))
}

/// [`which`] for a packet that is sent. No limit, when it can't be read.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn limits_of_sent(skb: *mut __sk_buff, a: u64, b: u64, c: u64, d: u64) -> u64 {
    packet::far_end(&SkBuffContext { skb: SkBuff { skb } }, UPLOAD).map_or(0, |far_end| which(&[a, b, c, d], &far_end))
}

/// The same for one that is received.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn limits_of_received(skb: *mut __sk_buff, a: u64, b: u64, c: u64, d: u64) -> u64 {
    packet::far_end(&SkBuffContext { skb: SkBuff { skb } }, DOWNLOAD).map_or(0, |far_end| which(&[a, b, c, d], &far_end))
}

/// The limits of a tag that hold a packet of its socket, kept on the tag while the socket is a TCP connection:
/// whoever connects anew sends packets in another state in between, which forget it.
///
/// # Safety
/// `socket` came with the packet's context `ctx`.
#[inline(always)]
pub unsafe fn narrowed(
    ctx: &SkBuffContext,
    direction: usize,
    tag: &mut Tag,
    socket: *mut bpf_sock,
) -> Limits {
    // SAFETY: the caller's.
    let connected = unsafe { (*socket).state } == TCP_ESTABLISHED;
    let mut bits = u64::from(tag.applies);
    if bits == 0 || !connected {
        let [a, b, c, d] = tag.limits;
        let skb = ctx.skb.skb;
        bits = if direction == UPLOAD {
            limits_of_sent(skb, a, b, c, d)
        } else {
            limits_of_received(skb, a, b, c, d)
        };
        // SAFETY: the caller's.
        let keep = connected && unsafe { is_tcp(socket) };
        tag.applies = if keep { bits as u32 | APPLIES_KNOWN } else { 0 };
    }
    only(&tag.limits, bits)
}
