//! A packet at its socket's hook: which limits hold it, and may it pass.

use core::num::NonZeroU64;

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_sk_fullsock, bpf_skc_to_mptcp_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use chadthrottle_common::{
    abi::{DOWNLOAD, MAX_NESTED, TAG_LISTENER, TAG_SHARED, Tag, ThrottleStats, TokenBucket, UPLOAD},
    bucket::{SMALL_PACKET, Word, charge, cost, has_room, ticks},
    wire::Wire,
};

use crate::{
    atomic::{self, MapWord},
    kernel::global,
    maps::{CGROUP_BUCKETS, CGROUP_STATS, TAGS, live_state, resolve},
    packet,
};

/// Verdicts of cgroup_skb (egress has all of them, ingress the first two).
const DROP: i32 = 0;
const PASS: i32 = 1;
/// TCP keeps the segment; a UDP sender is told that all went well.
const DROP_AND_SLOW_DOWN: i32 = 2;

const IPPROTO_TCP: u32 = 6;

#[inline(always)]
unsafe fn tag_of(socket: *mut bpf_sock) -> Option<&'static mut Tag> {
    // SAFETY: the caller's: a full socket from the context.
    unsafe {
        if let Some(tag) = TAGS.get(socket.cast()) {
            return Some(tag);
        }
        // Subflows of MPTCP are the kernel's own sockets; the one the process holds is above them.
        if global::HAVE_MPTCP() == 0 || (*socket).protocol != IPPROTO_TCP {
            return None;
        }
        let above = bpf_skc_to_mptcp_sock(socket.cast());
        if above.is_null() { None } else { TAGS.get(above.cast()) }
    }
}

#[inline(always)]
unsafe fn count(id: u64, direction: usize, wire: Wire, passed: bool) {
    let Some(pair) = CGROUP_STATS.get_ptr_mut(id) else { return };
    // SAFETY: a map value of two elements, direction 0 or 1.
    unsafe {
        let stats = pair.cast::<ThrottleStats>().add(direction);
        if passed {
            atomic::add(&raw mut (*stats).packets_passed, wire.packets);
            atomic::add(&raw mut (*stats).bytes_passed, wire.bytes);
        } else {
            atomic::add(&raw mut (*stats).packets_dropped, wire.packets);
            atomic::add(&raw mut (*stats).bytes_dropped, wire.bytes);
        }
    }
}

/// One bucket of a packet, as it was found.
#[derive(Clone, Copy)]
struct Held {
    bucket: *mut TokenBucket,
    rate: NonZeroU64,
    now: u64,
    seen: u64,
}

/// `None`: not limited, let it pass.
#[inline(always)]
unsafe fn hold<const CAS: bool>(ctx: &SkBuffContext, direction: usize) -> Option<i32> {
    // SAFETY: fields of the context; sockets are checked for null before use; map values are only
    // reached through pointers the maps returned in this run.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() {
            return None;
        }
        let tag = tag_of(socket)?;
        let (state, now_ns) = live_state()?;
        resolve(tag, state.epoch);
        let unused = TAG_SHARED | TAG_LISTENER;
        if tag.limits[0] == 0 || tag.flags & unused == unused {
            return None;
        }
        let tcp = (*socket).protocol == IPPROTO_TCP;
        let wire = packet::wire(ctx);
        let small = tcp && wire.bytes <= SMALL_PACKET;

        // All are asked, then all are charged.
        let mut held = [None::<Held>; MAX_NESTED];
        let mut room = true;
        for (id, held) in tag.limits.iter().zip(&mut held) {
            if *id == 0 {
                break;
            }
            let Some(pair) = CGROUP_BUCKETS.get_ptr_mut(*id) else { continue };
            let bucket = pair.cast::<TokenBucket>().add(direction);
            let Some(rate) = NonZeroU64::new((*bucket).rate_bps) else { continue };
            let now = ticks(now_ns, (*bucket).epoch_ns);
            let seen = MapWord::<CAS>(&raw mut (*bucket).virtual_time).load();
            if has_room(seen, now, small, (*bucket).small_ticks) {
                *held = Some(Held { bucket, rate, now, seen });
            } else {
                room = false;
                count(*id, direction, wire, false);
            }
        }
        if !room {
            return Some(if direction == UPLOAD && !tcp { DROP_AND_SLOW_DOWN } else { DROP });
        }
        for (id, held) in tag.limits.iter().zip(&held) {
            if let Some(Held { bucket, rate, now, seen }) = *held {
                let word = MapWord::<CAS>(&raw mut (*bucket).virtual_time);
                charge(&word, seen, now, cost(wire.bytes, rate), (*bucket).capacity_ticks);
                count(*id, direction, wire, true);
            }
        }
        Some(PASS)
    }
}

/// `egress` in the attribute sets the expected attach type, without which verdict 2 is refused.
#[cgroup_skb(egress)]
pub fn limit_egress(ctx: SkBuffContext) -> i32 {
    // SAFETY: a context of this program.
    unsafe { hold::<true>(&ctx, UPLOAD) }.unwrap_or(PASS)
}

#[cgroup_skb(ingress)]
pub fn limit_ingress(ctx: SkBuffContext) -> i32 {
    // SAFETY: as above.
    unsafe { hold::<true>(&ctx, DOWNLOAD) }.unwrap_or(PASS)
}

/// For kernels before 5.12.
#[cgroup_skb(egress)]
pub fn limit_egress_old(ctx: SkBuffContext) -> i32 {
    // SAFETY: as above.
    unsafe { hold::<false>(&ctx, UPLOAD) }.unwrap_or(PASS)
}

/// For kernels before 5.12.
#[cgroup_skb(ingress)]
pub fn limit_ingress_old(ctx: SkBuffContext) -> i32 {
    // SAFETY: as above.
    unsafe { hold::<false>(&ctx, DOWNLOAD) }.unwrap_or(PASS)
}
