//! The part of the programs that decides by what a process is: loaded and attached when the first limit asks
//! for it, so that nobody pays for it otherwise.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::Read,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use chadthrottle_common::rules::{FileRecord, NumberKey, ProcessRecord};

use super::{Loaded, Plain, read_plain, sys};
use crate::error::{Context, Error, Kind, Result};

/// Fields whose offsets the programs want: global, struct, path.
pub(super) const FIELDS: &[(&str, &str, &str)] = &[
    ("TASK_PID", "task_struct", "pid"),
    ("TASK_COMM", "task_struct", "comm"),
    ("TASK_MM", "task_struct", "mm"),
    ("TASK_REAL_CRED", "task_struct", "real_cred"),
    ("TASK_CGROUPS", "task_struct", "cgroups"),
    ("MM_EXE_FILE", "mm_struct", "exe_file"),
    ("FILE_DENTRY", "file", "f_path.dentry"),
    ("FILE_INODE", "file", "f_inode"),
    ("DENTRY_NAME", "dentry", "d_name.name"),
    ("INODE_NUMBER", "inode", "i_ino"),
    ("INODE_SB", "inode", "i_sb"),
    ("SB_DEVICE", "super_block", "s_dev"),
    ("CRED_UID", "cred", "uid.val"),
    ("CSS_SET_CGROUP", "css_set", "dfl_cgrp"),
    ("CGROUP_KN", "cgroup", "kn"),
    ("CGROUP_PARENT", "cgroup", "self.parent"),
    ("KN_ID", "kernfs_node", "id"),
    ("KN_NAME", "kernfs_node", "name"),
];

/// Tracepoints that tell when a process becomes something else.
const TRACEPOINTS: &[(&str, &str)] = &[
    ("follow_exec", "sched_process_exec"),
    ("follow_rename", "task_rename"),
    ("follow_move", "cgroup_attach_task"),
];

/// The tracepoint of one of these programs.
pub(super) fn tracepoint_of(program: &str) -> Option<&'static str> {
    TRACEPOINTS.iter().find(|(name, _)| *name == program).map(|(_, tracepoint)| *tracepoint)
}

impl Plain for ProcessRecord {}
impl Plain for FileRecord {}

impl Loaded {
    /// Loads and attaches what rules take. Doing it again does nothing.
    ///
    /// # Errors
    /// [`Kind::NoBackend`] when this kernel can't follow what processes become.
    pub fn prepare_rules(&mut self) -> Result<()> {
        if self.follows_rules {
            return Ok(());
        }
        let types = self.take_types()?;
        for name in TRACEPOINTS.iter().map(|(name, _)| *name).chain(["review_processes", "tell_files"]) {
            self.load_one(name, &types)?;
        }
        for (name, _) in TRACEPOINTS {
            self.attach_tracepoint(name)?;
        }
        self.follows_rules = true;
        Ok(())
    }

    /// Puts processes under the limits that the rules say, one or all, and lists those for which that changed
    /// something. Where the kernel can't narrow it down (before 6.1) it is always all.
    pub fn review(&self, tgid: Option<u32>) -> Result<Vec<ProcessRecord>> {
        let walk = |tgid| self.records("review_processes", tgid);
        walk(tgid).or_else(|_| walk(None)).context("look at what processes are")
    }

    fn records<T: Plain>(&self, program: &str, tgid: Option<u32>) -> std::io::Result<Vec<T>> {
        let program = self.program_fd(program).map_err(std::io::Error::other)?;
        let mut bytes = Vec::new();
        sys::open_task_iterator(program, tgid)?.read_to_end(&mut bytes)?;
        Ok(bytes.chunks_exact(size_of::<T>()).map(read_plain).collect())
    }

    /// What a rule must ask for so that it means the processes that run this file.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no such file.
    pub fn file_key(&self, path: &Path) -> Result<NumberKey> {
        // Not to read it, which may not be allowed.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).map_err(|cause| {
            let kind =
                if cause.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Failed };
            Error::caused(kind, format!("open {}", path.display()), &cause)
        })?;
        let own = Some(std::process::id());
        let walk = |tgid| self.records::<FileRecord>("tell_files", tgid);
        let records = walk(own).or_else(|_| walk(None)).context("ask how the kernel knows a file")?;
        let by_descriptor: HashMap<u32, FileRecord> =
            records.into_iter().map(|record| (record.fd, record)).collect();
        let record = by_descriptor.get(&(file.as_raw_fd() as u32));
        record
            .map(|record| NumberKey {
                sort: chadthrottle_common::rules::FILE,
                device: record.device,
                number: record.inode,
            })
            .ok_or_else(|| Error::failed(format!("the kernel does not tell how it knows {}", path.display())))
    }
}
