//! Looks for what the verifier would refuse, where it can still be named.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind, read::elf::ElfFile64};
use std::collections::BTreeSet;

/// Fails when the object holds a panic path, and names the functions that lead there. Must see the
/// object before it is stripped.
pub fn refuse_panics(object: &[u8]) -> Result<()> {
    let file: ElfFile64 = ElfFile64::parse(object).context("parse the linked eBPF object")?;
    let panics: Vec<_> =
        file.symbols().filter(|symbol| symbol.name().is_ok_and(|name| name.contains("panicking"))).collect();
    if panics.is_empty() {
        return Ok(());
    }
    let names: BTreeSet<_> = panics.iter().filter_map(demangled).collect();
    let mut callers = BTreeSet::new();
    for section in file.sections() {
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(target) = relocation.target() else { continue };
            if !panics.iter().any(|panic| panic.index() == target) {
                continue;
            }
            let caller = file.symbols().find(|symbol| {
                symbol.kind() == SymbolKind::Text
                    && symbol.section_index() == Some(section.index())
                    && (symbol.address()..symbol.address() + symbol.size()).contains(&offset)
            });
            callers.extend(caller.as_ref().and_then(demangled));
        }
    }
    bail!(
        "the eBPF object can panic, which the verifier refuses\n  in it: {}\n  called from: {}\n\
         Usual causes: indexing, `/` by what may be zero, unchecked slices.",
        list(&names),
        if callers.is_empty() { "(same section, see the names above)".into() } else { list(&callers) },
    );
}

fn demangled<'a>(symbol: &impl ObjectSymbol<'a>) -> Option<String> {
    symbol.name().ok().map(|name| format!("{:#}", rustc_demangle::demangle(name)))
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
