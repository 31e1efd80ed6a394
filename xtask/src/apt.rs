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

/// Never removes what is installed. The lists are fetched only when the first attempt fails.
fn install(packages: &[&str]) -> Result<()> {
    let attempt = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-remove", "--no-install-recommends", "--quiet", "--quiet"])
            .args(packages)
            .stdin(Stdio::null());
        sh::run(&mut command)
    };
    if attempt().is_ok() {
        return Ok(());
    }
    sh::run(Command::new("apt-get").args(["update", "--quiet"]).stdin(Stdio::null()))?;
    attempt()
}
