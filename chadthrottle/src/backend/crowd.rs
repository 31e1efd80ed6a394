//! The processes of a limit in cgroups of their own, for backends that know traffic by its cgroup.
//!
//! A process goes to a leaf below the cgroup it is in, so that whoever put it there still finds it within; what it
//! forks is born in the leaf. Both directions of a limit, and backends that take over from one another, share one
//! [`Crowd`]: the processes go back when the last of these lets go of it. A socket belongs to the cgroup it was made
//! in, so the leaf tells the sockets made from now on; those that are older have to be known by their addresses
//! (`super::addresses`).

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    rc::{Rc, Weak},
    thread,
    time::{Duration, Instant},
};

use super::Site;
use crate::{
    error::{Error, Kind, Result},
    kernel::{
        cgroup, fault,
        journal::{self, Object, PREFIX},
        process::{self, Process},
    },
    model::{Limit, LimitId, Target},
};

/// A scan for descendants finds no new one after a few rounds, unless somebody forks faster than we scan; their
/// children then are born in the leaf.
const MAX_SCANS: usize = 20;

/// A cgroup of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where it is.
    pub path: PathBuf,
    /// The kernel's number for it.
    pub id: u64,
    /// Its depth; the root's is 0.
    pub level: u32,
}

/// The processes of one limit.
#[derive(Debug)]
pub struct Crowd {
    name: String,
    targets: Vec<Target>,
    mount: PathBuf,
    root: PathBuf,
    leaves: Vec<Leaf>,
    /// Ids of the leaves, and of other limits' leaves below them, with those that are gone: sockets outlive them.
    ids: HashSet<u64>,
    /// Those that have been seen in a leaf.
    members: HashMap<u32, Process>,
}

/// Shared by all that hold the limit.
pub type Shared = Rc<RefCell<Crowd>>;

