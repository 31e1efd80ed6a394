//! What is done every now and then, and whenever the programs tell of something.

use std::{collections::HashSet, time::Duration};

use chadthrottle_common::{
    abi::{
        ActiveFlows, CgroupThrottleConfig, EVENT_ACCEPTED, EVENT_CHANGED, EVENT_DEVICE, SocketRecord,
        ThrottleStats, TokenBucket,
    },
    remote::Remotes,
};

use super::{BUCKETS, CONFIGS, FLOWS, Held, Holder, REMOTES, STATS, members};
use crate::{
    error::Result,
    kernel::clock,
    model::{LimitId, Target},
};

/// How long the programs go on holding without a word from the owner.
const LEASE: Duration = Duration::from_secs(3);

/// Above so many processes one walk over the whole host is cheaper than one for each.
const WALK_EACH: usize = 16;

/// A map element is given back to the map only when no program can be at work on it any more.
const GRACE: Duration = Duration::from_secs(1);

impl Holder {
    /// Takes the processes out of the limits that are over, with one look at all. What is not done yet does
    /// no harm: their entries name limits that are not there.
    fn let_leave(&mut self) -> Result<()> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        members::leave(&mut self.loaded, &self.leaving)?;
        self.leaving.clear();
        if !self.book.is_empty() {
            // A program may have written an entry meanwhile that was written over now.
            self.loaded.review(None)?;
        }
        self.state.epoch += 1;
        Ok(())
    }

    /// Deletes the map elements of limits that ended a while ago.
    pub(super) fn purge_retired(&mut self) {
        let (due, wait): (Vec<_>, Vec<_>) =
            self.retired.drain(..).partition(|(since, _)| since.elapsed() >= GRACE);
        self.retired = wait;
        if !due.is_empty() {
            self.forget_departures(&due.iter().map(|(_, key)| *key).collect::<Vec<_>>());
        }
        for (_, key) in due {
            // Each may be missing when making them failed halfway.
            let _ =
                self.loaded.hash::<u64, [CgroupThrottleConfig; 2]>(CONFIGS).map(|mut map| map.remove(&key));
            let _ = self.loaded.hash::<u64, [TokenBucket; 2]>(BUCKETS).map(|mut map| map.remove(&key));
            let _ = self.loaded.hash::<u64, [ThrottleStats; 2]>(STATS).map(|mut map| map.remove(&key));
            let _ = self.loaded.hash::<u64, ActiveFlows>(FLOWS).map(|mut map| map.remove(&key));
            let _ = self.loaded.hash::<u64, Remotes>(REMOTES).map(|mut map| map.remove(&key));
        }
    }

    pub fn renew(&mut self) -> Result<()> {
        let now = clock::monotonic_ns();
        if self.state.lease_deadline_ns != 0 && now > self.state.lease_deadline_ns && !self.held.is_empty() {
            self.held.values_mut().for_each(|held| held.lapsed = true);
        }
        self.state.lease_deadline_ns = now + LEASE.as_nanos() as u64;
        if std::mem::take(&mut self.unsettled) {
            self.state.epoch += 1;
        }
        self.let_leave()?;
        if !self.queue.look_after() {
            // The sockets tell again where their packets arrive.
            self.state.epoch += 1;
        }
        if let Err(error) = self.shorten_queues() {
            tracing::debug!("{error}");
        }
        self.write_state()?;
        self.purge_retired();
        if self.strays {
            self.unpace_strays();
        }
        Ok(())
    }

    pub fn ended(&mut self) -> Result<Vec<LimitId>> {
        let events = self.events.drain();
        // These first: they are told once, and what follows may fail.
        for event in events.iter().filter(|event| event.kind == EVENT_DEVICE) {
            self.queue.equip(&mut self.loaded, event.tgid, None, event.device);
        }
        // Connections accepted from a shared listener: whoever of the limited ones holds them owns them. And what
        // those have open who have just come under a limit.
        let of_kind = |kinds: &[u32]| -> HashSet<u32> {
            events.iter().filter(|event| kinds.contains(&event.kind)).map(|event| event.tgid).collect()
        };
        let records = self.walk_those(&of_kind(&[EVENT_ACCEPTED, EVENT_CHANGED]))?;
        self.queue.see(&mut self.loaded, &records);
        self.unpace_free(of_kind(&[EVENT_CHANGED]));
        if !records.is_empty() {
            // Before their limit has refused them much, which they recover from only slowly.
            if let Some(look) = &mut self.look {
                look.learn(records);
            }
            self.follow()?;
        }
        let census = members::census(&self.loaded)?;
        let over = |held: &Held| !Target::are_standing(&held.targets) && !census.contains_key(&held.key);
        Ok(self.held.iter().filter(|(_, held)| over(held)).map(|(id, _)| *id).collect())
    }

    /// The processes of every limit.
    pub fn members(&self) -> Result<Vec<(LimitId, Vec<u32>)>> {
        let mut census = members::census(&self.loaded)?;
        let of = |(id, held): (&LimitId, &Held)| Some((*id, census.remove(&held.key)?));
        Ok(self.held.iter().filter_map(of).collect())
    }

    /// The sockets of these processes.
    pub fn walk_those(&self, pids: &HashSet<u32>) -> Result<Vec<SocketRecord>> {
        if pids.len() > WALK_EACH {
            return self.loaded.walk_sockets(None);
        }
        let mut records = Vec::new();
        for pid in pids {
            // Of a process that has ended it finds none.
            records.extend(self.walk_one(*pid)?);
        }
        Ok(records)
    }

    /// The sockets of one process; the whole host where the kernel can't narrow it down (before 6.1).
    pub fn walk_one(&self, tgid: u32) -> Result<Vec<SocketRecord>> {
        self.loaded.walk_sockets(Some(tgid)).or_else(|_| self.loaded.walk_sockets(None))
    }
}
