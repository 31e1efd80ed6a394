//! A backend whose kernel is a folder: one file per owner, direction and limit, holding the rate.

use std::{
    collections::HashMap,
    env, fs,
    os::fd::{AsRawFd, RawFd},
    path::PathBuf,
};

use chadthrottle::{
    Error, Result,
    backend::{Applied, Backend, Checked, Driver, Priority, Probe, Site},
    kernel::process::Process,
    model::{Counters, Direction, Limit, LimitId},
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

/// Names the folder, for the owner, which inherits it.
pub const FOLDER: &str = "CHADT_TEST_FOLDER";

pub static DRIVERS: &[Driver] = &[Driver {
    name: "fake",
    priority: Priority::Best,
    directions: &Direction::ALL,
    probe: |_| Probe::Ready,
    requirements: |_| Vec::new(),
    open,
}];

struct Fake {
    direction: Direction,
    folder: PathBuf,
    wake: Epoll,
    watched: HashMap<LimitId, Process>,
}

fn open(_: &Site, direction: Direction) -> Result<Box<dyn Backend>> {
    let folder = env::var_os(FOLDER).ok_or_else(|| Error::failed("no folder"))?;
    let wake = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    Ok(Box::new(Fake { direction, folder: folder.into(), wake, watched: HashMap::new() }))
}

impl Fake {
    fn file(&self, id: LimitId) -> PathBuf {
        self.folder.join(format!("{}-{}-{id}", std::process::id(), self.direction))
    }
}

impl Backend for Fake {
    fn apply(&mut self, limit: &Limit) -> Result<Applied> {
        let pid = limit.targets[0].pid().expect("a process");
        if !self.watched.contains_key(&limit.id) {
            let process = Process::open(pid)?;
            self.wake.add(&process, EpollEvent::new(EpollFlags::EPOLLIN, limit.id.0)).unwrap();
            self.watched.insert(limit.id, process);
        }
        fs::write(self.file(limit.id), limit.rate.bytes_per_second().to_string()).unwrap();
        Ok(Applied { processes: 1, sockets: 0 })
    }

    fn remove(&mut self, id: LimitId) -> Result<()> {
        if self.watched.remove(&id).is_some() {
            fs::remove_file(self.file(id)).unwrap();
        }
        Ok(())
    }

    fn stats(&mut self, _: LimitId) -> Result<Counters> {
        Ok(Counters::default())
    }

    fn check(&mut self, _: LimitId) -> Result<Checked> {
        Ok(Checked { processes: 1, ..Checked::default() })
    }

    fn renew(&mut self) -> Result<()> {
        Ok(())
    }

    fn ended(&mut self) -> Result<Vec<LimitId>> {
        Ok(self.watched.iter().filter(|(_, process)| !process.alive()).map(|(id, _)| *id).collect())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.wake.0.as_raw_fd())
    }

    fn clear(&mut self) -> Result<()> {
        for id in self.watched.keys().copied().collect::<Vec<_>>() {
            self.remove(id)?;
        }
        Ok(())
    }
}
