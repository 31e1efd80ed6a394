//! Which capabilities this process has, and what to say when one is missing.

use caps::{CapSet, Capability};

use crate::error::{Error, Kind};

/// What loading and attaching the programs takes. CAP_SYS_ADMIN stands for the first and the last.
pub const FOR_EBPF: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// Those of `wanted` that this process lacks.
pub fn missing(wanted: &[Capability]) -> Vec<Capability> {
    let have = caps::read(None, CapSet::Effective).unwrap_or_default();
    let admin = have.contains(&Capability::CAP_SYS_ADMIN);
    let stands_in = |cap: &Capability| admin && matches!(cap, Capability::CAP_BPF | Capability::CAP_PERFMON);
    wanted.iter().copied().filter(|cap| !have.contains(cap) && !stands_in(cap)).collect()
}

/// How to get `missing`, for the user.
pub fn mend(missing: &[Capability]) -> String {
    let names: Vec<_> = missing.iter().map(|cap| cap.to_string().to_lowercase()).collect();
    let program =
        std::env::current_exe().map_or_else(|_| "chadthrottle".into(), |path| path.display().to_string());
    format!("run it with sudo, or once: sudo setcap {}+ep '{program}'", names.join(","))
}

/// [`Kind::NotPermitted`] when any of `wanted` is missing for `what`.
pub fn require(what: &str, wanted: &[Capability]) -> Result<(), Error> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
    Err(Error::new(Kind::NotPermitted, format!("{what} needs {}: {}", names.join(", "), mend(wanted))))
}
