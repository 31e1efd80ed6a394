//! Finds and tags the open sockets of limited processes from user space, for kernels whose own walk can't (before 5.11
//! eBPF has no way from a file to its socket, and none to a socket's storage outside the packet's path): a
//! descriptor of ours for each of theirs, by `/proc` and pidfd_getfd, and what the socket carries by that descriptor.
//! Decides as `claim` in `chadthrottle-ebpf/src/sockets.rs` does; the two must agree.
//!
//! A tag that is written replaces the old one. What a program notes in the old one at that very moment is lost, and
//! found out again with the next packet.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use chadthrottle_common::abi::{
    Flow, FlowWindow, ProcessEntry, RECORD_FOLLOWS, RECORD_LISTENER, RECORD_LOWERED, RECORD_SHARED,
    RECORD_WAS_UNTAGGED, SocketRecord, TAG_LISTENER, TAG_SHARED, Tag,
};

use super::sys;
use crate::{
    error::{Context, Result},
    kernel::{
        process::{self, Process},
        sockets,
    },
    model,
};

/// What such a walk works with.
pub(super) struct Walk<'a> {
    pub tags: BorrowedFd<'a>,
    pub flows: BorrowedFd<'a>,
    pub windows: BorrowedFd<'a>,
    /// Everybody who is or was limited.
    pub processes: HashMap<u32, ProcessEntry>,
    /// With the programs' own part.
    pub epoch: u64,
}

/// A socket that was found, and by which inode number other processes' descriptors lead to it.
struct Found {
    record: SocketRecord,
    inode: u64,
}

impl Walk<'_> {
    /// Tags and lists the sockets of one process, or of all; then sockets that others hold too are marked as shared.
    pub fn run(&self, tgid: Option<u32>) -> Result<Vec<SocketRecord>> {
        let mut found = Vec::new();
        for (pid, entry) in &self.processes {
            if tgid.is_none_or(|only| only == *pid) {
                self.of_process(*pid, entry, &mut found);
            }
        }
        if tgid.is_none() && !found.is_empty() {
            self.mark_shared(&mut found)?;
        }
        Ok(found.into_iter().map(|found| found.record).collect())
    }

    /// What ends meanwhile, and what we may not look into, is left out.
    fn of_process(&self, pid: u32, entry: &ProcessEntry, found: &mut Vec<Found>) {
        let Ok(process) = Process::open(pid) else { return };
        for (fd, inode) in process::socket_descriptors(Path::new(process::PROC), pid) {
            let claimed = sockets::borrow(&process, fd)
                .and_then(|socket| self.claim(pid, fd, entry, socket.as_fd()).context("tag an open socket"));
            match claimed {
                Ok(Some(record)) => found.push(Found { record, inode }),
                Ok(None) => {}
                Err(error) => tracing::debug!("{error}"),
            }
        }
    }

    /// `None`: it is no IPv4 or IPv6 socket.
    fn claim(
        &self,
        tgid: u32,
        fd: u32,
        entry: &ProcessEntry,
        socket: BorrowedFd<'_>,
    ) -> std::io::Result<Option<SocketRecord>> {
        if !sockets::is_inet(socket)? {
            return Ok(None);
        }
        let listens = sockets::listens(socket);
        let old = sys::socket_value::<Tag>(self.tags, socket)?;
        let (tag, flags) = settle(old, (tgid, entry), listens, self.epoch, |tag| self.owner(tag));
        if old != Some(tag) {
            sys::set_socket_value(self.tags, socket, &tag)?;
        }
        let (bytes_acked, bytes_received) = sockets::tcp_bytes(socket).unwrap_or_default();
        let peer = sockets::peer(socket);
        let mut record = SocketRecord {
            tgid,
            fd,
            socket: sockets::cookie(socket)?,
            flags,
            protocol: sockets::protocol(socket)?,
            bytes_acked,
            bytes_received,
            level: 0,
            namespace: sockets::network_namespace(socket).unwrap_or(0),
            // Where the kernel keeps it, only programs can read it.
            device: if tag.told_device != 0 { tag.told_device } else { tag.last_device },
            remote: peer.map(|peer| model::address(peer.ip())).unwrap_or_default(),
            remote_port: peer.map_or(0, |peer| peer.port().into()),
            pad: 0,
        };
        if let Some(flow) = sys::socket_value::<Flow>(self.flows, socket)? {
            record.level = flow.level;
            if flow.follows != 0 {
                record.flags |= RECORD_FOLLOWS;
            }
        }
        let window = sys::socket_value::<FlowWindow>(self.windows, socket)?;
        if window.is_some_and(|window| window.limit != 0 && entry.limits.contains(&window.limit)) {
            record.flags |= RECORD_LOWERED;
        }
        Ok(Some(record))
    }

    /// The tag's owner, if it is or was limited and still is the process that it was.
    fn owner(&self, tag: &Tag) -> Option<&ProcessEntry> {
        self.processes.get(&tag.tgid).filter(|entry| entry.born == tag.born)
    }

    /// Marks those that somebody without a limit has open too. Who has one has claimed it.
    fn mark_shared(&self, found: &mut [Found]) -> Result<()> {
        let proc = Path::new(process::PROC);
        let mut elsewhere = HashSet::new();
        for pid in process::all(proc)? {
            if !self.processes.contains_key(&pid) {
                elsewhere.extend(process::socket_descriptors(proc, pid).into_iter().map(|(_, inode)| inode));
            }
        }
        let shared = found.iter_mut().filter(|found| elsewhere.contains(&found.inode));
        for Found { record, .. } in shared.filter(|found| found.record.flags & RECORD_SHARED == 0) {
            let marked = Process::open(record.tgid).and_then(|process| {
                let socket = sockets::borrow(&process, record.fd)?;
                let socket = socket.as_fd();
                let tag = sys::socket_value::<Tag>(self.tags, socket).context("read a socket's tag")?;
                let Some(mut tag) = tag.filter(|tag| self.owner(tag).is_some()) else { return Ok(false) };
                tag.flags |= TAG_SHARED;
                sys::set_socket_value(self.tags, socket, &tag).context("mark a socket as shared")?;
                Ok(true)
            });
            match marked {
                Ok(true) => record.flags |= RECORD_SHARED,
                Ok(false) => {}
                Err(error) => tracing::debug!("{error}"),
            }
        }
        Ok(())
    }
}

