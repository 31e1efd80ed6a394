//! Missing Debian packages: installed when we may, named when we may not.

use crate::sh;
use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// Sees to it that these packages are installed, and says which ones were not. `why` finishes the
/// sentence "… is needed for".
pub fn ensure(packages: &[&str], why: &str) -> Result<()> {
    let missing: Vec<_> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install {}", missing.join(" "));
    if sh::find("apt-get").is_none() {
        bail!("{why} needs these Debian packages or your distribution's counterparts: {}", missing.join(" "));
    }
    if !sh::is_root() {
        bail!("{why} needs packages that are missing; as root: {line}");
    }
    eprintln!("xtask: {why} needs what is missing here: {line}");
    install(&missing).with_context(|| line)
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// The lists are fetched only when the first attempt fails. Nothing that is installed is removed, but on a machine of a CI,
/// whose own tools may stand in the way: QEMU's of another release do.
fn install(packages: &[&str]) -> Result<()> {
    let attempt = |more: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends", "--quiet", "--quiet"])
            .args(more)
            .args(packages)
            .stdin(Stdio::null());
        sh::run(&mut command)
    };
    if attempt(&["--no-remove"]).is_ok() {
        return Ok(());
    }
    sh::run(Command::new("apt-get").args(["update", "--quiet"]).stdin(Stdio::null()))?;
    match attempt(&["--no-remove"]) {
        Err(error) if std::env::var_os("CI").is_some_and(|value| value == "true") => {
            eprintln!("xtask: {error:#}; this is a CI's machine, so what stands in the way is removed");
            attempt(&[])
        }
        other => other,
    }
}
