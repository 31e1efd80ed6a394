//! Facts about processes: which one an id means, whether it still lives, who descends from it.
//!
//! An id alone is no identity, for it is used again. A [`Process`] is held by its pidfd, and written
//! down as id and start time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::kill,
    unistd::Pid,
};

use crate::error::{Context, Error, Kind, Result};

/// Where processes are read from.
pub const PROC: &str = "/proc";

/// `PF_KTHREAD` of the kernel's include/linux/sched.h.
const PF_KTHREAD: u64 = 0x0020_0000;
/// `PF_EXITING` of the same: it runs no code of its own any more, though it is no zombie yet.
const PF_EXITING: u64 = 0x0000_0004;

/// A process, told from any later one of the same id.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Opens a process by its id. [`Kind::NotFound`] if there is none, or the id is a thread's.
    pub fn open(pid: u32) -> Result<Self> {
        match pidfd_open(pid) {
            Ok(fd) => Ok(Self { pid, fd }),
            Err(cause) => {
                // A better answer than the kernel's number, if /proc has one.
                Stat::of_process(pid)?;
                Err(cause).context(format!("open process {pid}"))
            }
        }
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs; false from the moment its last thread is gone, reaped or not.
    pub fn alive(&self) -> bool {
        is_running(self.fd.as_fd())
    }

    /// Whether it is as good as gone: no thread of it will run any more. True a little earlier than
    /// [`Process::alive`] is false, since the kernel says a process's exit to its tracepoints before it
    /// says it to pidfds.
    pub fn is_ending(&self) -> bool {
        let proc = Path::new(PROC);
        let stat = Stat::read(proc, self.pid);
        // Asked last: if it lives, what was read was its own.
        !matches!(stat, Ok(Some(stat)) if !stat.has_ended(proc, self.pid)) || !self.alive()
    }

    /// Its pidfd, which becomes readable when it ends.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the process behind a pidfd still runs.
pub fn is_running(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    // An error says nothing about the process; those who ask ask again.
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::c_int, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name of the main thread, at most 15 bytes.
    pub comm: String,
    /// State letter: `R`, `S`, `Z` …
    pub state: char,
    /// Parent's id.
    pub parent: u32,
    /// Clock ticks from the boot to its start.
    pub start_time: u64,
    flags: u64,
    threads: u64,
}

impl Stat {
    /// Reads it; `None` when there is no such process or thread.
    pub fn read(proc: &Path, pid: u32) -> Result<Option<Self>> {
        let path = proc.join(pid.to_string()).join("stat");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                return Ok(None);
            }
            Err(cause) => return Err(cause).context(format!("read {}", path.display())),
        };
        let text = String::from_utf8_lossy(&text);
        Self::parse(&text).map(Some).ok_or_else(|| {
            Error::failed(format!("{} has an unknown form: '{}'", path.display(), text.trim_end()))
        })
    }

    /// The name stands in parentheses and may hold spaces and parentheses itself.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let (_, comm) = head.split_once('(')?;
        let fields: Vec<_> = tail.split_ascii_whitespace().collect();
        // The manual counts from 1 and the state is field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            comm: comm.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: u32::try_from(field(4)?).ok()?,
            start_time: field(22)?,
            flags: field(9)?,
            threads: field(20)?,
        })
    }

    /// Whether its main thread is gone and its parent has not yet asked for its end.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    /// Nothing of it runs any more; only the kernel, or its parent, is not done with it. A main thread
    /// may end before the others, so these are looked at too.
    fn has_ended(&self, proc: &Path, pid: u32) -> bool {
        self.thread_has_ended()
            && (self.threads <= 1
                || threads(proc, pid).into_iter().all(|thread| {
                    thread == pid
                        || !matches!(Self::read(&proc.join(pid.to_string()).join("task"), thread),
                            Ok(Some(stat)) if !stat.thread_has_ended())
                }))
    }

    fn thread_has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') || self.flags & PF_EXITING != 0
    }

    /// Of a process that lives; else an error that says what the id means instead.
    fn of_process(pid: u32) -> Result<Self> {
        let proc = Path::new(PROC);
        let Some(stat) = Self::read(proc, pid)? else {
            return Err(absent(pid));
        };
        let leader = thread_group(proc, pid)?;
        if leader != pid {
            let name = comm(leader).unwrap_or_default();
            return Err(not_found(format!("{pid} is a thread of process {leader} ({name}), not a process")));
        }
        if stat.has_ended(proc, pid) {
            return Err(not_found(format!("process {pid} ({}) has ended", stat.comm)));
        }
        Ok(stat)
    }
}

