//! Downloads without loss: a queue in front of the limit, and senders that do not overfill it.
//!
//! - [`find_socket`] (tc ingress, a classifier with the action "redirect to our IFB"): packets of limited
//!   sockets go through the class of their limit on the IFB, and come back.
//! - [`find_departure`](crate::departure::find_departure) in its place where the IFB has fq.
//! - [`lower_window`] (tc egress): acknowledgements of limited sockets advertise no more than what fits the
//!   line and the queue.

use core::{ffi::c_void, mem};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::{
        bpf_l4_csum_replace, bpf_sk_fullsock, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_load_bytes,
        bpf_skb_load_bytes_relative, bpf_skb_store_bytes, bpf_skc_lookup_tcp, bpf_skc_to_tcp_sock,
    },
    macros::classifier,
    programs::TcContext,
};
use chadthrottle_common::{
    abi::{ActiveFlows, CLASS_MAJOR, CgroupThrottleConfig, DOWNLOAD, FlowWindow, Tag, TokenBucket},
    bucket::ticks,
    window::{self, WHOLE, Weights},
};

use crate::{
    atomic,
    kernel::{field, global},
    limit::{TCP_LISTEN, held_tag, stats},
    maps::{CGROUP_BUCKETS, CGROUP_CONFIGS, CGROUP_FLOWS, WINDOWS, live_state},
    remote::{FarEnd, Limits, are_selective, narrow},
};

/// What a classifier without direct action answers: its action is taken, or not.
pub const MATCH: i32 = -1;
pub const NO_MATCH: i32 = 0;
/// TC_ACT_UNSPEC, TCX_NEXT: on to whoever comes next.
const NEXT: i32 = -1;

/// BPF_HDR_START_NET: offsets count from the IP header, whatever stands before it.
const FROM_IP_HEADER: u32 = 1;

const IPV4: u16 = 0x0800u16.to_be();
const IPV6: u16 = 0x86ddu16.to_be();
pub const TCP: u8 = 6;
const UDP: u8 = 17;

/// Extension headers of IPv6 that may stand before the transport header; after a fragment header there may
/// be none.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
const MAX_EXTENSIONS: usize = 4;

pub const ETHERNET_HEADER: u32 = 14;

/// Reads plain integers at an offset from the IP header.
#[inline(always)]
pub fn load<T: Copy>(ctx: &TcContext, at: u32) -> Option<T> {
    let mut value = mem::MaybeUninit::<T>::uninit();
    // SAFETY: as many bytes as T has; only called for integers and arrays of them, which any bytes are.
    unsafe {
        let status = bpf_skb_load_bytes_relative(
            ctx.as_ptr(),
            at,
            value.as_mut_ptr().cast(),
            mem::size_of::<T>() as u32,
            FROM_IP_HEADER,
        );
        (status == 0).then(|| value.assume_init())
    }
}

/// Where the transport header is.
pub struct Transport {
    pub ipv6: bool,
    pub protocol: u8,
    pub at: u32,
}

/// `None` for fragments too: only the first has ports, so that they are one packet to the limit only when
/// they have been put together, at the socket.
#[inline(always)]
pub fn transport(ctx: &TcContext) -> Option<Transport> {
    // SAFETY: a field of the context.
    match unsafe { (*ctx.skb.skb).protocol } as u16 {
        IPV4 => {
            let first: u8 = load(ctx, 0)?;
            let fragment: u16 = load(ctx, 6)?;
            if u16::from_be(fragment) & 0x3fff != 0 {
                return None;
            }
            Some(Transport { ipv6: false, protocol: load(ctx, 9)?, at: u32::from(first & 15) * 4 })
        }
        IPV6 => {
            let mut protocol: u8 = load(ctx, 6)?;
            let mut at = 40;
            for _ in 0..MAX_EXTENSIONS {
                if protocol != HOP_BY_HOP && protocol != ROUTING && protocol != DESTINATION {
                    break;
                }
                let [next, length]: [u8; 2] = load(ctx, at)?;
                protocol = next;
                at += (u32::from(length) + 1) * 8;
            }
            Some(Transport { ipv6: true, protocol, at })
        }
        _ => None,
    }
}

