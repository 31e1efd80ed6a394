//! The virtual time against the classic algorithm, in exact arithmetic.

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
};

use proptest::prelude::*;

use super::*;

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        self.load(SeqCst)
    }
    fn add(&self, ticks: u64) {
        self.fetch_add(ticks, SeqCst);
    }
    fn replace(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }
}

/// The document's bucket with debt: refill by elapsed time x rate, capped; a packet passes while the tokens
/// are not negative, and is spent in full. Tokens are kept as bytes x TICKS_PER_SECOND, so that nothing is
/// ever rounded.
struct Classic {
    tokens: i128,
    last: u64,
    rate: u64,
    capacity: u64,
}

impl Classic {
    const SCALE: i128 = TICKS_PER_SECOND as i128;

    fn allow(&mut self, now: u64, bytes: u64) -> bool {
        self.refill(now);
        if self.tokens < 0 {
            return false;
        }
        self.tokens -= i128::from(bytes) * Self::SCALE;
        true
    }

    fn refill(&mut self, now: u64) {
        let earned = i128::from(now - self.last) * i128::from(self.rate);
        self.tokens = (self.tokens + earned).min(i128::from(self.capacity) * Self::SCALE);
        self.last = now;
    }
}

const RATES: std::ops::RangeInclusive<u64> = 1_000..=125_000_000_000;

/// For so long the clock of a bucket runs: nine years, in ns.
const LIFE_NS: u64 = 9 * 365 * 86_400 * 1_000_000_000;

/// From nothing to four years, on a logarithmic scale.
fn step_ns() -> impl Strategy<Value = u64> {
    (0u32..58).prop_flat_map(|bits| 0..=(1u64 << bits))
}

