//! What of ours could be left on the machine: eBPF programs, links, maps and pins, cgroups, processes, and in every
//! network namespace devices, qdiscs, filters and nftables tables. Looked at before and after each trial, and at
//! every step that a trial lets fail.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use chadthrottle::{
    Error, Kind, Result,
    kernel::{cgroup, netns::Namespace},
};

use super::{ensure, network, program};

/// The kernel frees eBPF objects and cgroups a little after their last user is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps a map for as long as the owner's cgroup is there, which is looked for itself: no process holds this program.
const KEEPER: &str = "chadt_keeper";

/// eBPF objects with names like these are the system manager's, which loads some whenever a service starts.
const SYSTEMD: &str = "sd_";

/// Names of everything that may not grow.
#[derive(Debug)]
pub struct Machine<'a> {
    found: BTreeSet<String>,
    namespaces: Vec<(&'static str, &'a Namespace)>,
}

impl<'a> Machine<'a> {
    /// As it is now, without what other programs at work use; with what is in these network namespaces, under
    /// their names.
    pub fn look(namespaces: &[(&'static str, &'a Namespace)]) -> Result<Self> {
        let mut found = Self::look_here()?;
        network::list("", &mut found)?;
        for (name, namespace) in namespaces {
            namespace.run(|| network::list(&format!("{name}: "), &mut found))?;
        }
        Ok(Self { found, namespaces: namespaces.to_vec() })
    }

    fn look_here() -> Result<BTreeSet<String>> {
        // Read before the objects are listed: what is made in between counts as ours, and is looked at again.
        let others = Objects::of_other_programs()?;
        let mut found = BTreeSet::new();
        for program in aya::programs::loaded_programs().flatten() {
            if !others.programs.contains(&program.id()) {
                let name = program.name_as_str().unwrap_or("?");
                if !name.starts_with(SYSTEMD) {
                    found.insert(format!("eBPF program {} {name}", program.id()));
                }
            }
        }
        for link in aya::programs::loaded_links().flatten() {
            if !others.links.contains(&link.id()) {
                found.insert(format!("eBPF link {} of program {}", link.id(), link.program_id()));
            }
        }
        for map in aya::maps::loaded_maps().flatten() {
            if !others.maps.contains(&map.id()) {
                found.insert(format!("eBPF map {} {}", map.id(), map.name_as_str().unwrap_or("?")));
            }
        }
        names_below(Path::new("/sys/fs/bpf"), &|name| Some(name.starts_with("chad")), &mut found)?;
        // What is in another test run's cgroup is that run's.
        let ours = |name: &str| match name.starts_with("chadt-") {
            true if is_anothers(name) => None,
            ours => Some(ours),
        };
        names_below(&cgroup::mount()?, &ours, &mut found)?;
        found.extend(processes()?);
        Ok(found)
    }

    /// Fails when something stays that was not there before. What others make meanwhile, and what cannot be told
    /// from ours while they are at it, is not there at every look.
    pub fn ensure_restored(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut left = self.new_since()?;
        while !left.is_empty() {
            ensure!(
                Instant::now() < deadline,
                "left behind: {}",
                left.into_iter().collect::<Vec<_>>().join(", ")
            );
            thread::sleep(Duration::from_millis(50));
            let now = self.new_since()?;
            left.retain(|one| now.contains(one));
        }
        Ok(())
    }

    fn new_since(&self) -> Result<BTreeSet<String>> {
        let now = Self::look(&self.namespaces)?;
        Ok(now.found.difference(&self.found).cloned().collect())
    }
}

/// Whether a cgroup, by its name, is somebody else's. Whatever is ours has its maker's id as the third word of its name:
/// of tests this process, of the program one that is gone (of one that is at work the process itself is told).
fn is_anothers(name: &str) -> bool {
    let mut words = name.split('-').skip(1);
    let (kind, pid) = (words.next(), words.next().and_then(|word| word.parse::<u32>().ok()));
    let at_work = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    pid.is_none_or(|pid| pid != std::process::id() && (kind == Some("test") || at_work(pid)))
}

/// Ids of eBPF objects.
#[derive(Debug, Default)]
struct Objects {
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Objects {
    /// Those that processes hold which do not run the binary under test, and cgroups, with what these keep alive.
    fn of_other_programs() -> Result<Self> {
        let ours = binary_under_test()?;
        let mut held = Self::default();
        for pid in pids()? {
            let process = Path::new("/proc").join(pid.to_string());
            if fs::read_link(process.join("exe")).is_ok_and(|exe| exe != ours) {
                held.add_descriptors(&process.join("fdinfo"));
            }
        }
        for link in aya::programs::loaded_links().flatten() {
            if held.links.contains(&link.id()) {
                held.programs.insert(link.program_id());
            }
        }
        for program in aya::programs::loaded_programs().flatten() {
            if program.name_as_str() == Some(KEEPER) {
                held.programs.insert(program.id());
            }
            if held.programs.contains(&program.id()) {
                held.maps.extend(program.map_ids().ok().flatten().unwrap_or_default());
            }
        }
        Ok(held)
    }

    /// Takes in what the descriptors of a process, which may end meanwhile, refer to (bpf(2), fdinfo).
    fn add_descriptors(&mut self, fdinfo: &Path) {
        for entry in fs::read_dir(fdinfo).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
                let Ok(id) = value.trim().parse() else { continue };
                match key {
                    "prog_id" => self.programs.insert(id),
                    "link_id" => self.links.insert(id),
                    "map_id" => self.maps.insert(id),
                    _ => false,
                };
            }
        }
    }
}

/// Folders and files with names that are wanted; `None`: nor is what is below.
fn names_below(
    folder: &Path,
    wanted: &dyn Fn(&str) -> Option<bool>,
    found: &mut BTreeSet<String>,
) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // Not there, or just gone.
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(()),
        Err(cause) => return Err(failed(&format!("list {}", folder.display()), &cause)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Some(wanted_itself) = wanted(&entry.file_name().to_string_lossy()) else { continue };
        if wanted_itself {
            found.insert(path.display().to_string());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names_below(&path, wanted, found)?;
        }
    }
    Ok(())
}

fn binary_under_test() -> Result<PathBuf> {
    program().canonicalize().map_err(|cause| failed("find the binary under test", &cause))
}

/// Processes that run the binary under test.
fn processes() -> Result<Vec<String>> {
    let program = binary_under_test()?;
    let mut found = Vec::new();
    for pid in pids()? {
        let path = Path::new("/proc").join(pid.to_string());
        if fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program) {
            found.push(format!("process {pid}: {}", command_line(pid)));
        }
    }
    Ok(found)
}

/// All processes.
pub fn pids() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc").map_err(|cause| failed("list /proc", &cause))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// A process's arguments, with spaces between them; empty when it is gone.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

fn failed(message: &str, cause: &io::Error) -> Error {
    Error::caused(Kind::Failed, message, cause)
}
