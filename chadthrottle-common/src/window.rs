//! The receive window that a limited connection advertises: as much as a queue of a given delay takes,
//! never more than the kernel itself would allow.
//!
//! A sender that keeps to such a window has no more under way than its share of rate x (round trip +
//! queue), so that the queue in front of the limit never grows beyond that, and nothing is dropped.

use core::num::NonZeroU64;

/// Least window, in bytes: two full segments on Ethernet. With one, the receiver would wait for the second
/// before it acknowledges.
pub const LEAST: u32 = 2 * 1460;

/// Most that is ever wanted, in bytes: what the TCP header can say (RFC 7323, section 2.3).
const MOST: u64 = 1 << 30;

/// Round trip that is assumed until one was measured, in microseconds.
const UNKNOWN_RTT_US: u32 = 10_000;

/// Largest window scale there is (RFC 7323, section 2.3).
const LARGEST_SCALE: u8 = 14;

/// Window for one of `flows` connections that share `rate_bps` (bytes/s), in bytes: rate x (`min_rtt_us` +
/// `queue_us`) / flows, at least [`LEAST`]. A round trip of 0 was not measured yet.
#[inline(always)]
pub fn wanted(rate_bps: u64, min_rtt_us: u32, queue_us: u32, flows: u32) -> u32 {
    let rtt_us = if min_rtt_us == 0 { UNKNOWN_RTT_US } else { min_rtt_us };
    // 1 TB/s and 16 s at most, so that the product fits in 64 bits.
    let span_us = (u64::from(rtt_us) + u64::from(queue_us)).min(1 << 24);
    let bytes = rate_bps.min(1 << 39) * span_us / 1_000_000;
    let flows = NonZeroU64::new(u64::from(flows)).unwrap_or(NonZeroU64::MIN);
    (bytes / flows).clamp(u64::from(LEAST), MOST) as u32
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

/// Counts of the connections that were active in the present period and those before it, by period: each
/// word holds the period's number in its upper half and the count in the lower one. Nothing is ever rolled
/// over; what is of another period just does not count.
pub const PERIODS: usize = 4;

/// Number of the period of [`ACTIVE_NS`] that `now_ns` is in; never 0, which stands for none.
#[inline(always)]
pub fn period(now_ns: u64) -> u32 {
    (now_ns / ACTIVE_NS) as u32 | 1 << 31
}

/// A word with a count of one in `period`.
#[inline(always)]
pub fn first_of(period: u32) -> u64 {
    u64::from(period) << 32 | 1
}

/// The count in `word` if it is of `period`, else 0.
#[inline(always)]
pub fn count_in(word: u64, period: u32) -> u32 {
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
        fn the_window_is_the_formula(rate in 1u64..1 << 39, rtt in 1u32..1 << 23, queue in 0u32..1 << 23, flows in 1u32..10_000) {
            let exact = u128::from(rate) * u128::from(rtt + queue) / 1_000_000 / u128::from(flows);
            let expected = exact.clamp(u128::from(LEAST), u128::from(MOST)) as u32;
            prop_assert_eq!(wanted(rate, rtt, queue, flows), expected);
        }

        #[test]
        fn any_figures_give_a_window(rate: u64, rtt: u32, queue: u32, flows: u32) {
            let window = wanted(rate, rtt, queue, flows);
            prop_assert!((LEAST..=1 << 30).contains(&window));
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
            let word = first_of(period(now)) + 6;
            prop_assert_eq!(count_in(word, period(now)), 7);
            let then = now.saturating_add(later);
            if period(then) != period(now) {
                prop_assert_eq!(count_in(word, period(then)), 0);
            }
            prop_assert_eq!(count_in(0, period(now)), 0);
        }
    }

    #[test]
    fn expected_flows_count_until_they_count_themselves() {
        for now in [8 * ACTIVE_NS, 8 * ACTIVE_NS + ACTIVE_NS - 1] {
            let mut flows = crate::abi::ActiveFlows::default();
            flows.expect(6, now);
            let word = |period: u32| count_in(flows.periods[period as usize % PERIODS], period);
            let seen = |time: u64| word(period(time)).max(word(period(time).wrapping_sub(1)));
            assert_eq!(seen(now), 6);
            // Those that acknowledge a tenth of a period later meet it, whichever period that is.
            assert_eq!(seen(now + ACTIVE_NS / 10), 6);
            assert_eq!(seen(now + 3 * ACTIVE_NS), 0);
        }
    }

    #[test]
    fn a_flow_of_one_megabyte_a_second_over_a_short_line() {
        assert_eq!(wanted(1_000_000, 200, 50_000, 1), 50_200);
        assert_eq!(wanted(1_000_000, 200, 50_000, 8), 6_275);
        assert_eq!(wanted(1_000_000, 0, 50_000, 0), 60_000);
    }
}
