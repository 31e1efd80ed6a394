//! Which processes a target means now, and why. The kernel side decides the same for those that start later
//! (`chadthrottle-ebpf/src/rules.rs`); the two must agree.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use super::facts::{self, Facts};
use crate::{
    error::{Error, Kind, Result},
    model::{
        Target,
        cgroups::{self, Container},
    },
};

/// Longest name of a process, bytes (TASK_COMM_LEN of the kernel, without the zero).
pub const LONGEST_COMM: usize = 15;

/// Why a process is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was named.
    Itself,
    /// It descends from that process.
    Descendant(u32),
    /// By its name (comm).
    Name,
    /// By the file name of its executable.
    FileName,
    /// It runs that file.
    Runs,
    /// It runs an earlier file of that path.
    RanBefore,
    /// It is in that cgroup.
    Cgroup(String),
    /// It is in a cgroup of that unit.
    Unit(String),
    /// It is in that container.
    Container(Container),
    /// It is that user's.
    User(u32),
    /// Every process is.
    Everybody,
}

/// All processes at one moment.
pub struct Census {
    /// By id.
    pub processes: BTreeMap<u32, Facts>,
}

/// A process that is meant, with every reason: the target, and what of the process fits it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its id.
    pub pid: u32,
    /// Why; never empty.
    pub why: Vec<(Target, Why)>,
}

impl Census {
    /// Of the mounted proc file system at `proc`.
    pub fn take(proc: &Path) -> Result<Self> {
        let processes = Facts::all(proc)?.into_iter().map(|facts| (facts.pid, facts)).collect();
        Ok(Self { processes })
    }

    /// The processes that any of the targets means, by id. Targets that only narrow mean every process when they
    /// stand alone.
    pub fn matches(&self, targets: &[Target]) -> Vec<Match> {
        let named: Vec<&Target> = targets.iter().filter(|target| target.names_processes()).collect();
        let mut found = BTreeMap::<u32, Match>::new();
        let mut note = |pid: u32, target: &Target, why: Why| {
            let entry = found.entry(pid).or_insert_with(|| Match { pid, why: Vec::new() });
            entry.why.push((target.clone(), why));
        };
        for target in &named {
            if let Target::Tree(root) = target {
                self.descendants(*root).into_iter().for_each(|pid| note(pid, target, Why::Descendant(*root)));
            }
            let file = match target {
                Target::Exe(path) => facts::identity(Path::new(path)),
                _ => None,
            };
            for facts in self.processes.values() {
                if let Some(why) = why(target, facts, file) {
                    note(facts.pid, target, why);
                }
            }
        }
        if named.is_empty() {
            for pid in self.processes.keys() {
                targets.iter().for_each(|target| note(*pid, target, Why::Everybody));
            }
        }
        found.into_values().collect()
    }

    fn descendants(&self, root: u32) -> BTreeSet<u32> {
        let mut children = HashMap::<u32, Vec<u32>>::new();
        for facts in self.processes.values() {
            children.entry(facts.parent).or_default().push(facts.pid);
        }
        let (mut found, mut next) = (BTreeSet::new(), vec![root]);
        while let Some(pid) = next.pop() {
            next.extend(children.remove(&pid).into_iter().flatten().filter(|child| found.insert(*child)));
        }
        found.remove(&root);
        found
    }

    /// The containers that a user may mean by `wanted`: one, if all is well.
    pub fn containers(&self, wanted: &str) -> BTreeSet<Container> {
        let all = self.processes.values().flat_map(|facts| &facts.cgroups);
        all.flat_map(|each| cgroups::containers(&each.path)).filter(|each| each.is(wanted)).collect()
    }

    /// The one container that `wanted` means, in all its cgroups.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when none runs; [`Kind::Usage`] when several ids begin so.
    pub fn container(&self, wanted: &str) -> Result<BTreeSet<Container>> {
        let found = self.containers(wanted);
        let ids: BTreeSet<&str> = found.iter().map(|each| each.id.as_str()).collect();
        let target = Target::Container(wanted.to_owned());
        match ids.len() {
            1 => Ok(found),
            0 => Err(Error::new(
                Kind::NotFound,
                format!(
                    "no running container fits {target}: give at least {} digits of its id, or its whole name (LXC, \
                     systemd-nspawn)",
                    cgroups::SHORTEST_ID
                ),
            )),
            _ => {
                let ids: Vec<_> = ids.into_iter().map(crate::model::text::escape).collect();
                Err(Error::new(
                    Kind::Usage,
                    format!("{target} fits {} containers: {}", ids.len(), ids.join(", ")),
                ))
            }
        }
    }
}

/// Whether one target means a process, and why. `file` is the file that an `exe:` path leads to now. `tree:` means
/// only its root here.
pub fn why(target: &Target, facts: &Facts, file: Option<(u64, u64)>) -> Option<Why> {
    match target {
        Target::Pid(pid) | Target::Tree(pid) => (facts.pid == *pid).then_some(Why::Itself),
        Target::Name(name) => {
            if name.len() <= LONGEST_COMM && facts.comm == name.as_bytes() {
                return Some(Why::Name);
            }
            facts.exe.as_ref().filter(|exe| exe.name() == name.as_bytes()).map(|_| Why::FileName)
        }
        Target::Exe(path) => {
            let exe = facts.exe.as_ref()?;
            if file.is_some() && exe.file == file {
                Some(Why::Runs)
            } else {
                (exe.deleted && exe.path == Path::new(path)).then_some(Why::RanBefore)
            }
        }
        Target::Cgroup(path) => {
            let own = facts.cgroup()?;
            is_below(own, path).then(|| Why::Cgroup(own.to_owned()))
        }
        Target::Unit(unit) => {
            // Version 1 keeps the units in a hierarchy of their own.
            let mut homes =
                facts.cgroups.iter().filter(|each| matches!(each.controllers.as_str(), "" | "name=systemd"));
            homes.find(|each| cgroups::is_in_unit(&each.path, unit)).map(|each| Why::Unit(each.path.clone()))
        }
        Target::Container(wanted) => {
            let mut all = facts.cgroups.iter().flat_map(|each| cgroups::containers(&each.path));
            all.find(|each| each.is(wanted)).map(Why::Container)
        }
        Target::User(user) => (user.parse() == Ok(facts.uid)).then_some(Why::User(facts.uid)),
        Target::Remote(_) | Target::Port(_) => None,
    }
}

