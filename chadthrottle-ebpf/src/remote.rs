//! Limits that are only about traffic with some far ends: by scope, address or remote port. Which packets those are is
//! in the limit's id, and in the map `REMOTES`; so a packet under other limits only pays for the look at an id.
//!
//! Decided with each packet, for whatever is not connected sends and receives anywhere. A TCP connection is asked once.

use core::ffi::c_void;

use aya_ebpf::{bindings::bpf_sock, macros::map, maps::HashMap, programs::SkBuffContext};
use chadthrottle_common::{
    abi::{APPLIES_KNOWN, MAX_LIMITS, MAX_NESTED, Tag},
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

/// 1 when the far ends that a limit names are all others, else 0. Where nothing is known, the answer is no constant to
/// the verifier either: it would follow each combination of constants to the end of the program.
///
/// A function of its own, for all of it together would not find room on the stack. Global and of plain numbers, so that
/// the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listed_excludes(id: u64, high: u64, low: u64, port: u64) -> u64 {
    // SAFETY: an entry is freed a second after its limit ended.
    match unsafe { REMOTES.get(id) } {
        Some(remotes) => remotes.exclude(Address { high, low }, port as u16),
        // The limit is over. The top bit of an id is set.
        None => id >> 63,
    }
}

/// Bit by bit, which limits are about traffic with that far end.
#[inline(always)]
fn which(limits: &Limits, far_end: &FarEnd) -> u64 {
    let local = is_local(far_end.address);
    let mut bits = 0;
    for (slot, id) in limits.iter().enumerate() {
        let mut excluded = scope_excludes(*id, local);
        if *id & LISTED_ONLY != 0 {
            let FarEnd { address: Address { high, low }, port } = *far_end;
            excluded |= listed_excludes(*id, high, low, port.into());
        }
        bits |= (excluded ^ 1) << slot;
    }
    bits
}

/// These of the limits, and zeros.
#[inline(always)]
fn only(limits: &Limits, bits: u64) -> Limits {
    let mut some = [0; MAX_NESTED];
    for (slot, (id, some)) in limits.iter().zip(&mut some).enumerate() {
        *some = *id & (bits >> slot & 1).wrapping_neg();
    }
    some
}

/// The limits that are about traffic with that far end.
#[inline(always)]
pub fn narrow(limits: &Limits, far_end: &FarEnd) -> Limits {
    only(limits, which(limits, far_end))
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
) -> Option<Limits> {
    // SAFETY: the caller's.
    let connected = unsafe { (*socket).state } == TCP_ESTABLISHED;
    let mut bits = u64::from(tag.applies);
    if bits == 0 || !connected {
        bits = which(&tag.limits, &packet::far_end(ctx, direction)?);
        // SAFETY: the caller's.
        let keep = connected && unsafe { is_tcp(socket) };
        tag.applies = if keep { bits as u32 | APPLIES_KNOWN } else { 0 };
    }
    Some(only(&tag.limits, bits))
}
