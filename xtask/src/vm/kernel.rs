//! Debian's kernel packages: found and fetched with apt, but with lists, state and cache of our own,
//! so that the host's apt neither needs these suites nor learns of them.

use super::create_dir;
use crate::sh;
use anyhow::{Context, Result, anyhow};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where Debian keeps the kernels: the first number of what it has belongs to the suite.
const SUITES: [(&str, &str); 4] =
    [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("newest", "sid")];
const MIRROR: &str = "http://deb.debian.org/debian";

/// An unpacked kernel.
pub struct Kernel {
    /// The bootable image.
    pub vmlinuz: PathBuf,
    /// The folder in which `lib/modules/<release>` is.
    pub root: PathBuf,
    /// `uname -r`.
    pub release: String,
}

impl Kernel {
    /// What it has to be told at its start. The machines have no cmpxchg16b, and newer kernels (7.2) have no memory
    /// then for what a socket carries in eBPF, unless all memory is checked for errors.
    pub fn options(&self) -> &'static str {
        if self.release.starts_with("5.") || self.release.starts_with("6.") { "" } else { "slab_debug=Z" }
    }
}

/// Fetches and unpacks the newest cloud kernel of each version, in that order. What is there already is
/// not fetched again.
pub fn fetch(cache: &Path, versions: &[String]) -> Result<Vec<Kernel>> {
    let apt = Apt::new(cache)?;
    let known: Vec<_> = versions.iter().map(|version| unpacked(cache, version)).collect();
    if known.iter().any(Option::is_none) {
        apt.update(versions)?;
    }
    versions
        .iter()
        .zip(known)
        .map(|(version, known)| match known {
            Some(kernel) => Ok(kernel),
            None => apt.fetch(version).with_context(|| format!("fetch Linux {version} from Debian")),
        })
        .collect()
}

fn folder(cache: &Path, version: &str) -> PathBuf {
    cache.join("kernels").join(version)
}

/// The kernel in its folder, when it was completely unpacked.
fn unpacked(cache: &Path, version: &str) -> Option<Kernel> {
    let root = folder(cache, version);
    let release = fs::read_dir(root.join("lib/modules")).ok()?.flatten().next()?;
    let release = release.file_name().into_string().ok()?;
    let boot = root.join("boot").join(format!("vmlinuz-{release}"));
    let beside = root.join("lib/modules").join(&release).join("vmlinuz");
    let vmlinuz = [boot, beside].into_iter().find(|path| path.exists())?;
    Some(Kernel { vmlinuz, root, release })
}

struct Apt<'a> {
    cache: &'a Path,
}

impl<'a> Apt<'a> {
    fn new(cache: &'a Path) -> Result<Self> {
        for folder in ["apt/lists/partial", "apt/cache/archives/partial", "apt/state", "kernels"] {
            create_dir(&cache.join(folder))?;
        }
        Ok(Self { cache })
    }