/// The socket that the packet is for, handed to `use_socket`. At tc ingress `skb->sk` is none, or, on a
/// veth, the sender's. There is one lookup and one release, and no way out in between: the verifier wants
/// the reference back.
#[inline(always)]
pub fn with_socket<R>(
    ctx: &TcContext,
    use_socket: impl FnOnce(*mut bpf_sock, &FarEnd) -> Option<R>,
) -> Option<R> {
    let Transport { ipv6, protocol, at } = transport(ctx)?;
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let ports: [u16; 2] = load(ctx, at)?;
    // SAFETY: a union of plain integers; the arm that is filled is the one its length names; the socket is
    // looked at only while the reference is held.
    unsafe {
        let mut tuple: bpf_sock_tuple = mem::zeroed();
        let far_end;
        let size = if ipv6 {
            tuple.__bindgen_anon_1.ipv6.saddr = load(ctx, 8)?;
            tuple.__bindgen_anon_1.ipv6.daddr = load(ctx, 24)?;
            tuple.__bindgen_anon_1.ipv6.sport = ports[0];
            tuple.__bindgen_anon_1.ipv6.dport = ports[1];
            far_end = FarEnd::v6(load(ctx, 8)?, ports[0]);
            36
        } else {
            tuple.__bindgen_anon_1.ipv4.saddr = load(ctx, 12)?;
            tuple.__bindgen_anon_1.ipv4.daddr = load(ctx, 16)?;
            tuple.__bindgen_anon_1.ipv4.sport = ports[0];
            tuple.__bindgen_anon_1.ipv4.dport = ports[1];
            far_end = FarEnd::v4(tuple.__bindgen_anon_1.ipv4.saddr, ports[0]);
            12
        };
        let here = BPF_F_CURRENT_NETNS as i64 as u64;
        let found = if protocol == TCP {
            bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, here, 0)
        } else {
            bpf_sk_lookup_udp(ctx.as_ptr(), &raw mut tuple, size, here, 0)
        };
        if found.is_null() {
            return None;
        }
        // A request or time-wait socket is no full socket; its reference has to be given back all the same.
        let full = bpf_sk_fullsock(found);
        let result = if full.is_null() { None } else { use_socket(full, &far_end) };
        bpf_sk_release(found.cast());
        result
    }
}

/// The limits that hold a packet.
#[inline(always)]
fn limits_of(tag: &Tag, far_end: &FarEnd) -> Limits {
    if are_selective(&tag.limits) { narrow(&tag.limits, far_end) } else { tag.limits }
}

/// The lowest of the download limits that satisfies `wanted`: the one that counts.
#[inline(always)]
fn lowest(
    limits: &Limits,
    wanted: impl Fn(&CgroupThrottleConfig) -> bool,
) -> Option<(u64, &'static CgroupThrottleConfig)> {
    let mut best: Option<(u64, &CgroupThrottleConfig)> = None;
    for &id in limits {
        if id == 0 {
            continue;
        }
        // SAFETY: the element is freed only a second after the last tag that names it was resolved anew.
        let Some(pair) = (unsafe { CGROUP_CONFIGS.get(id) }) else { continue };
        let [_, config] = pair;
        if config.rate_bps != 0
            && wanted(config)
            && best.is_none_or(|(_, other)| config.rate_bps < other.rate_bps)
        {
            best = Some((id, config));
        }
    }
    best
}

#[inline(always)]
fn class_of(ctx: &TcContext) -> Option<u32> {
    // SAFETY: a field of the context.
    if unsafe { (*ctx.skb.skb).priority } >> 16 == CLASS_MAJOR {
        return None; // was queued already, on a device below this one
    }
    let (state, _) = live_state()?;
    with_socket(ctx, |socket, far_end| {
        // SAFETY: a full socket, to which a reference is held.
        unsafe {
            if (*socket).state == TCP_LISTEN {
                return None;
            }
            let tag = held_tag(socket, state.epoch)?;
            lowest(&limits_of(tag, far_end), |config| config.class_id != 0).map(|(_, config)| config.class_id)
        }
    })
}

