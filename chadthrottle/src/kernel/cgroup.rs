//! cgroup v2: where it is mounted, which cgroup a process is in, ids.

use std::{
    fs, io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
};

use crate::error::{Context, Error, Kind, Result};

/// The file of a cgroup's processes, and of its type.
const PROCS: &str = "cgroup.procs";
const TYPE: &str = "cgroup.type";

/// Where cgroup2 is mounted, as this process sees it.
pub fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    find_mount(&mounts).ok_or_else(|| {
        Error::new(
            Kind::NoBackend,
            format!(
                "no cgroup2 is mounted: mount one with '{}' (if this runs under ip netns exec, which hides it, \
                 use nsenter --net=/run/netns/NAME instead)",
                mount_command()
            ),
        )
    })
}

/// How to mount one where programs look for it.
fn mount_command() -> String {
    const USUAL: &str = "/sys/fs/cgroup";
    let place = match nix::sys::statfs::statfs(USUAL) {
        // Version 1 is at work, each controller in a folder.
        Ok(kind) if kind.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC => "/sys/fs/cgroup/unified",
        // sysfs has the folder, and lets nobody make another.
        Ok(_) => return format!("mount -t cgroup2 none {USUAL}"),
        Err(_) => "/run/cgroup2",
    };
    format!("mkdir -p {place} && mount -t cgroup2 none {place}")
}

/// The mount point of the first cgroup2 in the text of a mountinfo file. One that shows the root of the
/// hierarchy goes before one that shows only a part of it (a bind mount, a container).
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut part = None;
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        if after.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut words = before.split(' ').skip(3);
        let (Some(root), Some(point)) = (words.next(), words.next()) else { continue };
        let point = unescape(point);
        if root == "/" {
            return Some(point);
        }
        part.get_or_insert(point);
    }
    part
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        if let Some(byte) = octal {
            out.push(byte);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// The cgroup2 directory of a process.
///
/// # Errors
/// [`Kind::NotFound`] when there is no such process, [`Kind::NoBackend`] without a cgroup2 mount.
pub fn get_cgroup_path(pid: u32) -> Result<PathBuf> {
    path_below(&mount()?, pid)
}

/// [`get_cgroup_path`] where the mount is known.
pub fn path_below(mount: &Path, pid: u32) -> Result<PathBuf> {
    let file = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&file).map_err(|cause| {
        let kind = if cause.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Failed };
        Error::caused(kind, format!("read {file}"), &cause)
    })?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(|| Error::new(Kind::NoBackend, format!("process {pid} is in no cgroup2")))?;
    Ok(mount.join(path.trim_start_matches('/')))
}

/// Moves this process to a cgroup.
pub fn enter(path: &Path) -> Result<()> {
    // "0" means whoever writes it.
    fs::write(path.join("cgroup.procs"), "0").context(format!("move to the cgroup {}", path.display()))
}

/// Moves this process to the cgroup above when it is in the one at `path`, which could not be removed else.
pub fn leave(path: &Path) -> Result<()> {
    let inside = get_cgroup_path(std::process::id()).is_ok_and(|own| own.starts_with(path));
    match path.parent() {
        Some(above) if inside => enter(above),
        _ => Ok(()),
    }
}

/// Whether a process is in the cgroup of that id, or in one below it; `mount` shows all of these.
pub fn is_below(mount: &Path, id: u64, pid: u32) -> Result<bool> {
    let path = path_below(mount, pid)?;
    // What is not below the root that we see is written with dots.
    if path.components().any(|part| part == Component::ParentDir) {
        return Ok(false);
    }
    let mut ids = path.ancestors().take_while(|path| path.starts_with(mount)).map(get_cgroup_id);
    // A cgroup that has been removed is nobody's place any more.
    Ok(ids.any(|found| found.is_ok_and(|found| found == id)))
}

/// The kernel's id of a cgroup: the inode number of its directory.
pub fn get_cgroup_id(path: &Path) -> Result<u64> {
    let meta = fs::metadata(path).context(format!("look at cgroup {}", path.display()))?;
    Ok(meta.ino())
}

