//! The rate of a limit's direction, in the kernel.

use std::{
    collections::{HashMap, HashSet},
    thread,
    time::{Duration, Instant},
};

use chadthrottle_common::{
    abi::{
        ActiveFlows, BucketChange, CgroupThrottleConfig, RECORD_LISTENER, RECORD_LOWERED, SocketRecord,
        TokenBucket,
    },
    pacing,
};

use super::{BUCKETS, CONFIGS, FLOWS, Holder, unknown};
use crate::{
    backend::ebpf::{check, queue::QUEUE_US},
    error::{Error, Kind, Result},
    kernel::clock,
    model::{Direction, LimitId, Target},
};

/// Credit that an idle limit saves up, as time at its rate. Download: a sender tries again 200 ms and more after
/// it lost all that was in flight, and must find what it missed; more than that only makes for larger losses
/// afterwards (measured: 300 ms, 500 ms, 1 s). Upload is paced, may run
/// [`BURST_TICKS`](chadthrottle_common::pacing::BURST_TICKS) into debt beside this, and what its level was too low
/// by must not be forgotten before the next looks.
const CREDIT: Duration = Duration::from_millis(300);

/// And never less than a GSO buffer, in bytes: at 100 KB/s that is 650 ms, and what TCP sends at a time
/// (measured: 0.96 of the limit against 0.82 without).
const MIN_CREDIT: u64 = 65_536;
/// Upload: up to three, as long as that is no more than two seconds. Of eight connections that take turns at 100 KB/s it
/// matters for seconds when each turn falls (measured over a cable, 30 seconds: 0.97 to 1.02 of the limit, with two
/// 0.94 to 1.01, with one 0.91 to 1.01).
const MIN_CREDIT_UPLOAD: u64 = 3 * MIN_CREDIT;
const MIN_CREDIT_SECONDS: u64 = 2;

/// How long to wait until all connections in use have advertised their smaller windows, and these have
/// arrived. Over a long line that takes longer; but there what is under way is little compared with what a
/// queue may hold.
const LEAST_SHRINK: Duration = Duration::from_millis(10);
const MOST_SHRINK: Duration = Duration::from_millis(100);
const SHRINK_STEP: Duration = Duration::from_millis(5);

impl Holder {
    /// Gives a direction its rate (0: none), in place, while packets pass.
    pub(super) fn set_rate(&mut self, id: LimitId, direction: Direction, rate: u64) -> Result<()> {
        let held = self.held.get(&id).ok_or_else(|| unknown(id))?;
        let key = held.key;
        let pid = held.targets.first().and_then(Target::pid).unwrap_or(0);
        let held_before = *held.rates.get(direction);
        let lower = held_before.is_none_or(|old| rate < old);
        let capacity = capacity(rate, direction);
        let mut config = CgroupThrottleConfig {
            cgroup_id: key,
            rate_bps: rate,
            burst_size: capacity,
            pid,
            ..CgroupThrottleConfig::default()
        };
        if direction == Direction::Download && rate != 0 {
            let mut records = self.walk_those(&self.processes_of(id)?)?;
            self.queue.choose(&mut self.loaded);
            self.queue.set(key, rate);
            self.queue.see(&mut self.loaded, &records);
            if let Some(held) = self.held.get(&id) {
                records.retain(|record| held.narrowing.covers(record.remote, record.remote_port as u16));
            }
            self.queue.settle(key, &records);
            config.queue_us = QUEUE_US;
            if held_before.is_none() {
                self.expect_flows(key, &records)?;
            }
            if lower && records.iter().any(|record| self.queue.is_equipped(record)) {
                // First the senders learn how little they may send, then it is held: or all that they were
                // promised before comes at once, more than a queue should take.
                config.class_id = self.config(key)?[direction.index()].class_id;
                self.write_config(direction, config)?;
                self.await_lower_windows(&records);
            }
            config.class_id = self.queue.class(key);
        }
        self.write_config(direction, config)?;
        if direction == Direction::Download {
            // The sockets tell where their packets arrive.
            self.bump()?;
        }
        let old = self.bucket(key, direction)?;
        let now = clock::monotonic_ns();
        let mut bucket = TokenBucket {
            class_id: config.class_id,
            room: self.queue.room(key),
            ..TokenBucket::empty(rate, capacity, self.epoch_ns, now)
        };
        if direction == Direction::Upload && rate != 0 {
            bucket.level = match old.level {
                // A little more than each one's share: TCP does not quite reach its cap.
                0 => rate / self.coming_flows(key).clamp(1, pacing::MOST_EXPECTED) / 8 * 9,
                // At another rate the flows are as many as before.
                level => (u128::from(level) * u128::from(rate) / u128::from(old.rate_bps.max(1))) as u64,
            }
            .clamp(1, rate);
            bucket.level_period_us = pacing::period_us(rate, bucket.level);
            let pids: Vec<u32> = self.processes_of(id)?.into_iter().collect();
            if let Err(error) = self.prepare_departures(key, &pids) {
                tracing::debug!("{error}");
            }
        }
        let shift = match (old.room, bucket.room) {
            (0, _) | (_, 0) => old.shift_to(rate, now),
            // What waits leaves as it was told, and what comes after it then: no gap.
            _ => 0,
        };
        self.loaded.change_bucket(&BucketChange {
            id: key,
            direction: direction.index() as u64,
            shift,
            bucket,
        })?;
        if direction == Direction::Download && rate == 0 {
            // After the configuration, which named it no more.
            self.queue.release(key, (-old.tokens(now)).max(0) as u64);
        }
        let held = self.held.get_mut(&id).ok_or_else(|| unknown(id))?;
        *held.rates.get_mut(direction) = (rate != 0).then_some(rate);
        *held.judge.get_mut(direction) = check::Judge::default();
        Ok(())
    }

