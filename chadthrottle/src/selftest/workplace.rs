//! What the self-test makes besides processes and namespaces: a runtime folder for an owner of its own,
//! and a cgroup. Both are removed at the end; a run that was killed is cleaned up by the next one.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{cgroup::Cgroup, process::Place};
use crate::{
    backend,
    error::{Context, Result},
    kernel::{
        journal::{self, Journal, Object},
        process,
    },
};

/// Where runtime folders are when nothing is said.
pub const PARENT: &str = "/run";
/// Longest wait for the owner to end after its last limit.
const OWNER_ENDS: Duration = Duration::from_secs(5);

/// Names of the folder and of the cgroup; the maker's id follows, for the folder also its start time.
const PREFIX: &str = "chadt-selftest-";

/// The folder and the cgroup.
pub struct Workplace {
    folder: PathBuf,
    /// `None` only while the workplace is made or removed.
    made: Option<(Cgroup, Journal)>,
    cgroup: PathBuf,
    /// The folder above, when it was not there.
    parent: Option<PathBuf>,
}

impl Workplace {
    /// Makes both, and removes those of runs that were killed. `parent` is made, too, when only its last part is
    /// missing.
    pub fn new(parent: &Path, cgroup_root: &Path) -> Result<Self> {
        let new = match fs::DirBuilder::new().mode(0o700).create(parent) {
            Ok(()) => Some(parent.to_owned()),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => None,
            Err(cause) => return Err(cause).context(format!("make the runtime folder {}", parent.display())),
        };
        for line in sweep(parent)? {
            tracing::info!("removed {line}, which a killed self-test had left");
        }
        let pid = std::process::id();
        let folder = parent.join(format!("{PREFIX}{pid}-{}", process::start_time(pid)?));
        let name = format!("{PREFIX}{pid}");
        fs::DirBuilder::new().mode(0o700).create(&folder).context(format!("make {}", folder.display()))?;
        // From here on dropping it removes the folder.
        let mut workplace = Self { folder, made: None, cgroup: cgroup_root.join(&name), parent: new };
        let mut journal = Journal::create(&workplace.folder)?;
        journal.record(Object::Cgroup { path: workplace.cgroup.clone() })?;
        workplace.made = Some((Cgroup::new(cgroup_root, &name)?, journal));
        Ok(workplace)
    }

    /// Where limited processes go, and where the programs attach.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Lets `command` start inside the cgroup.
    pub fn place(&self) -> Place<'_> {
        Place { namespace: None, cgroup: self.made.as_ref().map(|(cgroup, _)| cgroup) }
    }

    /// The owner's folder.
    pub fn runtime_dir(&self) -> &Path {
        &self.folder
    }

    /// Lets the owner, which has nothing more to do, end by itself.
    pub fn wait_for_owner(&self) {
        let deadline = Instant::now() + OWNER_ENDS;
        let has_socket = || {
            let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_type().ok()).any(|kind| kind.is_socket())
        };
        while has_socket() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // While the cgroup that it works at is still there.
        self.wait_for_owner();
        drop(self.made.take());
        if self.cgroup.exists() {
            tracing::warn!(
                "{} stays, for its journal names what could not be removed",
                self.folder.display()
            );
        } else if let Err(cause) = fs::remove_dir_all(&self.folder) {
            tracing::warn!("can't remove {}: {cause}", self.folder.display());
        } else if let Some(parent) = &self.parent {
            // Somebody else may use it by now.
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Removes what killed self-tests left in `parent`, and the cgroups that their journals name. Says what was removed.
pub fn sweep(parent: &Path) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(cause) => return Err(cause).context(format!("list {}", parent.display())),
    };
    for entry in entries.flatten() {
        let Some((pid, start_time)) = entry.file_name().to_str().and_then(maker) else { continue };
        let ours =
            entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw());
        if !ours || process::lives(Path::new(process::PROC), pid, start_time)? {
            continue;
        }
        let path = entry.path();
        let swept = journal::sweep(&path, backend::settle)?;
        // What could not be removed stays on record, for the next time.
        match swept.failed.first() {
            Some(error) => tracing::warn!("{error}"),
            None => {
                removed.extend(swept.removed);
                fs::remove_dir_all(&path).context(format!("remove {}", path.display()))?;
                removed.push(format!("folder {}", path.display()));
            }
        }
    }
    Ok(removed)
}

/// The maker's id and start time.
fn maker(name: &str) -> Option<(u32, u64)> {
    let (pid, start_time) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((pid.parse().ok()?, start_time.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_the_dead_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        let start_time = process::start_time(pid).unwrap();
        // Ids end at 2^22.
        let dead = parent.path().join(format!("{PREFIX}99999999-1"));
        let alive = parent.path().join(format!("{PREFIX}{pid}-{start_time}"));
        let other = parent.path().join("chadt-selftest");
        for path in [&dead, &alive, &other] {
            fs::create_dir(path).unwrap();
        }
        assert_eq!(sweep(parent.path()).unwrap(), [format!("folder {}", dead.display())]);
        assert!(!dead.exists() && alive.exists() && other.exists());
    }
}
