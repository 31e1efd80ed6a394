//! Rates of the last two minutes: what sparklines and charts show, and what rates are smoothed from.

use std::collections::{HashMap, VecDeque};

use crate::model::{ProcessKey, Snapshot, Traffic};

/// Seconds that are kept.
const KEPT: f64 = 121.0;
/// Seconds over which rates are smoothed for the eye.
const SMOOTHED: f64 = 2.0;

/// Bytes/s received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Received.
    pub down: f32,
    /// Sent.
    pub up: f32,
}

/// Rates by process.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// When each tick ended and how long it was, in seconds since the monitor began.
    ticks: VecDeque<(f64, f64)>,
    /// As many rates as there were ticks since the process came, at most; the last is that of the last tick.
    processes: HashMap<ProcessKey, VecDeque<Rates>>,
    total: VecDeque<Rates>,
}

impl History {
    /// Adds what a snapshot says; forgets processes that are in it no more.
    pub fn add(&mut self, snapshot: &Snapshot) {
        if self.ticks.back().is_some_and(|(end, _)| snapshot.elapsed <= *end) {
            // Another monitor, or the recording begins again.
            *self = Self::default();
        }
        if snapshot.interval <= 0.0 {
            return;
        }
        self.ticks.push_back((snapshot.elapsed, snapshot.interval));
        while self.ticks.front().is_some_and(|(end, _)| *end < snapshot.elapsed - KEPT) {
            self.ticks.pop_front();
        }
        let most = self.ticks.len();
        let mut sum = Traffic::default();
        let mut before = std::mem::take(&mut self.processes);
        for process in &snapshot.processes {
            let traffic = process.traffic();
            sum += traffic;
            let mut rates = before.remove(&process.key()).unwrap_or_default();
            push(&mut rates, traffic, most);
            self.processes.insert(process.key(), rates);
        }
        push(&mut self.total, sum, most);
    }

    /// Rates of a process, smoothed over about two seconds; `None`: it is not known.
    pub fn smoothed(&self, key: ProcessKey) -> Option<Rates> {
        let rates = self.processes.get(&key)?;
        let (mut sum, mut time) = (Rates::default(), 0.0);
        for (rates, (_, interval)) in rates.iter().rev().zip(self.ticks.iter().rev()) {
            // A process that is new is not slowed down by what it did not do before.
            if time > 0.0 && time + interval > SMOOTHED {
                break;
            }
            sum.down += rates.down * *interval as f32;
            sum.up += rates.up * *interval as f32;
            time += interval;
        }
        let time = time as f32;
        (time > 0.0).then(|| Rates { down: sum.down / time, up: sum.up / time })
    }

    /// Rates of some processes together over the last `seconds`, in `cells` pieces, oldest first. A piece that
    /// is not over yet shows what is known of it.
    pub fn of(&self, keys: impl IntoIterator<Item = ProcessKey>, cells: usize, seconds: f64) -> Vec<Rates> {
        let mut pieces = self.pieces(cells, seconds);
        for key in keys {
            if let Some(rates) = self.processes.get(&key) {
                pieces.add(&self.ticks, rates);
            }
        }
        pieces.finish()
    }

    /// Rates of all processes together.
    pub fn total(&self, cells: usize, seconds: f64) -> Vec<Rates> {
        let mut pieces = self.pieces(cells, seconds);
        pieces.add(&self.ticks, &self.total);
        pieces.finish()
    }

    fn pieces(&self, cells: usize, seconds: f64) -> Pieces {
        let now = self.ticks.back().map_or(0.0, |(end, _)| *end);
        // No finer than the ticks: there would be gaps and humps.
        let tick = self.ticks.back().map_or(1.0, |(_, interval)| *interval);
        let length = (seconds / cells.max(1) as f64).max(0.001);
        // On fixed borders, or the picture would tremble.
        let end = (now / length - 1e-6).ceil() * length;
        Pieces { begin: end - length * cells as f64, length, now, tick, sums: vec![Rates::default(); cells] }
    }
}

fn push(rates: &mut VecDeque<Rates>, traffic: Traffic, most: usize) {
    rates.push_back(Rates { down: traffic.rx_rate as f32, up: traffic.tx_rate as f32 });
    while rates.len() > most {
        rates.pop_front();
    }
}

