//! What the path of a cgroup says about the processes in it: the systemd unit, the containers. Pure; paths are as
//! `/proc/PID/cgroup` has them, of version 2 and of version 1 alike.

/// Containers are named by 64 hexadecimal digits.
const ID_DIGITS: usize = 64;

/// Shortest beginning of an id that is taken for one; a shorter name must be the whole name.
pub const SHORTEST_ID: usize = 3;

/// Who made a container, by how it names the cgroup `PREFIX-ID` or `PREFIX-ID.scope`. The monitors beside the
/// containers (`libpod-conmon-ID.scope`) are none.
const RUNTIMES: &[(&str, &str)] = &[
    ("docker", "docker"),
    ("libpod", "podman"),
    ("cri-containerd", "containerd"),
    ("nerdctl", "containerd"),
    ("containerd", "containerd"),
    ("crio", "cri-o"),
];

/// A container, as its cgroup names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Container {
    /// 64 hexadecimal digits, or the name of an LXC or systemd-nspawn container.
    pub id: String,
    /// Who made it, as far as the path tells: docker, podman, containerd, cri-o, lxc, machine (systemd-nspawn, or a
    /// virtual machine), or just container.
    pub runtime: &'static str,
    /// The cgroup's path; everything below belongs to the container.
    pub path: String,
    /// Whether the cgroup's own name, wherever it is, means this container and nothing else.
    pub distinctive: bool,
}

impl Container {
    /// Whether a user who writes `wanted` means it: the id's beginning, or the whole name.
    pub fn is(&self, wanted: &str) -> bool {
        let by_id = is_container_id(&self.id) && wanted.len() >= SHORTEST_ID;
        self.id == wanted || by_id && self.id.starts_with(&wanted.to_ascii_lowercase())
    }

    /// The cgroup's own name.
    pub fn cgroup_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// Whether it is a whole id, as the runtimes make them.
pub fn is_container_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The containers that a cgroup lies in, outermost first.
pub fn containers(path: &str) -> Vec<Container> {
    let mut found = Vec::new();
    let mut parent = "";
    let mut end = 0;
    for name in path.split('/') {
        end += name.len() + 1;
        if let Some((id, runtime, distinctive)) = container(parent, name) {
            let path = path[..(end - 1).min(path.len())].to_owned();
            found.push(Container { id, runtime, path, distinctive });
        }
        parent = name;
    }
    found
}

/// Id, runtime, and whether the name alone says so, of a cgroup by its own and its parent's name.
fn container(parent: &str, name: &str) -> Option<(String, &'static str, bool)> {
    let whole = |id: &str| (!id.is_empty()).then(|| id.to_owned());
    if let Some(id) = name.strip_prefix("lxc.payload.") {
        return Some((whole(id)?, "lxc", true));
    }
    if matches!(parent, "lxc" | "lxc.payload") {
        return Some((whole(name)?, "lxc", false));
    }
    if let Some(id) = name.strip_prefix("machine-").and_then(|rest| rest.strip_suffix(".scope")) {
        return Some((whole(&unescape(id))?, "machine", true));
    }
    if let Some(id) = name.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service")) {
        return Some((whole(&unescape(id))?, "machine", true));
    }
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    // What a runtime makes of a systemd path that it takes for a plain one: `SLICE:PREFIX:ID`.
    let (prefix, id) = match bare.rsplit_once(':') {
        Some((front, id)) => (front.rsplit(':').next().unwrap_or_default(), id),
        None => bare.rsplit_once('-').unwrap_or(("", bare)),
    };
    if !is_container_id(id) {
        return None;
    }
    let by_prefix = RUNTIMES.iter().find(|(own, _)| *own == prefix);
    let runtime = match (by_prefix, prefix, parent) {
        (Some((_, runtime)), ..) => runtime,
        (None, "", "docker") => "docker",
        (None, "", "libpod_parent") => "podman",
        (None, "", _) => "container",
        _ => return None,
    };
    Some((id.to_owned(), runtime, true))
}

