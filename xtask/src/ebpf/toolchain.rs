//! Finds, or installs, a compiler with `core` for the eBPF target and the linker that goes with it.

use super::{Kind, TARGET, provenance::Versions};
use crate::{apt, sh};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

/// Everything the object is built with.
pub struct Toolchain {
    kind: Kind,
    rustc: PathBuf,
    cargo: PathBuf,
    sysroot: PathBuf,
    linker: PathBuf,
    /// `llvm-objcopy`.
    pub objcopy: PathBuf,
    /// What goes into the provenance.
    pub versions: Versions,
}

/// A compiler, before its companions are looked for.
struct Compiler {
    kind: Kind,
    rustc: PathBuf,
    cargo: PathBuf,
    sysroot: PathBuf,
}

impl Toolchain {
    /// The toolchain of that kind; without one Debian's, which the committed object is built with,
    /// then a nightly. What is missing is installed when we are root on Debian.
    pub fn find_or_install(kind: Option<Kind>) -> Result<Self> {
        let found = match kind {
            Some(Kind::Debian) => debian(),
            Some(Kind::Nightly) => nightly(),
            None => debian().or_else(nightly),
        };
        let compiler = match (found, kind) {
            (Some(compiler), _) => compiler,
            (None, Some(Kind::Nightly)) => bail!(
                "no rustup nightly with the sources of `core`: rustup toolchain install nightly --component rust-src"
            ),
            (None, _) => {
                apt::ensure(&DEBIAN_PACKAGES, "building the eBPF programs").context(
                    "no rustc with `core` for eBPF (a rustup nightly with rust-src would do, too: \
                     rustup toolchain install nightly --component rust-src)",
                )?;
                debian().ok_or_else(|| anyhow!("{DEBIAN_RUSTC} has no `core` for {TARGET}"))?
            }
        };
        Self::complete(compiler)
    }

    /// Adds linker and objcopy of the compiler's LLVM.
    fn complete(Compiler { kind, rustc, cargo, sysroot }: Compiler) -> Result<Self> {
        let verbose = sh::output(Command::new(&rustc).arg("-vV"))?;
        let llvm = verbose
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .ok_or_else(|| anyhow!("{} -vV names no LLVM version", rustc.display()))?
            .to_owned();
        let major = llvm.split('.').next().unwrap_or_default();
        let linker = linker(kind, major)?;
        let objcopy = objcopy(major)?;
        let objcopy_version = sh::output(Command::new(&objcopy).arg("--version"))?;
        let rustc_version = sh::first_line(&rustc, "-V")?;
        let number = rustc_version.split(' ').nth(1).unwrap_or_default();
        let versions = Versions {
            // Debian's package rust-web-src. Its path is in the ready-made `core` and cannot be remapped.
            library_sources: Path::new("/usr/src").join(format!("rustc-{number}")).exists(),
            rustc: rustc_version,
            cargo: sh::first_line(&cargo, "-V")?,
            bpf_linker: sh::first_line(&linker, "--version")?,
            objcopy: objcopy_version
                .lines()
                .find(|line| line.contains("version"))
                .unwrap_or("unknown")
                .trim()
                .to_owned(),
            llvm,
        };
        Ok(Self { kind, rustc, cargo, sysroot, linker, objcopy, versions })
    }

    /// One line for the screen.
    pub fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::Debian => "Debian's",
            Kind::Nightly => "rustup nightly with rust-src,",
        };
        format!("{kind} {} ({}), {}", self.versions.rustc, self.rustc.display(), self.versions.bpf_linker)
    }

    /// Its cargo, freed from what the cargo that runs us put into the environment.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(&self.cargo);
        // Just installed, the linker may be in a folder that PATH does not name.
        let mut path = self.linker.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        cargo.env("PATH", path);
        for name in ["RUSTC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTUP_TOOLCHAIN"] {
            cargo.env_remove(name);
        }
        cargo.env("CHADT_BPF_RUSTC", &self.rustc);
        if self.kind == Kind::Nightly {
            cargo.args(["-Z", "build-std=core"]);
        }
        cargo
    }

    /// Where the sources are of which a nightly builds `core`.
    pub fn library_sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }
}

/// `CARGO_HOME` or what stands in for it.
pub fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}

fn debian() -> Option<Compiler> {
    let sysroot = PathBuf::from(sh::output(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"])).ok()?);
    let complete =
        sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir() && Path::new(DEBIAN_CARGO).exists();
    complete.then(|| Compiler {
        kind: Kind::Debian,
        rustc: DEBIAN_RUSTC.into(),
        cargo: DEBIAN_CARGO.into(),
        sysroot,
    })
}

fn nightly() -> Option<Compiler> {
    let print = ["run", "nightly", "rustc", "--print", "sysroot"];
    let sysroot = PathBuf::from(sh::output(Command::new("rustup").args(print)).ok()?);
    sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").exists().then(|| Compiler {
        kind: Kind::Nightly,
        rustc: sysroot.join("bin/rustc"),
        cargo: sysroot.join("bin/cargo"),
        sysroot,
    })
}

/// bpf-linker reads the compiler's bitcode, so it must be built with the same LLVM.
fn linker(kind: Kind, major: &str) -> Result<PathBuf> {
    if let Some(path) = sh::find(LINKER)
        && sh::first_line(&path, "--version")?.ends_with(LINKER_VERSION)
    {
        return Ok(path);
    }
    eprintln!("xtask: installing {LINKER} {LINKER_VERSION}");
    let mut install = sh::cargo();
    install.args(["install", LINKER, "--version", LINKER_VERSION, "--locked", "--force"]);
    match kind {
        Kind::Debian => {
            apt::ensure(&[&format!("llvm-{major}-dev"), "g++", "zlib1g-dev"], "building bpf-linker")?;
            let prefix = format!("/usr/lib/llvm-{major}");
            install
                .args(["--no-default-features", "--features", &format!("llvm-{major}")])
                .env(format!("LLVM_SYS_{major}1_PREFIX"), &prefix)
                .env("LLVM_PREFIX", prefix);
        }
        // Its default features take the LLVM that comes with the rustup toolchain.
        Kind::Nightly => {}
    }
    sh::run(&mut install).with_context(|| format!("install {LINKER}"))?;
    sh::find(LINKER)
        .or_else(|| Some(cargo_home().ok()?.join("bin").join(LINKER)).filter(|path| path.is_file()))
        .ok_or_else(|| anyhow!("{LINKER} was installed, but is not on PATH"))
}

fn objcopy(major: &str) -> Result<PathBuf> {
    let find = || {
        let versioned = format!("llvm-objcopy-{major}");
        sh::find(&versioned)
            .or_else(|| {
                let path = PathBuf::from(format!("/usr/lib/llvm-{major}/bin/llvm-objcopy"));
                path.is_file().then_some(path)
            })
            .or_else(|| sh::find("llvm-objcopy"))
    };
    if let Some(path) = find() {
        return Ok(path);
    }
    apt::ensure(&[&format!("llvm-{major}")], "stripping the eBPF object")?;
    find().ok_or_else(|| anyhow!("no llvm-objcopy"))
}
