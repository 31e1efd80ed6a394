//! The token bucket, as one word of virtual time.
//!
//! The classic bucket refills by elapsed time x rate up to its capacity, and spends. Written in time
//! instead of bytes (GCRA, the virtual-scheduling form, ITU-T I.371), all of that is one number: the
//! moment at which the bucket has neither credit nor debt.
//!
//! ```text
//!   virtual time   <- now - capacity      idle long enough: full credit, clamped here ("lift")
//!                  |
//!                  now                    credit 0
//!                  |
//!                  -> now + d             in debt: nothing passes until d has gone by
//! ```
//!
//! A packet passes while the virtual time is not ahead of the clock, and then pushes it ahead by what
//! the packet costs at this rate: length / rate. So a packet larger than the credit, or than the whole
//! capacity, is never starved; what it took too much is debt that the following ones wait for.
//!
//! Times are in ticks of 1/64 ns since the bucket's own epoch: a 64-byte packet at 1 Tbit/s costs
//! 32 ticks, and a u64 of ticks lasts for nine years.
//!
//! Charging is an atomic add: concurrent packets can all see "no debt" and pass together, at most one
//! for each CPU, but each pays, so the average stays exact. Lifting an idle bucket is the only other
//! write, and goes through compare-and-swap; whoever loses that race just pays.

use core::num::NonZeroU64;

use crate::{abi::TokenBucket, pacing::BURST_TICKS};

/// Ticks in a nanosecond.
pub const TICKS_PER_NS: u64 = 64;

/// Ticks in a second.
pub const TICKS_PER_SECOND: u64 = TICKS_PER_NS * 1_000_000_000;

/// Largest length that [`cost`] tells apart, in bytes. A GSO buffer has at most 512 KiB (BIG TCP).
pub const MAX_LENGTH: u64 = 1 << 27;

/// Small TCP packets pass while the debt is below what a full GSO buffer costs, and this on top, in ticks. More
/// than what bulk may take, else acknowledgements starve behind an upload that keeps the bucket in debt.
pub const SMALL_SLACK: u64 = BURST_TICKS + 50_000_000 * TICKS_PER_NS;

/// Packets that open or close a TCP connection pass while the debt is below what this many GSO buffers cost
/// (each CPU may have let one pass at the same time), and [`URGENT_SLACK`] on top.
pub const URGENT_BUFFERS: u64 = 3;

/// See [`URGENT_BUFFERS`]; in ticks.
pub const URGENT_SLACK: u64 = BURST_TICKS + 200_000_000 * TICKS_PER_NS;

/// Bytes of the largest GSO buffer with the headers of all its segments.
pub const GSO_BYTES: u64 = 68_000;

/// Largest TCP packet that connecting, acknowledging and closing need, in bytes.
pub const SMALL_PACKET: u64 = 120;

/// While a bucket is in debt some packets may still have a slice of its rate, rate >> this: a sixteenth. Those of a limit
/// with a queue that do not come through it (loopback, devices without a queue), and where there is none datagrams, which
/// find the bucket in debt nearly always beside a transfer of the same limit: name service, calls and games would
/// starve. All is charged, so beside a queue it stays below a tenth over the limit, and elsewhere nothing is over it.
pub const BESIDE_SHIFT: u32 = 4;

/// Largest packet that counts as an answer, in bytes: answers may find the slice beside the queue in debt by
/// [`TokenBucket::small_ticks`] of its rate, which is what a bulk transfer there leaves behind.
pub const ANSWER: u64 = 1_500;

/// The same where the device keeps datagrams until there is room: what is sent past those that wait there overtakes
/// them, which only questions and the like do not mind. In bytes.
pub const QUESTION: u64 = 576;

/// Debt up to which packets that come out of the queue are charged, in ticks: what a timer that was late lets out
/// at once. Beyond it they are not, for a queue whose clock runs a little faster than the bucket's must not add up
/// to a debt that never ends.
pub const QUEUE_SLACK: u64 = 50_000_000 * TICKS_PER_NS;

/// Debt up to which a device with fq keeps what nothing paces, in ticks: a packet more would come too late to be of use,
/// and a sender has to feel somewhere that it is too fast.
pub const KEPT_TICKS: u64 = 500_000_000 * TICKS_PER_NS;

/// And no more than this many packets: fq drops what a flow has beyond 100, and an application with IP_RECVERR is told.
/// A socket's usual buffer is full with 93 datagrams of full size, so these are never too many.
pub const KEPT_PACKETS: u64 = 98;

/// Whether a packet of `bytes` may be left to a device that keeps it until the bucket, in `debt` ticks now, has room.
#[inline(always)]
pub fn may_be_kept(debt: u64, bytes: u64, rate: NonZeroU64) -> bool {
    debt <= KEPT_TICKS && debt <= cost(bytes * KEPT_PACKETS, rate)
}

/// When a bucket of such an epoch has no debt any more, CLOCK_MONOTONIC ns.
#[inline(always)]
pub fn out_of_debt_ns(virtual_time: u64, epoch_ns: u64) -> u64 {
    epoch_ns.wrapping_add(virtual_time / TICKS_PER_NS)
}

/// The word of virtual time, shared by all CPUs. In the kernel it is a map value, on the host an
/// [`core::sync::atomic::AtomicU64`].
pub trait Word {
    /// The value now.
    fn load(&self) -> u64;
    /// Adds, wrapping; loses no concurrent change.
    fn add(&self, ticks: u64);
    /// Stores `new` if the value is still `old`; tells whether it did. An implementation without
    /// compare-and-swap may store always: then a charge made in that instant is lost.
    fn replace(&self, old: u64, new: u64) -> bool;
}

