//! TCP of a limited process sends no faster than the limit, so that nothing need be refused: the pacing
//! cap of each of its flows follows the water level of its limits.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB,
        BPF_SOCK_OPS_RTT_CB_FLAG,
    },
    helpers::{bpf_setsockopt, bpf_skc_to_tcp_sock},
    macros::sock_ops,
    programs::SockOpsContext,
};
use chadthrottle_common::{
    bucket::Word,
    abi::{TAG_LISTENER, TAG_SHARED, TokenBucket, UPLOAD},
    pacing::{
        FAST, SLOW, Use, in_turn, level_with_another, most_under_way, next_level, payload_rate, period_us,
    },
};

use crate::{
    atomic::MapWord,
    kernel::{field, global},
    maps::{CGROUP_BUCKETS, FLOWS, TAGS, live_state, resolve},
    remote::{FarEnd, are_selective, narrow},
};

const SOL_SOCKET: i32 = 1;
const SO_MAX_PACING_RATE: i32 = 47;
const SOL_TCP: i32 = 6;
const TCP_BPF_SNDCWND_CLAMP: i32 = 1002;
const AF_INET6: u32 = 10;

/// Above a level, which is below 2^38, in the words of [`level_after`].
const PAUSES_AT: u32 = 48;
const IN_WANT: u64 = 1 << 47;

/// [`next_level`], with the pauses above the level, and the want between them. A global function, which is verified once
/// instead of in all states that its callers come in (half of what older kernels would look at).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn level_after(
    level_and_pauses: u64,
    rate: u64,
    elapsed_ns: u64,
    used: u64,
    debt_ticks: i64,
) -> u64 {
    let found = Use { elapsed_ns, used, debt_ticks, pauses: (level_and_pauses >> PAUSES_AT) as u16 };
    let next = next_level(level_and_pauses & (IN_WANT - 1), rate, found);
    let in_want = if next.in_want { IN_WANT } else { 0 };
    next.level & (IN_WANT - 1) | in_want | u64::from(next.pauses) << PAUSES_AT
}

/// Looks at the level of a limit when it is due. Two processors may look at once: then the level takes two
/// steps, and the next looks mend it.
///
/// # Safety
/// `bucket` is an upload bucket, from the map in this run; its virtual time was `seen`, when it was `now` by the bucket's clock.
#[inline(always)]
pub unsafe fn look<const CAS: bool>(bucket: *mut TokenBucket, now_ns: u64, seen: u64, now: u64) {
    // SAFETY: the caller's.
    unsafe {
        let elapsed_ns = now_ns.saturating_sub((*bucket).level_at_ns);
        if elapsed_ns < u64::from((*bucket).level_period_us) * 1_000 || (*bucket).level == 0 {
            return;
        }
        (*bucket).level_at_ns = now_ns;
        let passed = (*bucket).bytes_passed;
        let rate = (*bucket).rate_bps;
        let most_credit = -((*bucket).capacity_ticks as i64);
        // Flows that were at full speed fall out of step when their limit comes. What they miss until they have found their
        // turns is not made up for: it would be too much in the seconds that follow.
        let ahead = seen.wrapping_sub(now) as i64;
        let young = passed < rate && (SLOW..FAST).contains(&rate);
        // Not where it can't be compared: what another packet has forgotten, or charged, meanwhile would be taken twice.
        let forgotten = CAS
            && young
            && ahead < 0
            && MapWord::<CAS>(&raw mut (*bucket).virtual_time).replace(seen, now);
        let ahead = if forgotten { 0 } else { ahead };
        let used = passed.wrapping_sub((*bucket).level_passed);
        let debt_ticks = if ahead < most_credit { most_credit } else { ahead };
        (*bucket).level_passed = passed;
        let level_and_pauses = (*bucket).level | u64::from((*bucket).level_pauses) << PAUSES_AT;
        let next = level_after(level_and_pauses, rate, elapsed_ns, used, debt_ticks);
        let level = next & (IN_WANT - 1);
        (*bucket).level = level;
        (*bucket).level_pauses = (next >> PAUSES_AT) as u16;
        (*bucket).level_in_want = u16::from(next & IN_WANT != 0);
        (*bucket).level_period_us = period_us(rate, level);
    }
}

