//! What was made and does not vanish with its maker is written down before it is made.
//!
//! Each maker has one file, `journal-PID-STARTTIME.jsonl` in the runtime folder, of JSON lines that are
//! only ever appended: `{"op":"make","object":…}` before, `{"op":"gone","object":…}` after. Whoever
//! sweeps undoes, newest first, what makers that no longer live have left. A line that was torn by the
//! maker's death says nothing: its object was not made yet.

use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    rc::{Rc, Weak},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    bpf::keeper,
    cgroup,
    netns::Namespace,
    process,
    tc::{Hook, Tc},
};
use crate::error::{Context, Error, Result};

/// How long to wait for processes that are just leaving a cgroup.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// How to undo what a kept eBPF map says was left in other processes' sockets; returns how many sockets that were.
pub type Settle = fn(BorrowedFd<'_>) -> Result<usize>;

/// Every cgroup of ours has a name that starts so.
pub const PREFIX: &str = "chadt-";

/// Something that outlives the process that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Object {
    /// A cgroup whose name starts with [`PREFIX`], with the cgroups below it and the eBPF maps that it keeps.
    Cgroup {
        /// Absolute path in the cgroup file system.
        path: PathBuf,
    },
    /// A file or socket in the runtime folder.
    File {
        /// Absolute path.
        path: PathBuf,
    },
    /// An IFB whose name starts with [`PREFIX`]. It goes with its namespace, as the four below do.
    Ifb {
        /// Inode number of its network namespace.
        namespace: u64,
        /// Its name.
        name: String,
    },
    /// The clsact qdisc of a device; removed only when nobody has a filter there.
    Clsact {
        /// Inode number of the device's network namespace.
        namespace: u64,
        /// The device.
        device: u32,
    },
    /// Our HTB as root qdisc of a device; without it the kernel's own choice is there again.
    Htb {
        /// Inode number of the device's network namespace.
        namespace: u64,
        /// The device.
        device: u32,
        /// Its major number, which tells it from others'.
        major: u32,
    },
    /// Our filters with a police at a device.
    Police {
        /// Inode number of the device's network namespace.
        namespace: u64,
        /// The device.
        device: u32,
        /// Major number of the priorities they match, which tells them from others'.
        major: u32,
    },
    /// A filter whose name starts with [`PREFIX`].
    Filter {
        /// Inode number of the device's network namespace.
        namespace: u64,
        /// The device.
        device: u32,
        /// Which of its filters.
        hook: Hook,
        /// Its name.
        name: String,
    },
    /// A cgroup that holds processes of somebody else's cgroup, its parent, to which they return. Its name starts with
    /// [`PREFIX`].
    Leaf {
        /// Absolute path in the cgroup file system.
        path: PathBuf,
    },
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cgroup { path } => write!(f, "cgroup {}", path.display()),
            Self::File { path } => write!(f, "file {}", path.display()),
            Self::Ifb { name, namespace } => {
                write!(f, "network device {name} (network namespace {namespace})")
            }
            Self::Clsact { device, namespace } => {
                write!(f, "clsact of network device {device} (network namespace {namespace})")
            }
            Self::Htb { device, namespace, .. } => {
                write!(f, "HTB of network device {device} (network namespace {namespace})")
            }
            Self::Police { device, namespace, .. } => {
                write!(f, "police of network device {device} (network namespace {namespace})")
            }
            Self::Filter { name, device, namespace, .. } => {
                write!(f, "filter {name} of network device {device} (network namespace {namespace})")
            }
            Self::Leaf { path } => write!(f, "cgroup {} of limited processes", path.display()),
        }
    }
}

