// Where the committed eBPF object comes from: `provenance.toml` beside it, and the hash over its
// sources. Part of `cargo xtask build-ebpf`, which writes them, and of `tests/object.rs`, which
// compares them, so that both mean the same.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The object, from the root of the checkout.
pub const OBJECT: &str = "chadthrottle/bpf/chadthrottle.bpf.o";
/// Its provenance, from the root of the checkout.
pub const PROVENANCE: &str = "chadthrottle/bpf/provenance.toml";

/// Everything the object is made from, from the root of the checkout: files, and folders with all in them.
const SOURCES: [&str; 7] = [
    "chadthrottle-common/Cargo.toml",
    "chadthrottle-common/src",
    "chadthrottle-ebpf/.cargo/config.toml",
    "chadthrottle-ebpf/Cargo.lock",
    "chadthrottle-ebpf/Cargo.toml",
    "chadthrottle-ebpf/src",
    "chadthrottle-ebpf/toolchain/rustc",
];

/// What `provenance.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// SHA-256 of the object, in hex.
    pub object: String,
    /// [`source_hash`] of the sources it was built from.
    pub sources: String,
    /// The tools that built it.
    pub toolchain: Versions,
}

/// Versions of everything that decides on the object's bytes; equal versions and sources give equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Versions {
    /// First line of `rustc -V`.
    pub rustc: String,
    /// The LLVM that rustc names, which bpf-linker is built with, too.
    pub llvm: String,
    /// First line of `cargo -V`: it decides on the hashes in symbol names.
    pub cargo: String,
    /// First line of `bpf-linker --version`.
    pub bpf_linker: String,
    /// The version line of `llvm-objcopy --version`.
    pub objcopy: String,
    /// Whether the sources of `core` lie where its line information points: bpf-linker copies their lines
    /// into the object then.
    pub library_sources: bool,
}

impl Provenance {
    /// Reads it from the checkout at `root`.
    pub fn read(root: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(root.join(PROVENANCE))?;
        toml::from_str(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

/// One hash over the names and the contents of all sources below the checkout at `root`.
pub fn source_hash(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(root, Path::new(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let contents = fs::read(root.join(&file))?;
        hash.update(file.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update((contents.len() as u64).to_le_bytes());
        hash.update(contents);
    }
    Ok(hex(hash.finalize()))
}

fn collect(root: &Path, path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let full = root.join(path);
    if !full.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(full)? {
        collect(root, &path.join(entry?.file_name()), files)?;
    }
    Ok(())
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
