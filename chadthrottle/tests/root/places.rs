//! Where cgroup2 is mounted, and who sees it from where: mount, network and PID namespaces.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use chadthrottle::selftest::process::{Call, Place};
use libtest_mimic::Trial;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::support::*;

/// The limits here, bytes/s.
const RATE: f64 = 2e6;

const USUAL: &str = "/sys/fs/cgroup";
const HYBRID: &str = "/sys/fs/cgroup/unified";

pub fn trials() -> Vec<Trial> {
    vec![
        plain("places::cgroup2_at_the_usual_place", |scene| mounted(scene, &At::Usual)),
        plain("places::cgroup2_beside_version_1", |scene| mounted(scene, &At::Hybrid)),
        plain("places::cgroup2_elsewhere", |scene| {
            let path = scene.runtime_dir().join("a place");
            fs::create_dir(&path).map_err(|cause| Error::failed(format!("make a folder: {cause}")))?;
            mounted(scene, &At::Elsewhere(path))
        }),
        plain("places::no_cgroup2", |scene| no_cgroup2(scene, Missing::Unmounted)),
        plain("places::no_cgroup2_but_a_place_for_it", |scene| no_cgroup2(scene, Missing::PlaceForIt)),
        plain("places::clients_in_other_namespaces", clients_elsewhere),
        plain("places::pid_namespace", pid_namespace),
        plain("places::a_process_outside_the_cgroup_root", outside),
    ]
}

/// Where cgroup2 is mounted in a private mount namespace, and nowhere else.
enum At {
    Usual,
    Hybrid,
    Elsewhere(PathBuf),
}

/// What there is instead of cgroup2.
#[derive(Clone, Copy)]
enum Missing {
    /// sysfs's empty folder, as under `ip netns exec`.
    Unmounted,
    /// The tmpfs of a system that uses version 1.
    PlaceForIt,
}

/// Our command line without a cgroup root, so that it has to find the mount.
fn bare(scene: &Scene, words: &str) -> Command {
    let mut command = Command::new(program());
    command.args(words.split(' ')).arg("--runtime-dir").arg(scene.runtime_dir());
    command
}

/// Lets `command` do something between fork and exec: system calls only.
fn before(
    mut command: Command,
    mut work: impl FnMut() -> nix::Result<()> + Send + Sync + 'static,
) -> Command {
    // SAFETY: every caller's `work` only makes system calls, with what was allocated before.
    unsafe { command.pre_exec(move || work().map_err(io::Error::from)) };
    command
}

/// Lets it enter the scene's cgroup, and see that one as the root of all cgroups: what is attached at the
/// root of the mount is then attached there, and holds nobody else.
fn with_the_scene_as_root(scene: &Scene, mut command: Command) -> Result<Command> {
    scene.cgroup().contain(&mut command)?;
    Ok(before(command, || unshare(CloneFlags::CLONE_NEWCGROUP)))
}

/// Lets it have mounts of its own, and no cgroup among them.
fn without_cgroups(command: Command) -> Result<Command> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|cause| Error::failed(format!("read the mounts: {cause}")))?;
    let mut points = Vec::new();
    for line in mounts.lines() {
        if line.contains(" - cgroup2 ") || line.split(' ').nth(4) == Some(USUAL) {
            let point = line.split(' ').nth(4).unwrap_or_default();
            points.push(CString::new(point).map_err(|cause| Error::failed(cause.to_string()))?);
        }
    }
    Ok(before(command, move || {
        own_mounts()?;
        for point in points.iter().rev() {
            // Some went with the one they were below.
            let _ = umount2(point.as_c_str(), MntFlags::MNT_DETACH);
        }
        Ok(())
    }))
}

fn own_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

fn mount_new(kind: &str, place: &Path) -> nix::Result<()> {
    mount(Some("none"), place, Some(kind), MsFlags::empty(), None::<&str>)
}

fn with_cgroup2(command: Command, at: &At) -> Result<Command> {
    let command = without_cgroups(command)?;
    Ok(match at {
        At::Usual => before(command, || mount_new("cgroup2", Path::new(USUAL))),
        At::Hybrid => before(command, || {
            mount_new("tmpfs", Path::new(USUAL))?;
            nix::unistd::mkdir(HYBRID, nix::sys::stat::Mode::S_IRWXU)?;
            mount_new("cgroup2", Path::new(HYBRID))
        }),
        At::Elsewhere(path) => {
            let path = CString::new(path.as_os_str().as_bytes())
                .map_err(|cause| Error::failed(cause.to_string()))?;
            before(command, move || {
                mount(Some("none"), path.as_c_str(), Some("cgroup2"), MsFlags::empty(), None::<&str>)
            })
        }
    })
}

/// Words that limit a pair.
fn limit(pair: &Pair) -> String {
    format!("limit {}", pair.limit(RATE))
}

/// Starts the command, which is to limit this pair, and ends it when that was seen to hold.
fn ensure_limits(pair: &Pair, command: Command) -> Result<()> {
    let limit = limited_by(pair, command)?;
    limit.end().map(drop)
}

fn limited_by(pair: &Pair, command: Command) -> Result<Limit> {
    let call = Call::spawn(command, Place::default())?;
    let (since, _) = call.await_message("limited")?;
    pair.ensure_held(since, RATE)?;
    Ok(Limit { call, since })
}

