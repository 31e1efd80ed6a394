//! The receive window that a limited connection advertises: as much as a queue of a given delay takes,
//! never more than the kernel itself would allow.
//!
//! A sender that keeps to such a window has no more under way than its share of rate x (round trip +
//! queue), so that the queue in front of the limit never grows beyond that, and nothing is dropped.

use core::num::NonZeroU64;

/// Least window, in bytes: two full segments on Ethernet. With one, the receiver would wait for the second
/// before it acknowledges.
pub const LEAST: u32 = 2 * 1460;

/// The same where nothing can wait. A receiver acknowledges as soon as it has more than a segment, and a sender fills a window
/// that is no whole number of them with a smaller one.
pub const LEAST_BARE: u32 = 1460 + 365;

/// Most that is ever wanted, in bytes: what the TCP header can say (RFC 7323, section 2.3).
const MOST: u64 = 1 << 30;

/// Round trip that is assumed until one was measured, in microseconds.
const UNKNOWN_RTT_US: u32 = 10_000;

/// Largest window scale there is (RFC 7323, section 2.3).
const LARGEST_SCALE: u8 = 14;

/// What a connection weighs that uses its whole window. One that uses a part of it weighs that part, at least 1: or
/// what slow connections do not use nobody could.
pub const WHOLE: u32 = 32;

/// Round trip with a queue of `queue_us` on it, in microseconds. One of 0 was not measured yet.
#[inline(always)]
fn span_us(min_rtt_us: u32, queue_us: u32) -> u64 {
    let rtt_us = if min_rtt_us == 0 { UNKNOWN_RTT_US } else { min_rtt_us };
    // 16 s at most, so that no product with a rate leaves 64 bits.
    (u64::from(rtt_us) + u64::from(queue_us)).min(1 << 24)
}

/// Window for one of the connections that share `rate_bps` (bytes/s) and together weigh `weight`, in bytes: rate x
/// (`min_rtt_us` + `queue_us`) x [`WHOLE`] / weight, at least [`LEAST`], and no more than one alone would get.
#[inline(always)]
pub fn wanted(rate_bps: u64, min_rtt_us: u32, queue_us: u32, weight: u32) -> u32 {
    sized(rate_bps, min_rtt_us, queue_us, weight, LEAST)
}

/// The same where nothing can wait: of the rate only what is payload, and at least [`LEAST_BARE`].
#[inline(always)]
pub fn bare(rate_bps: u64, min_rtt_us: u32, allowance_us: u32, weight: u32) -> u32 {
    sized(rate_bps - (rate_bps >> 5), min_rtt_us, allowance_us, weight, LEAST_BARE)
}

#[inline(always)]
fn sized(rate_bps: u64, min_rtt_us: u32, queue_us: u32, weight: u32, least: u32) -> u32 {
    // 1 TB/s at most: the product with the time is below 2^43.
    let bytes = rate_bps.min(1 << 39) * span_us(min_rtt_us, queue_us) / 1_000_000;
    let weight = if weight < WHOLE { WHOLE } else { weight };
    let weight = NonZeroU64::new(u64::from(weight)).unwrap_or(NonZeroU64::MIN);
    (bytes * u64::from(WHOLE) / weight).clamp(u64::from(least), MOST) as u32
}

/// What windows allow for beyond the round trip where nothing can wait, in microseconds: a part of the credit of the
/// bucket, which had `credit_ticks` just now (below zero: debt). So they grow until all of the limit is used, and the
/// bucket need not refuse anything. They move the credit with the round trip's delay; with a quarter of it they do
/// not swing.
#[inline(always)]
pub fn allowance_us(credit_ticks: i64) -> u32 {
    const MOST_US: u64 = 1_000_000;
    // eBPF divides without signs only.
    let credit = if credit_ticks < 0 { 0 } else { credit_ticks as u64 };
    ((credit >> 2) / (crate::bucket::TICKS_PER_NS * 1_000)).min(MOST_US) as u32
}

