//! What a process is, as far as targets ask: read from /proc in one go, and only kept when the id meant the same
//! process from the first to the last line read.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::process::{self, Stat};
use crate::error::{Context, Result};

/// An executable file that was removed or replaced while it runs.
const DELETED: &[u8] = b" (deleted)";

/// A line of `/proc/PID/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// What the hierarchy is for: empty in version 2; `name=systemd`, `pids` … in version 1.
    pub controllers: String,
    /// The cgroup, from the root of the hierarchy.
    pub path: String,
}

/// The executable file of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Where it is, or was.
    pub path: PathBuf,
    /// It is there no more, or another file is.
    pub deleted: bool,
    /// Device and inode number.
    pub file: Option<(u64, u64)>,
}

impl Executable {
    /// The file's own name.
    pub fn name(&self) -> &[u8] {
        self.path.file_name().unwrap_or_default().as_bytes()
    }
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its id, and the clock ticks from the boot to its start: together they never mean another one.
    pub pid: u32,
    /// See `pid`.
    pub start_time: u64,
    /// Its parent's id.
    pub parent: u32,
    /// Its name: at most 15 bytes, any but zero.
    pub comm: Vec<u8>,
    /// `None`: it has none (any more), or it is hidden from us.
    pub exe: Option<Executable>,
    /// Nobody tells us what it runs.
    pub is_hidden: bool,
    /// Real user id.
    pub uid: u32,
    /// Where it is in each hierarchy.
    pub cgroups: Vec<Membership>,
}

impl Facts {
    /// Reads them; `None` when there is no such process (any more), or what has the id is only a thread or
    /// has ended.
    pub fn read(proc: &Path, pid: u32) -> Result<Option<Self>> {
        let Some(stat) = Stat::read(proc, pid)? else { return Ok(None) };
        let folder = proc.join(pid.to_string());
        let Some(status) = read(&folder.join("status"))? else { return Ok(None) };
        let Some((uid, tgid)) = ids(&status) else { return Ok(None) };
        if tgid != pid {
            return Ok(None);
        }
        let Some(mut comm) = read(&folder.join("comm"))? else { return Ok(None) };
        // The name may end in a line feed of its own.
        comm.pop();
        // There is none without CONFIG_CGROUPS.
        let cgroups = read(&folder.join("cgroup"))?.unwrap_or_default();
        let exe = executable(&folder.join("exe"));
        let facts = Self {
            pid,
            start_time: stat.start_time,
            parent: stat.parent,
            comm,
            is_hidden: exe.as_ref().is_err_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied),
            exe: exe.ok(),
            uid,
            cgroups: memberships(&String::from_utf8_lossy(&cgroups)),
        };
        // Asked last: what was read was its own.
        Ok(process::lives(proc, pid, stat.start_time)?.then_some(facts))
    }

    /// All processes that can be seen, without the kernel's own threads, which have no sockets. Those that come or go meanwhile may be missing.
    pub fn all(proc: &Path) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for pid in process::all(proc)? {
            // One that can't be read is hidden from us.
            if !process::is_kernel_thread(proc, pid)
                && let Ok(Some(facts)) = Self::read(proc, pid)
            {
                found.push(facts);
            }
        }
        Ok(found)
    }

    /// The cgroup of version 2.
    pub fn cgroup(&self) -> Option<&str> {
        self.cgroups.iter().find(|each| each.controllers.is_empty()).map(|each| each.path.as_str())
    }
}

/// A file of a process; `None` when the process is gone.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(cause) => Err(cause).context(format!("read {}", path.display())),
    }
}

/// Real user id, and the process that the thread belongs to.
fn ids(status: &[u8]) -> Option<(u32, u32)> {
    let text = String::from_utf8_lossy(status);
    // The first line is the name, which the kernel escapes: no line feed in it can pass for another line.
    let first = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    Some((first("Uid:")?, first("Tgid:")?))
}