/// Ingress, not direct action. Only where the redirection follows the packet has the priority that lets it
/// pass at the socket: a foreign filter before ours, which decides by itself, leaves it to the bucket.
#[classifier]
pub fn find_socket(ctx: TcContext) -> i32 {
    let Some(class) = class_of(&ctx) else { return NO_MATCH };
    // SAFETY: a field of the context that may be written.
    unsafe { (*ctx.skb.skb).priority = class };
    MATCH
}

/// What the active connections of a limit weigh together. At the `turn` to a new period this one counts itself, with
/// what `weigh` makes of its window.
#[inline(always)]
fn active_weight(id: u64, period: u32, turn: bool, weigh: impl FnOnce(u32) -> u32) -> u32 {
    let Some(flows) = CGROUP_FLOWS.get_ptr_mut(id) else { return WHOLE };
    // SAFETY: a map value; the index is below the number of words. Two processors that both begin a period
    // may lose a count, for the rest of that period.
    unsafe {
        let words = (&raw mut (*flows.cast::<ActiveFlows>()).periods).cast::<u64>();
        let word = |period: u32| words.add(period as usize % window::PERIODS);
        let now = word(period);
        let before = window::weight_in(*word(period.wrapping_sub(1)), period.wrapping_sub(1));
        if turn {
            let sum = window::weight_in(*now, period);
            let own = weigh(if sum > before { sum } else { before });
            if sum == 0 {
                core::ptr::write_volatile(now, window::first_of(period, own));
            } else {
                atomic::add(now, u64::from(own));
            }
        }
        let sum = window::weight_in(*now, period);
        if sum > before { sum } else { before }
    }
}

/// Delay beyond the round trip that a limit's windows allow for, in microseconds, for a connection that has a queue, or
/// (`past`) has none. Global for the reason that [`weigh`] has.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn allowance(id: u64, past: u64, now_ns: u64) -> u64 {
    // SAFETY: map values of two elements; freed only a second after the last tag that names them was resolved anew.
    unsafe {
        if past == 0 {
            return CGROUP_CONFIGS.get(id).map_or(0, |[_, config]| config.queue_us.into());
        }
        let Some(pair) = CGROUP_BUCKETS.get_ptr(id) else { return 0 };
        let bucket = pair.cast::<TokenBucket>().add(DOWNLOAD);
        let now = ticks(now_ns, (*bucket).epoch_ns);
        let credit = now.wrapping_sub((*bucket).virtual_time) as i64;
        let most = (*bucket).capacity_ticks as i64;
        window::allowance_us(if credit > most { most } else { credit }).into()
    }
}

/// What a connection weighed, and weighs now, in a limit: [`Weights`], from those `before`, 0 for none. Others weigh
/// `sum`, it had `received` bytes in `elapsed_ns`, 0 when that is not known; two figures of 32 bits share a word, as
/// `queue_us` and `before` do.
///
/// Global and of plain numbers, for the same reason as [`limit_applies`](crate::remote): in place it would be looked
/// at a hundred times more often.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weigh(
    id: u64,
    sum_and_rtt: u64,
    received_and_rtt: u64,
    elapsed_ns: u64,
    queue_and_before: u64,
) -> u64 {
    // SAFETY: the element is freed only a second after the last tag that names it was resolved anew.
    let config = unsafe { CGROUP_CONFIGS.get(id) };
    let Some([_, CgroupThrottleConfig { rate_bps, .. }]) = config else {
        return Weights::UNKNOWN.0.into();
    };
    if elapsed_ns == 0 {
        return Weights::UNKNOWN.0.into();
    }
    let (queue_us, before) = ((queue_and_before >> 32) as u32, queue_and_before as u32);
    let before = if before == 0 { Weights::UNKNOWN } else { Weights(before) };
    let (sum, min_rtt_us) = ((sum_and_rtt >> 32) as u32, sum_and_rtt as u32);
    let (received, rtt_us) = ((received_and_rtt >> 32) as u32, received_and_rtt as u32);
    let window = window::wanted(*rate_bps, min_rtt_us, queue_us, sum);
    before.then(window::weight(received, elapsed_ns, rtt_us, min_rtt_us, queue_us, window)).0.into()
}