/// What a connection weighs that was sent `bytes` in `elapsed_ns` under a window of `window` bytes. Its round trip is
/// `rtt_us` now, with what waits in the queue.
///
/// A quarter is added: one that nearly uses its window is not the reason why others should have more, and where the
/// round trip is not known with the queue (without timestamps), a queue that is too long becomes shorter. After a second
/// of silence it weighs a quarter at least: what it is going to use nobody knows.
#[inline(always)]
pub fn weight(bytes: u32, elapsed_ns: u64, rtt_us: u32, min_rtt_us: u32, queue_us: u32, window: u32) -> u32 {
    let span_us = span_us(min_rtt_us, queue_us).max(u64::from(rtt_us).min(1 << 24));
    let elapsed_us = NonZeroU64::new(elapsed_ns / 1_000).unwrap_or(NonZeroU64::MIN);
    let used = (u64::from(bytes) * span_us / elapsed_us).min(u64::from(window));
    let window = NonZeroU64::new(u64::from(window)).unwrap_or(NonZeroU64::MIN);
    let least = if elapsed_ns > 4 * ACTIVE_NS { WHOLE / 4 } else { 1 };
    // Of constants: nothing of its panic is left.
    (used * u64::from(WHOLE + WHOLE / 4) / window).clamp(least.into(), WHOLE.into()) as u32
}

/// The weights of a connection's last four periods, a byte each, the latest lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights(pub u32);

impl Weights {
    /// Of a connection about which nothing is known.
    pub const UNKNOWN: Self = Self(WHOLE * 0x0101_0101);

    /// A period later.
    #[inline(always)]
    pub fn then(self, weight: u32) -> Self {
        Self(self.0 << 8 | weight & 0xff)
    }

    /// What counts: who used his window a moment ago will again (bbr stands still for a fifth of a second every ten).
    #[inline(always)]
    pub fn most(self) -> u32 {
        let mut most = self.0 & 0xff;
        for shift in [8, 16, 24] {
            let weight = self.0 >> shift & 0xff;
            if weight > most {
                most = weight;
            }
        }
        most
    }
}

/// What a packet shall advertise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// The header's window field, host byte order. Never above what it was.
    pub field: u16,
    /// Right edge: sequence number up to which the peer may send now.
    pub edge: u32,
}

/// Lowers the window of a packet that acknowledges `ack` and advertises `field` units of 2^`scale` bytes,
/// to about `wanted` bytes. `edge` is the right edge that was advertised before, `None` at the start of a
/// limit: only then the edge may move back. From then on it never does (RFC 9293, section 3.8.6, on
/// shrinking a window), which is why sizes between two units are rounded up.
#[inline(always)]
pub fn lower(ack: u32, field: u16, scale: u8, wanted: u32, edge: Option<u32>) -> Advertised {
    let scale = if scale > LARGEST_SCALE { LARGEST_SCALE } else { scale };
    let kernels = u32::from(field) << scale;
    let mut bytes = wanted;
    if let Some(edge) = edge {
        let promised = edge.wrapping_sub(ack);
        // Beyond half of the sequence space it lies behind what was acknowledged.
        if promised as i32 > bytes as i32 {
            bytes = promised;
        }
    }
    if bytes >= kernels {
        return Advertised { field, edge: ack.wrapping_add(kernels) };
    }
    let unit = 1u32 << scale;
    // Fits: below `kernels`, hence rounded up at most to it.
    let units = (bytes + (unit - 1)) >> scale;
    Advertised { field: units as u16, edge: ack.wrapping_add(units << scale) }
}

/// Time in which a connection counts as active after it acknowledged something, in ns.
pub const ACTIVE_NS: u64 = 250_000_000;

/// Sums of what the connections weigh that were active in the present period and those before it, by period: each
/// word holds the period's number in its upper half and the sum in the lower one. Nothing is ever rolled
/// over; what is of another period just does not count.
pub const PERIODS: usize = 4;

/// Number of the period of [`ACTIVE_NS`] that `now_ns` is in; never 0, which stands for none.
#[inline(always)]
pub fn period(now_ns: u64) -> u32 {
    (now_ns / ACTIVE_NS) as u32 | 1 << 31
}

/// A word with one connection's `weight` in `period`.
#[inline(always)]
pub fn first_of(period: u32, weight: u32) -> u64 {
    u64::from(period) << 32 | u64::from(weight)
}

