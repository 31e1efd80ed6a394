//! What the benchmark measures the engine against; never attached outside of it and not part of the
//! object that the binary embeds. `cargo xtask bench` builds it.
//!
//! - `empty_*`: a program that does nothing: what any program at the hook costs.
//! - `naive_*`: the token bucket as it is usually written: three hash lookups keyed by the packet's
//!   cgroup, values copied out, changed and inserted again.
//! - `step_*`, `idle_*`: the engine's bucket step many times in a row, and the same loop without it.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)] // the atomics: core::sync::atomic has no read-modify-write on this target

#[path = "../src/atomic.rs"]
mod atomic;

use core::num::NonZeroU64;

use atomic::MapWord;
use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_skb_cgroup_id},
    macros::{cgroup_skb, map},
    maps::{Array, HashMap},
    programs::SkBuffContext,
};
use chadthrottle_common::{
    abi::MAX_LIMITS,
    bucket::token_bucket_allow,
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

const DROP: i32 = 0;
const PASS: i32 = 1;

#[cgroup_skb(egress)]
pub fn empty_egress(_ctx: SkBuffContext) -> i32 {
    PASS
}

#[cgroup_skb(ingress)]
pub fn empty_ingress(_ctx: SkBuffContext) -> i32 {
    PASS
}

/// What a naive limiter was asked for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NaiveConfig {
    rate: u64,
    burst: u64,
}

/// Its counters.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NaiveStats {
    packets_passed: u64,
    bytes_passed: u64,
    packets_dropped: u64,
    bytes_dropped: u64,
}

/// Its bucket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NaiveBucket {
    tokens: u64,
    last_ns: u64,
}

#[map]
static NAIVE_CONFIGS: HashMap<u64, NaiveConfig> = HashMap::with_max_entries(MAX_LIMITS, 0);
#[map]
static NAIVE_BUCKETS: HashMap<u64, NaiveBucket> = HashMap::with_max_entries(MAX_LIMITS, 0);
#[map]
static NAIVE_STATS: HashMap<u64, NaiveStats> = HashMap::with_max_entries(MAX_LIMITS, 0);

#[inline(always)]
unsafe fn naive(ctx: &SkBuffContext) -> Option<i32> {
    // SAFETY: a context of this program; values are copied out at once.
    unsafe {
        let id = bpf_skb_cgroup_id(ctx.skb.skb);
        let config = *NAIVE_CONFIGS.get(id)?;
        let now = bpf_ktime_get_ns();
        let bytes = u64::from(ctx.len());
        let mut bucket =
            NAIVE_BUCKETS.get(id).copied().unwrap_or(NaiveBucket { tokens: config.burst, last_ns: now });
        // Elapsed time in us, or the product overflows.
        let refill = (now - bucket.last_ns) / 1_000 * config.rate / 1_000_000;
        bucket.tokens = (bucket.tokens + refill).min(config.burst);
        bucket.last_ns = now;
        let passes = bucket.tokens >= bytes;
        if passes {
            bucket.tokens -= bytes;
        }
        let _ = NAIVE_BUCKETS.insert(id, bucket, 0);
        let mut stats = NAIVE_STATS.get(id).copied().unwrap_or(NaiveStats {
            packets_passed: 0,
            bytes_passed: 0,
            packets_dropped: 0,
            bytes_dropped: 0,
        });
        if passes {
            stats.packets_passed += 1;
            stats.bytes_passed += bytes;
        } else {
            stats.packets_dropped += 1;
            stats.bytes_dropped += bytes;
        }
        let _ = NAIVE_STATS.insert(id, stats, 0);
        Some(if passes { PASS } else { DROP })
    }
}

#[cgroup_skb(egress)]
pub fn naive_egress(ctx: SkBuffContext) -> i32 {
    // SAFETY: a context of this program.
    unsafe { naive(&ctx) }.unwrap_or(PASS)
}

#[cgroup_skb(ingress)]
pub fn naive_ingress(ctx: SkBuffContext) -> i32 {
    // SAFETY: as above.
    unsafe { naive(&ctx) }.unwrap_or(PASS)
}

/// Bucket steps in one run of `step_*`.
const STEPS: u64 = 100;

/// Virtual time of the bucket, and its rate in bytes/s, which the compiler must not know.
#[map]
static WORD: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// `STEP`: whether the step is taken. Returns 1 when all packets passed.
#[inline(always)]
unsafe fn steps<const STEP: bool>() -> Option<i32> {
    let word = WORD.get_ptr_mut(0)?;
    // SAFETY: a map value of two words.
    unsafe {
        let rate = &raw const (*word)[1];
        let word = MapWord::<true>(&raw mut (*word)[0]);
        let mut now = core::ptr::read_volatile(word.0);
        let mut passed = true;
        for _ in 0..STEPS {
            // A packet of 100 bytes at the rate of the benchmark always finds an empty bucket.
            now += 6_400;
            // As the engine does for each packet.
            let rate = NonZeroU64::new(core::ptr::read_volatile(rate))?;
            if STEP {
                passed &= token_bucket_allow(&word, now, 100, rate, 64_000);
            } else {
                passed &= core::ptr::read_volatile(word.0) <= now.wrapping_add(rate.get());
            }
        }
        Some(i32::from(passed))
    }
}

#[cgroup_skb(ingress)]
pub fn step_ingress(_ctx: SkBuffContext) -> i32 {
    // SAFETY: no arguments.
    unsafe { steps::<true>() }.unwrap_or(0)
}

#[cgroup_skb(ingress)]
pub fn idle_ingress(_ctx: SkBuffContext) -> i32 {
    // SAFETY: no arguments.
    unsafe { steps::<false>() }.unwrap_or(0)
}
