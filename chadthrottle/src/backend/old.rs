//! The limits' sockets that are known by their addresses, in one network namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
};

use super::addresses::{self, Address, Sockets};
use crate::{
    error::Result,
    kernel::{process, sock_diag::Socket},
    model::LimitId,
};

/// What is known of them.
#[derive(Default)]
pub(super) struct OldSockets {
    addresses: BTreeMap<LimitId, BTreeSet<Address>>,
    /// Inodes of those that are open to all, and whether others hold them.
    shared: HashMap<u32, bool>,
}

impl OldSockets {
    /// Looks for a limit's sockets among those of the namespace (`all`); and whether their addresses are others than
    /// before. `inodes` are those of its processes (`pids`), `knows` says which cgroups are known by themselves.
    pub fn look(
        &mut self,
        limit: LimitId,
        all: &[Socket],
        inodes: &HashSet<u32>,
        pids: &HashSet<u32>,
        knows: &dyn Fn(Option<u64>) -> bool,
    ) -> Result<(Sockets, bool)> {
        let open: HashSet<u32> = addresses::open_to_all(all, inodes, knows).collect();
        self.find_sharers(&open, pids)?;
        let elsewhere = open.iter().copied().filter(|inode| self.shared.get(inode) == Some(&true)).collect();
        let none = BTreeSet::new();
        let before = self.addresses.get(&limit).unwrap_or(&none);
        let found = addresses::addresses(all, inodes, knows, &elsewhere, before);
        let changed = found.addresses != *before;
        if changed {
            self.addresses.insert(limit, found.addresses.clone());
        }
        Ok((found, changed))
    }

    /// Looks which of these others hold too, once for each.
    fn find_sharers(&mut self, open: &HashSet<u32>, pids: &HashSet<u32>) -> Result<()> {
        let new: HashSet<u32> =
            open.iter().copied().filter(|inode| !self.shared.contains_key(inode)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let proc = Path::new(process::PROC);
        let mut elsewhere = HashSet::<u32>::new();
        for pid in process::all(proc)?.into_iter().filter(|pid| !pids.contains(pid)) {
            elsewhere.extend(process::socket_inodes(proc, pid).intersection(&new));
        }
        self.shared.extend(new.into_iter().map(|inode| (inode, elsewhere.contains(&inode))));
        Ok(())
    }

    /// The limit is over.
    pub fn forget(&mut self, limit: LimitId) {
        self.addresses.remove(&limit);
    }

    /// Each address with the limits that hold it.
    pub fn by_address(&self) -> BTreeMap<Address, Vec<LimitId>> {
        addresses::by_address(&self.addresses)
    }
}