/// Whether a cgroup is another one, or lies below it.
pub fn is_below(path: &str, ancestor: &str) -> bool {
    let ancestor = ancestor.trim_end_matches('/');
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::{super::facts::tests::FakeProc, *};

    const ID: &str = "4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d";

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn people() -> (FakeProc, Census) {
        let proc = FakeProc::new();
        proc.add(1, 0, b"systemd", "/usr/lib/systemd/systemd", 0, "0::/init.scope\n");
        proc.add(20, 1, b"nginx", "/usr/sbin/nginx", 0, "0::/system.slice/nginx.service\n");
        proc.add(21, 20, b"worker", "/usr/sbin/nginx", 33, "0::/system.slice/nginx.service/pool\n");
        proc.add(30, 1, b"a-long-script-n", "/usr/bin/dash", 1000, "0::/user.slice\n");
        let docker = format!("9:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/\n");
        proc.add(40, 1, b"nginx-2", "", 33, &docker);
        let census = Census::take(proc.path()).unwrap();
        (proc, census)
    }

    fn pids(census: &Census, texts: &[&str]) -> Vec<u32> {
        census.matches(&targets(texts)).into_iter().map(|each| each.pid).collect()
    }

    #[test]
    fn each_kind_means_its_own() {
        let (_proc, census) = people();
        for (texts, expected) in [
            (&["pid:20"][..], &[20][..]),
            (&["pid:999"], &[]),
            (&["tree:20"], &[20, 21]),
            (&["tree:1"], &[1, 20, 21, 30, 40]),
            (&["name:nginx"], &[20, 21]),
            (&["name:worker"], &[21]),
            (&["name:nginx-2"], &[40]),
            (&["name:a-long-script-name"], &[]),
            (&["cgroup:/system.slice"], &[20, 21]),
            (&["cgroup:/system.slice/nginx.service/pool"], &[21]),
            (&["cgroup:/system"], &[]),
            (&["cgroup:/"], &[1, 20, 21, 30, 40]),
            (&["unit:nginx"], &[20, 21]),
            (&["unit:system.slice"], &[20, 21]),
            (&["container:4f2a9c"], &[40]),
            (&["container:2a9c"], &[]),
            (&["user:33"], &[21, 40]),
            (&["user:33", "pid:20"], &[20, 21, 40]),
            (&["name:nginx", "port:443"], &[20, 21]),
            (&["port:443"], &[1, 20, 21, 30, 40]),
        ] {
            assert_eq!(pids(&census, texts), expected, "{texts:?}");
        }
        let both = census.matches(&targets(&["name:worker", "user:33", "remote:1.1.1.1"]));
        let of_21: Vec<_> = both[0].why.iter().map(|(_, why)| why.clone()).collect();
        assert_eq!((both[0].pid, of_21), (21, vec![Why::Name, Why::User(33)]));
    }

    #[test]
    fn a_file_is_known_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (tool, link, other) =
            (folder.path().join("tool"), folder.path().join("link"), folder.path().join("other"));
        std::fs::write(&tool, "").unwrap();
        std::fs::write(&other, "").unwrap();
        std::fs::hard_link(&tool, &link).unwrap();
        let proc = FakeProc::new();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        proc.add(5, 1, b"tool", &text(&tool), 0, "");
        proc.add(6, 1, b"tool", &text(&link), 0, "");
        proc.add(7, 1, b"tool", &text(&other), 0, "");
        proc.add(8, 1, b"tool", &(text(&tool) + " (deleted)"), 0, "");
        let census = Census::take(proc.path()).unwrap();
        assert_eq!(pids(&census, &[&format!("exe:{}", text(&tool))]), [5, 6, 8]);
        assert_eq!(pids(&census, &["exe:/no/such/file"]), [0u32; 0]);
    }

    #[test]
    fn one_container_is_meant() {
        let (proc, census) = people();
        let found = census.container("4f2a").unwrap();
        assert_eq!(found.iter().map(|each| each.id.as_str()).collect::<Vec<_>>(), [ID]);
        assert_eq!(census.container("beef").unwrap_err().kind, Kind::NotFound);
        let other = ID.replace("4f2a9c0d4f2a9c0d", "4f2a9c0d00000000");
        proc.add(50, 1, b"x", "", 0, &format!("0::/docker/{other}\n"));
        let census = Census::take(proc.path()).unwrap();
        let error = census.container("4f2a").unwrap_err();
        assert!(error.kind == Kind::Usage && error.message.contains("fits 2 containers"), "{error}");
        assert!(census.container("4f2a9c0d4").is_ok());
    }

    #[test]
    fn below_means_whole_names() {
        assert!(is_below("/a/b", "/a") && is_below("/a", "/a") && is_below("/a", "/"));
        assert!(!is_below("/ab", "/a") && !is_below("/a", "/a/b"));
    }
}
