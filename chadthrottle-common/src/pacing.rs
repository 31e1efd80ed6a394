//! The water level: one pacing rate that all flows of an upload limit share.
//!
//! TCP paces each flow by itself and knows nothing of the others. So every flow gets the same cap, and
//! the cap is moved until all of them together use the limit: greedy flows stand at the cap, slow ones
//! below it. The bucket refuses what exceeds the limit meanwhile; its debt and its credit tell how far off
//! the level has been.

/// Shortest time between two looks, ns.
pub const MIN_PERIOD_NS: u64 = 100_000_000;
/// Longest time between two looks, ns.
pub const MAX_PERIOD_NS: u64 = 6_000_000_000;
/// A look is due when about so many bytes may have passed.
const PERIOD_BYTES: u64 = 200_000;
/// And no sooner than a flow at its cap takes for most of a GSO buffer, in bytes: over a short line TCP sends whole
/// buffers however low the cap, and until the next one a new level has done nothing.
const FLOW_BYTES: u64 = 67_000;
/// After a pause this long (ns) the last figures say nothing about now.
const STALE_NS: u64 = 12_000_000_000;
/// Debt up to which paced TCP still passes, ticks of the bucket: two flows whose bursts fall together are not
/// too fast, and one that is refused with nothing in flight stands still for 200 ms and more. Every byte is
/// charged all the same.
pub const BURST_TICKS: u64 = 100_000_000 * crate::bucket::TICKS_PER_NS;
/// The level never falls below this fraction of the limit.
const FLOOR: u64 = 256;
/// And never rises above the limit by more than this fraction of it: what was missed has to be made up for.
const HEADROOM: u64 = 16;
/// The same where a GSO buffer takes longer than the burst that is let pass: a flow that sends whole buffers is off by
/// most of one at any time, and must not be off by what it makes up for on top (measured: 1.036 of 100 KB/s in 30 seconds).
const SLOW_HEADROOM: u64 = 256;
/// Limits below this rate, bytes/s, are slow in that sense.
const SLOW: u64 = FLOW_BYTES * 1_000_000_000 * crate::bucket::TICKS_PER_NS / BURST_TICKS;
/// How far a look moves the level at most, in 1,024ths: many flows may be idle when a limit is set, and greedy later.
const MOST_UP: i64 = 1_024;
const MOST_DOWN: i64 = 256;

/// Looks that may find less than half of the limit used before the level follows: bbr lets all but stand still for 200 ms
/// every ten seconds, all flows of a line at the same time (measured: 1.34 of the limit in the second after).
const MOST_PAUSES: u16 = 3;
/// Limits from this rate on, bytes/s, are fast: a look sees a dozen GSO buffers and more, so that what it finds used is what
/// the flows use. At lower rates one more buffer, or one less, would pass for a pause or for too much.
const FAST: u64 = 8_000_000;
/// 17/16 of the limit, in 1,024ths of 1,024ths.
const MOST_USED: u64 = (1_024 + 64) << 10;

/// No flow gets a lower cap, bytes/s. Over a short line TCP sends 64 KB at a time, and then waits for as long as they take at
/// the cap that stood then, also when the limit has ended meanwhile: 8 s at this one, minutes at what a limit of 1 KB/s
/// would give each of four flows. Below it the bucket holds alone.
const LEAST_CAP: u64 = 8_000;

/// Time between two looks at `rate` and `level` bytes/s, µs.
#[inline(always)]
pub fn period_us(rate: u64, level: u64) -> u32 {
    let all = PERIOD_BYTES * 1_000_000_000 / rate.max(1);
    let one = FLOW_BYTES * 1_000_000_000 / level.max(1);
    let period = if all > one { all } else { one };
    // Of two constants: nothing of its panic is left.
    (period.clamp(MIN_PERIOD_NS, MAX_PERIOD_NS) / 1_000) as u32
}

/// What a look at a limit finds.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Time since the last look, ns.
    pub elapsed_ns: u64,
    /// IP bytes that passed in it.
    pub used: u64,
    /// Debt of the bucket, in ticks; credit below zero.
    pub debt_ticks: i64,
    /// Looks in a row before this one that found less than half of the limit used.
    pub pauses: u16,
}

/// What a look makes of it.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// The level, IP bytes/s.
    pub level: u64,
    /// [`Use::pauses`] for the next look.
    pub pauses: u16,
    /// Whether half of what one flow at the level sends has passed, and more: else none stands there.
    pub in_want: bool,
}