    /// Counts the connections of a download limit that is about to begin, before they count themselves: or the
    /// first that acknowledges takes a window for itself alone, and where windows go by large units it can't be
    /// taken back.
    fn expect_flows(&mut self, key: u64, records: &[SocketRecord]) -> Result<()> {
        let flow = |record: &&SocketRecord| {
            record.protocol == libc::IPPROTO_TCP as u32
                && record.flags & RECORD_LISTENER == 0
                && record.bytes_received > 0
        };
        let flows: HashSet<u64> = records.iter().filter(flow).map(|record| record.socket).collect();
        let mut active = ActiveFlows::default();
        active.expect(flows.len().min(pacing::MOST_EXPECTED as usize) as u32, clock::monotonic_ns());
        self.loaded
            .hash::<u64, ActiveFlows>(FLOWS)?
            .insert(key, active, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write the eBPF map {FLOWS}"), &cause))
    }

    pub(super) fn config(&mut self, key: u64) -> Result<[CgroupThrottleConfig; 2]> {
        self.loaded
            .hash::<u64, [CgroupThrottleConfig; 2]>(CONFIGS)?
            .get(&key, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("read the eBPF map {CONFIGS}"), &cause))
    }

    fn write_config(&mut self, direction: Direction, config: CgroupThrottleConfig) -> Result<()> {
        let key = config.cgroup_id;
        let mut pair = self.config(key)?;
        pair[direction.index()] = config;
        self.loaded
            .hash::<u64, [CgroupThrottleConfig; 2]>(CONFIGS)?
            .insert(key, pair, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write the eBPF map {CONFIGS}"), &cause))
    }

    /// Waits until every connection of the limit at which something still arrives has advertised its smaller
    /// window.
    fn await_lower_windows(&self, before: &[SocketRecord]) {
        let received: HashMap<u64, u64> =
            before.iter().map(|record| (record.socket, record.bytes_received)).collect();
        let pids = before.iter().map(|record| record.tgid).collect();
        let start = Instant::now();
        while start.elapsed() < MOST_SHRINK {
            thread::sleep(SHRINK_STEP);
            let late = |record: &SocketRecord| {
                record.flags & RECORD_LOWERED == 0
                    && self.queue.is_equipped(record)
                    && received.get(&record.socket).is_some_and(|before| *before != record.bytes_received)
            };
            let now = self.walk_those(&pids).unwrap_or_default();
            if !now.iter().any(late) && start.elapsed() >= LEAST_SHRINK {
                break;
            }
        }
    }

    /// Leads the packets of a download limit to its class, or no more.
    pub(in super::super) fn write_class(&mut self, key: u64) -> Result<()> {
        let direction = Direction::Download;
        let class_id = self.queue.class(key);
        let config = self.config(key)?[direction.index()];
        self.write_config(direction, CgroupThrottleConfig { class_id, ..config })?;
        let bucket = TokenBucket { class_id, ..self.bucket(key, direction)? };
        self.loaded.change_bucket(&BucketChange {
            id: key,
            direction: direction.index() as u64,
            shift: 0,
            bucket,
        })
    }

    /// Classes that have settled hold less.
    pub(super) fn shorten_queues(&mut self) -> Result<()> {
        let direction = Direction::Download;
        for key in self.queue.take_shortened() {
            // The limit may be over.
            let Ok(old) = self.bucket(key, direction) else { continue };
            let bucket = TokenBucket { room: self.queue.room(key), ..old };
            if old.room != 0 && old.room != bucket.room {
                let direction = direction.index() as u64;
                self.loaded.change_bucket(&BucketChange { id: key, direction, shift: 0, bucket })?;
            }
        }
        Ok(())
    }

    pub(super) fn bucket(&mut self, key: u64, direction: Direction) -> Result<TokenBucket> {
        let pair =
            self.loaded.hash::<u64, [TokenBucket; 2]>(BUCKETS)?.get(&key, 0).map_err(|cause| {
                Error::caused(Kind::Failed, format!("read the eBPF map {BUCKETS}"), &cause)
            })?;
        Ok(pair[direction.index()])
    }

    /// Reads back what the kernel has.
    pub(super) fn verify(&mut self, id: LimitId, direction: Direction, rate: u64) -> Result<()> {
        let key = self.held.get(&id).ok_or_else(|| unknown(id))?.key;
        let bucket = self.bucket(key, direction)?;
        if bucket.rate_bps != rate {
            return Err(Error::failed(format!(
                "verify limit {id}: the kernel's bucket has {} bytes/s",
                bucket.rate_bps
            )));
        }
        match self.loaded.dead_links()?.first() {
            Some(dead) => {
                Err(Error::failed(format!("verify limit {id}: somebody detached {dead} from the cgroup")))
            }
            None => Ok(()),
        }
    }
}

/// Bytes of credit at `rate` bytes/s.
fn capacity(rate: u64, direction: Direction) -> u64 {
    let least = match direction {
        Direction::Upload => rate.saturating_mul(MIN_CREDIT_SECONDS).clamp(MIN_CREDIT, MIN_CREDIT_UPLOAD),
        Direction::Download => MIN_CREDIT,
    };
    ((u128::from(rate) * CREDIT.as_millis() / 1_000) as u64).max(least)
}
