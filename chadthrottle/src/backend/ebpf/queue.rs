//! The queue in front of download limits: in each network namespace where limited sockets receive, one IFB
//! of ours with fq, or with HTB and a class a limit; on each device at which their packets arrive, a filter
//! that sends them through it and a program that lowers the windows they advertise.
//!
//! Everything here is an improvement on the bucket, which holds the limit in any case: a device where
//! something can't be had stays on a lower rung, with the reason, and no limit fails for it.

mod past;
mod place;
mod probe;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use chadthrottle_common::abi::{CLASS_MAJOR, SocketRecord, TIMED_MAJOR};

pub(super) use self::past::Use;
pub(super) use self::probe::{try_queue, try_window};
use self::{
    past::Past,
    place::{Means, Place},
    probe::try_times,
};
use crate::{
    backend::tree::RELEASED,
    error::{Error, Result},
    kernel::{bpf::Loaded, netns::Namespace},
    model::{self, RungKind},
};

/// Delay that the queue may have, in microseconds: what the windows allow beyond the round trip. A window is a whole number
/// of segments, and the round trip of a short line is measured too long while it is busy: it becomes 55 ms (measured; with
/// 50 ms here 60).
pub(super) const QUEUE_US: u32 = 45_000;

/// The loopback device in every namespace. Its packets never crossed a line: the bucket costs them little.
const LOOPBACK: u32 = 1;

/// ARPHRD_* of devices with an Ethernet header, and of those where the IP header comes first.
const ETHERNET: u16 = 1;
const BARE: &[u16] = &[512, 519, 65_534]; // PPP, RAWIP, NONE

/// What a class holds: a second of its rate, within bounds.
const LEAST_BYTES: u64 = 256 * 1024;
const MOST_BYTES: u64 = 32 * 1024 * 1024;

/// When a limit is set on a transfer in full swing, all that is under way comes at the speed of before. It has crossed
/// the line, so the class holds more of it at first, in seconds of its rate, until these have passed. (Measured: 12 MB/s
/// held to 1 MB/s over a round trip of 20 ms. With one second 4 to 49 buffers were dropped, and flows stood still for up
/// to two seconds.)
const START_SECONDS: u64 = 5;
const START: Duration = Duration::from_secs(START_SECONDS + 1);

/// By these bits of the priority fq knows what it does not keep.
const TC_PRIO_MAX: u32 = 15;
const TC_PRIO_CONTROL: u32 = 7;

/// How long a class stays whose limit is over, and everything after the last one.
const LINGER: Duration = Duration::from_millis(500);

/// One count serves all limits of a tick.
const COUNT_EVERY: Duration = Duration::from_millis(400);

/// How often it is looked whether everything is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a limit has no queue although its devices have one.
const SPREAD: &str =
    "the limit holds sockets of several network namespaces, whose packets can wait together only in fq";

/// The best there is on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rung {
    Bucket,
    Window,
    Queue,
}

#[derive(Clone, Copy)]
struct Class {
    id: u32,
    rate: u64,
    /// When it got this rate; none when that is longer ago than [`START`].
    started: Option<Instant>,
}

impl Class {
    /// What it holds, bytes.
    fn length(&self) -> u32 {
        let seconds = if self.started.is_some() { START_SECONDS } else { 1 };
        self.rate.saturating_mul(seconds).clamp(LEAST_BYTES, MOST_BYTES) as u32
    }
}

/// All queues of this owner.
#[derive(Default)]
pub(super) struct Queue {
    /// Whether packets carry their time, or why they can't; none before it was tried.
    times: Option<Result<()>>,
    places: BTreeMap<u64, Place>,
    /// By key of the limit.
    classes: BTreeMap<u64, Class>,
    /// Limits whose packets come past it.
    past: Past,
    /// Limits whose packets arrive in several network namespaces, each of which has an HTB of its own: all of them
    /// together would let that many times the rate pass.
    spread: BTreeSet<u64>,
    last_minor: u16,
    /// Limits whose classes hold less since the last look, by key.
    shortened: Vec<u64>,
    /// Classes whose limit is over, and until when they stay.
    released: Vec<(Instant, u32)>,
    looked: Option<Instant>,
    /// Devices that could not be equipped, and why: by process and device, so that each is told of once.
    refused: BTreeMap<(u32, u32), String>,
    /// Packets refused by each class, all places together, and when they were counted.
    dropped: BTreeMap<u32, u64>,
    /// Bytes that waited in each class then.
    waiting: BTreeMap<u32, u64>,
    counted: Option<Instant>,
}

