//! Network namespaces that have no name: they live as long as somebody holds a descriptor or runs
//! inside, so that nothing is left when their maker dies, however it dies.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use super::{
    process::{self, Process},
    sockets,
};
use crate::error::{Context, Error, Kind, Result};

/// The calling thread's network namespace (Linux 3.17).
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// A network namespace, held by a descriptor.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
}

impl Namespace {
    /// A new namespace with nothing but a loopback device that is down. Needs CAP_SYS_ADMIN.
    pub fn new() -> Result<Self> {
        // On a thread of its own, because unsharing changes the thread that calls it.
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("make a private network namespace")?;
            Self::current()
        })
    }

    /// The namespace the calling thread is in.
    pub fn current() -> Result<Self> {
        let file = File::open(OF_THIS_THREAD).context(format!("open {OF_THIS_THREAD}"))?;
        Ok(Self { descriptor: file.into() })
    }

    /// The namespace a process is in.
    ///
    /// # Errors
    /// [`crate::error::Kind::NotFound`] when there is no such process.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::at(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The namespace a socket is in, wherever its process is.
    pub fn of_socket(socket: BorrowedFd<'_>) -> Result<Self> {
        let descriptor = sockets::namespace(socket).context("ask for the network namespace of a socket")?;
        Ok(Self { descriptor })
    }

    /// The namespace behind a file of nsfs.
    fn at(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => {
                Error::caused(Kind::NotFound, format!("open {}", path.display()), &cause)
            }
            _ => Error::caused(Kind::Failed, format!("open {}", path.display()), &cause),
        })?;
        Ok(Self { descriptor: file.into() })
    }

    /// The namespace of that inode number, wherever on the host it shows: as the namespace of a process, as a mount, as
    /// a descriptor or the namespace of a socket that a process holds. `None` when it is nowhere, and then gone, with
    /// every device and filter in it, unless a process that we may not trace holds it.
    pub fn find(inode: u64) -> Result<Option<Self>> {
        let current = Self::current()?;
        if current.inode()? == inode {
            return Ok(Some(current));
        }
        let wanted = format!("net:[{inode}]");
        let is_it = |path: &Path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == &*wanted);
        let open =
            |path: &Path| Self::at(path).ok().filter(|found| found.inode().is_ok_and(|it| it == inode));
        let processes = || numbers_in(Path::new("/proc"));
        let by_process = processes().map(|process| process.join("ns/net")).filter(|path| is_it(path));
        let by_descriptor =
            processes().flat_map(|process| numbers_in(&process.join("fd"))).filter(|path| is_it(path));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let by_mount = mounts.lines().filter_map(|line| {
            // Fields: id, parent, device, root, mount point, …
            let mut fields = line.split(' ').skip(3);
            (fields.next()? == wanted).then(|| fields.next().map(PathBuf::from))?
        });
        let found = by_process.chain(by_mount).chain(by_descriptor).find_map(|path| open(&path));
        Ok(found.or_else(|| Self::find_by_socket(inode)))
    }

    /// The namespace of that inode number that nothing but a socket shows: its maker has left, or went on elsewhere.
    fn find_by_socket(inode: u64) -> Option<Self> {
        let proc = Path::new(process::PROC);
        let mut asked = HashSet::new();
        numbers_in(proc).find_map(|path| {
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            let sockets = process::socket_descriptors(proc, pid);
            if sockets.is_empty() {
                return None;
            }
            let process = Process::open(pid).ok()?;
            sockets.into_iter().filter(|(_, socket)| asked.insert(*socket)).find_map(|(descriptor, _)| {
                let socket = sockets::borrow(&process, descriptor).ok()?;
                Self::of_socket(socket.as_fd()).ok().filter(|found| found.inode().is_ok_and(|it| it == inode))
            })
        })
    }

    /// By which number the kernel knows it. It may be given to another one later.
    pub fn inode(&self) -> Result<u64> {
        let status = nix::sys::stat::fstat(&self.descriptor).context("look at a network namespace")?;
        Ok(status.st_ino)
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it makes stay there for good, wherever
    /// they are used later. Needs CAP_SYS_ADMIN, unless the calling thread is there already.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.inode()? == Self::current()?.inode()? {
            return work();
        }
        in_thread(|| {
            setns(&self.descriptor, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            work()
        })
    }

    /// Lets `command` start inside the namespace.
    pub fn contain<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        let descriptor =
            self.descriptor.try_clone().context("duplicate the descriptor of a network namespace")?;
        // SAFETY: the closure only calls setns, which is async-signal-safe, on a descriptor it owns.
        Ok(unsafe { command.pre_exec(move || Ok(setns(&descriptor, CloneFlags::CLONE_NEWNET)?)) })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What in a folder of procfs has a number for a name.
fn numbers_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path())
}

/// `work` on a thread that ends with it.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .context("start a thread for a network namespace")?;
        worker.join().unwrap_or_else(|_| Err(Error::failed("the thread in a network namespace panicked")))
    })
}
