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

    /// What passes in seconds 2 to 10, as shares of the limit in each of them, and the last level.
    fn run(&self, seed: u64) -> ([f64; 8], u64) {
        const SECOND: u64 = 1_000_000_000;
        let cost = crate::bucket::cost(self.burst, NonZeroU64::new(self.rate).unwrap());
        let (credit, ticks) = (3 * SECOND / 10 * TICKS_PER_NS, |ns: u64| (ns + SECOND) * TICKS_PER_NS);
        let mut random = seed;
        // From 0 to 1, of some linear congruence.
        let mut chance = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 40) as f64 / f64::from(1 << 24)
        };
        let mut level = self.rate / self.guess * 9 / 8;
        let mut period = period_ns(self.rate, level);
        let mut flows: Vec<_> =
            self.wants.iter().map(|_| ((chance() * 5e7) as u64, level, 0_u32, 0_i64)).collect();
        let (mut virtual_time, mut passed, mut shares) = (ticks(0), 0, [0.0; 8]);
        let (mut looked_at, mut used, mut follow_at, mut pauses) = (0, 0, 0, 0);
        loop {
            let (which, &(now, ..)) = flows.iter().enumerate().min_by_key(|(_, flow)| flow.0).unwrap();
            if now >= 10 * SECOND {
                return (shares, level);
            }
            if now >= follow_at {
                follow_at = now + SECOND / 10;
                flows.iter_mut().for_each(|flow| flow.1 = in_turn(level, flow.3));
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
                let found = virtual_time as i64 - ticks(now) as i64;
                virtual_time = virtual_time.max(ticks(now) - credit) + cost;
                passed += self.burst;
                if now >= 2 * SECOND {
                    shares[(now / SECOND) as usize - 2] += self.burst as f64 / self.rate as f64;
                }
                let speed = payload_rate(flow.1.min(self.wants[which]), false);
                let gap = self.burst as f64 / speed as f64 * 0.96 * (1.0 + 0.03 * chance());
                *flow = (now + (gap * 1e9) as u64, flow.1, 0, found);
            } else {
                // Nothing in flight: the probe timer, which backs off.
                let wait = 0.21 * f64::from(1 << flow.2.min(8)) * (0.9 + 0.3 * chance());
                *flow = (now + (wait * 1e9) as u64, flow.1, flow.2 + 1, flow.3);
            }
        }
    }

    /// The lowest and the highest share of many runs.
    fn shares(&self) -> (f64, f64) {
        let shares = (1..40).map(|seed| self.run(seed).0.iter().sum::<f64>() / 8.0);
        shares.fold((f64::MAX, 0.0), |(low, high), share| (low.min(share), high.max(share)))
    }
}

fn assert_within(lane: &Lane, least: f64) {
    let (low, high) = lane.shares();
    let flows = lane.wants.len();
    // Credit of the first second may be spent later: 300 ms of eight seconds, and a buffer.
    assert!(low >= least && high <= 1.05, "{flows} flows at {}: {low:.3} to {high:.3}", lane.rate);
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

/// Seventeen bursts in a second would be 1.15 of it.
#[test]
fn bursts_do_not_fall_into_the_same_second() {
    for rate in [1_000_000, 2_000_000, 4_000_000] {
        let lane = Lane::greedy(rate, 8);
        let best = |seed| lane.run(seed).0.into_iter().fold(0.0, f64::max);
        let above = (1..100).filter(|seed| best(*seed) > 1.1).count();
        assert!(above <= 10, "{above} of 99 runs at {rate} have such a second");
    }
}

/// Who came too soon comes later.
#[test]
fn each_flow_finds_its_turn() {
    const MS: i64 = 1_000_000 * TICKS_PER_NS as i64;
    assert!((115_000..124_000).contains(&in_turn(125_000, 60 * MS)));
    // No debt stops one, and no credit has one hurry.
    assert!((70_000..115_000).contains(&in_turn(125_000, i64::MAX)));
    for credit in [0, -1, -60 * MS, i64::MIN] {
        assert_eq!(in_turn(125_000, credit), 125_000);
    }
    // No level is one for not paced, and fast flows have no turns.
    assert_eq!(in_turn(0, 60 * MS), 0);
    assert_eq!(in_turn(TURNS + 1, 60 * MS), TURNS + 1);
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
        let turn = in_turn(next, debt_ticks);
        prop_assert!(turn >= next / 2 && turn <= next);
    }
}
