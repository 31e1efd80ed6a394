//! Offsets of kernel fields, from the kernel's own type information.
//!
//! aya relocates what clang marks (CO-RE), which rustc does not; so the loader looks the offsets up
//! here and hands them to the programs as constants.

use std::{collections::HashMap, fs};

use crate::error::{Error, Kind, Result};

/// Where the kernel shows it (CONFIG_DEBUG_INFO_BTF).
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;

// Kinds of types, from include/uapi/linux/btf.h.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

struct Member {
    name: u32,
    type_id: u32,
    /// In bits from the start of the struct.
    offset: u32,
}

#[derive(Default)]
struct Type {
    name: u32,
    kind: u32,
    /// What a typedef or qualifier stands for.
    target: u32,
    members: Vec<Member>,
}

/// The kernel's types.
pub struct Btf {
    strings: Vec<u8>,
    types: Vec<Type>,
    structs: HashMap<Vec<u8>, u32>,
}

impl Btf {
    /// Those of the running kernel.
    ///
    /// # Errors
    /// [`Kind::NoBackend`] when the kernel shows none.
    pub fn from_kernel() -> Result<Self> {
        let data = fs::read(VMLINUX).map_err(|cause| {
            Error::caused(
                Kind::NoBackend,
                format!("read {VMLINUX} (kernel built without CONFIG_DEBUG_INFO_BTF?)"),
                &cause,
            )
        })?;
        Self::parse(&data).ok_or_else(|| Error::failed(format!("parse {VMLINUX}: not the known format")))
    }

    fn parse(data: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?));
        if u16::from_le_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(4)? as usize;
        let types_at = header + word(8)? as usize;
        let types_end = types_at + word(12)? as usize;
        let strings_at = header + word(16)? as usize;
        let strings = data.get(strings_at..strings_at + word(20)? as usize)?.to_vec();
        let mut types = vec![Type::default()]; // id 0 is void
        let mut structs = HashMap::new();
        let mut at = types_at;
        while at < types_end {
            let (name, info, target) = (word(at)?, word(at + 4)?, word(at + 8)?);
            let (kind, count, bitfields) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
            at += 12;
            let mut members = Vec::new();
            if kind == STRUCT || kind == UNION {
                for index in 0..count {
                    let at = at + index * 12;
                    let offset = word(at + 8)?;
                    let offset = if bitfields { offset & 0x00ff_ffff } else { offset };
                    members.push(Member { name: word(at)?, type_id: word(at + 4)?, offset });
                }
            }
            at += match kind {
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATASEC | ENUM64 => 12 * count,
                ENUM | FUNC_PROTO => 8 * count,
                _ => 0,
            };
            if kind == STRUCT {
                structs.entry(string(&strings, name).to_vec()).or_insert(types.len() as u32);
            }
            types.push(Type { name, kind, target, members });
        }
        Some(Self { strings, types, structs })
    }

    /// Follows typedefs, qualifiers and type tags.
    fn resolve(&self, mut id: u32) -> u32 {
        while let Some(Type { kind: TYPEDEF..=RESTRICT | TYPE_TAG, target, .. }) = self.types.get(id as usize)
        {
            id = *target;
        }
        id
    }

    fn member(&self, id: u32, wanted: &str) -> Option<(u32, u32)> {
        for member in &self.types.get(id as usize)?.members {
            if member.name != 0 && string(&self.strings, member.name) == wanted.as_bytes() {
                return Some((member.offset, member.type_id));
            }
            // Anonymous structs and unions are looked through.
            if member.name == 0
                && let Some((inner, type_id)) = self.member(self.resolve(member.type_id), wanted)
            {
                return Some((member.offset + inner, type_id));
            }
        }
        None
    }

    /// Offset in bytes of a field. `path` is dotted: `__sk_common.skc_family`.
    ///
    /// # Errors
    /// [`Kind::NoBackend`] when this kernel has no such field.
    pub fn offset(&self, name: &str, path: &str) -> Result<u32> {
        self.bit_offset(name, path).map(|bits| bits / 8)
    }

    /// [`Btf::offset`] in bits, for bit fields.
    ///
    /// # Errors
    /// As there.
    pub fn bit_offset(&self, name: &str, path: &str) -> Result<u32> {
        let none = || Error::new(Kind::NoBackend, format!("this kernel's struct {name} has no field {path}"));
        let mut id = *self.structs.get(name.as_bytes()).ok_or_else(none)?;
        let mut bits = 0;
        for part in path.split('.') {
            let (offset, type_id) = self.member(id, part).ok_or_else(none)?;
            bits += offset;
            id = self.resolve(type_id);
        }
        Ok(bits)
    }

    /// Number of the type of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        let is_it = |each: &Type| each.kind == FUNC && string(&self.strings, each.name) == name.as_bytes();
        self.types.iter().position(is_it).map(|id| id as u32)
    }

    /// Whether the kernel has a type of that name (a tracepoint's `btf_trace_NAME`).
    pub fn has_type(&self, name: &str) -> bool {
        self.types.iter().any(|each| string(&self.strings, each.name) == name.as_bytes())
    }
}

fn string(strings: &[u8], at: u32) -> &[u8] {
    let rest = strings.get(at as usize..).unwrap_or_default();
    rest.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_of_this_kernel() {
        let Ok(btf) = Btf::from_kernel() else {
            eprintln!("skipped: this kernel shows no BTF");
            return;
        };
        // Known by the C language, whatever the kernel: a first member is at offset 0.
        assert_eq!(btf.offset("sock", "__sk_common").unwrap(), 0);
        let family = btf.offset("sock", "__sk_common.skc_family").unwrap();
        let state = btf.offset("sock", "__sk_common.skc_state").unwrap();
        assert_eq!(state, family + 2);
        assert!(btf.offset("task_struct", "tgid").unwrap() > btf.offset("task_struct", "pid").unwrap());
        assert!(btf.offset("task_struct", "no_such_field").is_err());
        assert!(btf.has_type("btf_trace_sched_process_fork"));
    }

    #[test]
    fn refuses_what_is_no_btf() {
        assert!(Btf::parse(b"").is_none());
        assert!(Btf::parse(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0]).is_none());
    }
}
