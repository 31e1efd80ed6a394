//! The clock of the eBPF programs.

use std::{fs, sync::OnceLock, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in ns as bpf_ktime_get_ns() reads it: in a time namespace this process sees the
/// clock shifted, the programs do not.
pub fn monotonic_ns() -> u64 {
    static SHIFT: OnceLock<i64> = OnceLock::new();
    let shift = *SHIFT.get_or_init(|| {
        fs::read_to_string("/proc/self/timens_offsets").ok().and_then(|text| shift_ns(&text)).unwrap_or(0)
    });
    // CLOCK_MONOTONIC is always there.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()));
    u64::try_from(now - i128::from(shift)).unwrap_or(0)
}

/// Time since the machine started, with the time it slept: what start times in /proc count.
pub fn since_boot() -> Duration {
    // CLOCK_BOOTTIME is always there.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// From the line `monotonic <seconds> <nanoseconds>`.
fn shift_ns(offsets: &str) -> Option<i64> {
    let line = offsets.lines().find(|line| line.starts_with("monotonic"))?;
    let mut words = line.split_whitespace().skip(1);
    let seconds: i64 = words.next()?.parse().ok()?;
    Some(seconds * 1_000_000_000 + words.next()?.parse::<i64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_shift_of_a_time_namespace() {
        assert_eq!(shift_ns("monotonic           5         7\nboottime 1 0\n"), Some(5_000_000_007));
        assert_eq!(shift_ns(""), None);
    }
}
