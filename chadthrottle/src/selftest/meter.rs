//! Reads what traffic processes report: how much had moved at which time.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::traffic::Totals;

/// Bytes of the IP and UDP headers of a datagram over IPv4; over IPv6 there are 20 more.
pub const DATAGRAM_HEADERS_V4: u64 = 28;
/// Bytes of the IP and UDP headers of a datagram over IPv6.
pub const DATAGRAM_HEADERS_V6: u64 = 48;

/// A report of a traffic process.
#[derive(Clone, Debug, Deserialize)]
pub struct Tick {
    /// The process.
    pub pid: u32,
    /// Seconds of CLOCK_MONOTONIC.
    pub time: f64,
    /// Totals of each run.
    pub runs: BTreeMap<u64, Totals>,
}

/// All reports of a traffic process and its children.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    tracks: BTreeMap<(u32, u64), Vec<(f64, Totals)>>,
}

impl Meter {
    /// Takes a report in.
    pub fn add(&mut self, tick: &Tick) {
        for (&run, &totals) in &tick.runs {
            self.tracks.entry((tick.pid, run)).or_default().push((tick.time, totals));
        }
    }

    /// Time of the latest report; 0 before the first.
    pub fn latest(&self) -> f64 {
        self.tracks.values().filter_map(|track| track.last()).map(|(time, _)| *time).fold(0.0, f64::max)
    }

    /// Time of the first report of `run` at or after `time`, or `time` when there is none: measuring from
    /// there on keeps what moved before a change out of what moved after it.
    pub fn report_after(&self, run: u64, time: f64) -> f64 {
        let times = self.of(run, None).flatten().map(|(reported, _)| *reported);
        let first = times.filter(|reported| *reported >= time).fold(f64::INFINITY, f64::min);
        if first.is_finite() { first } else { time }
    }

    /// The processes that moved something for `run`.
    pub fn processes(&self, run: u64) -> Vec<u32> {
        self.tracks.keys().filter(|(_, other)| *other == run).map(|(pid, _)| *pid).collect()
    }

    /// Totals of `run`, all processes together, by their latest reports.
    pub fn totals(&self, run: u64) -> Totals {
        let latest = self.of(run, None).filter_map(|track| track.last());
        latest.fold(Totals::default(), |sum, (_, totals)| Totals {
            rx: sum.rx + totals.rx,
            arrived: sum.arrived + totals.arrived,
            tx: sum.tx + totals.tx,
            rx_datagrams: sum.rx_datagrams + totals.rx_datagrams,
            tx_datagrams: sum.tx_datagrams + totals.tx_datagrams,
            errors: sum.errors + totals.errors,
            sent: sum.sent + totals.sent,
            retransmitted: sum.retransmitted + totals.retransmitted,
            flows: sum.flows + totals.flows,
        })
    }

    /// `value` a second between two times, all processes together; 0 without reports.
    pub fn rate(&self, run: u64, from: f64, to: f64, value: impl Fn(&Totals) -> u64) -> f64 {
        self.of(run, None).map(|track| growth(track, from, to, &value)).sum::<f64>() / (to - from)
    }

    /// `value` a second between two times, of one process.
    pub fn rate_of(&self, pid: u32, run: u64, from: f64, to: f64, value: impl Fn(&Totals) -> u64) -> f64 {
        self.of(run, Some(pid)).map(|track| growth(track, from, to, &value)).sum::<f64>() / (to - from)
    }

    fn of(&self, run: u64, pid: Option<u32>) -> impl Iterator<Item = &Vec<(f64, Totals)>> {
        let wanted = move |key: &(u32, u64)| key.1 == run && pid.is_none_or(|pid| key.0 == pid);
        self.tracks.iter().filter(move |(key, _)| wanted(key)).map(|(_, track)| track)
    }
}

fn growth(track: &[(f64, Totals)], from: f64, to: f64, value: impl Fn(&Totals) -> u64) -> f64 {
    at(track, to, &value) - at(track, from, &value)
}

/// The value at a time: on the line between the reports before and after it.
fn at(track: &[(f64, Totals)], time: f64, value: impl Fn(&Totals) -> u64) -> f64 {
    let after = track.partition_point(|(reported, _)| *reported <= time);
    match (after.checked_sub(1).map(|before| &track[before]), track.get(after)) {
        (None, None) => 0.0,
        // Nothing was reported earlier: nothing had moved.
        (None, Some(_)) => 0.0,
        (Some((_, last)), None) => value(last) as f64,
        (Some((t0, before)), Some((t1, after))) => {
            let (before, after) = (value(before) as f64, value(after) as f64);
            before + (after - before) * (time - t0) / (t1 - t0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter() -> Meter {
        let mut meter = Meter::default();
        for (pid, time, rx) in [(1, 10.0, 0), (1, 11.0, 1000), (1, 12.0, 3000), (2, 11.0, 0), (2, 12.0, 500)]
        {
            let runs = [(7, Totals { rx, ..Totals::default() })].into();
            meter.add(&Tick { pid, time, runs });
        }
        meter
    }

    #[test]
    fn a_rate_lies_between_reports() {
        assert_eq!(meter().rate(7, 10.5, 11.5, |totals| totals.rx), 500.0 + 1000.0 + 250.0);
        assert_eq!(meter().rate_of(1, 7, 10.5, 11.5, |totals| totals.rx), 1500.0);
    }

    #[test]
    fn nothing_moves_before_the_first_and_after_the_last_report() {
        assert_eq!(meter().rate(7, 0.0, 20.0, |totals| totals.rx), 175.0);
        assert_eq!(meter().rate(8, 0.0, 20.0, |totals| totals.rx), 0.0);
    }

    #[test]
    fn a_measurement_may_begin_with_a_report() {
        assert_eq!(meter().report_after(7, 10.5), 11.0);
        assert_eq!(meter().report_after(7, 11.0), 11.0);
        assert_eq!(meter().report_after(7, 12.5), 12.5);
    }

    #[test]
    fn totals_are_of_all_processes() {
        assert_eq!(meter().totals(7).rx, 3500);
        assert_eq!(meter().processes(7), [1, 2]);
        assert_eq!(meter().latest(), 12.0);
    }
}