/// The level after a look at a limit of `rate` bytes/s. All levels are IP bytes/s, from about `rate / 256` to
/// a little more than `rate`.
///
/// It goes up by half of what is missing, and down with the debt of the bucket (up with its credit), which is what
/// all that was missed, or was too much, adds up to. So what the bursts of a look hide comes out in the next ones.
/// Nothing is made of what was refused: a single burst is tried again and again.
#[inline(always)]
pub fn next_level(level: u64, rate: u64, found: Use) -> Next {
    if found.elapsed_ns > STALE_NS {
        return Next { level, pauses: 0, in_want: false };
    }
    // Microseconds, so that no product below leaves 64 bits: used < 2^40, rate <= 2^37.
    let elapsed_us = (found.elapsed_ns / 1_000).max(1);
    let used_rate = (found.used.min(1 << 40) * 1_000_000 / elapsed_us).min(2 * rate);
    // All in 1,024ths.
    let used_part = used_rate * 1_024 / rate.max(1);
    let pauses = if used_part < 512 { found.pauses.saturating_add(1) } else { 0 };
    let in_want = used_rate > level / 2;
    // Flows that will go on where they were: a higher level would have them exceed the limit all together.
    if rate >= FAST && pauses != 0 && pauses <= MOST_PAUSES {
        return Next { level, pauses, in_want };
    }
    let mut change = (1_024 - used_part as i64) >> 1;
    // A second of debt is about half the level.
    let debt = found.debt_ticks >> 27;
    change -= if debt > 1_024 { 1_024 } else { debt };
    // Of two constants: nothing of its panic is left.
    change = change.clamp(-MOST_DOWN, MOST_UP);
    // What the same flows would use: not far beyond the limit, however much there is to make up for.
    let most_change = (MOST_USED / used_part.max(1)) as i64 - 1_024;
    if rate >= FAST && change > most_change {
        change = most_change;
    }
    let next = level.wrapping_add(((level as i64 * change) >> 10) as u64);
    let floor = rate / FLOOR + 100;
    let most = rate + if rate < SLOW { rate / SLOW_HEADROOM } else { rate / HEADROOM };
    let level = if next > most {
        most
    } else if next < floor {
        floor
    } else {
        next
    };
    Next { level, pauses, in_want }
}

/// So many flows are expected at most where they can only be guessed: many connections may be idle.
pub const MOST_EXPECTED: u64 = 8;

/// The level when another flow comes while none is in want of more ([`Next::in_want`]): at the level of one, eight that begin
/// together would exceed the limit eight times, and those that the bucket refuses starve until the level has fallen. As if
/// all that come so were greedy, up to [`MOST_EXPECTED`]; the first alone changes nothing. Beside a flow that stands at the
/// level already nobody is expected to: short connections, one after the other, would take it away from that one.
#[inline(always)]
pub fn level_with_another(level: u64, rate: u64) -> u64 {
    if level >= rate {
        return rate.max(2) - 1;
    }
    if level <= rate / MOST_EXPECTED {
        return level;
    }
    // rate / (rate / level + 1), in KB/s: no product leaves 64 bits.
    let (low, high) = (level / 1_000 + 1, rate / 1_000 + 1);
    (low * high / (low + high) * 1_000).max(rate / MOST_EXPECTED).min(level)
}

/// What to set as a flow's pacing rate: the kernel paces payload, the limit counts IP bytes. Bytes/s, at least
/// 8 KB/s.
#[inline(always)]
pub fn payload_rate(level: u64, ipv6: bool) -> u64 {
    // Of 1500 bytes 52 are headers with IPv4, 72 with IPv6 (timestamps included).
    let payload = if ipv6 { 1_428 } else { 1_448 };
    (level / 1_500 * payload + level % 1_500 * payload / 1_500).max(LEAST_CAP)
}

#[cfg(test)]
mod tests {
    use core::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;
    use crate::bucket::TICKS_PER_NS;

    fn period_ns(rate: u64, level: u64) -> u64 {
        u64::from(period_us(rate, level)) * 1_000
    }

    /// What is simulated: flows that send bursts, a bucket as `limit_egress` has it, and the owner.
    struct Lane {
        rate: u64,
        /// What each flow wants, bytes/s.
        wants: Vec<u64>,
        /// Flows that the first level was made for.
        guess: u64,
        /// Bytes that a flow sends at once.
        burst: u64,
    }

    impl Lane {
        fn greedy(rate: u64, flows: usize) -> Self {
            Self { rate, wants: vec![u64::MAX; flows], guess: flows.min(8) as u64, burst: 67_500 }
        }