/// The directory at which the programs attach: `wanted`, or the root of the mount.
///
/// # Errors
/// [`Kind::NotFound`] when it is no directory, [`Kind::Usage`] when it is not on a cgroup2.
pub fn attach_point(wanted: Option<&Path>) -> Result<PathBuf> {
    let Some(path) = wanted else { return mount() };
    let path = path.canonicalize().map_err(|cause| {
        Error::caused(Kind::NotFound, format!("open cgroup root {}", path.display()), &cause)
    })?;
    let kind = nix::sys::statfs::statfs(&path).context(format!("look at {}", path.display()))?;
    if kind.filesystem_type() != nix::sys::statfs::CGROUP2_SUPER_MAGIC || !path.is_dir() {
        return Err(Error::new(
            Kind::Usage,
            format!(
                "cgroup root {} is no cgroup2 directory: cgroup2 is mounted at {}",
                path.display(),
                mount()?.display()
            ),
        ));
    }
    Ok(path)
}

/// Depth of a cgroup below the root of the hierarchy that `mount` shows; the root's is 0.
pub fn depth(mount: &Path, path: &Path) -> u32 {
    path.strip_prefix(mount).map_or(0, |rest| rest.components().count() as u32)
}

/// The processes of a cgroup and of those below it. None when it is gone.
pub fn processes(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join(PROCS)).unwrap_or_default();
    let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&entry.path()));
        }
    }
    pids
}

/// Makes a cgroup for processes of its parent. One that is there already is fine.
pub fn make_leaf(path: &Path) -> Result<()> {
    let doing = || format!("make the cgroup {}", path.display());
    match fs::create_dir(path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause).context(doing()),
        _ => {}
    }
    // Below a threaded cgroup a new one takes nobody before it is threaded itself.
    if fs::read_to_string(path.join(TYPE)).is_ok_and(|kind| kind.trim() == "domain invalid") {
        fs::write(path.join(TYPE), "threaded").context(doing())?;
    }
    Ok(())
}

/// Moves a process, with all its threads. Its open sockets stay where they were made.
///
/// # Errors
/// [`Kind::NotFound`] when it has ended.
pub fn move_process(pid: u32, path: &Path) -> Result<()> {
    fs::write(path.join(PROCS), pid.to_string()).context(format!("move process {pid} to {}", path.display()))
}

/// Moves the processes of a leaf to its parent and removes it. True when it was still there.
///
/// # Errors
/// When somebody made cgroups below it; their processes stay there.
pub fn dissolve(path: &Path) -> Result<bool> {
    /// Who forks while it is moved has left a child behind.
    const ROUNDS: u32 = 50;
    let Some(parent) = path.parent() else { return Ok(false) };
    let doing = || format!("remove the cgroup {}", path.display());
    let mut left = String::new();
    for round in 0..ROUNDS {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(true),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(cause) if cause.raw_os_error() != Some(libc::EBUSY) => return Err(cause).context(doing()),
            Err(_) => {}
        }
        left = fs::read_to_string(path.join(PROCS)).unwrap_or_default();
        for pid in left.lines().filter_map(|line| line.parse().ok()) {
            match move_process(pid, parent) {
                Err(error) if error.kind != Kind::NotFound => return Err(error),
                _ => {}
            }
        }
        if left.is_empty() && round > 2 {
            // Those that are just ending, or the cgroups of others.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    let why =
        if left.is_empty() { "there are cgroups below it" } else { "its processes can't be moved away" };
    Err(Error::failed(format!("{}: {why}", doing())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn finds_the_mount_wherever_it_is() {
        assert_eq!(find_mount(HYBRID), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_mount("30 1 0:9 / /my\\040cg rw - cgroup2 none rw"), Some("/my cg".into()));
        assert_eq!(find_mount("30 1 0:9 / / rw - ext4 /dev/vda rw"), None);
    }

    #[test]
    fn prefers_the_root_of_the_hierarchy() {
        let text = "30 1 0:9 /sub /part rw - cgroup2 c rw\n31 1 0:9 / /whole rw - cgroup2 c rw";
        assert_eq!(find_mount(text), Some("/whole".into()));
        assert_eq!(find_mount("30 1 0:9 /sub /part rw - cgroup2 c rw"), Some("/part".into()));
    }
}