/// What one limit leaves a connection as its window, in the lower half, and what the connection weighs in it, in the upper;
/// 0: the limit is not about it. `round_trips`: the shortest and the one of now, in microseconds; two figures of 32 bits share
/// a word. `now_and_flags`: the time, with [`NEW_TURN`] and [`PAST`]. Global as [`weigh`] is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn window_of(
    id: u64,
    round_trips: u64,
    received_and_weights: u64,
    elapsed_ns: u64,
    now_and_flags: u64,
) -> u64 {
    // SAFETY: as in `weigh`.
    let config = unsafe { CGROUP_CONFIGS.get(id) };
    let Some([_, CgroupThrottleConfig { rate_bps, queue_us, .. }]) = config else { return 0 };
    if *rate_bps == 0 || *queue_us == 0 {
        return 0;
    }
    let now_ns = now_and_flags & !(NEW_TURN | PAST);
    let past = now_and_flags & PAST;
    let allowance_us = allowance(id, past, now_ns);
    let mut weights = received_and_weights & u64::from(u32::MAX);
    let sum = active_weight(id, window::period(now_ns), now_and_flags & NEW_TURN != 0, |sum| {
        // As `weigh` wants them: the sum beside the shortest round trip, what was received beside the one of now.
        let sum_and_rtt = u64::from(sum) << 32 | round_trips >> 32;
        let received_and_rtt = received_and_weights >> 32 << 32 | round_trips & u64::from(u32::MAX);
        weights = weigh(id, sum_and_rtt, received_and_rtt, elapsed_ns, allowance_us << 32 | weights);
        Weights(weights as u32).most()
    });
    let (min_rtt_us, allowance_us) = ((round_trips >> 32) as u32, allowance_us as u32);
    let window = if past == 0 {
        window::wanted(*rate_bps, min_rtt_us, allowance_us, sum)
    } else {
        window::bare(*rate_bps, min_rtt_us, allowance_us, sum)
    };
    weights << 32 | u64::from(window)
}

/// Flags of [`window_of`], beside the time: it is the connection's first packet in this period, and what it receives has
/// not been in a queue.
const NEW_TURN: u64 = 1 << 63;
const PAST: u64 = 1 << 62;

/// The window of a connection under its limits, and whose it is: the smallest of what each of them leaves it. `past`: what
/// it receives has not been in a queue.
#[inline(always)]
fn smallest_window(
    limits: &Limits,
    past: bool,
    flow: &mut FlowWindow,
    ack: u32,
    rtt_us: u32,
    now_ns: u64,
) -> Option<(u32, u64)> {
    let period = window::period(now_ns);
    let turn = flow.period != period;
    let received = ack.wrapping_sub(flow.acked);
    // In its first period nothing is known.
    let known = flow.since_ns != 0 && (received as i32) >= 0;
    let elapsed_ns = if known { now_ns.saturating_sub(flow.since_ns) } else { 0 };
    let round_trips = u64::from(flow.min_rtt_us) << 32 | u64::from(rtt_us);
    let now_and_flags = now_ns & !(NEW_TURN | PAST) | u64::from(turn) << 63 | u64::from(past) << 62;
    let mut smallest: Option<(u32, u64)> = None;
    for (id, weights) in limits.iter().zip(&mut flow.weights) {
        if *id == 0 {
            continue;
        }
        let received_and_weights = u64::from(received) << 32 | u64::from(*weights);
        let found = window_of(*id, round_trips, received_and_weights, elapsed_ns, now_and_flags);
        // No window is 0.
        if found == 0 {
            continue;
        }
        *weights = (found >> 32) as u32;
        if smallest.is_none_or(|(other, _)| (found as u32) < other) {
            smallest = Some((found as u32, *id));
        }
    }
    if turn {
        flow.period = period;
        flow.since_ns = now_ns;
        flow.acked = ack;
    }
    smallest
}

