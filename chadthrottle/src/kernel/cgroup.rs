//! cgroup v2: where it is mounted, which cgroup a process is in, ids.

use std::{
    fs,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
};

use crate::error::{Context, Error, Kind, Result};

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