impl Object {
    /// Removes it, and says what was still there. Refuses what can't be ours.
    fn undo(&self, folder: &Path, settle: Settle) -> Result<Option<String>> {
        match self {
            Self::Cgroup { path } => {
                self.require_ours(path)?;
                // What a map knows is lost with the cgroup.
                let mut settled = 0;
                for map in keeper::kept(path)? {
                    settled += settle(map.as_fd())?;
                }
                // The owner's janitor lives in its cgroup.
                cgroup::leave(path)?;
                let there = remove_cgroup(path).context(format!("remove {self}"))?;
                Ok(there.then(|| match settled {
                    0 => self.to_string(),
                    _ => format!("{self} and the pacing caps on {settled} connections"),
                }))
            }
            Self::Leaf { path } => {
                self.require_ours(path)?;
                let there = cgroup::dissolve(path)?;
                Ok(there.then(|| self.to_string()))
            }
            Self::File { path } => {
                if path.parent() != Some(folder) {
                    return Err(Error::failed(format!("remove {self}: it is not in {}", folder.display())));
                }
                let there = match fs::symlink_metadata(path) {
                    Ok(meta) if meta.is_file() || meta.file_type().is_socket() => {
                        absent_is_fine(fs::remove_file(path)).context(format!("remove {self}"))
                    }
                    Ok(_) => Err(Error::failed(format!("remove {self}: it is neither file nor socket"))),
                    Err(cause) => absent_is_fine(Err(cause)).context(format!("look at {self}")),
                }?;
                Ok(there.then(|| self.to_string()))
            }
            Self::Ifb { namespace, .. }
            | Self::Clsact { namespace, .. }
            | Self::Htb { namespace, .. }
            | Self::Police { namespace, .. }
            | Self::Filter { namespace, .. } => {
                let Some(namespace) = Namespace::find(*namespace)? else { return Ok(None) };
                let there = self.take_from(&mut Tc::open_in(&namespace)?)?;
                Ok(there.then(|| self.to_string()))
            }
        }
    }

    /// Removes an object of a network namespace from it. True when it was still there.
    pub fn take_from(&self, tc: &mut Tc) -> Result<bool> {
        match self {
            Self::Ifb { name, .. } => tc.delete_ifb(name),
            Self::Clsact { device, .. } => tc.delete_clsact(*device),
            Self::Htb { device, major, .. } => tc.delete_htb(*device, *major),
            Self::Police { device, major, .. } => tc.delete_all_police(*device, *major),
            Self::Filter { name, .. } if !name.starts_with(PREFIX) => {
                Err(Error::failed(format!("remove {self}: its name is none of ours")))
            }
            Self::Filter { device, hook, name, .. } => tc.delete_filter(*device, *hook, name),
            Self::Cgroup { .. } | Self::File { .. } | Self::Leaf { .. } => {
                Err(Error::failed(format!("remove {self}: it is in no network namespace")))
            }
        }
    }

