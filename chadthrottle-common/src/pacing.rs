//! The water level: one pacing rate that all flows of an upload limit share.
//!
//! TCP paces each flow by itself and knows nothing of the others. So every flow gets the same cap, and
//! the cap is moved until all of them together use the limit: greedy flows stand at the cap, slow ones
//! below it. The bucket refuses what exceeds the limit meanwhile, which is also what tells that the
//! level is too high.

/// Shortest time between two looks, ns.
pub const MIN_PERIOD_NS: u64 = 100_000_000;
/// Longest time between two looks, ns.
pub const MAX_PERIOD_NS: u64 = 2_000_000_000;
/// A look is due when about so many bytes may have passed.
const PERIOD_BYTES: u64 = 200_000;
/// After a pause this long (ns) the last figures say nothing about now.
const STALE_NS: u64 = 4_000_000_000;
/// Debt up to which paced TCP still passes, ticks of the bucket: two flows whose bursts fall together are not
/// too fast, and one that is refused with nothing in flight stands still for 200 ms and more. Every byte is
/// charged all the same.
pub const BURST_TICKS: u64 = 100_000_000 * crate::bucket::TICKS_PER_NS;
/// The level never falls below this fraction of the limit.
const FLOOR: u64 = 256;

/// Time between two looks at `rate` bytes/s (not 0), ns.
pub fn period_ns(rate: u64) -> u64 {
    (PERIOD_BYTES * 1_000_000_000)
        .checked_div(rate)
        .unwrap_or(MAX_PERIOD_NS)
        .clamp(MIN_PERIOD_NS, MAX_PERIOD_NS)
}

/// The level after a look: `used` bytes passed and `refused` packets were refused in the last `elapsed_ns`
/// at a limit of `rate` bytes/s. All levels are IP bytes/s, from `rate / 256` to `rate`.
#[inline(always)]
pub fn next_level(level: u64, rate: u64, used: u64, refused: u64, elapsed_ns: u64) -> u64 {
    // Microseconds, so that no product below leaves 64 bits: used < 2^40, rate <= 2^37.
    let elapsed_us = (elapsed_ns / 1_000).max(1);
    if elapsed_ns > STALE_NS {
        return level;
    }
    let used_rate = used.min(1 << 40) * 1_000_000 / elapsed_us;
    let next = if refused > 1 {
        // Far above what fits, or just about: then a small step down loses less on the way back up.
        let much = refused.min(1 << 30) * 1_500 > used.min(1 << 40) / 8;
        level - level / if much { 8 } else { 32 }
    } else if used_rate < rate - rate / 32 {
        // Up by half of what is missing, a quarter at most.
        let missing = (rate - used_rate) / 2;
        level + (level / 4).min(level / 1_024 * (missing / (rate / 1_024).max(1)) + 64)
    } else {
        level + level / 64
    };
    let floor = rate / FLOOR + 100;
    if next > rate {
        rate
    } else if next < floor {
        floor
    } else {
        next
    }
}

/// What to set as a flow's pacing rate: the kernel paces payload, the limit counts IP bytes. Bytes/s.
#[inline(always)]
pub fn payload_rate(level: u64, ipv6: bool) -> u64 {
    // Of 1500 bytes 52 are headers with IPv4, 72 with IPv6 (timestamps included).
    let payload = if ipv6 { 1_428 } else { 1_448 };
    level / 1_500 * payload + level % 1_500 * payload / 1_500
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Flows that take what the level allows, up to what each wants; what is above the limit is refused.
    fn settle(rate: u64, wants: &[u64]) -> (u64, f64) {
        let mut level = rate;
        let (mut passed, mut offered_late) = (0, 0);
        for round in 0..400 {
            let period = period_ns(rate);
            let offered: u64 = wants.iter().map(|want| level.min(*want)).sum();
            let used = offered.min(rate);
            let refused = if offered > rate { 5 } else { 0 };
            let bytes = (u128::from(used) * u128::from(period) / 1_000_000_000) as u64;
            level = next_level(level, rate, bytes, refused, period);
            if round >= 200 {
                passed += used;
                offered_late += rate;
            }
        }
        (level, passed as f64 / offered_late as f64)
    }

    #[test]
    fn equal_flows_share_the_limit() {
        for flows in [1usize, 2, 8, 64] {
            let (level, share) = settle(10_000_000, &vec![u64::MAX / 1_024; flows]);
            assert!(share > 0.95, "{flows} flows use {share}");
            let fair = 10_000_000 / flows as u64;
            assert!((fair * 8 / 10..=fair * 12 / 10).contains(&level), "{flows}: {level}");
        }
    }

    #[test]
    fn a_greedy_flow_gets_what_slow_ones_leave() {
        let mut wants = vec![50_000; 7];
        wants.push(u64::MAX / 1_024);
        let (_, share) = settle(1_000_000, &wants);
        assert!(share > 0.95, "{share}");
    }

    #[test]
    fn payload_is_what_headers_leave() {
        assert_eq!(payload_rate(1_500_000, false), 1_448_000);
        assert_eq!(payload_rate(1_500_000, true), 1_428_000);
    }

    proptest! {
        #[test]
        fn the_level_stays_within_its_bounds(
            level in any::<u64>(), rate in 1_000u64..=125_000_000_000, used in any::<u64>(),
            refused in any::<u64>(), elapsed in 0u64..10_000_000_000,
        ) {
            let level = level.clamp(rate / FLOOR + 100, rate);
            let next = next_level(level, rate, used, refused, elapsed);
            prop_assert!(next <= rate && next >= (rate / FLOOR + 100).min(rate));
            prop_assert!(payload_rate(next, true) <= payload_rate(next, false));
        }
    }
}
