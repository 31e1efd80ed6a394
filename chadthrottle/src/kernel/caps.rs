//! Which capabilities this process has, and what to say when one is missing.

use caps::{CapSet, Capability};

use crate::error::{Error, Kind};

/// What loading and attaching the programs takes. CAP_SYS_ADMIN stands for the first and the last.
pub const FOR_EBPF: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// What it takes on kernels on which open sockets have to be found by their descriptors.
pub const FOR_DESCRIPTORS: [Capability; 5] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// What moving processes to cgroups of their own, and finding their sockets in any network namespace, takes.
pub const FOR_CROWDS: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_OVERRIDE,
];

/// Those of `wanted` that this process lacks.
pub fn missing(wanted: &[Capability]) -> Vec<Capability> {
    let have = caps::read(None, CapSet::Effective).unwrap_or_default();
    let admin = have.contains(&Capability::CAP_SYS_ADMIN);
    let stands_in = |cap: &Capability| admin && matches!(cap, Capability::CAP_BPF | Capability::CAP_PERFMON);
    wanted.iter().copied().filter(|cap| !have.contains(cap) && !stands_in(cap)).collect()
}

/// How to get `wanted`, for the user.
pub fn mend(wanted: &[Capability]) -> String {
    let names: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    if nix::unistd::geteuid().is_root() {
        // Nothing that root could call gives it back.
        let flags: Vec<_> = names.iter().map(|name| name.replacen("CAP_", "--cap-add=", 1)).collect();
        return format!(
            "this root was started without (in a container?): run it on the host, or start the container with {}",
            flags.join(" ")
        );
    }
    let program =
        std::env::current_exe().map_or_else(|_| "chadthrottle".into(), |path| path.display().to_string());
    format!("run it with sudo, or once: sudo setcap {}+ep '{program}'", names.join(",").to_lowercase())
}

/// [`Kind::NotPermitted`] when any of `wanted` is missing for `what`.
pub fn require(what: &str, wanted: &[Capability]) -> Result<(), Error> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::NotPermitted, format!("{what} needs {}: {}", names(&missing), mend(wanted))))
}

/// Names of capabilities, for the user.
pub fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
