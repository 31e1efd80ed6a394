//! The committed eBPF object belongs to the committed sources.

#[path = "../bpf/provenance.rs"]
mod provenance;

use provenance::{OBJECT, Provenance, sha256, source_hash};
use std::{fs, path::Path};

/// The root of the checkout.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

fn written() -> Provenance {
    Provenance::read(root())
        .unwrap_or_else(|e| panic!("read {}: {e}; run `cargo xtask build-ebpf`", provenance::PROVENANCE))
}

#[test]
fn object_was_built_from_these_sources() {
    let sources = source_hash(root()).expect("hash the sources of the eBPF object");
    assert_eq!(
        sources,
        written().sources,
        "the eBPF sources changed after {OBJECT} was built from them: run `cargo xtask build-ebpf` and commit what it writes",
    );
}

#[test]
fn object_is_the_one_its_provenance_describes() {
    let object = fs::read(root().join(OBJECT)).unwrap_or_else(|e| panic!("read {OBJECT}: {e}"));
    assert_eq!(
        sha256(&object),
        written().object,
        "{OBJECT} is not what `cargo xtask build-ebpf` wrote: run it and commit what it writes",
    );
}
