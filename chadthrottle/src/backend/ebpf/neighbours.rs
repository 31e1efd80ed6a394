//! Other owners' limits at the same cgroup root: another runtime folder makes another owner.
//!
//! Two of them on one connection would each take the other's pacing cap for the application's, and one of these would
//! stay. Their cgroups, and the maps of paced connections that these keep, tell who limits there.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::pacing;
use crate::{
    error::{Context, Error, Kind, Result},
    kernel::{bpf::keeper, cgroup, journal, process},
};

/// An owner whose folder was taken from it needs about as long to notice, and to leave.
const LEAVES_WITHIN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// A cgroup of an owner that limits here, or did.
struct Neighbour {
    path: PathBuf,
    pid: u32,
    start_time: u64,
}

/// Sees to it that nobody else limits at this cgroup root, and gives back what killed owners have left in connections
/// there. What can't be looked into, for want of rights, is passed by.
///
/// # Errors
/// [`Kind::NoBackend`] when another owner is at work there and stays.
pub fn make_way(root: &Path) -> Result<()> {
    let until = Instant::now() + LEAVES_WITHIN;
    loop {
        let mut living = None;
        for neighbour in find(root)? {
            if process::lives(Path::new(process::PROC), neighbour.pid, neighbour.start_time)? {
                living = Some(neighbour.pid);
            } else if let Err(error) = neighbour.clear() {
                tracing::warn!("{error}");
            }
        }
        let Some(pid) = living else { return Ok(()) };
        if Instant::now() >= until {
            let folder = runtime_folder(pid).map(|folder| format!(" {folder}")).unwrap_or_default();
            return Err(Error::new(
                Kind::NoBackend,
                format!(
                    "another owner (process {pid}) limits at cgroup root {} already: set the limit there \
                     (--runtime-dir{folder}), or end that owner's limits first",
                    root.display()
                ),
            ));
        }
        thread::sleep(PAUSE);
    }
}

/// Owners' cgroups that keep something, but for our own.
fn find(root: &Path) -> Result<Vec<Neighbour>> {
    let doing = || format!("look for other owners at {}", root.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(root).context(doing())? {
        let entry = entry.context(doing())?;
        let Some((pid, start_time)) = entry.file_name().to_str().and_then(owner_named) else { continue };
        if pid == std::process::id() {
            continue;
        }
        match keeper::kept(&entry.path()) {
            // One that only counts, or that limits in another way, is in nobody's way.
            Ok(maps) if maps.is_empty() => {}
            Ok(_) => found.push(Neighbour { path: entry.path(), pid, start_time }),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    Ok(found)
}

/// Process id and start time of the owner whose cgroup has this name.
fn owner_named(name: &str) -> Option<(u32, u64)> {
    let (pid, start_time) = name.strip_prefix(journal::PREFIX)?.strip_prefix("owner-")?.split_once('-')?;
    Some((pid.parse().ok()?, start_time.parse().ok()?))
}

fn runtime_folder(pid: u32) -> Option<String> {
    let line = fs::read_to_string(format!("{}/{pid}/cmdline", process::PROC)).ok()?;
    line.split('\0').skip_while(|word| *word != "--runtime-dir").nth(1).map(str::to_owned)
}

impl Neighbour {
    /// Does what the owner and its janitor can't do any more.
    fn clear(&self) -> Result<()> {
        for map in keeper::kept(&self.path)? {
            let count = pacing::lift_all(std::os::fd::AsFd::as_fd(&map))?;
            tracing::info!(
                "gave back {count} pacing caps of an owner that was killed (process {})",
                self.pid
            );
        }
        // A janitor in there is about to do the same.
        if cgroup::processes(&self.path).is_empty() {
            let doing = || format!("remove the cgroup {}", self.path.display());
            journal::remove_cgroup(&self.path).context(doing())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_known_by_the_names_of_their_cgroups() {
        assert_eq!(owner_named("chadt-owner-12-345"), Some((12, 345)));
        for name in ["chadt-owner-12", "chadt-owner-x-1", "owner-12-345", "chadt-12-345", "chadt-owner-1-2-3"]
        {
            assert_eq!(owner_named(name), None, "{name}");
        }
    }
}
