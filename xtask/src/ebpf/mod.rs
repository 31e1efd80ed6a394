//! `cargo xtask build-ebpf`: the object that the binary embeds.
//!
//! It is committed, because a user has a stable toolchain only, and built so that the same sources
//! and tools give the same bytes in any folder: `--check` holds the committed one against that.

mod inspect;
#[path = "../../../chadthrottle/bpf/provenance.rs"]
mod provenance;
mod toolchain;

use crate::sh;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use provenance::{OBJECT, PROVENANCE, Provenance, sha256, source_hash};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use toolchain::Toolchain;

const TARGET: &str = "bpfel-unknown-none";

/// Name of the binary that the programs are, to cargo.
const PROGRAMS: &str = "chadthrottle";

/// What `build-ebpf` takes.
#[derive(Args)]
pub struct Options {
    /// Write nothing; compare what the sources give with the committed object
    #[arg(long)]
    check: bool,
    /// Take this toolchain, not the first that is there
    #[arg(long, value_enum)]
    toolchain: Option<Kind>,
}

/// Where the compiler comes from.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// rustc-web of Debian, with a ready `core` for the target
    Debian,
    /// A rustup nightly with rust-src, which builds `core` itself
    Nightly,
}

pub fn run(options: &Options) -> Result<()> {
    let root = crate::root();
    let toolchain = Toolchain::find_or_install(options.toolchain)?;
    eprintln!("xtask: eBPF toolchain: {}", toolchain.describe());

    let folder = target_dir(&root, &toolchain, options.check)?;
    let object = build(&root, &toolchain, &folder)?;
    let now = Provenance {
        object: sha256(&object),
        sources: source_hash(&root).context("hash the eBPF sources")?,
        toolchain: toolchain.versions.clone(),
    };
    if options.check {
        return check(&root, &now);
    }
    write(&root.join(OBJECT), &object)?;
    let text = format!("# Written by `cargo xtask build-ebpf`.\n{}", toml::to_string(&now)?);
    write(&root.join(PROVENANCE), text.as_bytes())?;
    println!("{OBJECT}: {} bytes, sha256 {}", object.len(), now.object);
    Ok(())
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("write {}", path.display()))
}

/// One for each set of tools, since cargo does not notice another linker; an empty one to check in.
fn target_dir(root: &Path, toolchain: &Toolchain, check: bool) -> Result<PathBuf> {
    if !check {
        let tools = sha256(toml::to_string(&toolchain.versions)?.as_bytes());
        return Ok(root.join("target/ebpf").join(&tools[..12]));
    }
    let folder = root.join("target/ebpf/check");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(folder)
}

fn build(root: &Path, toolchain: &Toolchain, target_dir: &Path) -> Result<Vec<u8>> {
    let object = compile(root, toolchain, target_dir, &["--bin", PROGRAMS], PROGRAMS)?;
    fs::read(&object).with_context(|| format!("read {}", object.display()))
}

/// Builds an example of the eBPF crate with the toolchain that the programs are built with; its object.
pub fn build_example(name: &str) -> Result<PathBuf> {
    let root = crate::root();
    let toolchain = Toolchain::find_or_install(None)?;
    let folder = target_dir(&root, &toolchain, false)?;
    compile(&root, &toolchain, &folder, &["--example", name], &format!("examples/{name}"))
}

/// Compiles, links, refuses what cannot be loaded, strips. `made` is where the linker puts it.
fn compile(
    root: &Path,
    toolchain: &Toolchain,
    target_dir: &Path,
    what: &[&str],
    made: &str,
) -> Result<PathBuf> {
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(root.join("chadthrottle-ebpf"))
        .args(["build", "--release", "--locked", "--target", TARGET])
        .args(what)
        .arg("--target-dir")
        .arg(target_dir)
        .arg("--config")
        .arg(remap(root, toolchain)?);
    sh::run(&mut cargo).context("build the eBPF programs")?;

    let linked = target_dir.join(TARGET).join("release").join(made);
    let bytes = fs::read(&linked).with_context(|| format!("read {}", linked.display()))?;
    inspect::refuse_panics(&bytes)?;

    let stripped = linked.with_extension("bpf.o");
    sh::run(Command::new(&toolchain.objcopy).arg("--strip-unneeded").arg(&linked).arg(&stripped))?;
    Ok(stripped)
}

/// The paths of this machine that would end up in the object's line information, by fixed names.
/// Given as configuration: it adds to the flags of the crate's own, where RUSTFLAGS would replace them.
fn remap(root: &Path, toolchain: &Toolchain) -> Result<String> {
    let flags = [
        (root.to_owned(), "/chadthrottle"),
        (toolchain::cargo_home()?, "/cargo"),
        (toolchain.library_sources(), "/rustc"),
    ]
    .map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display()));
    let flags = toml::Value::from(flags.to_vec());
    Ok(format!("target.{TARGET}.rustflags={flags}"))
}

fn check(root: &Path, now: &Provenance) -> Result<()> {
    let committed = Provenance::read(root).with_context(|| format!("read {PROVENANCE}"))?;
    if committed.sources != now.sources {
        bail!("the eBPF sources changed after {OBJECT} was built: run `cargo xtask build-ebpf` and commit");
    }
    let object = fs::read(root.join(OBJECT)).with_context(|| format!("read {OBJECT}"))?;
    if sha256(&object) != committed.object {
        bail!("{OBJECT} is not the one that {PROVENANCE} describes: run `cargo xtask build-ebpf` and commit");
    }
    if now.object == committed.object {
        println!("build-ebpf: the same sources give the same bytes, sha256 {}", now.object);
    } else if now.toolchain != committed.toolchain {
        println!(
            "build-ebpf: TOOLCHAIN DIFFERS, bytes not comparable; test what `cargo xtask build-ebpf` makes here\n  \
             committed: {:?}\n  here:      {:?}",
            committed.toolchain, now.toolchain
        );
    } else {
        bail!(
            "the same sources and tools gave other bytes: {OBJECT} has {}, built now {}",
            committed.object,
            now.object
        );
    }
    Ok(())
}
