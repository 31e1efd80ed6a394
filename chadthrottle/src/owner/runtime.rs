//! The runtime folder: where the owner's socket, lock, log and the journals are.
//!
//! Whoever could write there, or swap the folder for another, could pose as the owner. So it must be
//! ours alone, and so must the way to it.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

use crate::error::{Context, Error, Kind, Result};

/// A log longer than this begins anew.
const MAX_LOG: u64 = 1 << 20;

/// Name of the owner's socket.
const SOCKET: &str = "owner.sock";
/// sockaddr_un takes 108 bytes, the last of them a zero.
const LONGEST_PATH: usize = 107 - 1 - SOCKET.len();

/// A runtime folder that is there and that only we can write to.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    path: PathBuf,
}

impl Runtime {
    /// The folder, if it is there. An error if it is not safe to use.
    pub fn find(dir: &Path) -> Result<Option<Self>> {
        let path = match resolve(dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.context(format!("find the runtime folder {}", dir.display()))?,
        };
        let meta = match fs::symlink_metadata(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.context(format!("look at the runtime folder {}", path.display()))?,
        };
        check(&path, &meta)?;
        Ok(Some(Self { path }))
    }

    /// The folder, made for us alone if it is not there; the one above it must be.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = resolve(dir).context(format!("find the runtime folder {}", dir.display()))?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                return Err(cause).context(format!("make the runtime folder {}", path.display()));
            }
            _ => {}
        }
        Self::find(&path)?
            .ok_or_else(|| Error::failed(format!("the runtime folder {} vanished at once", path.display())))
    }

    /// Absolute, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The owner's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Removes a socket that nobody listens on any more; the caller holds the lock. True if there was one.
    pub fn remove_socket(&self) -> Result<bool> {
        match fs::remove_file(self.socket()) {
            Ok(()) => Ok(true),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(cause).context(format!("remove {}", self.socket().display())),
        }
    }

    /// Where the owner's warnings go.
    pub fn log(&self) -> PathBuf {
        self.path.join("owner.log")
    }

    /// Opens the log to append to it.
    pub fn open_log(&self) -> Result<File> {
        let doing = || format!("open the log {}", self.log().display());
        let file = private().append(true).open(self.log()).context(doing())?;
        if file.metadata().context(doing())?.len() > MAX_LOG {
            file.set_len(0).context(doing())?;
        }
        Ok(file)
    }

    /// Removes a log that says nothing.
    pub fn drop_empty_log(&self) {
        if fs::symlink_metadata(self.log()).is_ok_and(|meta| meta.len() == 0) {
            let _ = fs::remove_file(self.log());
        }
    }

    /// The right to be the owner; `None` when another process has it.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let path = self.path.join("owner.lock");
        let doing = || format!("lock {}", path.display());
        loop {
            let file = match private().write(true).open(&path) {
                // Between the check and now somebody has removed the folder.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
                result => result.context(doing())?,
            };
            let meta = file.metadata().context(doing())?;
            let identity = (meta.dev(), meta.ino());
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, nix::Error::EWOULDBLOCK)) => return Ok(None),
                Err((_, cause)) => return Err(cause).context(doing()),
            };
            // The one who had it before removed the file on leaving; then this lock is of no file.
            let lock = Lock { path: path.clone(), identity, _file: file };
            if lock.is_in_place() {
                return Ok(Some(lock));
            }
        }
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    // Without O_NONBLOCK a pipe of that name would hold us until somebody reads it.
    options.create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Which file is at a path, if there is one.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Held as long as it lives; its file goes with it.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    identity: (u64, u64),
    _file: Flock<File>,
}