/// `\xNN` of systemd's names.
fn unescape(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = rest.strip_prefix(b"\\x").and_then(|digits| std::str::from_utf8(digits.get(..2)?).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// systemd puts `_` before a name that the kernel could take for a file of its own.
pub fn unit_name(cgroup: &str) -> &str {
    cgroup.strip_prefix('_').unwrap_or(cgroup)
}

/// Whether a cgroup lies in a unit, or in a slice.
pub fn is_in_unit(path: &str, unit: &str) -> bool {
    path.split('/').any(|name| unit_name(name) == unit)
}

/// The unit that a cgroup lies in: below slices the first one, and in a user's manager the user's unit.
pub fn unit(path: &str) -> Option<&str> {
    const TYPES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
    let mut manager = None;
    for name in path.split('/').filter(|name| !name.is_empty() && !name.ends_with(".slice")).map(unit_name) {
        if !TYPES.iter().any(|kind| name.ends_with(kind)) {
            break;
        }
        if name.starts_with("user@") && manager.is_none() {
            manager = Some(name);
        } else {
            return Some(name);
        }
    }
    manager
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d4f2a9c0d";
    const OTHER: &str = "00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff";

    fn one(path: &str) -> Option<(String, &'static str, bool)> {
        let path = path.replace("ID", ID);
        let mut found = containers(&path);
        assert!(found.len() <= 1, "{found:?}");
        found.pop().map(|each| (each.id, each.runtime, each.distinctive))
    }

    #[test]
    fn containers_of_every_runtime() {
        for (path, runtime) in [
            ("/docker/ID", "docker"),
            ("/docker/ID/some/where", "docker"),
            ("/system.slice/docker-ID.scope", "docker"),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-ID.scope", "docker"),
            ("/actions_job/ID", "container"),
            ("/machine.slice/libpod-ID.scope", "podman"),
            ("/machine.slice/libpod-ID.scope/container", "podman"),
            ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container", "podman"),
            ("/libpod_parent/libpod-ID", "podman"),
            ("/kubepods/burstable/pod1f0d1a9e-4cfb-11ee-be56-0242ac120002/ID", "container"),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1f.slice/cri-containerd-ID.scope",
                "containerd",
            ),
            ("/kubepods.slice/kubepods-pod1f.slice/crio-ID.scope", "cri-o"),
            (
                "/system.slice/containerd.service/kubepods-besteffort-pod1f.slice:cri-containerd:ID",
                "containerd",
            ),
            ("/system.slice/nerdctl-ID.scope", "containerd"),
            ("/default/ID", "container"),
        ] {
            assert_eq!(one(path), Some((ID.into(), runtime, true)), "{path}");
        }
        for (path, id, runtime, distinctive) in [
            ("/lxc.payload.web/init.scope", "web", "lxc", true),
            ("/lxc.payload/web/system.slice", "web", "lxc", false),
            ("/lxc/101/ns", "101", "lxc", false),
            ("/machine.slice/machine-web.scope/payload", "web", "machine", true),
            ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/emulator", "qemu-1-vm", "machine", true),
            ("/machine.slice/systemd-nspawn@debian\\x2dtree.service/payload", "debian-tree", "machine", true),
        ] {
            assert_eq!(one(path), Some((id.into(), runtime, distinctive)), "{path}");
        }
    }

    #[test]
    fn what_is_no_container() {
        for path in [
            "",
            "/",
            "/docker",
            "/system.slice/docker.service",
            "/machine.slice/libpod-conmon-ID.scope",
            "/machine.slice/crio-conmon-ID.scope",
            "/lxc.monitor.web",
            "/lxc",
            "/lxc/",
            "/system.slice/docker-4f2a9c0d.scope",
            "/system.slice/IDf",
            "/system.slice/other-ID.scope",
            "/machine.slice/machine-.scope",
        ] {
            assert_eq!(one(path), None, "{path}");
        }
    }

    #[test]
    fn containers_in_containers() {
        let path = format!("/docker/{ID}/docker/{OTHER}/init.scope");
        let found = containers(&path);
        assert_eq!(found.iter().map(|each| each.id.as_str()).collect::<Vec<_>>(), [ID, OTHER]);
        assert_eq!(found[0].path, format!("/docker/{ID}"));
        assert_eq!(found[1].path, format!("/docker/{ID}/docker/{OTHER}"));
        assert_eq!(found[1].cgroup_name(), OTHER);
    }

    #[test]
    fn named_by_the_beginning_of_the_id() {
        let by_id = &containers(&format!("/docker/{ID}"))[0];
        assert!(by_id.is(ID) && by_id.is("4f2a9c0d4f2a") && by_id.is("4f2") && by_id.is("4F2A"));
        assert!(!by_id.is("4f") && !by_id.is("f2a") && !by_id.is(""));
        let by_name = &containers("/lxc.payload.web")[0];
        assert!(by_name.is("web") && !by_name.is("we") && !by_name.is("webs"));
    }

    #[test]
    fn units() {
        for (path, expected) in [
            ("/system.slice/nginx.service", Some("nginx.service")),
            ("/system.slice/nginx.service/worker.service", Some("nginx.service")),
            ("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service")),
            ("/user.slice/user-1000.slice/session-3.scope", Some("session-3.scope")),
            ("/user.slice/user-1000.slice/user@1000.service", Some("user@1000.service")),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", Some("init.scope")),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.service", Some("app-x.service")),
            ("/system.slice/_cpu.service", Some("cpu.service")),
            ("/init.scope", Some("init.scope")),
            ("/docker/nginx.service", None),
            ("/system.slice", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(unit(path), expected, "{path}");
        }
        assert!(is_in_unit("/system.slice/nginx.service/worker", "nginx.service"));
        assert!(is_in_unit("/system.slice/nginx.service", "system.slice"));
        assert!(is_in_unit("/system.slice/_cpu.service", "cpu.service"));
        assert!(!is_in_unit("/system.slice/nginx.service.d", "nginx.service"));
    }

    proptest! {
        #[test]
        fn any_path_is_answered(path in "[\\PC/.\\\\:-]{0,80}") {
            let _ = unit(&path);
            for container in containers(&path) {
                prop_assert!(path.starts_with(&container.path));
                prop_assert!(container.is(&container.id));
            }
        }
    }
}
