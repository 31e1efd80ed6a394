//! Rules: what a process must be for a limit to hold it, as the eBPF programs ask for it. A process that
//! fits one is under its limits from the moment it does, without anybody's having to notice.

use crate::abi::MAX_NESTED;

/// Rules of one sort that there may be at the same time.
pub const MAX_RULES: u32 = 8192;

/// Longest name in a rule, bytes; file names and the names of cgroups end there.
pub const LONGEST_NAME: usize = 255;

/// Levels of cgroups that are looked at, from a process's own up.
pub const MAX_LEVELS: usize = 32;

// Sorts of rules; the first three have a `NameKey`, the others a `NumberKey`.

/// By the name of the process (comm).
pub const COMM: u32 = 0;
/// By the file name of its executable.
pub const FILE_NAME: u32 = 1;
/// By the name of a cgroup that it is in, or that lies above.
pub const CGROUP_NAME: u32 = 2;
/// By its executable: device and inode number, as the kernel has them inside.
pub const FILE: u32 = 3;
/// By the id of a cgroup that it is in, or that lies above.
pub const CGROUP: u32 = 4;
/// By the real user id.
pub const USER: u32 = 5;
/// Every process.
pub const EVERYBODY: u32 = 6;

/// Key of the map `NAME_RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameKey {
    /// [`COMM`], [`FILE_NAME`] or [`CGROUP_NAME`].
    pub sort: u64,
    /// The name, and zeros.
    pub name: [u8; LONGEST_NAME + 1],
}

impl NameKey {
    /// `None`: no process, file or cgroup has such a name.
    pub fn new(sort: u32, name: &[u8]) -> Option<Self> {
        let mut key = Self { sort: sort as u64, name: [0; LONGEST_NAME + 1] };
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains(&0) {
            return None;
        }
        key.name[..name.len()].copy_from_slice(name);
        Some(key)
    }
}

/// Key of the map `NUMBER_RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NumberKey {
    /// [`FILE`], [`CGROUP`], [`USER`] or [`EVERYBODY`].
    pub sort: u32,
    /// Of a file.
    pub device: u32,
    /// Inode, cgroup id, user id; 0 for everybody.
    pub number: u64,
}

/// What all rules have in common. Map `RULES`, one entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// `1 << sort` of each sort of rules that there are; 0: none at all.
    pub sorts: u64,
    /// Id of the cgroup outside of which no process is meant; 0: all are.
    pub root: u64,
}

/// Ids of the limits that a rule puts processes under, or that a process is under whatever the rules say (map
/// `PINNED`). Zero ends the list.
pub type Limits = [u64; MAX_NESTED];

/// A line of the iterator over processes: one that came under other limits than it was before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessRecord {
    /// The process, by its tgid in the initial PID namespace.
    pub tgid: u32,
    /// `PROCESS_*` bits.
    pub flags: u32,
}

/// It was under no limit before: its open sockets must be tagged.
pub const PROCESS_JOINED: u32 = 1;
/// More limits mean it than can hold one process; those that came first do.
pub const PROCESS_OVERFULL: u32 = 2;

/// A line of the iterator over the owner's own files.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRecord {
    /// Descriptor number.
    pub fd: u32,
    /// As a [`FILE`] rule wants it.
    pub device: u32,
    /// As a [`FILE`] rule wants it.
    pub inode: u64,
}

const _: () = {
    assert!(size_of::<NameKey>() == 264);
    assert!(size_of::<NumberKey>() == 16);
    assert!(size_of::<Rules>() == 16);
    assert!(size_of::<ProcessRecord>() == 8);
    assert!(size_of::<FileRecord>() == 16);
};

#[cfg(feature = "user")]
mod pod {
    use super::*;
    // SAFETY: repr(C), integers only, sizes above leave no room for padding; any bytes are a value.
    unsafe impl aya::Pod for NameKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NumberKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Rules {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nothing_has() {
        assert!(NameKey::new(COMM, b"").is_none() && NameKey::new(COMM, b"a\0b").is_none());
        assert!(NameKey::new(FILE_NAME, &[b'x'; 256]).is_none());
        let longest = NameKey::new(FILE_NAME, &[b'x'; 255]).unwrap();
        assert_eq!((longest.name[254], longest.name[255]), (b'x', 0));
    }
}