fn executable(link: &Path) -> io::Result<Executable> {
    let target = fs::read_link(link)?;
    let bytes = target.as_os_str().as_bytes();
    let file = fs::metadata(link).ok().map(|meta| (meta.dev(), meta.ino()));
    // A file may really have such a name; then it is where the link says.
    let gone =
        bytes.strip_suffix(DELETED).filter(|_| identity(&target).is_none_or(|there| Some(there) != file));
    Ok(match gone {
        Some(path) => Executable { path: OsStr::from_bytes(path).into(), deleted: true, file },
        None => Executable { path: target, deleted: false, file },
    })
}

/// Device and inode number of the file that a path leads to now.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn memberships(text: &str) -> Vec<Membership> {
    let line = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        Some(Membership { controllers: controllers.to_owned(), path: path.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// Name of the user, from the local file of users; `None`: it has none there.
pub fn user_name(uid: u32) -> Option<String> {
    // Not through the name service, which may ask the network.
    let text = fs::read("/etc/passwd").ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The user's id, asked of the system's name service; `None`: there is no such user.
pub fn user_id(name: &str) -> io::Result<Option<u32>> {
    Ok(nix::unistd::User::from_name(name)?.map(|user| user.uid.as_raw()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A made-up /proc.
    pub struct FakeProc(pub tempfile::TempDir);

    impl FakeProc {
        pub fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub fn path(&self) -> &Path {
            self.0.path()
        }

        pub fn add(&self, pid: u32, parent: u32, comm: &[u8], exe: &str, uid: u32, cgroup: &str) {
            let folder = self.path().join(pid.to_string());
            fs::create_dir(&folder).unwrap();
            let mut stat = format!("{pid} (").into_bytes();
            stat.extend(comm);
            stat.extend(format!(") S {parent} 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {pid}00 1 2\n").bytes());
            fs::write(folder.join("stat"), stat).unwrap();
            let status = format!("Name:\tx\nTgid:\t{pid}\nPid:\t{pid}\nUid:\t{uid}\t0\t0\t0\n");
            fs::write(folder.join("status"), status).unwrap();
            fs::write(folder.join("comm"), [comm, b"\n"].concat()).unwrap();
            fs::write(folder.join("cgroup"), cgroup).unwrap();
            if !exe.is_empty() {
                symlink(exe, folder.join("exe")).unwrap();
            }
        }
    }

    #[test]
    fn reads_what_targets_ask_for() {
        let proc = FakeProc::new();
        let cgroups = "12:pids:/docker/x\n1:name=systemd:/a:b\n0::/user.slice (deleted)\n";
        proc.add(7, 3, b"a (b\n) c", "/no/such/exe (deleted)", 1000, cgroups);
        let facts = Facts::read(proc.path(), 7).unwrap().unwrap();
        assert_eq!((facts.pid, facts.start_time, facts.parent, facts.uid), (7, 700, 3, 1000));
        assert_eq!((facts.comm.as_slice(), facts.is_hidden), (&b"a (b\n) c"[..], false));
        let exe = facts.exe.clone().unwrap();
        assert_eq!((exe.path.to_str(), exe.deleted, exe.name()), (Some("/no/such/exe"), true, &b"exe"[..]));
        assert_eq!(facts.cgroup(), Some("/user.slice"));
        assert_eq!(facts.cgroups[1], Membership { controllers: "name=systemd".into(), path: "/a:b".into() });
        assert_eq!(Facts::read(proc.path(), 8).unwrap(), None);
        assert_eq!(Facts::all(proc.path()).unwrap(), [facts]);
    }

    #[test]
    fn a_file_may_be_called_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tool (deleted)");
        fs::write(&file, "").unwrap();
        let proc = FakeProc::new();
        proc.add(7, 1, b"tool", file.to_str().unwrap(), 0, "");
        let exe = Facts::read(proc.path(), 7).unwrap().unwrap().exe.unwrap();
        assert_eq!((exe.path, exe.deleted), (file, false));
    }

    #[test]
    fn reads_this_very_process() {
        let facts = Facts::read(Path::new("/proc"), std::process::id()).unwrap().unwrap();
        let exe = facts.exe.unwrap();
        assert_eq!(exe.path, std::env::current_exe().unwrap());
        assert_eq!(exe.file, identity(&exe.path));
        assert_eq!(facts.uid, nix::unistd::getuid().as_raw());
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_id("root").unwrap(), Some(0));
        assert_eq!(user_id("no-such-user-here").unwrap(), None);
    }
}