    /// Fails unless a cgroup's name is one of ours.
    fn require_ours(&self, path: &Path) -> Result<()> {
        let ours =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        if ours && path.is_absolute() {
            return Ok(());
        }
        Err(Error::failed(format!("remove {self}: its name is none of ours")))
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Removes a cgroup with those below it; true when it was there. Only ever removes directories that are empty but for
/// the kernel's own files, and waits a little for processes that are just leaving.
pub fn remove_cgroup(path: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(cause) => return absent_is_fine(Err(cause)),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    for _ in 0..BUSY_TRIES {
        match absent_is_fine(fs::remove_dir(path)) {
            Err(cause) if cause.raw_os_error() == Some(libc::EBUSY) => thread::sleep(BUSY_PAUSE),
            result => return result,
        }
    }
    absent_is_fine(fs::remove_dir(path))
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
enum Line {
    Make { object: Object },
    Gone { object: Object },
}

/// One maker's journal. When nothing that it names is left, dropping it removes its file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    made: Vec<Object>,
}

impl Journal {
    /// Begins the journal of this process in the runtime folder.
    pub fn create(folder: &Path) -> Result<Self> {
        let pid = std::process::id();
        let path = folder.join(file_name(pid, process::start_time(pid)?));
        Ok(Self { file: open(&path)?, path, made: Vec::new() })
    }

    /// Writes it anew when somebody has removed its file.
    pub fn restore(&mut self) -> Result<()> {
        if self.path.exists() {
            return Ok(());
        }
        self.file = open(&self.path)?;
        for object in self.made.clone() {
            self.append(&Line::Make { object })?;
        }
        Ok(())
    }

    /// Says that the object is about to be made.
    pub fn record(&mut self, object: Object) -> Result<()> {
        self.append(&Line::Make { object: object.clone() })?;
        if !self.made.contains(&object) {
            self.made.push(object);
        }
        Ok(())
    }

    /// Says that the object is gone again.
    pub fn done(&mut self, object: &Object) -> Result<()> {
        self.append(&Line::Gone { object: object.clone() })?;
        self.made.retain(|made| made != object);
        Ok(())
    }

    /// One write for a line, so that a death tears at most the last one.
    fn append(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line)
            .map_err(|cause| Error::failed(format!("write the journal {}: {cause}", self.path.display())))?;
        text.push(b'\n');
        self.file.write_all(&text).context(format!("write the journal {}", self.path.display()))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.made.is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .context(format!("open the journal {}", path.display()))
}

/// A journal that several parts of a process write.
pub type Shared = Rc<RefCell<Journal>>;

thread_local! {
    static CURRENT: RefCell<Weak<RefCell<Journal>>> = const { RefCell::new(Weak::new()) };
}

/// The journal into which this thread's makers write, if there is one; without one, nothing may be made that
/// outlives its maker.
pub fn current() -> Option<Shared> {
    CURRENT.with_borrow(Weak::upgrade)
}

/// Lets this thread's makers write into a journal as long as it lives.
pub fn share(journal: Journal) -> Shared {
    let shared = Rc::new(RefCell::new(journal));
    CURRENT.set(Rc::downgrade(&shared));
    shared
}

fn file_name(pid: u32, start_time: u64) -> String {
    format!("journal-{pid}-{start_time}.jsonl")
}

/// The maker's id and start time.
fn maker(file_name: &str) -> Option<(u32, u64)> {
    let (pid, start_time) = file_name.strip_prefix("journal-")?.strip_suffix(".jsonl")?.split_once('-')?;
    Some((pid.parse().ok()?, start_time.parse().ok()?))
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Objects that were still there and have been removed.
    pub removed: Vec<String>,
    /// Objects that could not be removed. The journals that name them stay for the next sweep.
    pub failed: Vec<Error>,
}

/// Undoes what makers that no longer live have left. Running it twice at the same time does no harm.
pub fn sweep(folder: &Path, settle: Settle) -> Result<Swept> {
    let mut swept = Swept::default();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(swept),
        Err(cause) => return Err(cause).context(format!("list {}", folder.display())),
    };
    for entry in entries {
        let path = entry.context(format!("list {}", folder.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some((pid, start_time)) = name.and_then(maker) else { continue };
        if process::lives(Path::new(process::PROC), pid, start_time)? {
            continue;
        }
        let failed_before = swept.failed.len();
        match fs::read(&path) {
            Ok(text) => undo_all(&text, folder, &path, settle, &mut swept),
            // Another sweep was here first.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            Err(cause) => {
                swept.failed.extend(Err::<(), _>(cause).context(format!("read {}", path.display())).err())
            }
        }
        if swept.failed.len() == failed_before {
            absent_is_fine(fs::remove_file(&path)).context(format!("remove {}", path.display()))?;
        }
    }
    Ok(swept)
}

fn undo_all(text: &[u8], folder: &Path, path: &Path, settle: Settle, swept: &mut Swept) {
    let mut left: Vec<Object> = Vec::new();
    let lines: Vec<_> = text.split_inclusive(|&byte| byte == b'\n').collect();
    for line in lines {
        let torn = !line.ends_with(b"\n");
        match serde_json::from_slice(line) {
            Ok(Line::Make { object }) => left.push(object),
            Ok(Line::Gone { object }) => left.retain(|other| *other != object),
            Err(_) if torn => {}
            Err(cause) => {
                let message = format!("{} has a line this version does not know: {cause}", path.display());
                swept.failed.push(Error::failed(message));
            }
        }
    }
    for object in left.iter().rev() {
        match object.undo(folder, settle) {
            Ok(removed) => swept.removed.extend(removed),
            Err(error) => swept.failed.push(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A maker that has surely ended: ids end at 2^22.
    const DEAD: u32 = 99_999_999;

    fn nothing(_: BorrowedFd<'_>) -> Result<usize> {
        Ok(0)
    }

    fn dead_journal(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join(file_name(DEAD, 1));
        fs::write(&path, text).unwrap();
        path
    }

    fn make(object: &Object) -> String {
        serde_json::to_string(&Line::Make { object: object.clone() }).unwrap() + "\n"
    }

    #[test]
    fn a_finished_journal_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let object = Object::File { path: folder.path().join("x") };
        let mut journal = Journal::create(folder.path()).unwrap();
        journal.record(object.clone()).unwrap();
        journal.done(&object).unwrap();
        drop(journal);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_removed_journal_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let object = |name: &str| Object::File { path: folder.path().join(name) };
        let mut journal = Journal::create(folder.path()).unwrap();
        for name in ["x", "y"] {
            journal.record(object(name)).unwrap();
        }
        journal.done(&object("x")).unwrap();
        fs::remove_file(&journal.path).unwrap();
        journal.restore().unwrap();
        journal.restore().unwrap();
        assert_eq!(fs::read_to_string(&journal.path).unwrap(), make(&object("y")));
        journal.done(&object("y")).unwrap();
    }

    #[test]
    fn a_living_makers_objects_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut journal = Journal::create(folder.path()).unwrap();
        journal.record(Object::File { path: path.clone() }).unwrap();
        fs::write(&path, "").unwrap();
        let swept = sweep(folder.path(), nothing).unwrap();
        assert!(swept.removed.is_empty() && swept.failed.is_empty() && path.exists());
        drop(journal);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            2,
            "the journal stays while its object does"
        );
    }

    #[test]
    fn a_dead_makers_objects_go_newest_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = Object::File { path: folder.path().join("socket") };
        let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let outer = folder.path().join("chadt-outer");
        fs::create_dir_all(outer.join("below/deeper")).unwrap();
        let cgroup = Object::Cgroup { path: outer.clone() };
        let gone = Object::File { path: folder.path().join("gone") };
        let undone = Object::File { path: folder.path().join("kept") };
        fs::write(folder.path().join("kept"), "").unwrap();
        let done = serde_json::to_string(&Line::Gone { object: undone.clone() }).unwrap() + "\n";
        let text = make(&file) + &make(&undone) + &done + &make(&cgroup) + &make(&gone) + "{\"op\":\"mak";
        dead_journal(folder.path(), &text);
        let swept = sweep(folder.path(), nothing).unwrap();
        assert_eq!(swept.removed, [cgroup.to_string(), file.to_string()]);
        assert!(swept.failed.is_empty(), "{:?}", swept.failed);
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["kept"]);
    }

