//! The queue where it is fq: a packet carries the time at which it leaves, when all limits that hold it are out of the
//! debt that the packets before it left. So the buckets' virtual times are the queue: they are one for all devices and
//! network namespaces of a limit, and nothing is made for a limit more.
//!
//! For Linux 5.18 and later, which have compare-and-swap, too.

use core::num::NonZeroU64;

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_skb_set_tstamp},
    macros::classifier,
    programs::TcContext,
};
use chadthrottle_common::{
    abi::{DOWNLOAD, HORIZON_NS, TIMED_MAJOR, TokenBucket},
    bucket::{TICKS_PER_SECOND, Word, charge, cost, exceeded, out_of_debt_ns, ticks},
    wire::{Wire, on_wire},
};

use crate::{
    atomic::{self, MapWord},
    download::{ETHERNET_HEADER, MATCH, NO_MATCH, TCP, Transport, load, transport, with_socket},
    limit::{TCP_LISTEN, held_tag, stats},
    maps::{CGROUP_BUCKETS, live_state},
    remote::{Limits, are_selective, narrow},
};

/// BPF_SKB_TSTAMP_DELIVERY_MONO.
const MONOTONIC: u32 = 1;

/// What a limit catches up with after a pause: as the classes of HTB do.
const CATCH_UP: u64 = TICKS_PER_SECOND / 12;

/// Packets and IP bytes on the wire.
#[inline(always)]
fn wire(ctx: &TcContext) -> Option<Wire> {
    let Transport { ipv6, protocol, at } = transport(ctx)?;
    // SAFETY: the context's own fields.
    let (whole, segments, size) =
        unsafe { ((*ctx.skb.skb).len, (*ctx.skb.skb).gso_segs, (*ctx.skb.skb).gso_size) };
    let said: u16 = load(ctx, if ipv6 { 4 } else { 2 })?;
    let length = match u64::from(u16::from_be(said)) {
        // A buffer of more than 64 KB.
        0 => u64::from(whole.saturating_sub(ETHERNET_HEADER)),
        payload if ipv6 => payload + 40,
        length => length,
    };
    let own = match protocol {
        _ if size == 0 => 0,
        TCP => u32::from(load::<u8>(ctx, at + 12)? >> 4) * 4,
        _ => 8,
    };
    Some(on_wire(length, u64::from(at + own), segments, size))
}

/// The download bucket of a limit that has room in the queue.
#[inline(always)]
unsafe fn timed_bucket(id: u64) -> Option<(*mut TokenBucket, NonZeroU64)> {
    if id == 0 {
        return None;
    }
    let pair = CGROUP_BUCKETS.get_ptr_mut(id)?;
    // SAFETY: a map value of two elements.
    unsafe {
        let bucket = pair.cast::<TokenBucket>().add(DOWNLOAD);
        let rate = NonZeroU64::new((*bucket).rate_bps)?;
        ((*bucket).room != 0).then_some((bucket, rate))
    }
}

/// When a packet of these limits may leave, CLOCK_MONOTONIC ns, and its class; charges the limits for it, unless one
/// of them has too much waiting: then that is counted, and the time beyond the horizon.
#[inline(always)]
unsafe fn departure(limits: &Limits, wire: Wire) -> Option<(u64, u32)> {
    // SAFETY: map values, looked up in this run.
    unsafe {
        let now_ns = bpf_ktime_get_ns();
        let (mut class, mut full) = (0, 0);
        for id in limits {
            let Some((bucket, rate)) = timed_bucket(*id) else { continue };
            class = (*bucket).class_id;
            let now = ticks(now_ns, (*bucket).epoch_ns);
            let late = exceeded((*bucket).virtual_time, now, [cost(u64::from((*bucket).room), rate)]);
            full += late;
            if late != 0
                && let Some(stats) = stats(*id, DOWNLOAD)
            {
                atomic::add(&raw mut (*stats).packets_dropped, wire.packets);
                atomic::add(&raw mut (*stats).bytes_dropped, wire.bytes);
            }
        }
        if class == 0 {
            return None;
        }
        if full != 0 {
            return Some((now_ns + 2 * HORIZON_NS, class));
        }
        let mut at = now_ns;
        for id in limits {
            let Some((bucket, rate)) = timed_bucket(*id) else { continue };
            let epoch_ns = (*bucket).epoch_ns;
            let word = MapWord::<true>(&raw mut (*bucket).virtual_time);
            let seen = word.load();
            charge(&word, seen, ticks(now_ns, epoch_ns), cost(wire.bytes, rate), CATCH_UP);
            at = at.max(out_of_debt_ns(seen, epoch_ns));
        }
        Some((at, class))
    }
}

#[inline(always)]
fn send_later(ctx: &TcContext) -> Option<()> {
    // SAFETY: fields of the context; a full socket, to which a reference is held.
    unsafe {
        if (*ctx.skb.skb).priority >> 16 == TIMED_MAJOR {
            return None; // was queued already, on a device below this one
        }
        let (state, _) = live_state()?;
        let limits = with_socket(ctx, |socket, far_end| {
            if (*socket).state == TCP_LISTEN {
                return None;
            }
            let tag = held_tag(socket, state.epoch)?;
            Some(if are_selective(&tag.limits) { narrow(&tag.limits, far_end) } else { tag.limits })
        })?;
        let (at, class) = departure(&limits, wire(ctx)?)?;
        // Refused by no kernel that knows it, for packets of IPv4 and IPv6; then the bucket, charged, holds it.
        if bpf_skb_set_tstamp(ctx.skb.skb, at, MONOTONIC) != 0 {
            return None;
        }
        (*ctx.skb.skb).priority = class;
    }
    Some(())
}

/// Ingress, not direct action, as [`find_socket`](crate::download::find_socket).
#[classifier]
pub fn find_departure(ctx: TcContext) -> i32 {
    if send_later(&ctx).is_some() { MATCH } else { NO_MATCH }
}
