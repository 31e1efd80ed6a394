//! Which rights it takes, and what is said when one is missing.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use caps::Capability;
use chadthrottle::selftest::process::{Call, Place};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::{
    actor::{self, Sink},
    support::*,
};

/// The limits here, bytes/s.
const RATE: f64 = 2e6;

/// A user with no rights: nobody.
const NOBODY: u32 = 65_534;

/// What `limit` takes, and nothing else.
const ENOUGH: [Capability; 3] = chadthrottle::kernel::caps::FOR_EBPF;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("rights::none", none),
        plain("rights::none_beside_the_owner_of_root", beside_root),
        plain("rights::three_capabilities", |scene| enough(scene, &ENOUGH, false)),
        plain("rights::three_file_capabilities", |scene| enough(scene, &[], true)),
        plain("rights::two_capabilities", two_capabilities),
        plain("rights::root_without_cap_bpf", root_without),
    ]
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_owned();
    move |cause| Error::failed(format!("{what}: {cause}"))
}

/// The program where everybody can start it, and a runtime folder of the user's own.
struct House {
    folder: TempDir,
}

impl House {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("chadt-rights-").tempdir();
        let house = Self { folder: folder.map_err(failed("make a folder"))? };
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(house.folder.path(), everybody.clone()).map_err(failed("open the folder"))?;
        fs::copy(program(), house.program()).map_err(failed("copy the program"))?;
        fs::set_permissions(house.program(), everybody).map_err(failed("open the program"))?;
        fs::create_dir(house.runtime_dir()).map_err(failed("make a folder"))?;
        std::os::unix::fs::chown(house.runtime_dir(), Some(NOBODY), Some(NOBODY))
            .map_err(failed("give the folder away"))?;
        Ok(house)
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("chadthrottle")
    }

    fn runtime_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// What setcap(8) does, as `struct vfs_cap_data` of revision 2.
    fn set_file_capabilities(&self, capabilities: &[Capability]) -> Result<()> {
        const REVISION_2_EFFECTIVE: u32 = 0x0200_0000 | 1;
        let mask = mask(capabilities);
        let words = [REVISION_2_EFFECTIVE, mask as u32, 0, (mask >> 32) as u32, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let path = CString::new(self.program().as_os_str().as_bytes())
            .map_err(|cause| Error::failed(cause.to_string()))?;
        // SAFETY: two strings and a block of the length that is said.
        let set = unsafe {
            libc::setxattr(
                path.as_ptr(),
                c"security.capability".as_ptr(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        if set == 0 {
            Ok(())
        } else {
            Err(failed("give the program capabilities")(io::Error::last_os_error()))
        }
    }

    /// The command line of this house, for whoever it will be.
    fn command(&self, scene: &Scene, words: &str) -> Command {
        self.command_at(scene, words, &self.runtime_dir())
    }

    fn command_at(&self, scene: &Scene, words: &str, runtime_dir: &Path) -> Command {
        let mut command = Command::new(self.program());
        // `run` takes everything after its command for its arguments.
        let (words, rest) = words.split_once(" -- ").unwrap_or((words, ""));
        command.args(words.split(' ')).arg("--runtime-dir").arg(runtime_dir);
        command.arg("--cgroup-root").arg(scene.cgroup().path()).current_dir("/");
        if !rest.is_empty() {
            command.arg("--").args(rest.split(' '));
        }
        command
    }

    /// Waits until nobody runs this house's program any more.
    fn ensure_left(&self) -> Result<()> {
        let deadline = now() + 5.0;
        loop {
            let mut left = Vec::new();
            for entry in fs::read_dir("/proc").map_err(failed("list processes"))?.flatten() {
                if fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == self.program()) {
                    left.push(entry.file_name());
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            ensure!(now() < deadline, "still there: {left:?}");
            sleep_until(now() + 0.05)?;
        }
    }
}

fn mask(capabilities: &[Capability]) -> u64 {
    capabilities.iter().map(|capability| capability.bitmask()).sum()
}

/// Lets `command` run as nobody, with these capabilities and no others.
fn as_nobody(mut command: Command, capabilities: &[Capability]) -> Command {
    let mask = mask(capabilities);
    // SAFETY: the closure only makes system calls.
    unsafe { command.pre_exec(move || become_nobody(mask)) };
    command
}

fn become_nobody(mask: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls on this process; what they read lives long enough.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        check(libc::setgroups(0, std::ptr::null()).into())?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY).into())?;
        check(libc::setresuid(NOBODY, NOBODY, NOBODY).into())?;
        let header = [VERSION_3, 0];
        let (low, high) = (mask as u32, (mask >> 32) as u32);
        let data = [low, low, low, high, high, high];
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()))?;
        for number in (0..64).filter(|number| mask >> number & 1 == 1) {
            check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0).into())?;
        }
    }
    Ok(())
}

