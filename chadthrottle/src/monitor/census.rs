//! What processes are called, and who they belong to. Read from /proc once for each process, again when its
//! name changes and now and then.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::reading::Trace;
use crate::{
    kernel::{
        facts::{Facts, user_name},
        process::Stat,
    },
    model::{Process, ProcessKey, ProcessKind, cgroups},
};

/// A process may move to another cgroup, or change its user; mostly soon after its start. It is read again after so
/// long, and each time after twice as long as before.
const FIRST_STALE: Duration = Duration::from_secs(1);
/// But not after longer than this.
const STALE: Duration = Duration::from_secs(30);
/// Longer command lines are cut, bytes.
const LONGEST_COMMAND: usize = 4096;

struct Known {
    /// Without anything that is counted.
    process: Process,
    read_at: Instant,
    /// How long that is good for.
    good_for: Duration,
    /// In which round it was last looked at.
    round: u64,
}

impl Known {
    /// While a program is being started its name is there before its arguments are.
    fn is_good(&self, stat: &Stat) -> bool {
        let process = &self.process;
        process.name == stat.comm && !process.cmdline.is_empty() && self.read_at.elapsed() < self.good_for
    }
}

/// The processes of the host, as far as somebody asked for them.
pub struct Census {
    proc: PathBuf,
    known: HashMap<ProcessKey, Known>,
    users: HashMap<u32, String>,
    /// Paths of cgroups by their ids, below the mount.
    cgroups: HashMap<u64, String>,
    mount: Option<PathBuf>,
    round: u64,
}

impl Census {
    /// `proc`: the mounted proc file system; `mount`: of cgroup2.
    pub fn new(proc: &Path, mount: Option<PathBuf>) -> Self {
        Self {
            proc: proc.to_owned(),
            known: HashMap::new(),
            users: HashMap::new(),
            cgroups: HashMap::new(),
            mount,
            round: 0,
        }
    }

    /// Begins a new round: what nobody asked for in the last one is forgotten.
    pub fn begin_round(&mut self) {
        let last = self.round;
        self.known.retain(|_, known| known.round == last);
        self.round += 1;
    }

    /// What a process is called; `trace` is what is known of it if it has ended.
    pub fn look(&mut self, key: ProcessKey, trace: Option<&Trace>) -> Process {
        if key.kind != ProcessKind::Process {
            let name = if key.kind == ProcessKind::Kernel { "kernel" } else { "other" };
            return Process { kind: key.kind, name: name.into(), alive: true, ..Process::default() };
        }
        let round = self.round;
        if let Some(known) = self.known.get(&key)
            && known.round == round
        {
            return known.process.clone();
        }
        // A zombie has nothing left to tell.
        let stat = self.stat(key.pid).filter(|stat| stat.start_time == key.start_time && !stat.is_zombie());
        let old = self.known.remove(&key);
        let good_for = match (&stat, &old) {
            (Some(stat), Some(old)) if old.process.name == stat.comm => (old.good_for * 2).min(STALE),
            _ => FIRST_STALE,
        };
        let mut process = match (stat, old) {
            (Some(stat), Some(old)) if old.is_good(&stat) => {
                let (read_at, good_for) = (old.read_at, old.good_for);
                let process = Process { parent: stat.parent, ..old.process };
                self.known.insert(key, Known { process: process.clone(), read_at, good_for, round });
                return process;
            }
            (Some(stat), old) => {
                let mut process = self.read(key, &stat);
                // What an ended one can't tell any more was known.
                if let (true, Some(old)) = (process.exe.is_none(), old) {
                    let Process { exe, cmdline, user, cgroup, unit, container, .. } = old.process;
                    process = Process { exe, cmdline, user, cgroup, unit, container, ..process };
                }
                process
            }
            (None, Some(old)) => Process { alive: false, ..old.process },
            (None, None) => self.traced(key, trace),
        };
        // It ended, or became a zombie, between two looks into /proc.
        if process.user.is_empty() && trace.is_some() {
            let Process { name, user, cgroup, unit, container, .. } = self.traced(key, trace);
            let name = if process.name.is_empty() { name } else { process.name };
            process = Process { name, user, cgroup, unit, container, ..process };
        }
        self.known.insert(key, Known { process: process.clone(), read_at: Instant::now(), good_for, round });
        process
    }