fn not_found(message: String) -> Error {
    Error::new(Kind::NotFound, message)
}

/// Why /proc does not know the id.
fn absent(pid: u32) -> Error {
    // Signal 0 only asks whether the process is there.
    let there = |pid| matches!(kill(Pid::from_raw(pid), None), Ok(()) | Err(nix::Error::EPERM));
    if i32::try_from(pid).is_ok_and(|pid| pid > 0 && there(pid)) {
        let message = format!("process {pid} is hidden from us: /proc is mounted with hidepid");
        return Error::new(Kind::NotPermitted, message);
    }
    not_found(format!("no process has the id {pid}"))
}

/// Ids of a process's threads; none when it is gone.
fn threads(proc: &Path, pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(proc.join(pid.to_string()).join("task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Id of the process that thread `id` belongs to.
fn thread_group(proc: &Path, id: u32) -> Result<u32> {
    let path = proc.join(id.to_string()).join("status");
    let text = fs::read(&path).context(format!("read {}", path.display()))?;
    String::from_utf8_lossy(&text)
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
        .ok_or_else(|| Error::failed(format!("{} has no line 'Tgid'", path.display())))
}

/// Looks at a process that is to be limited and returns its name (comm). [`Kind::NotFound`] when the
/// id is no living process; [`Kind::Usage`] for a kernel thread, which owns no sockets.
pub fn target(pid: u32) -> Result<String> {
    let stat = Stat::of_process(pid)?;
    if stat.flags & PF_KTHREAD != 0 {
        let message =
            format!("{pid} ({}) is a kernel thread: it has no sockets that could be limited", stat.comm);
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(stat.comm)
}

/// Whether it belongs to the kernel, and has neither a file nor sockets; false when there is none of that id.
pub fn is_kernel_thread(proc: &Path, pid: u32) -> bool {
    matches!(Stat::read(proc, pid), Ok(Some(stat)) if stat.flags & PF_KTHREAD != 0)
}

/// Name of a process, or of a thread; `None` when there is none of that id.
pub fn comm(id: u32) -> Option<String> {
    Stat::read(Path::new(PROC), id).ok()?.map(|stat| stat.comm)
}

/// Clock ticks from the boot to the start of a process that has not ended.
pub fn start_time(pid: u32) -> Result<u64> {
    Stat::of_process(pid).map(|stat| stat.start_time)
}

/// Whether the process of that id and start time has not ended.
pub fn lives(proc: &Path, pid: u32, start_time: u64) -> Result<bool> {
    Ok(Stat::read(proc, pid)?.is_some_and(|stat| stat.start_time == start_time && !stat.has_ended(proc, pid)))
}

/// All processes that descend from `pid` now, without itself, parents before their children.
/// `proc` is the mounted proc file system.
pub fn descendants(proc: &Path, pid: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir(proc).context(format!("list {}", proc.display()))? {
        let entry = entry.context(format!("list {}", proc.display()))?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(stat) = Stat::read(proc, id)? {
            children.entry(stat.parent).or_default().push(id);
        }
    }
    let mut found = Vec::new();
    let mut next = 0;
    let mut of = pid;
    loop {
        // Removing it also ends a circle, which two readings at different times could make.
        found.extend(children.remove(&of).unwrap_or_default());
        match found.get(next) {
            Some(&id) => of = id,
            None => break,
        }
        next += 1;
    }
    Ok(found)
}

/// Ids of all processes. `proc` is the mounted proc file system.
pub fn all(proc: &Path) -> Result<Vec<u32>> {
    let entries = fs::read_dir(proc).context(format!("list {}", proc.display()))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Numbers of the descriptors of a process that are sockets; none when it ended, or may not be looked into.
pub fn sockets(proc: &Path, pid: u32) -> Vec<u32> {
    socket_descriptors(proc, pid).into_iter().map(|(fd, _)| fd).collect()
}

/// The same, each with the socket's inode number.
pub fn socket_descriptors(proc: &Path, pid: u32) -> Vec<(u32, u64)> {
    let Ok(entries) = fs::read_dir(proc.join(format!("{pid}/fd"))) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, inode))
        })
        .collect()
}

/// Inode numbers of the sockets that a process has open; none when it ended, or may not be looked into.
pub fn socket_inodes(proc: &Path, pid: u32) -> HashSet<u32> {
    socket_descriptors(proc, pid).into_iter().map(|(_, inode)| inode as u32).collect()
}

/// Inode number of a process's network namespace; `None` when it ended, or may not be looked into.
pub fn network_namespace(proc: &Path, pid: u32) -> Option<u64> {
    let target = fs::read_link(proc.join(format!("{pid}/ns/net"))).ok()?;
    target.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The network namespaces that a process's threads are in, each with one thread of it; none when it ended, or may not
/// be looked into.
pub fn network_namespaces(proc: &Path, pid: u32) -> BTreeMap<u64, u32> {
    let tasks = proc.join(format!("{pid}/task"));
    let entries = fs::read_dir(&tasks).into_iter().flatten().flatten();
    let threads = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    threads.filter_map(|thread| Some((network_namespace(&tasks, thread)?, thread))).collect()
}

/// Whether this process sees the ids that the kernel's own programs see.
pub fn in_initial_pid_namespace() -> Result<bool> {
    /// PROC_PID_INIT_INO of include/linux/proc_ns.h.
    const INITIAL: &str = "pid:[4026531836]";
    // Not by our id: a /proc of another namespace knows somebody else by it.
    const PATH: &str = "/proc/self/ns/pid";
    let link = fs::read_link(PATH).context(format!("read {PATH}"))?;
    Ok(link.to_string_lossy() == INITIAL)
}

/// Whether /proc knows processes by the ids that this process knows them by.
pub fn proc_is_ours() -> Result<bool> {
    let ours = fs::read_link("/proc/self").context("read /proc/self")?;
    Ok(ours.to_str() == Some(&std::process::id().to_string()))
}

/// Whether a process, whose id is as we see it, sees the same ids as we do. Takes no right, unlike the
/// names of its namespaces. With a /proc of another namespace, which knows it by another id, nobody can
/// tell; then the answer is yes.
pub fn in_our_pid_namespace(pid: u32) -> Result<bool> {
    if !proc_is_ours()? {
        return Ok(true);
    }
    Ok(namespaces_below(&pid.to_string())? == namespaces_below("self")?)
}

/// In how many PID namespaces a process has an id, from that of the mounted /proc on down.
fn namespaces_below(pid: &str) -> Result<usize> {
    let path = Path::new(PROC).join(pid).join("status");
    let text = fs::read(&path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => not_found(format!("no process has the id {pid}")),
        _ => Error::caused(Kind::Failed, format!("read {}", path.display()), &cause),
    })?;
    let text = String::from_utf8_lossy(&text);
    let ids = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.map(|ids| ids.split_whitespace().count())
        .ok_or_else(|| Error::failed(format!("{} has no line 'NSpid'", path.display())))
}

/// Whether a process is stopped by a signal, and goes on only with SIGCONT.
pub fn is_stopped(pid: u32) -> bool {
    matches!(Stat::read(Path::new(PROC), pid), Ok(Some(stat)) if stat.state == 'T')
}

/// No program that is started from here on inherits a descriptor beyond stdin, stdout and stderr. Only system calls, so
/// that it may be done between fork and exec.
pub fn keep_descriptors() {
    // SAFETY: only sets flags of our own descriptors.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if marked != 0 {
        // Linux before 5.11. Rust marks all it opens; this is for what we were given ourselves.
        for fd in 3..1024 {
            // SAFETY: as above; a number that is no descriptor gives an error that does not matter.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Descriptor number of a pidfd that a program started by us is to inherit.
pub fn number(process: &Process) -> i32 {
    process.fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_name_may_hold_anything() {
        let tail = "S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 9876 1 2";
        for name in ["bash", "a b", "tmux: server (1)", ") R 1 (", ""] {
            let stat = Stat::parse(&format!("42 ({name}) {tail}\n")).unwrap();
            assert_eq!((stat.comm.as_str(), stat.state, stat.parent), (name, 'S', 7));
            assert_eq!((stat.start_time, stat.threads, stat.flags), (9876, 3, 4194560));
        }
        for broken in ["", "42", "42 (x", "42 (x)", "42 (x) S 7 1"] {
            assert_eq!(Stat::parse(broken), None);
        }
    }

    #[test]
    fn a_stopped_process_is_told_from_one_that_runs() {
        let mut child = sleeper();
        assert!(!is_stopped(child.id()));
        kill(Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGSTOP).unwrap();
        let begun = std::time::Instant::now();
        while !is_stopped(child.id()) {
            assert!(begun.elapsed().as_secs() < 10);
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_stopped(child.id()), "there is no such process");
    }

    #[test]
    fn a_process_is_known_until_it_ends() {
        let mut child = sleeper();
        let pid = child.id();
        let process = Process::open(pid).unwrap();
        let start = start_time(pid).unwrap();
        assert!(process.alive() && lives(Path::new(PROC), pid, start).unwrap());
        assert!(!lives(Path::new(PROC), pid, start + 1).unwrap());
        child.kill().unwrap();
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, 5_000u16).unwrap(), 1);
        // Not reaped yet.
        assert!(!process.alive() && !lives(Path::new(PROC), pid, start).unwrap());
        let error = target(pid).unwrap_err();
        assert_eq!(error.kind, Kind::NotFound);
        assert!(error.message.contains(&pid.to_string()) && error.message.contains("has ended"), "{error}");
        child.wait().unwrap();
        for error in [target(pid).unwrap_err(), Process::open(pid).unwrap_err()] {
            assert_eq!(error.kind, Kind::NotFound);
            assert!(error.message.contains(&pid.to_string()), "{error}");
        }
    }

    #[test]
    fn ids_that_no_process_can_have() {
        for pid in [0, u32::MAX, i32::MAX as u32] {
            assert_eq!(target(pid).unwrap_err().kind, Kind::NotFound, "{pid}");
            assert_eq!(Process::open(pid).unwrap_err().kind, Kind::NotFound, "{pid}");
        }
    }

    #[test]
    fn a_thread_is_named_with_its_process() {
        let (send, receive) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            let _ = stopped.recv();
        });
        let id = receive.recv().unwrap();
        for error in [target(id).unwrap_err(), Process::open(id).unwrap_err()] {
            assert_eq!(error.kind, Kind::NotFound);
            let expected = format!("{id} is a thread of process {}", std::process::id());
            assert!(error.message.starts_with(&expected), "{error}");
        }
        drop(stop);
        thread.join().unwrap();
    }

    #[test]
    fn a_process_lives_as_long_as_one_of_its_threads() {
        let proc = tempfile::tempdir().unwrap();
        let write = |path: &str, state: char, flags: u64, threads: u32| {
            fs::create_dir_all(proc.path().join(path)).unwrap();
            let stat = format!("7 (x) {state} 1 1 1 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 {threads} 0 5 1 2");
            fs::write(proc.path().join(path).join("stat"), stat).unwrap();
        };
        let lives = || lives(proc.path(), 7, 5).unwrap();
        write("7", 'S', 0, 1);
        assert!(lives());
        write("7", 'R', PF_EXITING, 1);
        assert!(!lives(), "on its way out, though no zombie yet");
        write("7", 'Z', PF_EXITING, 2);
        write("7/task/7", 'Z', PF_EXITING, 2);
        write("7/task/8", 'S', 0, 2);
        assert!(lives(), "its main thread ended first");
        write("7/task/8", 'R', PF_EXITING, 2);
        assert!(!lives(), "all of its threads are on their way out");
    }

    #[test]
    fn a_kernel_thread_is_refused() {
        // In a container process 2 may be anything.
        if comm(2).as_deref() == Some("kthreadd") {
            let error = target(2).unwrap_err();
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.message.contains("kernel thread"), "{error}");
        }
    }

    #[test]
    fn descendants_of_a_made_up_proc() {
        let proc = tempfile::tempdir().unwrap();
        let add = |pid: u32, parent: u32| {
            let folder = proc.path().join(pid.to_string());
            fs::create_dir(&folder).unwrap();
            let stat = format!("{pid} (x) S {parent} 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 5 1 2");
            fs::write(folder.join("stat"), stat).unwrap();
        };
        for (pid, parent) in [(1, 0), (10, 1), (11, 10), (12, 10), (13, 11), (20, 1), (21, 20)] {
            add(pid, parent);
        }
        fs::create_dir(proc.path().join("self")).unwrap();
        fs::create_dir(proc.path().join("99")).unwrap();
        let mut found = descendants(proc.path(), 10).unwrap();
        assert_eq!(found.pop(), Some(13));
        found.sort_unstable();
        assert_eq!(found, [11, 12]);
        assert_eq!(descendants(proc.path(), 13).unwrap(), [0u32; 0]);
        // A circle ends.
        add(30, 31);
        add(31, 30);
        assert_eq!(descendants(proc.path(), 30).unwrap().len(), 2);
    }
}
