//! Looks for what the verifier would refuse, where it can still be named.

use anyhow::{Context, Result, bail};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind, read::elf::ElfFile64,
};
use std::collections::{BTreeSet, HashMap};

/// A place in the object: section and offset.
type Place = (SectionIndex, u64);

const INSTRUCTION: usize = 8;
/// BPF_JMP | BPF_CALL.
const CALL: u8 = 0x85;
/// BPF_PSEUDO_CALL: the call is to another function of the object, not to the kernel.
const PSEUDO_CALL: u8 = 1;

/// Fails when the object holds a panic path, and names the functions that lead there. Must see the
/// object before it is stripped.
pub fn refuse_panics(object: &[u8]) -> Result<()> {
    let file: ElfFile64 = ElfFile64::parse(object).context("parse the linked eBPF object")?;
    let panics: HashMap<Place, String> = file
        .symbols()
        .filter_map(|symbol| Some(((symbol.section_index()?, symbol.address()), demangled(&symbol)?)))
        .filter(|(_, name)| name.contains("panicking"))
        .collect();
    if panics.is_empty() {
        return Ok(());
    }
    let callers: BTreeSet<_> = calls(&file)?
        .into_iter()
        .filter(|(_, callee)| panics.contains_key(callee))
        .filter_map(|(caller, _)| function_at(&file, caller))
        .filter(|name| !name.contains("panicking"))
        .collect();
    bail!(
        "the eBPF object can panic, which the verifier refuses\n  panics: {}\n  called from: {}\n\
         Usual causes: indexing, `/` by what may be zero, unchecked slices.",
        list(&panics.values().cloned().collect()),
        list(&callers),
    );
}

/// All calls between functions of the object: from where to where.
fn calls(file: &ElfFile64) -> Result<Vec<(Place, Place)>> {
    let mut calls = Vec::new();
    for section in file.sections().filter(|section| section.kind() == object::SectionKind::Text) {
        let relocations: HashMap<u64, RelocationTarget> =
            section.relocations().map(|(offset, relocation)| (offset, relocation.target())).collect();
        for (number, instruction) in section.data()?.chunks_exact(INSTRUCTION).enumerate() {
            let [CALL, registers, _, _, immediate @ ..] = instruction else { continue };
            if registers >> 4 != PSEUDO_CALL {
                continue;
            }
            let offset = (number * INSTRUCTION) as u64;
            let distance = i64::from(i32::from_le_bytes(immediate.try_into()?));
            // Counted in instructions from the one after the call, or, in another section, from its start.
            let after = |from: u64| from.wrapping_add_signed((distance + 1) * INSTRUCTION as i64);
            let callee = match relocations.get(&offset) {
                None => Some((section.index(), after(offset))),
                Some(RelocationTarget::Symbol(symbol)) => {
                    let symbol = file.symbol_by_index(*symbol)?;
                    symbol.section_index().map(|section| (section, after(symbol.address())))
                }
                Some(_) => None,
            };
            calls.extend(callee.map(|callee| ((section.index(), offset), callee)));
        }
    }
    Ok(calls)
}

fn function_at(file: &ElfFile64, (section, offset): Place) -> Option<String> {
    let function = file.symbols().find(|symbol| {
        symbol.kind() == SymbolKind::Text
            && symbol.section_index() == Some(section)
            && (symbol.address()..symbol.address() + symbol.size()).contains(&offset)
    });
    demangled(&function?)
}

fn demangled<'a>(symbol: &impl ObjectSymbol<'a>) -> Option<String> {
    symbol.name().ok().map(|name| format!("{:#}", rustc_demangle::demangle(name)))
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