/// Keeps the shortest round trip; the one that the receiver sees now, in microseconds.
#[inline(always)]
unsafe fn observe_round_trip(flow: &mut FlowWindow, tcp: *const c_void) -> u32 {
    // SAFETY: the caller's: a tcp_sock; offsets from the kernel's BTF. Both are kept times eight.
    let measured = unsafe {
        [field::<u32>(tcp, global::TCP_RCV_RTT_US()) >> 3, field::<u32>(tcp, global::TCP_SRTT_US()) >> 3]
    };
    for rtt_us in measured {
        if rtt_us != 0 && (flow.min_rtt_us == 0 || rtt_us < flow.min_rtt_us) {
            flow.min_rtt_us = rtt_us;
        }
    }
    measured[0]
}

/// `header`: bytes before the IP header.
#[inline(always)]
fn lower(ctx: &TcContext, header: u32) -> Option<()> {
    const SYN_RST_ACK: u8 = 0b1_0110;
    const ACK: u8 = 0b1_0000;
    // SAFETY: fields of the context; sockets are checked for null before use; the field offsets come from
    // the kernel's BTF.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() || (*socket).protocol != u32::from(TCP) {
            return None;
        }
        let (state, now_ns) = live_state()?;
        let tag = held_tag(socket, state.epoch)?;
        let Transport { ipv6, protocol: TCP, at } = transport(ctx)? else { return None };
        let port = load(ctx, at + 2)?;
        let far_end = if ipv6 { FarEnd::v6(load(ctx, 24)?, port) } else { FarEnd::v4(load(ctx, 16)?, port) };
        let limits = limits_of(tag, &far_end);
        let (id, rate_bps) =
            lowest(&limits, |config| config.queue_us != 0).map(|(id, config)| (id, config.rate_bps))?;
        let flags: u8 = load(ctx, at + 13)?;
        if flags & SYN_RST_ACK != ACK {
            return None;
        }
        let ack = u32::from_be(load(ctx, at + 4 + 4)?);
        let old: u16 = load(ctx, at + 14)?;
        // The write below counts from the start of the buffer: that it finds the same bytes there.
        let mut same = !old;
        bpf_skb_load_bytes(ctx.as_ptr(), header + at + 14, (&raw mut same).cast(), 2);
        if same != old {
            return None;
        }
        let tcp: *const c_void = bpf_skc_to_tcp_sock(socket.cast()).cast();
        if tcp.is_null() {
            return None;
        }
        let flow = WINDOWS.get_or_create(socket.cast())?;
        let rtt_us = observe_round_trip(flow, tcp);
        let past = tag.past_queue != 0;
        let (mut wanted, whose) = smallest_window(&limits, past, flow, ack, rtt_us, now_ns)?;
        let scale = field::<u8>(tcp, global::TCP_RCV_WSCALE()) >> (global::TCP_RCV_WSCALE_SHIFT() & 7) & 15;
        if past {
            // It is rounded up to units, and nothing waits that is too much.
            wanted = wanted.saturating_sub((1 << scale) - 1).max(window::LEAST_BARE);
        }
        // Another limit, or a lower rate: again as at the start.
        let known = flow.limit == id && flow.rate_bps <= rate_bps;
        let lowered =
            window::lower(ack, u16::from_be(old), scale, wanted, if known { Some(flow.edge) } else { None });
        let new = lowered.field.to_be();
        if new != old {
            if bpf_skb_store_bytes(ctx.skb.skb, header + at + 14, (&raw const new).cast(), 2, 0) != 0 {
                return None;
            }
            // The size of what was changed stands in the flags. Where the device sums up, this leaves
            // the sum over the pseudo header alone.
            bpf_l4_csum_replace(ctx.skb.skb, header + at + 16, u64::from(old), u64::from(new), 2);
            if let Some(stats) = stats(whose, DOWNLOAD) {
                atomic::add(&raw mut (*stats).packets_marked, 1);
            }
        }
        flow.limit = id;
        flow.rate_bps = rate_bps;
        flow.edge = lowered.edge;
    }
    Some(())
}

/// Egress of a device with Ethernet headers.
#[classifier]
pub fn lower_window(ctx: TcContext) -> i32 {
    let _ = lower(&ctx, ETHERNET_HEADER);
    NEXT
}

/// Egress of a device without a link header (tun, WireGuard).
#[classifier]
pub fn lower_window_bare(ctx: TcContext) -> i32 {
    let _ = lower(&ctx, 0);
    NEXT
}