/// Another flow comes: the look that its first packet may have brought about tells of the time before.
#[inline(always)]
unsafe fn expect_another(bucket: *mut TokenBucket) {
    // SAFETY: the caller's: points into a map value.
    unsafe {
        let level = (*bucket).level;
        if level != 0 && (*bucket).level_in_want == 0 {
            (*bucket).level = level_with_another(level, (*bucket).rate_bps);
        }
    }
}

/// The lowest level of the limits that hold a socket, in its turn; 0: it is not to be paced.
#[inline(always)]
unsafe fn level_of(socket: *mut c_void, is_new: bool) -> Option<u64> {
    // SAFETY: the caller's: `socket` is a socket.
    unsafe {
        let tag = TAGS.get(socket)?;
        let Some((state, _)) = live_state() else { return Some(0) };
        resolve(tag, state.epoch);
        let unclaimed = TAG_SHARED | TAG_LISTENER;
        if tag.flags & unclaimed == unclaimed {
            return Some(0);
        }
        // Several limits tell no turn: what their buckets find is not kept.
        let (mut lowest, mut turns) = (0, tag.limits[1] == 0);
        let mut limits = tag.limits;
        if are_selective(&limits) {
            let tcp: *const c_void = bpf_skc_to_tcp_sock(socket).cast();
            if tcp.is_null() {
                return None;
            }
            limits = narrow(&limits, &FarEnd::of_socket(tcp));
        }
        for id in &limits {
            if *id == 0 {
                continue;
            }
            if let Some(pair) = CGROUP_BUCKETS.get_ptr_mut(*id) {
                let bucket = pair.cast::<TokenBucket>().add(UPLOAD);
                if is_new {
                    expect_another(bucket);
                }
                turns &= (*bucket).rate_bps < FAST;
                let level = (*bucket).level;
                if level != 0 && (lowest == 0 || level < lowest) {
                    lowest = level;
                }
            }
        }
        Some(if turns { in_turn(lowest, tag.found_ticks) } else { lowest })
    }
}

#[inline(always)]
unsafe fn pace(ctx: &SockOpsContext) -> Option<()> {
    // SAFETY: the context's socket, checked for null; offsets come from the kernel's BTF.
    unsafe {
        let socket: *mut c_void = (*ctx.ops).__bindgen_anon_2.sk.cast();
        if socket.is_null() {
            return None;
        }
        let is_new = ctx.op() != BPF_SOCK_OPS_RTT_CB;
        let level = level_of(socket, is_new)?;
        if is_new {
            // Beside what others asked for.
            let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
        }
        let flow = if level == 0 { FLOWS.get(socket)? } else { FLOWS.get_or_create(socket)? };
        flow.follows = 1;
        if level == 0 && flow.level == 0 && flow.window_set == 0 {
            return None;
        }
        let tcp: *const c_void = bpf_skc_to_tcp_sock(socket).cast();
        if tcp.is_null() {
            return None;
        }
        let min_rtt_us: u32 = field(tcp, global::TCP_MIN_RTT() + 4);
        let rtt_us = field::<u32>(tcp, global::TCP_SRTT_US()) >> 3;
        if global::MAY_HOLD_WINDOWS() != 0
            && flow.wish(most_under_way(level, min_rtt_us, rtt_us, flow.window_set != 0))
        {
            let before = flow.window_set;
            let mut segments = flow.grant(field(tcp, global::TCP_CWND_CLAMP()));
            let value = (&raw mut segments).cast();
            if bpf_setsockopt(ctx.as_ptr(), SOL_TCP, TCP_BPF_SNDCWND_CLAMP, value, 4) != 0 {
                flow.window_set = before;
            }
        }
        let found: u64 = field(tcp, global::SK_MAX_PACING_RATE());
        if flow.level == level && flow.set == found {
            return None;
        }
        flow.notice(found);
        let cap = flow.apply(level, payload_rate(level, (*ctx.ops).family == AF_INET6));
        // bpf_setsockopt takes 32 bits, all ones for none.
        let mut value = if cap > u64::from(u32::MAX) { u32::MAX } else { cap as u32 };
        if cap > u64::from(u32::MAX) {
            flow.set = u64::MAX;
        }
        bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MAX_PACING_RATE, (&raw mut value).cast(), 4);
    }
    Some(())
}

/// New connections are paced from the start; every measured round trip is an occasion to follow the level.
#[sock_ops]
pub fn pace_flow(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        || op == BPF_SOCK_OPS_RTT_CB
    {
        // SAFETY: a context of this program.
        let _ = unsafe { pace(&ctx) };
    }
    1
}