    /// The process that has an id now.
    pub fn key_of(&self, pid: u32) -> Option<ProcessKey> {
        let stat = self.stat(pid).filter(|stat| !stat.is_zombie())?;
        Some(ProcessKey { kind: ProcessKind::Process, pid, start_time: stat.start_time })
    }

    /// All that are above these, without the machine's first process and its kernel threads' one.
    pub fn ancestors(&mut self, of: &[Process]) -> Vec<Process> {
        let mut met: HashSet<ProcessKey> = of.iter().map(Process::key).collect();
        let mut found = Vec::new();
        let mut parents: Vec<u32> = of.iter().map(|process| process.parent).collect();
        while let Some(pid) = parents.pop() {
            if pid <= 2 {
                continue;
            }
            let Some(key) = self.key_of(pid).filter(|key| met.insert(*key)) else { continue };
            let process = self.look(key, None);
            parents.push(process.parent);
            found.push(process);
        }
        found
    }

    fn stat(&self, pid: u32) -> Option<Stat> {
        Stat::read(&self.proc, pid).ok().flatten()
    }

    fn read(&mut self, key: ProcessKey, stat: &Stat) -> Process {
        let mut process = Process {
            pid: key.pid,
            start_time: key.start_time,
            parent: stat.parent,
            name: stat.comm.clone(),
            alive: true,
            ..Process::default()
        };
        let Ok(Some(facts)) = Facts::read(&self.proc, key.pid) else { return process };
        if facts.start_time != key.start_time {
            return process;
        }
        process.exe = facts.exe.as_ref().map(|exe| exe.path.to_string_lossy().into_owned());
        process.cmdline = self.command_line(key.pid);
        process.user = self.user(facts.uid);
        place(&mut process, facts.cgroup().unwrap_or_default());
        // Where cgroup2 is not the one in use.
        for membership in &facts.cgroups {
            let path = membership.path.as_str();
            if process.unit.is_none() && membership.controllers == "name=systemd" {
                process.unit = cgroups::unit(path).map(str::to_owned);
            }
            if process.container.is_none() {
                process.container = cgroups::containers(path).pop().map(|container| container.id);
            }
        }
        process
    }

    fn traced(&mut self, key: ProcessKey, trace: Option<&Trace>) -> Process {
        let mut process = Process { pid: key.pid, start_time: key.start_time, ..Process::default() };
        if let Some(trace) = trace {
            process.name = trace.name.clone();
            process.parent = trace.parent;
            process.user = self.user(trace.uid);
            let path = self.cgroup_path(trace.cgroup);
            place(&mut process, &path);
        }
        process
    }