/// What a packet of `bytes` costs at `rate` bytes/s, in ticks. Lengths above [`MAX_LENGTH`] count as that.
#[inline(always)]
pub fn cost(bytes: u64, rate: NonZeroU64) -> u64 {
    let bytes = if bytes > MAX_LENGTH { MAX_LENGTH } else { bytes };
    // 2^27 x 64e9 < 2^63: no overflow, and no 128-bit helper, which BPF has not.
    bytes * TICKS_PER_SECOND / rate
}

/// What a packet costs the slice of `rate` that traffic beside the queue has, in ticks; see [`BESIDE_SHIFT`].
#[inline(always)]
pub fn cost_beside(bytes: u64, rate: NonZeroU64) -> u64 {
    cost(bytes, NonZeroU64::new(rate.get() >> BESIDE_SHIFT).unwrap_or(NonZeroU64::MIN))
}

/// The clock of a bucket: ticks since `epoch_ns`; 0 before it.
#[inline(always)]
pub fn ticks(now_ns: u64, epoch_ns: u64) -> u64 {
    now_ns.saturating_sub(epoch_ns).wrapping_mul(TICKS_PER_NS)
}

/// Whether a packet may pass that tolerates so much debt, in ticks: none for ordinary packets.
#[inline(always)]
pub fn has_room(virtual_time: u64, now: u64, tolerated: u64) -> bool {
    virtual_time <= now.saturating_add(tolerated)
}

/// How many of the `tolerated` debts, in ticks, the bucket's debt exceeds: [`has_room`] for each, but for a tick,
/// and without a branch. A program that asks several buckets would else have so many ways through it that the
/// verifier gives up.
#[inline(always)]
pub fn exceeded<const N: usize>(virtual_time: u64, now: u64, tolerated: [u64; N]) -> u64 {
    let mut count = 0;
    for debt in tolerated {
        // Halves, whose difference has a sign.
        let most = now.wrapping_add(debt) >> 1;
        count += most.wrapping_sub(virtual_time >> 1) >> 63;
    }
    count
}

/// Charges `cost` to a bucket whose virtual time was seen as `seen`.
#[inline(always)]
pub fn charge(word: &impl Word, seen: u64, now: u64, cost: u64, capacity_ticks: u64) {
    let earliest = now.saturating_sub(capacity_ticks);
    if seen < earliest && word.replace(seen, earliest + cost) {
        return;
    }
    word.add(cost);
}

/// The whole step for one packet and one bucket; tells whether it passes.
#[inline(always)]
pub fn token_bucket_allow(
    word: &impl Word,
    now: u64,
    bytes: u64,
    rate: NonZeroU64,
    capacity_ticks: u64,
) -> bool {
    let seen = word.load();
    if !has_room(seen, now, 0) {
        return false;
    }
    charge(word, seen, now, cost(bytes, rate), capacity_ticks);
    true
}

impl TokenBucket {
    /// A bucket without credit or debt at `now_ns`. `rate` in bytes/s (0: not limited), `capacity` in bytes,
    /// `epoch_ns` not after `now_ns`.
    pub fn empty(rate: u64, capacity: u64, epoch_ns: u64, now_ns: u64) -> Self {
        let bucket = Self {
            capacity,
            rate_bps: rate,
            epoch_ns,
            virtual_time: ticks(now_ns, epoch_ns),
            ..Self::default()
        };
        let Some(rate) = NonZeroU64::new(rate) else { return bucket };
        Self {
            capacity_ticks: span(capacity, rate),
            small_ticks: cost(GSO_BYTES, rate) + SMALL_SLACK,
            urgent_ticks: cost(GSO_BYTES, rate) * URGENT_BUFFERS + URGENT_SLACK,
            ..bucket
        }
    }

    /// What to add (wrapping) to the virtual time when this bucket changes to `rate` at `now_ns`, so that
    /// debt and credit stay what they are in bytes. From or to no rate: the bucket starts empty.
    pub fn shift_to(&self, rate: u64, now_ns: u64) -> u64 {
        let now = i128::from(ticks(now_ns, self.epoch_ns));
        let ahead = i128::from(self.virtual_time) - now;
        let ahead = ahead.max(-i128::from(self.capacity_ticks));
        let scaled = match rate {
            0 => 0,
            rate => ahead * i128::from(self.rate_bps) / i128::from(rate),
        };
        // Not before the epoch; and as the kernel adds it, modulo 2^64.
        ((now + scaled).max(0) - i128::from(self.virtual_time)) as u64
    }

    /// Tokens of the classic algorithm at `now_ns`, in bytes: negative while in debt.
    pub fn tokens(&self, now_ns: u64) -> i64 {
        let behind = i128::from(ticks(now_ns, self.epoch_ns)) - i128::from(self.virtual_time);
        let ticks = behind.min(i128::from(self.capacity_ticks));
        let bytes = ticks * i128::from(self.rate_bps) / i128::from(TICKS_PER_SECOND);
        bytes.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }
}

/// Time that `bytes` take at `rate`, in ticks, for lengths beyond one packet; saturates.
fn span(bytes: u64, rate: NonZeroU64) -> u64 {
    let ticks = u128::from(bytes) * u128::from(TICKS_PER_SECOND) / u128::from(rate.get());
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
