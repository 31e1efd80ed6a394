//! Every kind of target: what is open already, what is opened later, and what is opened by a process that starts
//! later is limited; who does not match never is.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use chadthrottle::selftest::{cgroup::Cgroup, process::Place};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::{
    actor::{self, Sink},
    support::*,
};

/// The limits here, bytes/s.
const RATE: f64 = 2e6;

/// A container's id, as Docker and Podman make them.
pub const ID: &str = "4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d";

/// A user that nobody is.
const USER: u32 = 64_123;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("targets::name_of_the_process", |scene| named(scene, "chadt-trial")),
        plain("targets::long_name_of_the_file", |scene| named(scene, "chadt-trial-with-a-long-name")),
        plain("targets::hostile_name", |scene| named(scene, "ch\u{202e}\n\x1b[2Jt")),
        plain("targets::exe", exe),
        plain("targets::exe_that_is_replaced", replaced),
        plain("targets::cgroup", |scene| cgroup(scene, "chadt-some/where", |path| format!("cgroup:{path}"))),
        plain("targets::unit", |scene| {
            cgroup(scene, "system.slice/chadt-trial.service", |_| "unit:chadt-trial".into())
        }),
        plain("targets::container_of_docker", |scene| {
            cgroup(scene, &format!("docker/{ID}"), |_| format!("container:{}", &ID[..12]))
        }),
        plain("targets::container_of_podman", |scene| {
            let path = format!("machine.slice/libpod-{ID}.scope/container");
            cgroup(scene, &path, |_| format!("container:{ID}"))
        }),
        plain("targets::container_of_lxc", |scene| {
            cgroup(scene, "lxc.payload.chadt-web", |_| "container:chadt-web".into())
        }),
        plain("targets::user", user),
        plain("targets::a_new_name_is_a_new_process", renamed),
        plain("targets::process_that_joins_a_cgroup", joined),
        plain("targets::unit_that_is_started_again", restarted),
        plain("targets::nothing_there", nothing_there),
        plain("targets::stays_without_processes", stays),
    ]
}

/// A program that does traffic under another name.
pub struct Kin {
    folder: TempDir,
    program: PathBuf,
}

impl Kin {
    /// A copy of the program.
    pub fn copy(name: &str) -> Result<Self> {
        let folder = folder()?;
        let program = folder.path().join(name);
        copy(&program)?;
        Ok(Self { folder, program })
    }

    /// A command in front of the program.
    pub fn script(name: &str, line: &str) -> Result<Self> {
        let folder = folder()?;
        let (script, copied) = (folder.path().join(name), folder.path().join("program"));
        copy(&copied)?;
        let text = format!("#!/bin/sh\nexec {line} {} \"$@\"\n", copied.display());
        fs::write(&script, text).map_err(|cause| Error::failed(format!("write a script: {cause}")))?;
        executable(&script)?;
        Ok(Self { folder, program: script })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it in the scene, in a cgroup of its own or the scene's.
    pub fn start(&self, scene: &Scene, home: Option<&Cgroup>, commands: &[String]) -> Result<Traffic> {
        let home = home.unwrap_or(scene.cgroup());
        let place = Place { namespace: Some(&scene.lab.client), cgroup: Some(home) };
        Traffic::spawn(&self.program, "a target", place, commands)
    }
}

pub fn folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("chadt-test-").tempdir();
    let folder = folder.map_err(|cause| Error::failed(format!("make a folder: {cause}")))?;
    executable(folder.path())?;
    Ok(folder)
}

fn executable(path: &Path) -> Result<()> {
    let all = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path, all).map_err(|cause| Error::failed(format!("open up a file: {cause}")))
}

fn copy(to: &Path) -> Result<()> {
    fs::copy(program(), to).map_err(|cause| Error::failed(format!("copy the program: {cause}")))?;
    executable(to)
}