fn rate() -> impl Strategy<Value = u64> {
    prop_oneof![RATES, (10u32..37).prop_map(|bits| (1u64 << bits).clamp(1_000, 125_000_000_000))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn exceeding_is_having_no_room(virtual_time: u64, now in 0u64..1 << 62, debts: [u32; 3]) {
        let debts = debts.map(u64::from);
        // A tick may go either way.
        let virtual_time = virtual_time >> 1;
        let without = |slack: u64| debts.iter().filter(|debt| !has_room(virtual_time, now, **debt + slack)).count();
        let count = exceeded(virtual_time, now, debts) as usize;
        prop_assert!((without(1)..=without(0)).contains(&count), "{count}");
    }

    /// Same verdicts as the classic algorithm, as long as its tokens are further from zero than what
    /// the virtual time has rounded away (less than a tick a packet).
    #[test]
    fn agrees_with_the_classic_algorithm(
        rate in rate(),
        capacity_ms in 1u64..2_000,
        packets in prop::collection::vec((step_ns(), 20u64..=65_536), 1..60),
    ) {
        let nonzero = NonZeroU64::new(rate).unwrap();
        let capacity = rate * capacity_ms / 1_000;
        let bucket = TokenBucket::empty(rate, capacity, 5, 5);
        let word = AtomicU64::new(0);
        let mut classic = Classic { tokens: 0, last: 0, rate, capacity };
        let mut now_ns = 5u64;
        for (index, (step, bytes)) in packets.into_iter().enumerate() {
            now_ns = (now_ns + step).min(LIFE_NS);
            let now = ticks(now_ns, bucket.epoch_ns);
            classic.refill(now);
            // One tick for the capacity, one for each packet.
            let rounding = i128::from(rate) * (index as i128 + 2);
            let close = classic.tokens.abs() <= rounding;
            let before = word.load(SeqCst);
            let passed = token_bucket_allow(&word, now, bytes, nonzero, bucket.capacity_ticks);
            if close {
                // Either verdict is right to within a tick; go on from the same state.
                classic.tokens = if passed { -i128::from(bytes) * Classic::SCALE } else { -rounding };
                word.store(if passed { now + cost(bytes, nonzero) } else { before }, SeqCst);
                if !passed { break; }
            } else {
                prop_assert_eq!(passed, classic.allow(now, bytes));
            }
        }
    }

    /// Whatever the packets and pauses: over any span from a start without credit no more passes than
    /// rate x time + capacity + one packet.
    #[test]
    fn never_passes_more_than_rate_and_capacity(
        rate in rate(),
        capacity_ms in 1u64..2_000,
        packets in prop::collection::vec((step_ns(), 20u64..=65_536), 1..200),
    ) {
        let nonzero = NonZeroU64::new(rate).unwrap();
        let capacity = rate * capacity_ms / 1_000;
        let bucket = TokenBucket::empty(rate, capacity, 0, 0);
        let word = AtomicU64::new(0);
        let (mut now_ns, mut passed) = (0u64, 0u128);
        for (step, bytes) in &packets {
            now_ns = (now_ns + step).min(LIFE_NS);
            if token_bucket_allow(&word, ticks(now_ns, 0), *bytes, nonzero, bucket.capacity_ticks) {
                passed += u128::from(*bytes);
            }
        }
        let earned = u128::from(rate) * u128::from(now_ns) / 1_000_000_000;
        // A tick a packet is lost to rounding.
        let rounding = (packets.len() as u128 + 1) * u128::from(rate) / u128::from(TICKS_PER_SECOND) + 1;
        prop_assert!(passed <= earned + u128::from(capacity) + 65_536 + rounding);
    }

    /// No input of any size panics or wraps round into credit.
    #[test]
    fn survives_any_input(
        seen in any::<u64>(), now in any::<u64>(), bytes in any::<u64>(),
        rate in 1u64.., capacity in any::<u64>(), epoch in any::<u64>(),
    ) {
        let rate = NonZeroU64::new(rate).unwrap();
        let bucket = TokenBucket::empty(rate.get(), capacity, epoch, now);
        prop_assert!(cost(bytes, rate) <= MAX_LENGTH * TICKS_PER_SECOND);
        bucket.tokens(now);
        bucket.shift_to(rate.get(), now);
        let now = ticks(now, epoch);
        if seen > now {
            let word = AtomicU64::new(seen);
            prop_assert!(!token_bucket_allow(&word, now, bytes, rate, bucket.capacity_ticks));
            prop_assert_eq!(word.load(SeqCst), seen);
        }
    }

    /// The derived tokens are those of the classic algorithm.
    #[test]
    fn tokens_are_the_classic_ones(rate in rate(), idle_ns in 0u64..10_000_000_000, bytes in 0u64..65_536) {
        let mut bucket = TokenBucket::empty(rate, rate, 0, 0);
        bucket.virtual_time = cost(bytes, NonZeroU64::new(rate).unwrap());
        let earned = (u128::from(rate) * u128::from(idle_ns) / 1_000_000_000) as i128;
        let exact = (earned - i128::from(bytes)).min(i128::from(rate));
        let error = 2 + i128::from(rate) / i128::from(TICKS_PER_SECOND);
        prop_assert!((i128::from(bucket.tokens(idle_ns)) - exact).abs() <= error);
    }
}

/// Two threads on one bucket: what passes is what was earned, and one packet a thread.
#[test]
fn two_cpus_pass_no_more_than_the_rate() {
    let rate = NonZeroU64::new(50_000_000).unwrap();
    let bucket = TokenBucket::empty(rate.get(), rate.get() * 3 / 10, 0, 0);
    let word = AtomicU64::new(0);
    let clock = AtomicU64::new(0);
    let passed = AtomicU64::new(0);
    const END_NS: u64 = 2_000_000_000;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    // Offered load: 1,500 bytes each 2 us and thread, thirty times the rate.
                    let now_ns = clock.fetch_add(1_000, SeqCst);
                    if now_ns > END_NS {
                        break;
                    }
                    if token_bucket_allow(&word, ticks(now_ns, 0), 1_500, rate, bucket.capacity_ticks) {
                        passed.fetch_add(1_500, SeqCst);
                    }
                }
            });
        }
    });
    let earned = rate.get() * 2;
    let passed = passed.load(SeqCst);
    assert!(passed >= earned * 98 / 100, "{passed} of {earned}");
    assert!(passed <= earned * 102 / 100, "{passed} of {earned}");
}