        /// The share of the limit that passes in seconds 2 to 10, and the last level.
        fn run(&self, seed: u64) -> (f64, u64) {
            const SECOND: u64 = 1_000_000_000;
            let cost = crate::bucket::cost(self.burst, NonZeroU64::new(self.rate).unwrap());
            let (credit, ticks) = (3 * SECOND / 10 * TICKS_PER_NS, |ns: u64| (ns + SECOND) * TICKS_PER_NS);
            let mut random = seed;
            // From 0 to 1, of some linear congruence.
            let mut chance = || {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 40) as f64 / f64::from(1 << 24)
            };
            let mut level = self.rate / self.guess * 9 / 8;
            let mut period = period_ns(self.rate, level);
            let mut flows: Vec<_> =
                self.wants.iter().map(|_| ((chance() * 5e7) as u64, level, 0_u32)).collect();
            let (mut virtual_time, mut passed, mut early) = (ticks(0), 0, None);
            let (mut looked_at, mut used, mut follow_at, mut pauses) = (0, 0, 0, 0);
            loop {
                let (which, &(now, _, _)) = flows.iter().enumerate().min_by_key(|(_, flow)| flow.0).unwrap();
                if now >= SECOND {
                    early.get_or_insert(passed);
                }
                if now >= 10 * SECOND {
                    return ((passed - early.unwrap()) as f64 / (9 * self.rate) as f64, level);
                }
                if now >= follow_at {
                    follow_at = now + SECOND / 10;
                    flows.iter_mut().for_each(|flow| flow.1 = level);
                }
                if now - looked_at >= period {
                    let debt_ticks = (virtual_time as i64 - ticks(now) as i64).max(-(credit as i64));
                    let found = Use { elapsed_ns: now - looked_at, used: passed - used, debt_ticks, pauses };
                    Next { level, pauses, .. } = next_level(level, self.rate, found);
                    period = period_ns(self.rate, level);
                    (looked_at, used) = (now, passed);
                }
                let flow = &mut flows[which];
                if virtual_time <= ticks(now) + BURST_TICKS {
                    virtual_time = virtual_time.max(ticks(now) - credit) + cost;
                    passed += self.burst;
                    let speed = payload_rate(flow.1.min(self.wants[which]), false);
                    let gap = self.burst as f64 / speed as f64 * 0.96 * (1.0 + 0.03 * chance());
                    *flow = (now + (gap * 1e9) as u64, flow.1, 0);
                } else {
                    // Nothing in flight: the probe timer, which backs off.
                    let wait = 0.21 * f64::from(1 << flow.2.min(8)) * (0.9 + 0.3 * chance());
                    *flow = (now + (wait * 1e9) as u64, flow.1, flow.2 + 1);
                }
            }
        }

        /// The lowest and the highest share of many runs.
        fn shares(&self) -> (f64, f64) {
            let shares = (1..40).map(|seed| self.run(seed).0);
            shares.fold((f64::MAX, 0.0), |(low, high), share| (low.min(share), high.max(share)))
        }
    }

    fn assert_within(lane: &Lane, least: f64) {
        let (low, high) = lane.shares();
        let flows = lane.wants.len();
        // Credit of the first second may be spent later: 300 ms of nine seconds.
        assert!(low >= least && high <= 1.04, "{flows} flows at {}: {low:.3} to {high:.3}", lane.rate);
    }

    /// Bursts of which fifteen are a second of the limit.
    #[test]
    fn flows_in_bursts_use_the_limit() {
        for flows in [1, 2, 4, 8] {
            assert_within(&Lane::greedy(1_000_000, flows), 0.97);
            assert_within(&Lane::greedy(10_000_000, flows), 0.98);
        }
        assert_within(&Lane::greedy(1_000_000, 32), 0.94);
        assert_within(&Lane::greedy(10_000_000, 64), 0.97);
    }

    /// As over a long line.
    #[test]
    fn flows_without_bursts_use_the_limit() {
        for flows in [1, 8, 64] {
            assert_within(&Lane { burst: 3_000, ..Lane::greedy(1_000_000, flows) }, 0.98);
        }
    }

    /// The first level is too low by eight, and goes up within a second or so.
    #[test]
    fn idle_connections_cost_little_time() {
        assert_within(&Lane { guess: 8, ..Lane::greedy(1_000_000, 1) }, 0.9);
        assert_within(&Lane { guess: 8, ..Lane::greedy(10_000_000, 1) }, 0.97);
    }

    #[test]
    fn equal_flows_share_the_limit() {
        for flows in [1, 2, 8, 64] {
            let (_, level) = Lane { burst: 3_000, ..Lane::greedy(10_000_000, flows) }.run(1);
            let fair = 10_000_000 / flows as u64;
            assert!((fair * 8 / 10..=fair * 12 / 10).contains(&level), "{flows}: {level}");
        }
    }

    #[test]
    fn a_greedy_flow_gets_what_slow_ones_leave() {
        let mut lane = Lane::greedy(1_000_000, 8);
        lane.wants[1..].fill(50_000);
        assert_within(&lane, 0.9);
    }

    #[test]
    fn flows_that_begin_together_are_expected_to_share() {
        for rate in [1_000, 100_000, 1_000_000, 125_000_000_000] {
            let mut level = rate;
            for flows in 1..20 {
                level = level_with_another(level, rate);
                let fair = rate / flows.min(MOST_EXPECTED);
                assert!(
                    (fair * 3 / 4..=fair * 5 / 4).contains(&level) || rate == 1_000,
                    "{flows} at {rate}: {level}"
                );
                assert!((rate / MOST_EXPECTED..=rate).contains(&level));
            }
        }
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
            elapsed_ns in 0u64..10_000_000_000, debt_ticks in any::<i64>(),
        ) {
            let level = level.clamp(rate / FLOOR + 100, rate);
            let next = next_level(level, rate, Use { elapsed_ns, used, debt_ticks, pauses: 0 }).level;
            let period = period_ns(rate, next);
            prop_assert!((MIN_PERIOD_NS..=MAX_PERIOD_NS).contains(&period));
            prop_assert!(next <= rate + rate / HEADROOM && next >= (rate / FLOOR + 100).min(rate));
            prop_assert!(payload_rate(next, true) <= payload_rate(next, false));
        }
    }
}