/// The sum in `word` if it is of `period`, else 0.
#[inline(always)]
pub fn weight_in(word: u64, period: u32) -> u32 {
    if (word >> 32) as u32 == period { word as u32 } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Right edge of a header.
    fn edge(ack: u32, field: u16, scale: u8) -> u32 {
        ack.wrapping_add(u32::from(field) << scale)
    }

    /// How far `to` lies after `from` in sequence space.
    fn ahead(from: u32, to: u32) -> i64 {
        i64::from(to.wrapping_sub(from) as i32)
    }

    proptest! {
        #[test]
        fn the_window_is_the_formula(rate in 1u64..1 << 39, rtt in 1u32..1 << 23, queue in 0u32..1 << 23, weight in 1u32..100_000) {
            let bytes = u128::from(rate) * u128::from(rtt + queue) / 1_000_000;
            let exact = bytes * u128::from(WHOLE) / u128::from(weight.max(WHOLE));
            let expected = exact.clamp(u128::from(LEAST), u128::from(MOST)) as u32;
            prop_assert_eq!(wanted(rate, rtt, queue, weight), expected);
        }

        /// All connections together are sent no more than the limit, where each has room for its share of it.
        #[test]
        fn bare_windows_are_the_limit(rate in 1_000_000u64..1 << 33, rtt in 20_000u32..300_000, flows in 1u32..64) {
            let window = bare(rate, rtt, allowance_us(-1), flows * WHOLE);
            prop_assume!(window > LEAST_BARE);
            let speed = u128::from(window) * u128::from(flows) * 1_000_000 / u128::from(rtt);
            let share = speed as f64 / rate as f64;
            prop_assert!(share <= 1448.0 / 1492.0, "{share}");
            // A window has an end, which some gigabytes a second over a long line are beyond.
            prop_assert!(share >= 0.93 || u64::from(window) == MOST, "{share}");
        }

        #[test]
        fn more_credit_allows_for_more(credit: i64, more in 0i64..1 << 40) {
            prop_assert!(allowance_us(credit) <= allowance_us(credit.saturating_add(more)));
            prop_assert!(credit > 0 || allowance_us(credit) == 0);
        }

        #[test]
        fn any_figures_give_a_window(rate: u64, rtt: u32, queue: u32, weight: u32) {
            let window = wanted(rate, rtt, queue, weight);
            prop_assert!((LEAST..=1 << 30).contains(&window));
        }

        #[test]
        fn any_figures_give_a_weight(
            bytes: u32, elapsed: u64, rtt: u32, min_rtt: u32, queue: u32, window: u32, history: u32,
        ) {
            let weight = weight(bytes, elapsed, rtt, min_rtt, queue, window);
            prop_assert!((1..=WHOLE).contains(&weight));
            let weights = Weights(history).then(weight);
            prop_assert!(weights.most() >= weight);
            let later = (0..4).fold(weights, |weights, _| weights.then(1));
            prop_assert_eq!(later.most(), 1);
        }

        /// Whoever fills its window weighs as much as there is, however long the queue is.
        #[test]
        fn a_full_window_weighs_all(
            rate in 100_000u64..1 << 33, rtt in 100u32..300_000, flows in 1u32..64, queued in 50_000u32..1_000_000,
        ) {
            const PERIOD_NS: u64 = 250_000_000;
            let window = wanted(rate, rtt, 50_000, flows * WHOLE);
            let now_us = rtt + queued;
            let bytes = u64::from(window) * (PERIOD_NS / 1_000) / u64::from(now_us);
            prop_assume!(bytes > 3_000 && bytes < 1 << 32);
            prop_assert_eq!(weight(bytes as u32, PERIOD_NS, now_us, rtt, 50_000, window), WHOLE);
        }

        /// Connections that want less leave the rest to the others, whatever the first windows were.
        #[test]
        fn what_slow_ones_leave_can_be_used(
            rate in 200_000u64..1 << 30, rtt in 1_000u32..200_000, slow in 0u32..15, greedy in 1u32..8,
            part in 1u64..60,
        ) {
            const SECOND_NS: u64 = 1_000_000_000;
            let wish = rate * part / 100 / u64::from(slow.max(1));
            let weight_of = |bytes: u64, window| weight(bytes as u32, SECOND_NS, 0, rtt, 50_000, window);
            let mut sum = (slow + greedy) * WHOLE;
            for _ in 0..20 {
                let window = wanted(rate, rtt, 50_000, sum);
                let most = u64::from(window) * 1_000_000 / u64::from(rtt + 50_000);
                sum = slow * weight_of(wish.min(most), window) + greedy * weight_of(most, window);
            }
            let most = u64::from(wanted(rate, rtt, 50_000, sum)) * 1_000_000 / u64::from(rtt);
            let used = wish.min(most) * u64::from(slow) + most * u64::from(greedy);
            // The quarter that weights have too much costs something where the queue is short beside the line.
            let least = if rtt > 100_000 { 0.8 } else { 0.9 };
            prop_assert!(used as f64 >= least * rate as f64, "{used} of {rate}");
        }

        #[test]
        fn the_first_packet_has_what_is_wanted_or_less(
            ack: u32, field: u16, scale in 0u8..=14, wanted in LEAST..1 << 30,
        ) {
            let lowered = lower(ack, field, scale, wanted, None);
            prop_assert!(lowered.field <= field);
            prop_assert_eq!(lowered.edge, edge(ack, lowered.field, scale));
            let bytes = u32::from(lowered.field) << scale;
            // Rounded up, by less than one unit.
            prop_assert!(bytes < wanted.saturating_add(1 << scale));
            prop_assert!(bytes >= wanted || lowered.field == field);
        }

        /// A kernel that never takes back what it promised, seen through us, takes nothing back either.
        #[test]
        fn the_edge_never_moves_back(
            start: u32,
            scale in 0u8..=14,
            steps in prop::collection::vec((0u32..200_000, 0u16..=u16::MAX, LEAST..1 << 24), 1..60),
        ) {
            let (mut ack, mut kernels, mut ours): (u32, Option<u32>, Option<u32>) = (start, None, None);
            for (progress, field, wanted) in steps {
                // The peer sends only what it was allowed to.
                let allowed = ours.map_or(0, |edge| edge.wrapping_sub(ack));
                ack = ack.wrapping_add(progress.min(allowed));
                let mut field = field;
                if let Some(before) = kernels {
                    let promised = before.wrapping_sub(ack);
                    let least = promised.div_ceil(1 << scale);
                    field = field.max(u16::try_from(least).unwrap_or(u16::MAX));
                    // What the 16 bits can't say, no kernel has promised.
                    prop_assume!(ahead(before, edge(ack, field, scale)) >= 0);
                }
                kernels = Some(edge(ack, field, scale));
                let lowered = lower(ack, field, scale, wanted, ours);
                prop_assert!(lowered.field <= field, "above the kernel's");
                prop_assert_eq!(lowered.edge, edge(ack, lowered.field, scale));
                if let Some(before) = ours {
                    prop_assert!(ahead(before, lowered.edge) >= 0, "{before} -> {}", lowered.edge);
                }
                ours = Some(lowered.edge);
            }
        }

        #[test]
        fn a_stale_edge_does_not_matter(ack: u32, behind in 1u32..1 << 31, field: u16, scale in 0u8..=14, wanted in LEAST..1 << 30) {
            let stale = lower(ack, field, scale, wanted, Some(ack.wrapping_sub(behind)));
            prop_assert_eq!(stale, lower(ack, field, scale, wanted, None));
        }

        #[test]
        fn counts_belong_to_their_period(now: u64, later in 1u64..1 << 40) {
            let word = first_of(period(now), 3) + 6;
            prop_assert_eq!(weight_in(word, period(now)), 9);
            let then = now.saturating_add(later);
            if period(then) != period(now) {
                prop_assert_eq!(weight_in(word, period(then)), 0);
            }
            prop_assert_eq!(weight_in(0, period(now)), 0);
        }
    }

    #[test]
    fn expected_flows_count_until_they_count_themselves() {
        for now in [8 * ACTIVE_NS, 8 * ACTIVE_NS + ACTIVE_NS - 1] {
            let mut flows = crate::abi::ActiveFlows::default();
            flows.expect(6, now);
            let word = |period: u32| weight_in(flows.periods[period as usize % PERIODS], period);
            let seen = |time: u64| word(period(time)).max(word(period(time).wrapping_sub(1)));
            assert_eq!(seen(now), 6 * WHOLE);
            // Those that acknowledge a tenth of a period later meet it, whichever period that is.
            assert_eq!(seen(now + ACTIVE_NS / 10), 6 * WHOLE);
            assert_eq!(seen(now + 3 * ACTIVE_NS), 0);
        }
    }

    #[test]
    fn a_flow_of_one_megabyte_a_second_over_a_short_line() {
        assert_eq!(wanted(1_000_000, 200, 50_000, WHOLE), 50_200);
        assert_eq!(wanted(1_000_000, 200, 50_000, 8 * WHOLE), 6_275);
        assert_eq!(wanted(1_000_000, 0, 50_000, 0), 60_000);
    }
}