/// The trial of one target. `member` starts a process that matches, `stranger` one that does not; both do what they
/// are told.
pub fn holds(
    scene: &Scene,
    target: &str,
    member: impl Fn(&[String]) -> Result<Traffic>,
    stranger: impl Fn(&[String]) -> Result<Traffic>,
) -> Result<()> {
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let put = |run: u64| format!("connect tcp {address} put cc=reno run={run}");
    let (open, later, young) = (scene.run(), scene.run(), scene.run());
    let (free, young_free) = (scene.run(), scene.run());
    let mut one = member(&[put(open)])?;
    let _other = stranger(&[put(free)])?;
    await_full_speed(&server, open, now(), 3.0)?;
    let words = ["limit", target, "-u", &RATE.to_string()];
    let limit = scene.limit_words(&words)?;
    one.tell(&put(later))?;
    let _two = member(&[put(young)])?;
    let started = now();
    let _stranger = stranger(&[put(young_free)])?;
    let since = now();
    // What the kernel may have on its way, beside what the limit lets pass from the very beginning.
    const UNDER_WAY: f64 = 600_000.0;
    let first = received(&server, young, started, started + 0.5)? * 0.5;
    ensure!(first < RATE + UNDER_WAY, "the later process moved {first:.0} bytes in its first half second");
    let share = |run| Ok::<f64, Error>(received(&server, run, since + 1.0, since + 4.0)? / RATE);
    let (open, later, young) = (share(open)?, share(later)?, share(young)?);
    let all = open + later + young;
    ensure!(
        (0.7..1.3).contains(&all),
        "open {open:.3}, later {later:.3}, of a later process {young:.3}, together {all:.3} of the limit"
    );
    ensure!(
        later > 0.001 && young > 0.001,
        "one starves: open {open:.3}, later {later:.3}, young {young:.3}"
    );
    for run in [free, young_free] {
        let rate = share(run)? * RATE;
        ensure!(
            rate > full_speed() / 2.0,
            "one that does not match moves only {rate:.0} bytes/s (run {run})"
        );
    }
    // And the same by the owner's account.
    let report = scene.status()?.limits.remove(0);
    ensure!(report.processes == 2, "the owner counts {} processes", report.processes);
    ensure!(report.escapes.is_empty(), "{:?}", report.escapes);
    limit.end().map(drop)
}

fn named(scene: &Scene, name: &str) -> Result<()> {
    let (kin, other) = (Kin::copy(name)?, Kin::copy("chadt-other")?);
    let target = format!("name:{name}");
    holds(scene, &target, |all| kin.start(scene, None, all), |all| other.start(scene, None, all))
}

/// Strangers have a file of the same name elsewhere.
fn exe(scene: &Scene) -> Result<()> {
    let (kin, other) = (Kin::copy("chadt-trial")?, Kin::copy("chadt-trial")?);
    let target = format!("exe:{}", kin.program.display());
    holds(scene, &target, |all| kin.start(scene, None, all), |all| other.start(scene, None, all))
}

/// As by an upgrade: the old file still runs when the limit is set, and the new one is started under it.
fn replaced(scene: &Scene) -> Result<()> {
    let (kin, other) = (Kin::copy("chadt-trial")?, Kin::copy("chadt-other")?);
    let target = format!("exe:{}", kin.program.display());
    let replaced = std::cell::Cell::new(false);
    let member = |all: &[String]| {
        let started = kin.start(scene, None, all)?;
        if !replaced.replace(true) {
            let new = kin.folder.path().join("new");
            copy(&new)?;
            fs::rename(new, &kin.program).map_err(|cause| Error::failed(format!("replace it: {cause}")))?;
        }
        Ok(started)
    };
    holds(scene, &target, member, |all| other.start(scene, None, all))
}

/// Cgroups one in another, below the scene's own.
pub struct Homes(Vec<Cgroup>);

impl Homes {
    pub fn new(scene: &Scene, path: &str) -> Result<Self> {
        let mut homes = Self(Vec::new());
        for name in path.split('/') {
            let parent = homes.0.last().unwrap_or(scene.cgroup()).path().to_owned();
            homes.0.push(Cgroup::new(&parent, name)?);
        }
        Ok(homes)
    }

    pub fn inner(&self) -> &Cgroup {
        self.0.last().expect("a path has a part")
    }
}

impl Drop for Homes {
    fn drop(&mut self) {
        // The innermost first.
        while self.0.pop().is_some() {}
    }
}

/// Strangers are in a cgroup whose name only begins alike.
fn cgroup(scene: &Scene, path: &str, target: impl Fn(&str) -> String) -> Result<()> {
    let homes = Homes::new(scene, path)?;
    let beside =
        Cgroup::new(scene.cgroup().path(), &format!("{}x", path.split('/').next().unwrap_or_default()))?;
    let kin = Kin::copy("chadt-trial")?;
    let own = homes.inner().path().display().to_string();
    // Named by the folder of the mounted hierarchy, as users see it.
    let target = target(&own);
    let member = |all: &[String]| kin.start(scene, Some(homes.inner()), all);
    holds(scene, &target, member, |all| kin.start(scene, Some(&beside), all))
}

fn user(scene: &Scene) -> Result<()> {
    let become_user = format!("setpriv --reuid {USER} --clear-groups");
    let kin = Kin::script("chadt-as-user", &become_user)?;
    let other = Kin::copy("chadt-trial")?;
    let target = format!("user:{USER}");
    holds(scene, &target, |all| kin.start(scene, None, all), |all| other.start(scene, None, all))
}

