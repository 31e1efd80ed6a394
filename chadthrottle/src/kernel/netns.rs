//! Network namespaces that have no name: they live as long as somebody holds a descriptor or runs
//! inside, so that nothing is left when their maker dies, however it dies.

use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{Context, Error, Result};

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

    /// Runs `work` on a thread inside the namespace. Sockets that it makes stay there for good, wherever
    /// they are used later.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
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
