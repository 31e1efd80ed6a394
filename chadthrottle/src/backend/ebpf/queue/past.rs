//! Whether a limit's packets really come through the queue: a filter of somebody else's that stands before ours and
//! decides by itself leads them past it. No look at the filters tells that, the counters do.

use std::collections::{BTreeMap, BTreeSet};

/// What is said then.
pub(super) const REASON: &str = "what arrives there comes past the queue: a filter of somebody else's decides before ours (tc filter \
                                 show dev DEVICE ingress); where it lets packets go on to the next filter, they wait";

/// Acknowledgements with a smaller window between two looks, at least, that say that something is received.
const LEAST: u64 = 32;

/// Packets of a limit so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Use {
    /// Acknowledgements that left by a device with a queue, with a smaller window.
    pub lowered: u64,
    /// Packets that had been in the queue.
    pub queued: u64,
}

/// Limits, by key.
#[derive(Default)]
pub(super) struct Past {
    before: BTreeMap<u64, Use>,
    keys: BTreeSet<u64>,
}

impl Past {
    /// Takes in the figures of all limits that have a queue.
    pub fn observe(&mut self, uses: impl IntoIterator<Item = (u64, Use)>) {
        let now: BTreeMap<u64, Use> = uses.into_iter().collect();
        self.keys.retain(|key| now.contains_key(key));
        for (key, used) in &now {
            let Some(before) = self.before.get(key) else { continue };
            if used.queued > before.queued {
                self.keys.remove(key);
            } else if used.lowered >= before.lowered + LEAST {
                self.keys.insert(*key);
            }
        }
        self.before = now;
    }

    /// Whether a limit's packets came past the queue when there were some last.
    pub fn has(&self, key: u64) -> bool {
        self.keys.contains(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packets_tell() {
        let mut past = Past::default();
        let mut step = |lowered, queued| {
            past.observe([(1, Use { lowered, queued })]);
            past.has(1)
        };
        assert!(!step(1_000, 0), "before a second look nothing is known");
        assert!(!step(1_010, 0), "too few");
        assert!(step(1_100, 0));
        assert!(step(1_100, 0), "a pause tells nothing new");
        assert!(!step(1_200, 5));
        assert!(!step(1_200, 5));
        assert!(step(1_300, 5));
        past.observe([]);
        assert!(!past.has(1), "the limit is over");
    }
}