/// A process that takes the name comes under the limit with what it has open, and leaves with it.
fn renamed(scene: &Scene) -> Result<()> {
    let sink = Sink::new(scene)?;
    let mut process = actor::start(scene, &["rename", &sink.address()])?;
    process.wait_for("its connection", |lines| lines.first().cloned())?;
    let limit = scene.limit(&format!("name:chadt-new-name --wait -u {RATE}"))?;
    let mut rename = |name: &str| {
        let stdin = process.stdin().ok_or_else(|| Error::failed("no stdin"))?;
        writeln!(stdin, "{name}").map_err(|cause| Error::failed(format!("ask for a new name: {cause}")))?;
        // Packets that are on their way have passed.
        sleep_until(now() + 1.0)
    };
    let held = |rate: f64| (0.5..1.5).contains(&(rate / RATE));
    let free = sink.rate(1.0)?;
    rename("chadt-new-name")?;
    let limited = sink.rate(3.0)?;
    rename("chadt-old-name")?;
    let again = sink.rate(1.0)?;
    ensure!(
        free > full_speed() && held(limited) && again > full_speed(),
        "{free:.0} bytes/s, under the name {limited:.0}, under another one {again:.0}"
    );
    limit.end().map(drop)
}

/// A process with an open connection is moved into the cgroup, and out again.
fn joined(scene: &Scene) -> Result<()> {
    let home = Cgroup::new(scene.cgroup().path(), "chadt-home")?;
    let server = scene.server()?;
    let (open, later) = (scene.run(), scene.run());
    let put = |run| format!("connect tcp {} put cc=reno run={run}", scene.tcp(Version::V4));
    let mut client = scene.client(&[put(open)])?;
    let limit = scene.limit(&format!("cgroup:{} -u {RATE}", home.path().display()))?;
    await_full_speed(&server, open, limit.since, 2.0)?;
    let move_to = |cgroup: &Cgroup| {
        fs::write(cgroup.path().join("cgroup.procs"), client.pid().to_string())
            .map_err(|cause| Error::failed(format!("move a process: {cause}")))
    };
    move_to(&home)?;
    let since = now();
    ensure_held(&server, open, since, RATE)?;
    client.tell(&put(later))?;
    let since = now();
    let both = received(&server, open, since + 1.0, since + 4.0)?
        + received(&server, later, since + 1.0, since + 4.0)?;
    ensure!((0.5..1.5).contains(&(both / RATE)), "both get {:.3} of the limit", both / RATE);
    fs::write(scene.cgroup().path().join("cgroup.procs"), client.pid().to_string())
        .map_err(|cause| Error::failed(format!("move a process: {cause}")))?;
    await_full_speed(&server, open, now(), 2.0)?;
    drop(client);
    Ok(())
}

/// systemd removes the cgroup of a unit that ends, and makes another one when it starts again.
fn restarted(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let kin = Kin::copy("chadt-trial")?;
    let put = |run| [format!("connect tcp {} put cc=reno run={run}", scene.tcp(Version::V4))];
    let limit = scene.limit(&format!("unit:chadt-again.service --wait -u {RATE}"))?;
    for _ in 0..2 {
        let homes = Homes::new(scene, "system.slice/chadt-again.service")?;
        let run = scene.run();
        let started = now();
        let _process = kin.start(scene, Some(homes.inner()), &put(run))?;
        let first = received(&server, run, started, started + 0.5)? * 0.5;
        ensure!(first < 1.3 * RATE, "it moved {first:.0} bytes in its first half second");
        ensure_held(&server, run, started, RATE)?;
    }
    limit.end().map(drop)
}

fn nothing_there(scene: &Scene) -> Result<()> {
    for (target, code) in [
        ("name:chadt-no-such-name", 4),
        ("exe:/no/such/chadt-file", 4),
        ("unit:chadt-no-such.service", 4),
        ("cgroup:/chadt-no-such-cgroup", 4),
        ("container:00ff00ff00ff00ff", 4),
        ("user:chadt-no-such-user", 4),
        ("port:0", 2),
    ] {
        let (status, output) = scene.call(&format!("limit {target} -u 1M"))?;
        ensure!(status.code() == Some(code), "limit {target} ended with {status}: {}", output.messages());
    }
    Ok(())
}

/// The limit is still there for the next process, and `clear` ends it by its target.
fn stays(scene: &Scene) -> Result<()> {
    let server = scene.server()?;
    let kin = Kin::copy("chadt-trial")?;
    let put = |run| [format!("connect tcp {} put cc=reno run={run}", scene.tcp(Version::V4))];
    let first = kin.start(scene, None, &[])?;
    scene.succeed(&format!("limit name:chadt-trial -u {RATE} --detach"))?;
    drop(first);
    sleep_until(now() + 2.5)?;
    ensure!(scene.report("name:chadt-trial")?.processes == 0, "it has processes");
    let run = scene.run();
    let _second = kin.start(scene, None, &put(run))?;
    ensure_held(&server, run, now(), RATE)?;
    scene.succeed("clear name:chadt-trial")?;
    await_full_speed(&server, run, now(), 2.0).map(drop)
}