/// Lets `command` run as a root that can't have these capabilities.
fn as_root_without(mut command: Command, capabilities: &[Capability]) -> Command {
    let mask = mask(capabilities);
    let drop = move || {
        for number in (0..64).filter(|number| mask >> number & 1 == 1) {
            // SAFETY: a plain system call on this process.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls.
    unsafe { command.pre_exec(drop) };
    command
}

/// Runs a command to its end; its exit code and everything it said.
fn outcome(command: Command) -> Result<(i32, String)> {
    let (status, output) = Call::spawn(command, Place::default())?.finish()?;
    Ok((status.code().unwrap_or(-1), format!("{}\n{}", output.stdout.join("\n"), output.messages())))
}

fn ensure_says(what: &str, (code, said): &(i32, String), expected: i32, words: &[&str]) -> Result<()> {
    ensure!(*code == expected, "{what}: exit code {code}, not {expected}: {said}");
    for word in words {
        ensure!(said.contains(word), "{what}: does not say '{word}': {said}");
    }
    Ok(())
}

fn none(scene: &Scene) -> Result<()> {
    let house = House::new()?;
    let pid = std::process::id();
    let no_way = Path::new("/run/chadt-rights-nobody-may-make-this");
    let rights = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "sudo "];
    for dir in [house.runtime_dir().as_path(), no_way] {
        for (words, code, says) in [
            (format!("limit pid:{pid} -u 1M"), 3, &rights[..]),
            (format!("limit pid:{pid} -d 1M --detach --upload-backend ebpf"), 3, &rights),
            (format!("--pid {pid} -u 1M"), 3, &rights),
            ("run -u 1M -- true".to_owned(), 125, &rights),
            ("selftest".to_owned(), 3, &["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "sudo "]),
            // There is nothing that they would need a right for.
            ("status".to_owned(), 0, &["no limits in force"]),
            ("clear".to_owned(), 0, &["no limits in force"]),
            ("--list-backends".to_owned(), 0, &["❓ unknown: ", "CAP_BPF", "sudo "]),
            ("doctor".to_owned(), 0, &["❌  CAP_BPF", "mend: ", "setcap cap_bpf,cap_net_admin,cap_perfmon"]),
            ("doctor --json".to_owned(), 0, &["CAP_BPF", "mend", "setcap cap_bpf"]),
        ] {
            let said = outcome(as_nobody(house.command_at(scene, &words, dir), &[]))?;
            ensure_says(&words, &said, code, says)?;
        }
    }
    house.ensure_left()
}

/// Root's owner is at work: what it does is none of nobody's business.
fn beside_root(scene: &Scene) -> Result<()> {
    let house = House::new()?;
    let client = scene.client(&[])?;
    let limit = scene.limit(&format!("pid:{} -u 1M", client.pid()))?;
    let folder = scene.runtime_dir();
    // In /run its folder can be seen, but not entered.
    for words in ["status", "clear", &format!("limit pid:{} -u 5M", client.pid())] {
        let said = outcome(as_nobody(house.command_at(scene, words, folder), &[]))?;
        ensure_says(words, &said, 3, &["belongs to user 0", "sudo "])?;
    }
    ensure!(scene.status()?.limits.len() == 1, "the limit is gone");
    limit.end()?;
    house.ensure_left()
}

/// A process of the user's own is limited.
fn enough(scene: &Scene, ambient: &[Capability], in_file: bool) -> Result<()> {
    let house = House::new()?;
    if in_file {
        house.set_file_capabilities(&ENOUGH)?;
    }
    let sink = Sink::new(scene)?;
    let mut command = actor_for_everybody(&house, &["send", &sink.address()])?;
    Place { namespace: Some(&scene.lab.client), cgroup: Some(scene.cgroup()) }.contain(&mut command)?;
    let sender = actor::spawn(as_nobody(command, &[]), Place::default())?;
    actor::await_line(&sender, "connected")?;
    for words in ["--list-backends", "doctor"] {
        let (code, said) = outcome(as_nobody(house.command(scene, words), ambient))?;
        // Others need more rights, and so do namespaces in which the rungs are tried.
        let of_ebpf = said.split("\nnftables (").next().unwrap_or_default();
        let others = [
            "  nftables",
            "  tc_htb",
            "  ifb_tc",
            "  tc_police",
            "  ❓  downloads by ",
            "  ❓  UDP uploads by ",
        ];
        let windows = "under slow upload limits connections over short lines send up to 64 KB at once";
        let needs_more =
            |line: &str| others.iter().any(|start| line.starts_with(start)) || line.contains(windows);
        let mut lines = of_ebpf.lines().filter(|line| !needs_more(line));
        let all_well = code == 0 && lines.all(|line| !line.contains(['❓', '❌']));
        ensure!(all_well, "{words}: exit code {code}: {said}");
    }
    let words = format!("limit pid:{} -u {RATE}", sender.pid());
    let mut call = Call::spawn(as_nobody(house.command(scene, &words), ambient), Place::default())?;
    call.await_message("limited")?;
    sleep_until(now() + 1.0)?;
    let share = sink.rate(3.0)? / RATE;
    ensure!((0.5..1.5).contains(&share), "the process gets {share:.3} of its limit");
    let said = outcome(as_nobody(house.command(scene, "status"), ambient))?;
    ensure_says("status", &said, 0, &[&format!("pid:{}", sender.pid())])?;
    call.process().signal(nix::sys::signal::Signal::SIGTERM);
    let (status, output) = call.finish()?;
    ensure!(status.success(), "ending the limit: {status}: {}", output.messages());
    let deadline = now() + 3.0;
    while sink.rate(0.2)? < full_speed() {
        ensure!(now() < deadline, "the process is not at full speed again");
    }
    house.ensure_left()?;
    let left = fs::read_dir(house.runtime_dir()).map_err(failed("list the folder"))?;
    let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "left in the runtime folder: {left:?}");
    Ok(())
}

/// This test program may lie where only root can read.
fn actor_for_everybody(house: &House, words: &[&str]) -> Result<Command> {
    let here = actor::command(words)?;
    let there = house.folder.path().join("actor");
    fs::copy(here.get_program(), &there).map_err(failed("copy the test program"))?;
    fs::set_permissions(&there, fs::Permissions::from_mode(0o755)).map_err(failed("open it"))?;
    let mut command = Command::new(there);
    command.args(here.get_args()).current_dir("/");
    Ok(command)
}

/// Only what is missing is asked for.
fn two_capabilities(scene: &Scene) -> Result<()> {
    let house = House::new()?;
    let client = scene.client(&[])?;
    let words = format!("limit pid:{} -u 1M", client.pid());
    for left_out in ENOUGH {
        let others: Vec<_> = ENOUGH.into_iter().filter(|one| *one != left_out).collect();
        let said = outcome(as_nobody(house.command(scene, &words), &others))?;
        ensure_says(&words, &said, 3, &[&format!("needs {left_out}:"), "sudo "])?;
        // The owner that has as few rights goes a moment later.
        house.ensure_left()?;
    }
    // Whoever has the rights still needs a folder.
    let no_way = Path::new("/run/chadt-rights-nobody-may-make-this");
    let said = outcome(as_nobody(house.command_at(scene, &words, no_way), &ENOUGH))?;
    ensure_says(&words, &said, 3, &["make the runtime folder", "--runtime-dir"])?;
    house.ensure_left()
}

/// As in a container.
fn root_without(scene: &Scene) -> Result<()> {
    let client = scene.client(&[])?;
    // CAP_SYS_ADMIN stands for CAP_BPF.
    let missing = [Capability::CAP_BPF, Capability::CAP_SYS_ADMIN];
    let limit = format!("limit pid:{} -u 1M", client.pid());
    let without = |words: &str| outcome(as_root_without(scene.command(words), &missing));
    let said = without(&limit)?;
    ensure_says(&limit, &said, 3, &["needs CAP_BPF:", "--cap-add"])?;
    ensure!(!said.1.contains("sudo"), "sudo does not help root: {}", said.1);
    ensure_says("--list-backends", &without("--list-backends")?, 0, &["❓ unknown: ", "CAP_BPF"])?;
    ensure_says("doctor", &without("doctor")?, 0, &["❌  CAP_BPF", "mend: ", "--cap-add"])
}