thread_local! {
    static CROWDS: RefCell<BTreeMap<LimitId, Weak<RefCell<Crowd>>>> = const { RefCell::new(BTreeMap::new()) };
    /// Leaves that could not be removed, as other limits' leaves are below them.
    static LEFT: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// The crowd of a limit, gathered if nobody did yet.
///
/// # Errors
/// [`Kind::NotFound`] when a target is not alive (any more), or not below the cgroup root. Then nobody is moved.
pub fn join(limit: &Limit, site: &Site) -> Result<Shared> {
    let known = CROWDS.with_borrow(|crowds| crowds.get(&limit.id).and_then(Weak::upgrade));
    if let Some(crowd) = known {
        return Ok(crowd);
    }
    let crowd = Rc::new(RefCell::new(Crowd::gather(limit, site)?));
    CROWDS.with_borrow_mut(|crowds| {
        crowds.retain(|_, crowd| crowd.strong_count() > 0);
        crowds.insert(limit.id, Rc::downgrade(&crowd));
    });
    Ok(crowd)
}

/// Tries again to remove what was in use. Cheap when there is nothing.
pub fn tidy() {
    let left = LEFT.take();
    left.into_iter().rev().for_each(dissolve);
}

/// [`tidy`] until nothing is left, for so long at most: processes that are just ending keep their leaf.
pub fn tidy_up(patience: Duration) {
    const PAUSE: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + patience;
    tidy();
    while LEFT.with_borrow(|left| !left.is_empty()) && Instant::now() < deadline {
        thread::sleep(PAUSE);
        tidy();
    }
}

fn dissolve(path: PathBuf) {
    let object = Object::Leaf { path };
    let Object::Leaf { path } = &object else { return };
    match cgroup::dissolve(path) {
        Ok(_) => {
            if let Some(journal) = journal::current()
                && let Err(error) = journal.borrow_mut().done(&object)
            {
                tracing::error!("{error}");
            }
        }
        Err(error) => {
            tracing::debug!("{error}; it is tried again");
            LEFT.with_borrow_mut(|left| left.push(path.clone()));
        }
    }
}

impl Crowd {
    fn gather(limit: &Limit, site: &Site) -> Result<Self> {
        let mut crowd = Self {
            name: format!("{PREFIX}limit-{}-{}", std::process::id(), limit.id),
            targets: limit.targets.clone(),
            mount: cgroup::mount()?,
            root: cgroup::attach_point(site.cgroup_root.as_deref())?,
            leaves: Vec::new(),
            ids: HashSet::new(),
            members: HashMap::new(),
        };
        // Dropped on failure, it sends back those that it has.
        for target in crowd.targets.clone() {
            let Some(pid) = target.pid() else {
                let message = format!("this backend holds pid: and tree: only, not {target}");
                return Err(Error::new(Kind::NoBackend, message));
            };
            crowd.require_within(pid)?;
            crowd.take_in(pid)?;
            if matches!(target, Target::Tree(_)) {
                crowd.take_in_descendants(pid)?;
            }
        }
        fault::point("crowd.moved");
        Ok(crowd)
    }

    fn require_within(&self, pid: u32) -> Result<()> {
        let path = cgroup::path_below(&self.mount, pid)?;
        if path.starts_with(&self.root) {
            return Ok(());
        }
        let message = format!(
            "process {pid} is not below the cgroup root {}: it can't be limited from here",
            self.root.display()
        );
        Err(Error::new(Kind::NotFound, message))
    }

    fn take_in_descendants(&mut self, root: u32) -> Result<()> {
        for _ in 0..MAX_SCANS {
            let mut new = process::descendants(Path::new(process::PROC), root)?;
            new.retain(|pid| !self.members.contains_key(pid) && self.require_within(*pid).is_ok());
            if new.is_empty() {
                break;
            }
            for pid in new {
                match self.take_in(pid) {
                    // Ended since the scan.
                    Err(error) if error.kind == Kind::NotFound => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Moves one process to a leaf of its cgroup.
    fn take_in(&mut self, pid: u32) -> Result<()> {
        let process = Process::open(pid)?;
        let path = cgroup::path_below(&self.mount, pid)?;
        if !self.leaves.iter().any(|leaf| path.starts_with(&leaf.path)) {
            let leaf = self.leaf_below(&path)?;
            cgroup::move_process(pid, &leaf)?;
        }
        if process.is_ending() {
            return Err(Error::new(Kind::NotFound, format!("process {pid} ended")));
        }
        self.members.insert(pid, process);
        Ok(())
    }

    fn leaf_below(&mut self, parent: &Path) -> Result<PathBuf> {
        let path = parent.join(&self.name);
        let object = Object::Leaf { path: path.clone() };
        let journal = journal::current().ok_or_else(|| {
            Error::failed(format!(
                "make {object}: there is no journal in which it could be written down first"
            ))
        })?;
        journal.borrow_mut().record(object)?;
        fault::point("crowd.recorded");
        let made = cgroup::make_leaf(&path).and_then(|()| cgroup::get_cgroup_id(&path));
        let id = match made {
            Ok(id) => id,
            Err(error) => {
                dissolve(path);
                return Err(error);
            }
        };
        let level = cgroup::depth(&self.mount, &path);
        self.ids.insert(id);
        // Limits above this one hold what is born here as well.
        CROWDS.with_borrow(|crowds| {
            for other in crowds.values().filter_map(Weak::upgrade) {
                if let Ok(mut other) = other.try_borrow_mut()
                    && other.leaves.iter().any(|leaf| path.starts_with(&leaf.path))
                {
                    other.ids.insert(id);
                }
            }
        });
        self.leaves.push(Leaf { path: path.clone(), id, level });
        Ok(path)
    }

    /// Where its processes are.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Whether a socket that was made in the cgroup of that id is known by it.
    pub fn knows_by_cgroup(&self, cgroup: Option<u64>) -> bool {
        cgroup.is_some_and(|id| self.ids.contains(&id))
    }

    /// Its processes. Those that somebody moved elsewhere are moved again; how many these were.
    pub fn look(&mut self) -> Result<(Vec<u32>, usize)> {
        let mut pids = self.listed();
        self.members.retain(|_, process| process.alive());
        let missing: Vec<u32> = self.members.keys().copied().filter(|pid| !pids.contains(pid)).collect();
        let mut moved = 0;
        for pid in missing {
            match self.take_in(pid) {
                Ok(()) => moved += 1,
                Err(error) if error.kind == Kind::NotFound => {
                    self.members.remove(&pid);
                }
                Err(error) => return Err(error),
            }
        }
        if moved > 0 {
            pids = self.listed();
        }
        for &pid in &pids {
            if !self.members.contains_key(&pid)
                && let Ok(process) = Process::open(pid)
            {
                self.members.insert(pid, process);
            }
        }
        // Zombies are listed until they are reaped.
        pids.retain(|pid| self.members.contains_key(pid));
        Ok((pids, moved))
    }

    fn listed(&self) -> Vec<u32> {
        self.leaves.iter().flat_map(|leaf| cgroup::processes(&leaf.path)).collect()
    }

    /// The processes without a further look.
    pub fn processes(&self) -> Vec<u32> {
        self.listed().into_iter().filter(|pid| self.members.get(pid).is_none_or(Process::alive)).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for leaf in self.leaves.drain(..).rev() {
            dissolve(leaf.path);
        }
        tidy();
    }
}