    #[test]
    fn what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let victim = elsewhere.path().join("victim");
        fs::write(&victim, "").unwrap();
        let foreign = elsewhere.path().join("system.slice");
        fs::create_dir(&foreign).unwrap();
        let full = folder.path().join("chadt-full");
        fs::create_dir(&full).unwrap();
        fs::write(full.join("file"), "").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        let objects = [
            Object::File { path: victim.clone() },
            Object::File { path: folder.path().join("..").join("victim") },
            Object::File { path: link },
            Object::Cgroup { path: foreign.clone() },
            Object::Cgroup { path: "chadt-relative".into() },
            Object::Cgroup { path: full.clone() },
        ];
        let journal = dead_journal(folder.path(), &objects.iter().map(make).collect::<String>());
        let swept = sweep(folder.path(), nothing).unwrap();
        assert!(swept.removed.is_empty());
        assert_eq!(swept.failed.len(), objects.len(), "{:?}", swept.failed);
        assert!(victim.exists() && foreign.exists() && full.exists() && journal.exists());
    }

    #[test]
    fn an_unknown_line_keeps_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let path = dead_journal(folder.path(), "{\"op\":\"make\",\"object\":{\"kind\":\"moon\"}}\n");
        assert_eq!(sweep(folder.path(), nothing).unwrap().failed.len(), 1);
        assert!(path.exists());
    }

    #[test]
    fn names_of_makers() {
        assert_eq!(maker(&file_name(12, 345)), Some((12, 345)));
        for other in ["journal-.jsonl", "journal-1.jsonl", "journal-1-2", "owner.lock", "journal-a-b.jsonl"] {
            assert_eq!(maker(other), None);
        }
    }

    #[test]
    fn no_folder_nothing_to_sweep() {
        let folder = tempfile::tempdir().unwrap();
        let swept = sweep(&folder.path().join("absent"), nothing).unwrap();
        assert!(swept.removed.is_empty() && swept.failed.is_empty());
    }
}