impl Lock {
    /// False when its file was removed: then it locks nobody out.
    pub fn is_in_place(&self) -> bool {
        identity(&self.path) == Some(self.identity)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Another file of that name is another owner's.
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The absolute path, with links resolved in all but its last part.
fn resolve(dir: &Path) -> io::Result<PathBuf> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let dir = std::path::absolute(dir)?;
    let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else {
        return refuse("it must be a folder below another".to_owned());
    };
    let path = fs::canonicalize(above)?.join(name);
    if path.as_os_str().len() > LONGEST_PATH {
        return refuse(format!("a socket's path is short: the folder's may have {LONGEST_PATH} bytes"));
    }
    Ok(path)
}

fn check(path: &Path, meta: &Metadata) -> Result<()> {
    let me = geteuid().as_raw();
    let refuse =
        |kind, why: String| Err(Error::new(kind, format!("the runtime folder {} {why}", path.display())));
    if meta.is_symlink() {
        return refuse(Kind::Failed, "is a symbolic link: it could lead anywhere".into());
    }
    if !meta.is_dir() {
        return refuse(Kind::Failed, "is not a folder".into());
    }
    if meta.uid() != me {
        let why = format!(
            "belongs to user {}, not to us (user {me}): run as that user, or use another",
            meta.uid()
        );
        return refuse(Kind::NotPermitted, why);
    }
    if meta.mode() & 0o022 != 0 {
        let why = format!("can be written to by others (mode {:o}): chmod go-w it", meta.mode() & 0o7777);
        return refuse(Kind::Failed, why);
    }
    for above in path.ancestors().skip(1) {
        let meta = fs::symlink_metadata(above).context(format!("look at {}", above.display()))?;
        // In a sticky folder only the owner of an entry can rename it.
        let writable = meta.mode() & 0o022 != 0 && meta.mode() & libc::S_ISVTX == 0;
        if writable || ![0, me].contains(&meta.uid()) {
            return refuse(
                Kind::Failed,
                format!("could be swapped by others: {} is not ours alone", above.display()),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn it_is_made_for_us_alone() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("run");
        assert!(Runtime::find(&dir).unwrap().is_none());
        assert!(Runtime::find(&dir.join("deeper")).unwrap().is_none());
        assert!(Runtime::create(&dir.join("deeper")).is_err());
        let runtime = Runtime::create(&dir).unwrap();
        assert_eq!(fs::metadata(runtime.path()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(Runtime::create(&dir).unwrap().path(), runtime.path());
        assert!(Runtime::find(&dir).unwrap().is_some());
    }

    #[test]
    fn a_folder_that_others_can_write_to_or_swap_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("run");
        let refused = |why: &str| {
            for error in [Runtime::find(&dir).unwrap_err(), Runtime::create(&dir).unwrap_err()] {
                assert!(error.to_string().contains(why), "{error}");
            }
        };
        fs::create_dir(&dir).unwrap();
        set_mode(&dir, 0o770);
        refused("mode 770");
        set_mode(&dir, 0o702);
        refused("mode 702");
        set_mode(&dir, 0o755);
        assert!(Runtime::find(&dir).unwrap().is_some());
        set_mode(above.path(), 0o777);
        refused("swapped");
        set_mode(above.path(), 0o1777);
        assert!(Runtime::find(&dir).unwrap().is_some());
        if geteuid().is_root() {
            chown(&dir, Some(12_345), None).unwrap();
            refused("belongs to user 12345");
        }
        fs::remove_dir(&dir).unwrap();
        symlink("/", &dir).unwrap();
        refused("symbolic link");
        fs::remove_file(&dir).unwrap();
        fs::write(&dir, "").unwrap();
        refused("not a folder");
        assert!(Runtime::find(Path::new("/")).is_err());
    }

    #[test]
    fn one_has_the_lock() {
        let above = tempfile::tempdir().unwrap();
        let runtime = Runtime::create(&above.path().join("run")).unwrap();
        let lock = runtime.lock().unwrap().unwrap();
        assert!(runtime.lock().unwrap().is_none());
        drop(lock);
        assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0);
        // Many at once: never two, and always one in the end.
        let holders = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        if let Some(lock) = runtime.lock().unwrap() {
                            assert_eq!(holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                            holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(runtime.lock().unwrap().is_some());
    }

    #[test]
    fn a_lock_takes_no_other_ones_file_along() {
        let above = tempfile::tempdir().unwrap();
        let runtime = Runtime::create(&above.path().join("run")).unwrap();
        let lost = runtime.lock().unwrap().unwrap();
        fs::remove_dir_all(runtime.path()).unwrap();
        assert!(!lost.is_in_place());
        let runtime = Runtime::create(runtime.path()).unwrap();
        let lock = runtime.lock().unwrap().unwrap();
        drop(lost);
        assert!(lock.is_in_place());
    }

    #[test]
    fn a_pipe_for_a_file_makes_nobody_wait() {
        let above = tempfile::tempdir().unwrap();
        let runtime = Runtime::create(&above.path().join("run")).unwrap();
        for name in ["owner.lock", "owner.log"] {
            nix::unistd::mkfifo(&runtime.path().join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        assert!(runtime.open_log().is_err() && runtime.lock().is_err());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_before_anything_is_made() {
        let above = tempfile::tempdir().unwrap();
        let room = LONGEST_PATH - above.path().canonicalize().unwrap().as_os_str().len() - 1;
        let longest = above.path().join("x".repeat(room));
        assert_eq!(Runtime::create(&longest).unwrap().socket().as_os_str().len(), 107);
        let error = Runtime::create(&above.path().join("x".repeat(room + 1))).unwrap_err();
        assert!(error.to_string().contains("may have 96 bytes"), "{error}");
        assert_eq!(fs::read_dir(above.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_log_is_kept_when_it_says_something() {
        let above = tempfile::tempdir().unwrap();
        let runtime = Runtime::create(&above.path().join("run")).unwrap();
        runtime.open_log().unwrap();
        runtime.drop_empty_log();
        assert!(!runtime.log().exists());
        fs::write(runtime.log(), "words").unwrap();
        runtime.drop_empty_log();
        assert!(runtime.log().exists());
        fs::write(runtime.log(), vec![b'x'; MAX_LOG as usize + 1]).unwrap();
        assert_eq!(runtime.open_log().unwrap().metadata().unwrap().len(), 0);
    }
}
