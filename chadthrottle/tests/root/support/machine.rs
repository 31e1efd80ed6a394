//! What of ours could be left on the machine: eBPF programs, links, maps and pins, cgroups, network devices,
//! qdiscs, processes. Looked at before and after each trial.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use chadthrottle::{
    Error, Kind, Result,
    kernel::{cgroup, netlink::Route},
};

use super::{ensure, program};

/// The kernel frees eBPF objects and cgroups a little after their last user is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Names of everything that may not grow.
#[derive(Debug)]
pub struct Machine(BTreeSet<String>);

impl Machine {
    /// As it is now.
    pub fn look() -> Result<Self> {
        let mut found = BTreeSet::new();
        for program in aya::programs::loaded_programs().flatten() {
            found.insert(format!("eBPF program {} {}", program.id(), program.name_as_str().unwrap_or("?")));
        }
        for link in aya::programs::loaded_links().flatten() {
            found.insert(format!("eBPF link {} of program {}", link.id(), link.program_id()));
        }
        for map in aya::maps::loaded_maps().flatten() {
            found.insert(format!("eBPF map {} {}", map.id(), map.name_as_str().unwrap_or("?")));
        }
        for device in Route::open()?.links()? {
            found.insert(format!("network device {} {}", device.index, device.name));
        }
        names_below(Path::new("/sys/fs/bpf"), "chad", &mut found)?;
        names_below(&cgroup::mount()?, "chadt-", &mut found)?;
        found.extend(processes()?);
        Ok(Self(found))
    }

    /// Fails when there is more than before.
    pub fn ensure_restored(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::look()?;
            let left: Vec<_> = now.0.difference(&self.0).map(String::as_str).collect();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "left behind: {}", left.join(", "));
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Folders and files whose names begin with `start`.
fn names_below(folder: &Path, start: &str, found: &mut BTreeSet<String>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // Not there, or just gone.
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(()),
        Err(cause) => return Err(failed(&format!("list {}", folder.display()), &cause)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(start) {
            found.insert(path.display().to_string());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names_below(&path, start, found)?;
        }
    }
    Ok(())
}

/// Processes that run the binary under test.
fn processes() -> Result<Vec<String>> {
    let program = program().canonicalize().map_err(|cause| failed("find the binary under test", &cause))?;
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