/// Small TCP packets pass a bucket in debt, but a flood of them is held to the rate.
#[test]
fn a_flood_of_small_packets_stays_within_a_tenth() {
    let rate = NonZeroU64::new(1_000_000).unwrap();
    let bucket = TokenBucket::empty(rate.get(), 300_000, 0, 0);
    let word = AtomicU64::new(0);
    let mut passed = 0;
    for now_ns in (0..10_000_000_000u64).step_by(10_000) {
        let now = ticks(now_ns, 0);
        let seen = word.load(SeqCst);
        if has_room(seen, now, bucket.small_ticks) {
            charge(&word, seen, now, cost(60, rate), bucket.capacity_ticks);
            passed += 60;
        }
    }
    assert!((10_000_000..=11_000_000).contains(&passed), "{passed}");
}

/// What `limit_ingress` does with a full queue, a flood beside it and small answers every 100 ms.
#[test]
fn beside_a_full_queue_answers_pass_and_a_flood_gets_its_slice() {
    for rate in [100_000_u64, 1_000_000, 100_000_000] {
        let rate = NonZeroU64::new(rate).unwrap();
        let bucket = TokenBucket::empty(rate.get(), rate.get() / 5, 0, 0);
        let (word, slice) = (AtomicU64::new(0), AtomicU64::new(0));
        let tolerated = bucket.small_ticks << BESIDE_SHIFT;
        let gap_ns = 1_500 * 1_000_000_000 / rate.get();
        let (mut queued, mut flood, mut answers) = (0, 0, 0);
        let beside = |now: u64, bytes: u64, tolerated: u64| {
            let seen = word.load(SeqCst);
            if !has_room(seen, now, 0) {
                if !has_room(slice.load(SeqCst), now, tolerated) {
                    return false;
                }
                charge(&slice, slice.load(SeqCst), now, cost_beside(bytes, rate), 0);
            }
            charge(&word, seen, now, cost(bytes, rate), bucket.capacity_ticks);
            true
        };
        let (start_ns, end_ns) = (2_000_000_000, 62_000_000_000_u64);
        let mut next_answer_ns = start_ns;
        for now_ns in (0..end_ns).step_by(gap_ns as usize) {
            let now = ticks(now_ns, 0);
            let counts = now_ns >= start_ns;
            let seen = word.load(SeqCst);
            if has_room(seen, now, QUEUE_SLACK) {
                charge(&word, seen, now, cost(1_500, rate), bucket.capacity_ticks);
            }
            queued += 1_500 * u64::from(counts);
            if beside(now, 65_000, 0) && counts {
                flood += 65_000;
            }
            if now_ns >= next_answer_ns {
                next_answer_ns += 100_000_000;
                assert!(beside(now, 200, tolerated), "an answer is lost at {now_ns} ns, {rate} bytes/s");
                answers += 200;
            }
        }
        let share = (queued + flood + answers) as f64 / (rate.get() * 60) as f64;
        assert!((1.0..=1.1).contains(&share), "{share} of {rate} bytes/s");
        assert!(flood > 0, "the flood starves at {rate} bytes/s");
    }
}

#[test]
fn a_new_rate_keeps_debt_and_credit_in_bytes() {
    const SECOND: u64 = 1_000_000_000;
    let now = 7 * SECOND;
    for (rate, other) in [(1_000, 10_000_000), (10_000_000, 1_000), (1_000_000, 1_000_000)] {
        for before in [3 * SECOND, 20 * SECOND] {
            let bucket =
                TokenBucket { virtual_time: before * TICKS_PER_NS, ..TokenBucket::empty(rate, rate, 0, 0) };
            let tokens = bucket.tokens(now);
            let after = TokenBucket {
                virtual_time: bucket.virtual_time.wrapping_add(bucket.shift_to(other, now)),
                ..TokenBucket::empty(other, other, 0, 0)
            };
            let expected = tokens.min(other as i64);
            assert!(
                (after.tokens(now) - expected).abs() <= 1,
                "{rate} -> {other}: {tokens} -> {}",
                after.tokens(now)
            );
        }
    }
}