    fn command_line(&self, pid: u32) -> String {
        let mut bytes = fs::read(self.proc.join(format!("{pid}/cmdline"))).unwrap_or_default();
        bytes.truncate(LONGEST_COMMAND);
        while bytes.pop_if(|last| *last == 0).is_some() {}
        bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn user(&mut self, uid: u32) -> String {
        self.users.entry(uid).or_insert_with(|| user_name(uid).unwrap_or_else(|| uid.to_string())).clone()
    }

    /// Path of a cgroup by its id: found by looking through all that there are.
    fn cgroup_path(&mut self, id: u64) -> String {
        if id == 0 {
            return String::new();
        }
        if let Some(path) = self.cgroups.get(&id) {
            return path.clone();
        }
        if let Some(mount) = &self.mount {
            self.cgroups.clear();
            list_cgroups(mount, mount, &mut self.cgroups);
        }
        // One that is gone is not looked for again and again.
        self.cgroups.entry(id).or_default().clone()
    }
}

/// Writes down a cgroup2 path and what it says.
fn place(process: &mut Process, path: &str) {
    process.cgroup = path.to_owned();
    process.unit = cgroups::unit(path).map(str::to_owned);
    process.container = cgroups::containers(path).pop().map(|container| container.id);
}

fn list_cgroups(mount: &Path, folder: &Path, found: &mut HashMap<u64, String>) {
    use std::os::unix::fs::MetadataExt;
    if let Ok(meta) = fs::metadata(folder) {
        let below = folder.strip_prefix(mount).unwrap_or(folder);
        found.insert(meta.ino(), format!("/{}", below.display()));
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_cgroups(mount, &entry.path(), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_keeps_its_facts_when_it_has_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let mut census = Census::new(Path::new("/proc"), None);
        let key = census.key_of(child.id()).unwrap();
        let mut seen = census.look(key, None);
        // Between fork and exec it still is the test.
        for _ in 0..200 {
            if seen.name == "sleep" && !seen.cmdline.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            census.begin_round();
            seen = census.look(key, None);
        }
        assert_eq!((seen.name.as_str(), seen.cmdline.as_str(), seen.alive), ("sleep", "sleep 60", true));
        assert_eq!(seen.parent, std::process::id());
        assert!(seen.exe.as_ref().is_some_and(|exe| exe.starts_with('/')) && !seen.user.is_empty());
        assert!(
            census.ancestors(std::slice::from_ref(&seen)).iter().any(|each| each.pid == std::process::id())
        );
        child.kill().unwrap();
        child.wait().unwrap();
        census.begin_round();
        assert_eq!(census.look(key, None), Process { alive: false, ..seen });
        census.begin_round();
        census.begin_round();
        let trace = Trace { name: "gone".into(), uid: 0, parent: 7, cgroup: 0 };
        let traced = census.look(key, Some(&trace));
        assert_eq!(
            (traced.name.as_str(), traced.user.as_str(), traced.parent, traced.alive),
            ("gone", "root", 7, false)
        );
    }

    #[test]
    fn a_process_is_read_again_soon_and_then_less_often() {
        let mut census = Census::new(Path::new("/proc"), None);
        let key = census.key_of(std::process::id()).unwrap();
        let true_user = census.look(key, None).user;
        let mut waits = Vec::new();
        for _ in 0..7 {
            let known = census.known.get_mut(&key).unwrap();
            waits.push(known.good_for.as_secs());
            known.process.user = "before".into();
            census.begin_round();
            assert_eq!(census.look(key, None).user, "before", "not yet");
            let known = census.known.get_mut(&key).unwrap();
            known.read_at = Instant::now().checked_sub(known.good_for).unwrap();
            census.begin_round();
            assert_eq!(census.look(key, None).user, true_user);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn what_proc_did_not_tell_in_time_is_known_by_the_trace() {
        let proc = tempfile::tempdir().unwrap();
        let mut census = Census::new(proc.path(), None);
        let key = ProcessKey { kind: ProcessKind::Process, pid: 7, start_time: 5 };
        let half = Process { pid: 7, start_time: 5, name: "half".into(), alive: true, ..Process::default() };
        census.known.insert(key, Known { process: half, read_at: Instant::now(), good_for: STALE, round: 0 });
        census.begin_round();
        let trace = Trace { name: "early".into(), uid: 0, parent: 3, cgroup: 0 };
        let seen = census.look(key, Some(&trace));
        assert_eq!((seen.name.as_str(), seen.user.as_str(), seen.alive), ("half", "root", false));
    }

    #[test]
    fn rows_that_are_no_process_have_names() {
        let mut census = Census::new(Path::new("/nowhere"), None);
        let key = |kind| ProcessKey { kind, ..ProcessKey::default() };
        assert_eq!(census.look(key(ProcessKind::Kernel), None).name, "kernel");
        assert_eq!(census.look(key(ProcessKind::Other), None).name, "other");
        assert!(!census.look(ProcessKey { pid: 5, ..ProcessKey::default() }, None).alive);
    }
}
