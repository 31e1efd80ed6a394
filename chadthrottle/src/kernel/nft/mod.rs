//! nf_tables over netlink: one table of ours in one network namespace.
//!
//! Spoken to directly, and not through nft(8): that resolves cgroups only by paths below /sys/fs/cgroup, where
//! cgroup2 is not on every system, and it takes a process for every change. The table has the flag `owner` (Linux
//! 5.12): nobody else can change it, flushing the ruleset passes it by, and it vanishes with the connection, however
//! its process ends. Layouts and numbers: include/uapi/linux/netfilter/nf_tables.h.

mod encode;
mod expressions;
mod ingress;
mod rule;

use netlink_sys::protocols::NETLINK_NETFILTER;

pub use self::ingress::IngressHooks;
pub use self::rule::{Bucket, Compare, Element, Field, Hook, Key, Part, SetKind, Step, Value, Verdict};
use super::{
    journal::PREFIX,
    netns::Namespace,
    nl::{Attributes, Netlink},
};
use crate::error::{Error, Result};

/// Bytes of requests that go out as one.
const MOST_AT_ONCE: usize = 64 * 1024;

/// What a named counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets, or buffers that stand for many.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
}

/// A connection to nf_tables and, once made, the table that goes with it.
pub struct Nft {
    netlink: Netlink,
    family: u8,
    table: String,
}

impl Nft {
    /// For the calling thread's namespace. The table is named `chadthrottle` and `suffix`.
    pub fn open(suffix: &str) -> Result<Self> {
        debug_assert!(!suffix.is_empty());
        let table = format!("{PREFIX}{suffix}");
        Ok(Self { netlink: Netlink::open(NETLINK_NETFILTER)?, family: encode::INET, table })
    }

    /// The table is of the family netdev, instead of inet.
    pub fn of_devices(mut self) -> Self {
        self.family = encode::NETDEV;
        self
    }

    /// For another namespace.
    pub fn open_in(namespace: &Namespace, suffix: &str) -> Result<Self> {
        namespace.run(|| Self::open(suffix))
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Takes these steps, all or none. Adding very many elements is done in several goes, each all or none.
    ///
    /// # Errors
    /// Names the step that was refused; [`crate::error::Kind::NotFound`] when what it is about, or the kernel's
    /// module for it, is not there.
    pub fn change(&mut self, steps: &[Step]) -> Result<()> {
        let mut begin = 0;
        while begin < steps.len() {
            let mut messages = Vec::new();
            let mut bytes = 0;
            let mut end = begin;
            while let Some(step) = steps.get(end) {
                let more = encode::step(self.family, &self.table, step);
                let size: usize = more.iter().map(|message| message.len()).sum();
                if bytes + size > MOST_AT_ONCE && end > begin {
                    break;
                }
                bytes += size;
                messages.extend(more.into_iter().map(|message| (end, message)));
                end += 1;
            }
            let (numbers, messages): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
            let [first, last] = encode::batch();
            self.netlink.transact(first, messages, last).map_err(|(refused, cause)| {
                let step = numbers.get(refused).map_or_else(String::new, |number| steps[*number].to_string());
                let step: String = step.chars().take(200).collect();
                Error::caused(cause.kind, format!("nftables table {}: {step}", self.table), &cause)
            })?;
            begin = end;
        }
        Ok(())
    }

    /// All named counters of the table.
    pub fn counters(&mut self) -> Result<Vec<(String, Count)>> {
        let answers = self.netlink.dump(encode::list_counters(&self.table)).map_err(|cause| {
            Error::caused(cause.kind, format!("read the counters of table {}", self.table), &cause)
        })?;
        Ok(answers.iter().filter_map(|answer| encode::counter(&self.table, answer)).collect())
    }

    /// How many rules each chain of the table has; empty: the table is not there.
    pub fn rules(&mut self) -> Result<Vec<String>> {
        let answers = self.netlink.dump(encode::list_rules(self.family, &self.table)).map_err(|cause| {
            Error::caused(cause.kind, format!("list the rules of table {}", self.table), &cause)
        })?;
        Ok(answers.iter().filter_map(|answer| encode::chain_of_rule(&self.table, answer)).collect())
    }
}

/// The attributes of an answer, behind struct nfgenmsg.
fn attributes(answer: &[u8]) -> Option<Attributes<'_>> {
    answer.get(4..).map(Attributes::of)
}