fn mounted(scene: &Scene, at: &At) -> Result<()> {
    let pair = Pair::new(scene)?;
    let command = with_cgroup2(with_the_scene_as_root(scene, bare(scene, &limit(&pair)))?, at)?;
    ensure_limits(&pair, command)
}

/// What the user is told to do is what helps.
fn no_cgroup2(scene: &Scene, missing: Missing) -> Result<()> {
    let pair = Pair::new(scene)?;
    let place = |command| {
        let command = without_cgroups(with_the_scene_as_root(scene, command)?)?;
        Ok::<_, Error>(match missing {
            Missing::Unmounted => command,
            Missing::PlaceForIt => before(command, || mount_new("tmpfs", Path::new(USUAL))),
        })
    };
    let (status, output) = Call::spawn(place(bare(scene, &limit(&pair)))?, Place::default())?.finish()?;
    let message = output.messages();
    ensure!(status.code() == Some(5), "without a cgroup2: {status}: {message}");
    let mend = message.split('\'').nth(1).filter(|_| message.contains("no cgroup2 is mounted"));
    let mend = mend.ok_or_else(|| Error::failed(format!("it does not say what to do: {message}")))?;
    // The owner that said so lives in the mount namespace without.
    scene.await_no_helpers(5.0)?;
    let command = bare(scene, &limit(&pair));
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{mend} && exec \"$0\" \"$@\"")).arg(command.get_program());
    shell.args(command.get_args());
    ensure_limits(&pair, place(shell)?)
}

/// They need nothing but the owner's socket.
fn clients_elsewhere(scene: &Scene) -> Result<()> {
    let first = Pair::new(scene)?;
    let owner = with_cgroup2(with_the_scene_as_root(scene, bare(scene, &limit(&first)))?, &At::Usual)?;
    let limit = limited_by(&first, owner)?;
    let run = scene.run();
    let second = scene.client(&[format!("connect tcp {} put run={run}", scene.tcp(Version::V4))])?;
    for own_sysfs in [false, true] {
        let mut command = bare(scene, &format!("limit pid:{} -u {RATE}", second.pid()));
        scene.lab.server.contain(&mut command)?;
        if own_sysfs {
            // As `ip netns exec` does.
            command = before(command, || {
                own_mounts()?;
                umount2("/sys", MntFlags::MNT_DETACH)?;
                mount_new("sysfs", Path::new("/sys"))
            });
        }
        let call = Call::spawn(command, Place::default())?;
        let (since, _) = call.await_message("limited")?;
        ensure_held(&first.server, run, since, RATE)?;
        ensure!(scene.status()?.limits.len() == 2, "there are not two limits");
        Limit { call, since }.end()?;
    }
    limit.end().map(drop)
}

/// Lets a command run as the first process of a PID namespace; `proc`: with a /proc of its own.
fn in_pid_namespace(command: Command, proc: bool) -> Command {
    before(command, move || {
        own_mounts()?;
        unshare(CloneFlags::CLONE_NEWPID)?;
        // SAFETY: there is one thread, between fork and exec.
        match unsafe { libc::fork() } {
            -1 => return Err(nix::Error::last()),
            0 => {}
            child => {
                let mut status = 0;
                // SAFETY: closes what the caller's parent waits for, then only waits and ends.
                unsafe {
                    libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
                    libc::waitpid(child, &raw mut status, 0);
                    libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 99 });
                }
            }
        }
        if proc { mount_new("proc", Path::new("/proc")) } else { Ok(()) }
    })
}

fn pid_namespace(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let ensure_refused = |code: i32| {
        for proc in [true, false] {
            // Whatever has the id 1 there. nftables, which could know it, is left out.
            let words = "limit pid:1 -u 1M --upload-backend ebpf";
            let command = in_pid_namespace(scene.command(words), proc);
            let (status, output) = Call::spawn(command, Place::default())?.finish()?;
            let message = output.messages();
            ensure!(
                status.code() == Some(code) && message.contains("PID namespace"),
                "in a PID namespace: {status}: {message}"
            );
        }
        Ok(())
    };
    ensure_refused(5)?;
    let command = in_pid_namespace(scene.command("limit pid:1 -u 1M"), false);
    let (status, output) = Call::spawn(command, Place::default())?.finish()?;
    let told = output.messages();
    let refused =
        status.code() == Some(5) && told.contains("ebpf: ") && told.contains("nftables: /proc shows");
    ensure!(refused, "with another namespace's /proc: {status}: {told}");
    // By an owner on the host, too.
    let limit = scene.limit(&format!("pid:{} -u {RATE}", pair.client.pid()))?;
    ensure_refused(1)?;
    ensure!(scene.status()?.limits.len() == 1, "there is not one limit");
    limit.end().map(drop)
}

/// It could not be held, so it is not said to be.
fn outside(scene: &Scene) -> Result<()> {
    let place = Place { namespace: Some(&scene.lab.client), cgroup: None };
    let stranger = Traffic::spawn(&program(), "a stranger", place, &[])?;
    for kind in ["pid", "tree"] {
        let (status, output) = scene.call(&format!("limit {kind}:{} -u 1M", stranger.pid()))?;
        let message = output.messages();
        ensure!(
            status.code() == Some(4) && message.contains("cgroup root"),
            "a process outside the cgroup root: {status}: {message}"
        );
    }
    Ok(())
}