    fn command(&self, program: &str) -> Command {
        let apt = self.cache.join("apt");
        let mut command = Command::new(program);
        for (name, value) in [
            ("Dir::Etc::sourcelist", apt.join("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State", apt.join("state")),
            ("Dir::State::lists", apt.join("lists")),
            ("Dir::Cache", apt.join("cache")),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        for option in [
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
            // The oldest suites are not renewed any more.
            "Acquire::Check-Valid-Until=false",
            "APT::Sandbox::User=root",
        ] {
            command.args(["-o", option]);
        }
        command.stdin(Stdio::null());
        command
    }

    fn update(&self, versions: &[String]) -> Result<()> {
        let mirror = mirror();
        let suite = |version: &String| SUITES.iter().find(|(known, _)| known == version);
        // A version that is not in the table may be in any suite.
        let all = versions.iter().any(|version| suite(version).is_none());
        let list: String = SUITES
            .iter()
            .filter(|(version, _)| all || versions.iter().any(|wanted| wanted == version))
            .map(|(_, suite)| {
                format!(
                    "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n"
                )
            })
            .collect();
        fs::write(self.cache.join("apt/sources.list"), list).context("write the list of apt sources")?;
        sh::run(self.command("apt-get").args(["update", "--quiet", "--quiet"]))
    }

    fn fetch(&self, version: &str) -> Result<Kernel> {
        let package = self.newest(version)?;
        eprintln!("xtask: fetching {package}");
        let folder = folder(self.cache, version);
        let packages = self.parts(&package)?;
        // Renamed when complete, so that what is in its place is whole.
        let unpack = folder.with_extension("unpack");
        for old in [&unpack, &folder] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("remove {}", old.display()))?;
            }
        }
        // Packages ship their modules in /lib or in /usr/lib; here both are one folder.
        create_dir(&unpack.join("usr/lib"))?;
        std::os::unix::fs::symlink("usr/lib", unpack.join("lib")).context("link lib to usr/lib")?;
        let debs = self.cache.join("apt/debs").join(version);
        create_dir(&debs)?;
        sh::run(
            self.command("apt-get")
                .current_dir(&debs)
                .args(["download", "--quiet", "--quiet"])
                .args(&packages),
        )?;
        for deb in fs::read_dir(&debs)?.flatten() {
            let extract = format!(
                "dpkg-deb --fsys-tarfile '{}' | tar -x --keep-directory-symlink -C '{}'",
                deb.path().display(),
                unpack.display()
            );
            sh::run(Command::new("sh").args(["-c", &extract]))?;
        }
        fs::remove_dir_all(&debs).with_context(|| format!("remove {}", debs.display()))?;
        fs::rename(&unpack, &folder).with_context(|| format!("rename {}", unpack.display()))?;
        let kernel =
            unpacked(self.cache, version).ok_or_else(|| anyhow!("{package} holds no kernel with modules"))?;
        sh::run(Command::new("depmod").arg("-b").arg(&kernel.root).arg(&kernel.release))?;
        Ok(kernel)
    }

    /// The newest cloud kernel of that version.
    fn newest(&self, version: &str) -> Result<String> {
        let names = sh::output(self.command("apt-cache").args(["pkgnames", "linux-image-"]))?;
        let prefix =
            if version == "newest" { "linux-image-".into() } else { format!("linux-image-{version}.") };
        names
            .lines()
            .filter(|name| name.starts_with(&prefix) && name.ends_with("-cloud-amd64"))
            .filter(|name| name["linux-image-".len()..].starts_with(|c: char| c.is_ascii_digit()))
            .max_by_key(|name| numbers(name))
            .map(Into::into)
            .ok_or_else(|| anyhow!("no package {prefix}…-cloud-amd64"))
    }

    /// The package and those of its kernel's other parts: newer ones keep image and modules apart.
    fn parts(&self, package: &str) -> Result<Vec<String>> {
        let depends = sh::output(self.command("apt-cache").args([
            "depends",
            "--no-recommends",
            "--no-suggests",
            package,
        ]))?;
        let release = package.trim_start_matches("linux-image-");
        let parts = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| name.starts_with("linux-") && name.ends_with(release));
        Ok(parts.map(Into::into).chain([package.to_owned()]).collect())
    }
}

/// The numbers in a name, for ordering 6.12.107 after 6.12.94.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// `CHADT_DEBIAN_MIRROR`, or the one that the host's own apt is told to use, or Debian's.
fn mirror() -> String {
    if let Ok(mirror) = env::var("CHADT_DEBIAN_MIRROR") {
        return mirror;
    }
    let targets = sh::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Origin: Debian",
        "Label: Debian",
    ]));
    let own =
        targets.ok().and_then(|text| text.lines().next().map(|uri| uri.trim_end_matches('/').to_owned()));
    own.unwrap_or_else(|| MIRROR.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_ordered_by_number() {
        assert!(
            numbers("linux-image-6.12.107+deb13-cloud-amd64")
                > numbers("linux-image-6.12.94+deb13-cloud-amd64")
        );
        assert!(numbers("linux-image-6.1.0-50-cloud-amd64") > numbers("linux-image-6.1.0-9-cloud-amd64"));
    }
}
