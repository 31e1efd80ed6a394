//! What passed through one direction of a limit, and whether that is more than it allows. Pure.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::model::Rate;

/// How far the judgement looks back.
const WINDOW: Duration = Duration::from_secs(3);
/// How long a limit holds before it is judged.
const GRACE: Duration = Duration::from_secs(2);

/// Counts of passed bytes over the last seconds.
#[derive(Clone, Debug)]
pub struct Meter {
    /// When the rate that is judged came into force.
    since: Instant,
    /// Time and bytes passed until then, oldest first, never empty.
    samples: VecDeque<(Instant, u64)>,
    /// Bytes/s between the last two samples.
    measured: Option<u64>,
}

impl Meter {
    /// A limit came into force, or changed, when `passed` bytes had passed.
    pub fn new(now: Instant, passed: u64) -> Self {
        Self { since: now, samples: [(now, passed)].into(), measured: None }
    }

    /// Takes note of what has passed until now.
    pub fn record(&mut self, now: Instant, passed: u64) {
        if let Some(&(then, before)) = self.samples.back() {
            let elapsed = now.saturating_duration_since(then).as_secs_f64();
            if elapsed <= 0.0 {
                return;
            }
            self.measured = Some((passed.saturating_sub(before) as f64 / elapsed).round() as u64);
        }
        self.samples.push_back((now, passed));
        // The oldest one stays just outside the window.
        while self.samples.get(1).is_some_and(|&(time, _)| now.saturating_duration_since(time) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes/s between the last two records.
    pub fn measured(&self) -> Option<u64> {
        self.measured
    }

    /// The mean of the last three seconds in bytes/s, if that is more than `rate` can explain: a tenth
    /// over it, and what an idle limit may have saved up (`credit`, bytes).
    pub fn above(&self, rate: Rate, credit: u64) -> Option<u64> {
        let (&(from, before), &(to, passed)) = (self.samples.front()?, self.samples.back()?);
        if to.saturating_duration_since(self.since) < GRACE {
            return None;
        }
        let elapsed = to.saturating_duration_since(from).as_secs_f64();
        let rate = rate.bytes_per_second() as f64;
        let passed = passed.saturating_sub(before) as f64;
        (passed > rate * elapsed * 1.1 + credit as f64).then(|| (passed / elapsed).round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// A meter that saw `speeds[n]` bytes pass in second n.
    fn after(speeds: &[u64]) -> Meter {
        let start = Instant::now();
        let mut passed = 0;
        let mut meter = Meter::new(start, passed);
        for (second, speed) in speeds.iter().enumerate() {
            passed += speed;
            meter.record(start + Duration::from_secs(second as u64 + 1), passed);
        }
        meter
    }

    #[test]
    fn measures_over_the_real_time() {
        let start = Instant::now();
        let mut meter = Meter::new(start, 500);
        assert_eq!(meter.measured(), None);
        meter.record(start + Duration::from_millis(1250), 500 + MB);
        assert_eq!(meter.measured(), Some(800_000));
        // At the same moment nothing new can be said.
        meter.record(start + Duration::from_millis(1250), 500 + 2 * MB);
        assert_eq!(meter.measured(), Some(800_000));
        // Counters that began anew are no rate of 2^64.
        meter.record(start + Duration::from_secs(3), 0);
        assert_eq!(meter.measured(), Some(0));
    }

    #[test]
    fn judges_the_last_three_seconds() {
        let rate = Rate::new(MB).unwrap();
        assert_eq!(after(&[MB; 20]).above(rate, 365_536), None);
        assert_eq!(after(&[MB * 107 / 100; 20]).above(rate, 365_536), None);
        // Idle, then what was saved up and the rate.
        assert_eq!(after(&[0, 0, 0, MB * 13 / 10, MB]).above(rate, 365_536), None);
        assert_eq!(after(&[MB * 13 / 10; 20]).above(rate, 365_536), Some(MB * 13 / 10));
        assert_eq!(after(&[0, 0, 0, 0, 9 * MB, 0, 0]).above(rate, 365_536), Some(3 * MB));
        assert_eq!(after(&[0, 0, 0, 0, 9 * MB, 0, 0, 0]).above(rate, 365_536), None, "it was long ago");
    }

    #[test]
    fn has_patience_at_first() {
        let rate = Rate::new(MB).unwrap();
        assert_eq!(after(&[50 * MB]).above(rate, 365_536), None);
        assert_eq!(after(&[50 * MB, MB]).above(rate, 365_536), Some(51 * MB / 2));
        assert_eq!(
            after(&[2_000; 10]).above(Rate::new(1_000).unwrap(), 65_836),
            None,
            "one buffer is a minute's worth"
        );
    }
}