/// Settles who owns a socket that a limited process, `(tgid, entry)`, holds open: the tag that it shall have, and
/// flags of its record.
fn settle<'a>(
    old: Option<Tag>,
    (tgid, entry): (u32, &ProcessEntry),
    listens: bool,
    epoch: u64,
    owner: impl Fn(&Tag) -> Option<&'a ProcessEntry>,
) -> (Tag, u32) {
    let mut flags = if listens { RECORD_LISTENER } else { 0 };
    let mut tag = old.unwrap_or_else(|| {
        flags |= RECORD_WAS_UNTAGGED;
        Tag::default()
    });
    let unused = !listens && tag.flags & TAG_LISTENER != 0;
    let mine = tag.tgid == tgid && tag.born == entry.born;
    if unused {
        // An accepted socket that nobody used yet, but this process holds.
        tag.flags &= !TAG_LISTENER;
        own(&mut tag, tgid, entry, epoch);
    } else if mine {
        // Its next packet finds out which limits hold it, should they have changed.
    } else if let Some(owner) = owner(&tag) {
        if owner.limits != entry.limits {
            tag.flags |= TAG_SHARED;
        }
    } else if tag.flags & TAG_SHARED == 0 {
        if tag.limits != entry.limits {
            flags |= RECORD_WAS_UNTAGGED;
        }
        own(&mut tag, tgid, entry, epoch);
    }
    if listens {
        tag.flags |= TAG_LISTENER;
    }
    if tag.flags & TAG_SHARED != 0 {
        flags |= RECORD_SHARED;
    }
    (tag, flags)
}

fn own(tag: &mut Tag, tgid: u32, entry: &ProcessEntry, epoch: u64) {
    tag.tgid = tgid;
    tag.born = entry.born;
    tag.limits = entry.limits;
    tag.applies = 0;
    tag.epoch = epoch;
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: (u32, ProcessEntry) = (7, ProcessEntry { born: 70, limits: [1, 0, 0, 0] });
    const OTHER: (u32, ProcessEntry) = (8, ProcessEntry { born: 80, limits: [2, 0, 0, 0] });

    fn settled(old: Option<Tag>, listens: bool) -> (Tag, u32) {
        settle(old, (ME.0, &ME.1), listens, 5, |tag| {
            [&ME, &OTHER].iter().find(|(tgid, _)| *tgid == tag.tgid).map(|(_, entry)| entry)
        })
    }

    fn tag_of((tgid, entry): (u32, ProcessEntry), flags: u32) -> Tag {
        Tag { tgid, born: entry.born, limits: entry.limits, epoch: 5, flags, ..Tag::default() }
    }

    #[test]
    fn what_has_no_tag_or_a_dead_owner_is_claimed() {
        assert_eq!(settled(None, false), (tag_of(ME, 0), RECORD_WAS_UNTAGGED));
        let dead = tag_of((9, OTHER.1), 0);
        assert_eq!(settled(Some(dead), false), (tag_of(ME, 0), RECORD_WAS_UNTAGGED));
        let same_limits = tag_of((9, ME.1), 0);
        assert_eq!(settled(Some(same_limits), false), (tag_of(ME, 0), 0));
    }

    #[test]
    fn what_is_mine_is_not_written_again() {
        let mine = Tag { epoch: 3, told_device: 2, ..tag_of(ME, 0) };
        assert_eq!(settled(Some(mine), false), (mine, 0));
        let listener = tag_of(ME, TAG_LISTENER);
        assert_eq!(settled(Some(listener), true), (listener, RECORD_LISTENER));
    }

    #[test]
    fn another_ones_is_shared_unless_nobody_used_it() {
        let theirs = tag_of(OTHER, 0);
        assert_eq!(settled(Some(theirs), false), (tag_of(OTHER, TAG_SHARED), RECORD_SHARED));
        let accepted = tag_of(OTHER, TAG_LISTENER | TAG_SHARED);
        assert_eq!(settled(Some(accepted), false), (tag_of(ME, TAG_SHARED), RECORD_SHARED));
    }
}