/// Time cut into pieces of one length.
struct Pieces {
    begin: f64,
    length: f64,
    now: f64,
    tick: f64,
    /// Bytes in each.
    sums: Vec<Rates>,
}

impl Pieces {
    fn add(&mut self, ticks: &VecDeque<(f64, f64)>, rates: &VecDeque<Rates>) {
        for (rates, (end, interval)) in rates.iter().rev().zip(ticks.iter().rev()) {
            let begin = end - interval;
            if *end <= self.begin {
                break;
            }
            let first = (((begin - self.begin) / self.length).floor().max(0.0)) as usize;
            for index in first..self.sums.len() {
                let piece = self.begin + index as f64 * self.length;
                let common = (end.min(piece + self.length) - begin.max(piece)) as f32;
                if common <= 0.0 {
                    break;
                }
                self.sums[index].down += rates.down * common;
                self.sums[index].up += rates.up * common;
            }
        }
    }

    /// From bytes to bytes/s.
    fn finish(mut self) -> Vec<Rates> {
        let last = self.sums.len().saturating_sub(1);
        for (index, sum) in self.sums.iter_mut().enumerate() {
            let over = if index == last {
                (self.now - self.begin - index as f64 * self.length)
                    .clamp(self.tick.min(self.length), self.length)
            } else {
                self.length
            };
            sum.down /= over as f32;
            sum.up /= over as f32;
        }
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Process;

    fn at(elapsed: f64, interval: f64, down: u64) -> Snapshot {
        let process = Process { pid: 7, rx_rate: down, tx_rate: down / 2, ..Process::default() };
        Snapshot { elapsed, interval, processes: vec![process], ..Snapshot::default() }
    }

    fn key() -> ProcessKey {
        ProcessKey { pid: 7, ..ProcessKey::default() }
    }

    #[test]
    fn pieces_hold_what_moved_in_them() {
        let mut history = History::default();
        for second in 0u32..=10 {
            history.add(&at(f64::from(second), f64::from(second.min(1)), u64::from(second) * 100));
        }
        let downs = |cells, seconds| -> Vec<f32> {
            history.of([key()], cells, seconds).iter().map(|rates| rates.down).collect()
        };
        assert_eq!(downs(4, 4.0), [700.0, 800.0, 900.0, 1000.0]);
        assert_eq!(downs(2, 4.0), [750.0, 950.0]);
        assert_eq!(downs(8, 4.0), [700.0, 700.0, 800.0, 800.0, 900.0, 900.0, 1000.0, 1000.0]);
        // Nothing is known of before the beginning.
        assert_eq!(downs(3, 15.0), [0.0, 300.0, 800.0]);
        assert_eq!(history.total(1, 1.0)[0], Rates { down: 1000.0, up: 500.0 });
        assert_eq!(history.of([ProcessKey::default()], 1, 1.0), [Rates::default()]);
    }

    #[test]
    fn rates_are_smoothed_and_come_to_rest() {
        let mut history = History::default();
        assert_eq!(history.smoothed(key()), None);
        for (elapsed, down) in [(1.0, 1000), (2.0, 500), (3.0, 0)] {
            history.add(&at(elapsed, 1.0, down));
        }
        assert_eq!(history.smoothed(key()).unwrap().down, 250.0);
        history.add(&at(4.0, 1.0, 0));
        assert_eq!(history.smoothed(key()).unwrap().down, 0.0);
        // Longer ticks are shown as they are.
        history.add(&at(14.0, 10.0, 70));
        assert_eq!(history.smoothed(key()).unwrap().down, 70.0);
    }

    #[test]
    fn what_is_gone_or_old_is_forgotten() {
        let mut history = History::default();
        for tick in 0..2000 {
            history.add(&at(f64::from(tick) * 0.25 + 0.25, 0.25, 8));
        }
        assert!(history.ticks.len() <= 490 && history.processes[&key()].len() <= 490);
        history.add(&Snapshot { elapsed: 501.0, interval: 1.0, ..Snapshot::default() });
        assert!(history.processes.is_empty());
        history.add(&at(1.0, 1.0, 8));
        assert_eq!(history.ticks.len(), 1);
    }
}
