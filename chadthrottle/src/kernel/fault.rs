//! Places in the set-up at which a test lets the process die or fail. In release builds they do nothing.

/// Names of all places, in the order in which setting a limit passes them.
pub const POINTS: &[&str] = &[
    "owner.locked",
    "owner.moved",
    "owner.journal",
    "owner.socket",
    "owner.janitor",
    "ebpf.loaded",
    "ebpf.attached",
    "ebpf.kept",
    "ebpf.process-entered",
    "ebpf.sockets-tagged",
    "queue.recorded",
    "queue.ifb",
    "queue.window",
    "queue.clsact",
    "queue.filter",
    "ebpf.limit-written",
    "owner.limited",
];

/// The same of the command that asks for the limit.
pub const CLIENT_POINTS: &[&str] = &["client.connected", "client.limited", "client.waiting"];

/// The same for backends that put the processes in cgroups of their own.
pub const CROWD_POINTS: &[&str] = &["crowd.recorded", "crowd.moved", "crowd.table", "crowd.applied"];

/// The same for backends that put a tree of classes on devices; to be passed after the first of the above.
pub const TREE_POINTS: &[&str] = &["htb.recorded", "htb.planted"];

/// Dies here of SIGKILL when `CHADT_FAULT_KILL` holds this place's name, panics when `CHADT_FAULT_PANIC` does.
pub fn point(name: &str) {
    debug_assert!(
        [POINTS, CLIENT_POINTS, CROWD_POINTS, TREE_POINTS].iter().any(|list| list.contains(&name)),
        "fault point {name} is not in the list"
    );
    #[cfg(debug_assertions)]
    {
        if std::env::var_os("CHADT_FAULT_KILL").is_some_and(|wanted| wanted == name) {
            // SIGKILL to oneself arrives before the call returns.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
        if std::env::var_os("CHADT_FAULT_PANIC").is_some_and(|wanted| wanted == name) {
            panic!("fault injected at {name}");
        }
    }
}

/// A number by which a test gets to what a machine seldom comes to: the value of the variable `CHADT_FAULT_` and
/// `name`.
pub fn setting(name: &str) -> Option<u32> {
    #[cfg(debug_assertions)]
    let value = std::env::var(format!("CHADT_FAULT_{name}")).ok()?.parse().ok();
    #[cfg(not(debug_assertions))]
    let value = {
        let _ = name;
        None
    };
    value
}