impl Queue {
    /// Finds out how packets wait, before the first limit is [`set`](Self::set).
    pub fn choose(&mut self, loaded: &mut Loaded) {
        self.times.get_or_insert_with(|| {
            try_times(loaded).inspect_err(|error| tracing::debug!("downloads wait in HTB: {error}"))
        });
    }

    fn timed(&self) -> bool {
        matches!(self.times, Some(Ok(())))
    }

    /// Bytes that may wait for a limit whose packets carry their time; 0: they do not.
    pub fn room(&self, key: u64) -> u32 {
        let class = self.classes.get(&key).filter(|_| self.timed());
        class.map_or(0, Class::length)
    }

    /// Limits with room for less from now on.
    pub fn take_shortened(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.shortened)
    }

    /// Gives a limit its class, or the class another rate; the class's id, 0 when there is no room for one.
    /// From now on every place has it.
    pub fn set(&mut self, key: u64, rate: u64) -> u32 {
        let id = match self.classes.get(&key) {
            Some(class) => class.id,
            None => match self.free_class() {
                Some(id) => id,
                None => return 0,
            },
        };
        let class = Class { id, rate, started: Some(Instant::now()) };
        if self.classes.insert(key, class).is_none() {
            self.dropped.remove(&id);
        }
        for place in self.places.values_mut() {
            if let Err(error) = place.set_class(class) {
                place.give_up_queue(error);
            }
        }
        self.class(key)
    }

    /// The class in which a limit's packets wait; 0: its bucket alone holds them.
    pub fn class(&self, key: u64) -> u32 {
        let class = self.classes.get(&key).filter(|_| !self.spread.contains(&key));
        class.map_or(0, |class| class.id)
    }

    /// Takes in where a limit's packets arrive. True when its class is another from now on.
    pub fn settle<'a>(&mut self, key: u64, records: impl IntoIterator<Item = &'a SocketRecord>) -> bool {
        // Times are of one clock for all namespaces.
        if self.timed() || !self.classes.contains_key(&key) {
            return false;
        }
        let crossed_a_line = |record: &&SocketRecord| ![0, LOOPBACK].contains(&record.device);
        let mut namespaces = records.into_iter().filter(crossed_a_line).map(|record| record.namespace);
        let first = namespaces.next();
        if namespaces.any(|other| Some(other) != first) {
            self.spread.insert(key)
        } else {
            self.spread.remove(&key)
        }
    }

    fn free_class(&mut self) -> Option<u32> {
        let major = if self.timed() { TIMED_MAJOR } else { CLASS_MAJOR };
        for _ in 0..=u16::MAX {
            self.last_minor = self.last_minor.wrapping_add(1);
            let id = major << 16 | u32::from(self.last_minor);
            // A class's queue has its number, which must not be the tree's or that of clsact.
            let taken = matches!(u32::from(self.last_minor), 0 | CLASS_MAJOR | 0xffff)
                || u32::from(self.last_minor) & TC_PRIO_MAX == TC_PRIO_CONTROL
                || self.classes.values().any(|class| class.id == id)
                || self.released.iter().any(|(_, released)| *released == id);
            if !taken {
                return Some(id);
            }
        }
        None
    }

    /// Lets go of a limit's class, after its configuration no longer names it. `ahead`: bytes that its bucket is in
    /// debt with; where packets carry their time they wait on.
    pub fn release(&mut self, key: u64, ahead: u64) {
        let Some(class) = self.classes.remove(&key) else { return };
        self.spread.remove(&key);
        let wait = if self.timed() { ahead as f64 / class.rate.max(1) as f64 } else { 0.0 };
        let wait = Duration::from_secs_f64(wait.min(START_SECONDS as f64));
        self.released.push((Instant::now() + wait + LINGER, class.id));
        for place in self.places.values_mut() {
            if let Err(error) = place.set_class(Class { rate: RELEASED, ..class }) {
                tracing::debug!("release class {:x}: {error}", class.id);
            }
        }
    }

    /// Packets that the limit's class had no room for, and how long what is in it takes to leave, in
    /// microseconds. `ahead`: bytes that its bucket is in debt with.
    pub fn load(&mut self, key: u64, ahead: u64) -> Option<(u64, u64)> {
        let class = self.classes.get(&key)?;
        let takes_us = |bytes: u64| (u128::from(bytes) * 1_000_000 / u128::from(class.rate.max(1))) as u64;
        if self.timed() {
            // The programs count what they have no room for.
            return Some((0, takes_us(ahead)));
        }
        if self.counted.is_none_or(|at| at.elapsed() > COUNT_EVERY) {
            self.counted = Some(Instant::now());
            self.waiting.clear();
            for place in self.places.values_mut() {
                for (class, count, more) in place.look_at_classes() {
                    *self.dropped.entry(class).or_default() += more;
                    *self.waiting.entry(class).or_default() += u64::from(count.waiting_bytes);
                }
            }
        }
        let of = |all: &BTreeMap<u32, u64>| all.get(&class.id).copied().unwrap_or(0);
        Some((of(&self.dropped), takes_us(of(&self.waiting))))
    }

    /// Takes in what became of each limit's packets.
    pub fn observe(&mut self, uses: impl IntoIterator<Item = (u64, Use)>) {
        let queued = uses.into_iter().filter(|(key, _)| self.classes.contains_key(key));
        self.past.observe(queued);
    }

    /// Whether no limit has a queue.
    pub fn is_idle(&self) -> bool {
        self.classes.is_empty()
    }

    /// Equips the devices at which these sockets' packets arrive.
    pub fn see(&mut self, loaded: &mut Loaded, records: &[SocketRecord]) {
        for record in records {
            self.equip(loaded, record.tgid, Some(u64::from(record.namespace)), record.device);
        }
    }

    /// Whether a socket's packets arrive at a device that lowers its window.
    pub fn is_equipped(&self, record: &SocketRecord) -> bool {
        let place = self.places.get(&u64::from(record.namespace));
        place
            .and_then(|place| place.devices.get(&record.device))
            .is_some_and(|equipped| equipped.rung >= Rung::Window)
    }

    /// How each device is equipped at which these sockets' packets arrive; they are a limit's.
    pub fn rungs<'a>(
        &self,
        key: u64,
        records: impl IntoIterator<Item = &'a SocketRecord>,
    ) -> Vec<model::Rung> {
        let mut rungs = BTreeMap::new();
        for record in records.into_iter().filter(|record| record.device != 0) {
            rungs.entry((record.namespace, record.device)).or_insert_with(|| self.rung(key, record));
        }
        rungs.into_values().collect()
    }

    fn rung(&self, key: u64, record: &SocketRecord) -> model::Rung {
        let device = record.device;
        let place = self.places.get(&u64::from(record.namespace));
        if let Some(equipped) = place.and_then(|place| place.devices.get(&device)) {
            let (kind, reason) = match (equipped.rung, &self.times) {
                (Rung::Bucket, _) => (RungKind::Bucket, Some(equipped.reasons.join("; "))),
                (Rung::Window, _) => (RungKind::WindowBucket, Some(equipped.reasons.join("; "))),
                (Rung::Queue, _) if self.spread.contains(&key) => {
                    (RungKind::WindowBucket, Some(SPREAD.into()))
                }
                (Rung::Queue, _) if self.past.has(key) => (RungKind::WindowBucket, Some(past::REASON.into())),
                (Rung::Queue, Some(Err(error))) => (RungKind::IfbHtbWindow, Some(error.to_string())),
                (Rung::Queue, _) => (RungKind::IfbFqWindow, None),
            };
            return model::Rung { device: Some(equipped.name.clone()), kind, reason };
        }
        let (name, reason) = match (device, self.refused.get(&(record.tgid, device))) {
            (LOOPBACK, _) => {
                ("lo".to_owned(), "its packets cross no line that sending them again would burden".to_owned())
            }
            (_, Some(reason)) => (format!("device {device}"), reason.clone()),
            (_, None) => (format!("device {device}"), "it has not been equipped yet".to_owned()),
        };
        model::Rung { device: Some(name), kind: RungKind::Bucket, reason: Some(reason) }
    }

    /// Equips a device of a process's namespace, if `namespace` is none or that one: a socket from another
    /// one is left to the bucket.
    pub fn equip(&mut self, loaded: &mut Loaded, pid: u32, namespace: Option<u64>, device: u32) {
        if self.classes.is_empty() || device == 0 || device == LOOPBACK {
            return;
        }
        let known = |inode| self.places.get(&inode).is_some_and(|place| place.devices.contains_key(&device));
        if namespace.is_some_and(known) {
            return;
        }
        if let Err(error) = self.try_equip(loaded, pid, namespace, device)
            && self.refused.insert((pid, device), error.to_string()).is_none()
        {
            tracing::warn!(
                "no queue at device {device} of process {pid}, what is too much of a download is dropped, and sent \
                 again: {error}"
            );
        }
    }

    fn try_equip(
        &mut self,
        loaded: &mut Loaded,
        pid: u32,
        namespace: Option<u64>,
        device: u32,
    ) -> Result<()> {
        let of_process = Namespace::of_process(pid)?;
        let inode = of_process.inode()?;
        if namespace.is_some_and(|wanted| wanted != inode) {
            return Err(Error::failed("its socket is of another network namespace"));
        }
        if !self.places.contains_key(&inode) {
            let classes: Vec<_> = self.classes.values().copied().collect();
            self.places.insert(inode, Place::open(inode, of_process, &classes, self.timed())?);
        }
        match self.places.get_mut(&inode) {
            Some(place) => place.equip(loaded, device),
            None => Ok(()),
        }
    }

    /// Classes that have settled hold less.
    fn shorten(&mut self) {
        for (key, class) in &mut self.classes {
            if class.started.is_some_and(|at| at.elapsed() > START) {
                class.started = None;
                self.shortened.push(*key);
                for place in self.places.values_mut() {
                    if let Err(error) = place.set_class(*class) {
                        tracing::debug!("{error}");
                    }
                }
            }
        }
    }

    /// Looks whether everything is still there, and takes away what is not needed any more. False when
    /// something was missing: it is made anew when the sockets of that place are seen next.
    pub fn look_after(&mut self) -> bool {
        let (due, wait): (Vec<_>, Vec<_>) =
            self.released.drain(..).partition(|(until, _)| *until <= Instant::now());
        self.released = wait;
        if self.classes.is_empty() && self.released.is_empty() {
            self.places.clear();
            self.refused.clear();
            return true;
        }
        for place in self.places.values_mut() {
            if let Ok((_, Means::Classes(tree), _)) = place.ifb {
                for (_, class) in &due {
                    if let Err(error) = tree.cut_leaf(&mut place.tc, *class) {
                        tracing::debug!("{error}");
                    }
                }
            }
        }
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return true;
        }
        self.looked = Some(Instant::now());
        self.shorten();
        let before = self.places.len();
        let classes: Vec<u32> = self.classes.values().map(|class| class.id).collect();
        self.places.retain(|inode, place| match place.is_whole(classes.iter().copied()) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("the queue in network namespace {inode} is made again: {error}");
                false
            }
        });
        self.places.len() == before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_class_has_the_number_of_a_qdisc() {
        for before in [CLASS_MAJOR as u16 - 1, 0xfffe] {
            let mut queue = Queue { last_minor: before, ..Queue::default() };
            let minor = queue.set(1, 1_000) & 0xffff;
            assert!(![0, CLASS_MAJOR, 0xffff].contains(&minor), "{minor:x}");
        }
    }
}
