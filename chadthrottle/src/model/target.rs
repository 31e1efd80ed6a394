//! Whose traffic a limit holds, and how it is written.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    cgroups::is_container_id,
    remote::{Ports, Remote},
    text::{escape, quote},
};
use crate::error::{Error, Kind, Result};

/// The kinds, as a refusal shows them.
pub const KINDS: &str = "pid:1234 (or just 1234), tree:1234, name:firefox, exe:/usr/bin/curl, cgroup:/path, \
                         unit:nginx.service, container:ID-prefix, user:alice, remote:1.2.3.0/24, \
                         remote:[2001:db8::]/32, port:443, port:8000-8100";

/// Longest file name, bytes (NAME_MAX of the kernel).
const LONGEST_NAME: usize = 255;
/// Longest path, bytes (PATH_MAX of the kernel, without the zero).
const LONGEST_PATH: usize = 4095;

/// Digits that are shown of a container's id.
const SHOWN_DIGITS: usize = 12;

/// What a unit's name ends in, when it is no service.
const UNIT_TYPES: &[&str] = &[
    ".service",
    ".scope",
    ".slice",
    ".socket",
    ".mount",
    ".swap",
    ".automount",
    ".timer",
    ".path",
    ".target",
    ".device",
];

/// Processes by what they are, or the far end of a connection.
///
/// Written, also in JSON and between client and owner, as users write it: `pid:1234`. Shown (by `Display`) it is
/// the same, escaped, and a container's id
/// only by its first twelve digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// `pid:1234`: the process and the children it forks from now on.
    Pid(u32),
    /// `tree:1234`: also the descendants it already has.
    Tree(u32),
    /// `name:firefox`: processes of that name (comm), or whose executable file has that name.
    Name(String),
    /// `exe:/usr/bin/curl`: processes that run that file.
    Exe(String),
    /// `cgroup:/path`: processes in that cgroup and below. The path begins at the root of the hierarchy.
    Cgroup(String),
    /// `unit:nginx.service`: processes of a systemd unit.
    Unit(String),
    /// `container:4f2a`: processes of a container, by the beginning of its id, or its name.
    Container(String),
    /// `user:alice`, `user:1000`: processes of a user, by the real user id.
    User(String),
    /// `remote:1.2.3.0/24`: traffic with these addresses only.
    Remote(Remote),
    /// `port:443`, `port:8000-8100`: traffic with these remote ports only (TCP, UDP).
    Port(Ports),
}

impl Target {
    /// The process of `pid:` and `tree:`.
    pub fn pid(&self) -> Option<u32> {
        match *self {
            Self::Pid(pid) | Self::Tree(pid) => Some(pid),
            _ => None,
        }
    }

    /// Whether it names processes; the other kinds narrow their traffic.
    pub fn names_processes(&self) -> bool {
        !matches!(self, Self::Remote(_) | Self::Port(_))
    }

    /// Whether it also means processes that start later and have nothing to do with those of now, so that
    /// it never ends by itself.
    pub fn is_standing(&self) -> bool {
        self.pid().is_none()
    }

    /// Whether a limit on these targets goes on when none of their processes is left.
    pub fn are_standing(targets: &[Self]) -> bool {
        let mut named = targets.iter().filter(|target| target.names_processes()).peekable();
        named.peek().is_none() || named.any(Self::is_standing)
    }

    /// As users write it.
    fn written(&self) -> String {
        match self {
            Self::Pid(pid) => format!("pid:{pid}"),
            Self::Tree(pid) => format!("tree:{pid}"),
            Self::Name(name) => format!("name:{name}"),
            Self::Exe(path) => format!("exe:{path}"),
            Self::Cgroup(path) => format!("cgroup:{path}"),
            Self::Unit(name) => format!("unit:{name}"),
            Self::Container(id) => format!("container:{id}"),
            Self::User(name) => format!("user:{name}"),
            Self::Remote(remote) => format!("remote:{remote}"),
            Self::Port(ports) => format!("port:{ports}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // As their own tools show them.
            Self::Container(id) if is_container_id(id) => {
                f.pad(&format!("container:{}", &id[..SHOWN_DIGITS]))
            }
            _ => f.pad(&escape(&self.written())),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    /// Errors are [`Kind::Usage`] and list the kinds.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: String| {
            Err(Error::new(Kind::Usage, format!("{} is no target: {why}; targets are {KINDS}", quote(text))))
        };
        if text.is_empty() {
            return refuse("it is empty".into());
        }
        let (kind, value) = text.split_once(':').unwrap_or(("pid", text));
        let made = match kind {
            "pid" => process_id(value).map(Self::Pid),
            "tree" => process_id(value).map(Self::Tree),
            "name" => name(value, "the name").map(Self::Name),
            "exe" => path(value, "the path of the executable").map(Self::Exe),
            "cgroup" => path(value, "the cgroup's path").map(Self::Cgroup),
            "unit" => name(value, "the unit's name").map(unit).map(Self::Unit),
            "container" => name(value, "the container's id").map(Self::Container),
            "user" => name(value, "the user's name").map(Self::User),
            "remote" => value.parse().map(Self::Remote),
            "port" => value.parse().map(Self::Port),
            _ => Err(format!("unknown kind {}", quote(kind))),
        };
        made.or_else(refuse)
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.written()
    }
}

/// A process id as the kernel has them (`pid_t`), or why it is none.
fn process_id(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Err("the process id is missing".into());
    }
    let negative = text.len() > 1 && text.starts_with('-');
    let digits = &text[usize::from(negative)..];
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{} is no process id", quote(text)));
    }
    match text.parse::<i32>() {
        Ok(pid @ 1..) => Ok(pid.unsigned_abs()),
        Ok(_) => Err("process ids begin at 1".into()),
        Err(_) if negative => Err("process ids begin at 1".into()),
        Err(_) => Err(format!("process ids end at {}", i32::MAX)),
    }
}

/// A name as a file can have it.
fn name(text: &str, what: &str) -> Result<String, String> {
    if text.is_empty() {
        Err(format!("{what} is missing"))
    } else if text.len() > LONGEST_NAME {
        Err(format!("{what} has more than {LONGEST_NAME} bytes, which no name has"))
    } else if text.contains('\0') {
        Err(format!("{what} has a zero byte"))
    } else if text.contains('/') {
        Err(format!("{what} has a slash (exe: and cgroup: take paths)"))
    } else {
        Ok(text.to_owned())
    }
}

/// An absolute path, without what leads nowhere: repeated slashes, dots, a slash at the end.
fn path(text: &str, what: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(format!("{what} is missing"));
    } else if text.len() > LONGEST_PATH {
        return Err(format!("{what} has more than {LONGEST_PATH} bytes, which no path has"));
    } else if text.contains('\0') {
        return Err(format!("{what} has a zero byte"));
    } else if !text.starts_with('/') {
        return Err(format!("{what} does not begin with a slash"));
    }
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(format!("{what} has '..' in it")),
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// As systemd's own commands do: what has no type is a service.
fn unit(name: String) -> String {
    let typed = UNIT_TYPES.iter().any(|kind| name.ends_with(kind) && name.len() > kind.len());
    if typed || name.len() + UNIT_TYPES[0].len() > LONGEST_NAME { name } else { name + UNIT_TYPES[0] }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind() {
        for (text, expected) in [
            ("pid:1234", Target::Pid(1234)),
            ("1234", Target::Pid(1234)),
            ("2147483647", Target::Pid(2_147_483_647)),
            ("tree:1", Target::Tree(1)),
            ("name:firefox", Target::Name("firefox".into())),
            ("name:tmux: server", Target::Name("tmux: server".into())),
            ("exe:/usr/bin/curl", Target::Exe("/usr/bin/curl".into())),
            ("exe://usr/./bin/curl/", Target::Exe("/usr/bin/curl".into())),
            ("cgroup:/", Target::Cgroup("/".into())),
            ("cgroup:/user.slice/", Target::Cgroup("/user.slice".into())),
            ("unit:nginx.service", Target::Unit("nginx.service".into())),
            ("unit:nginx", Target::Unit("nginx.service".into())),
            ("unit:getty@tty1", Target::Unit("getty@tty1.service".into())),
            ("unit:user.slice", Target::Unit("user.slice".into())),
            ("container:4f2a", Target::Container("4f2a".into())),
            ("user:alice", Target::User("alice".into())),
            ("user:1000", Target::User("1000".into())),
            ("port:443", Target::Port("443".parse().unwrap())),
            ("port:80-80", Target::Port("80".parse().unwrap())),
            ("port:8000-8100", Target::Port("8000-8100".parse().unwrap())),
        ] {
            assert_eq!(target(text), expected, "{text}");
        }
        assert!(matches!(target("remote:1.2.3.0/24"), Target::Remote(_)));
        assert_eq!(serde_json::to_string(&Target::Tree(7)).unwrap(), "\"tree:7\"");
        assert!(serde_json::from_str::<Target>("\"tree:0\"").is_err());
    }

    #[test]
    fn every_refusal_says_why() {
        for (text, why) in [
            ("", "empty"),
            ("pid:", "id is missing"),
            ("tree:", "id is missing"),
            ("0", "begin at 1"),
            ("pid:0", "begin at 1"),
            ("pid:-5", "begin at 1"),
            ("-5", "begin at 1"),
            ("-99999999999999999999", "begin at 1"),
            ("2147483648", "end at 2147483647"),
            ("pid:99999999999999999999999", "end at 2147483647"),
            ("+5", "no process id"),
            ("-", "no process id"),
            ("pid:12a", "no process id"),
            ("pid: 12", "no process id"),
            ("firefox", "no process id"),
            ("host:firefox", "unknown kind 'host'"),
            ("PID:5", "unknown kind"),
            (":5", "unknown kind ''"),
            ("\x1b[31m:5", "unknown kind '\\u{1b}[31m'"),
            ("pid:5\n", "'5\\n' is no process id"),
            ("name:", "the name is missing"),
            ("name:a/b", "has a slash"),
            ("name:a\0b", "zero byte"),
            ("exe:curl", "does not begin with a slash"),
            ("exe:", "path of the executable is missing"),
            ("exe:/usr/../bin/curl", "'..'"),
            ("cgroup:user.slice", "does not begin with a slash"),
            ("cgroup:/a/../b", "'..'"),
            ("unit:", "the unit's name is missing"),
            ("container:", "id is missing"),
            ("container:a/b", "has a slash"),
            ("user:", "the user's name is missing"),
            ("port:", "port is missing"),
            ("port:0", "1 to 65535"),
            ("port:65536", "1 to 65535"),
            ("port:https", "no port number"),
            ("port:+80", "no port number"),
            ("port:80-", "port is missing"),
            ("port:-80", "port is missing"),
            ("port:80-70", "ends before it begins"),
            ("port:1-2-3", "no port number"),
            ("port:0-5", "1 to 65535"),
            ("remote:", "address is missing"),
            ("remote:example.org", "no IP address"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.message.contains(why), "{text:?}: {error}");
            for kind in ["pid:1234", "tree:1234", "name:firefox", "unit:nginx.service", "port:443"] {
                assert!(error.message.contains(kind), "{error}");
            }
            assert!(!error.message.contains(['\x1b', '\n', '\0']), "{error}");
        }
    }

    #[test]
    fn no_name_is_longer_than_the_kernel_has_them() {
        let long = "x".repeat(4096);
        for kind in ["name", "unit", "container", "user"] {
            let error = format!("{kind}:{long}").parse::<Target>().unwrap_err();
            assert!(error.message.contains("255 bytes") && error.message.len() < 600, "{error}");
        }
        assert!(format!("exe:/{long}").parse::<Target>().unwrap_err().message.contains("4095 bytes"));
        assert!(format!("name:{}", "é".repeat(127)).parse::<Target>().is_ok());
        assert_eq!(target(&format!("unit:{}", "u".repeat(255))), Target::Unit("u".repeat(255)));
    }

    #[test]
    fn what_never_ends_by_itself() {
        let standing =
            |texts: &[&str]| Target::are_standing(&texts.iter().map(|text| target(text)).collect::<Vec<_>>());
        assert!(!standing(&["pid:1"]) && !standing(&["pid:1", "tree:2", "port:443"]));
        assert!(standing(&["name:x"]) && standing(&["pid:1", "user:5"]) && standing(&["port:443"]));
    }

    #[test]
    fn shown_escaped_and_written_as_it_is() {
        let hostile = "name:a\nb\x1b[31m\u{202e}";
        assert_eq!(target(hostile).to_string(), "name:a\\nb\\u{1b}[31m\\u{202e}");
        assert_eq!(String::from(target(hostile)), hostile);
        let json = serde_json::to_string(&target(hostile)).unwrap();
        assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), target(hostile));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            let _ = text.parse::<Target>();
        }

        #[test]
        fn what_is_written_is_read_back(
            kind in "(pid|tree|name|exe|cgroup|unit|container|user|remote|port)",
            value in "(/?[\\PC]{0,20}|[0-9]{1,6}|[0-9a-f:]{2,20}(/[0-9]{1,3})?)",
        ) {
            if let Ok(target) = format!("{kind}:{value}").parse::<Target>() {
                prop_assert_eq!(String::from(target.clone()).parse::<Target>().unwrap(), target.clone());
                let shown = target.to_string();
                prop_assert!(!shown.contains(char::is_control), "{:?}", shown);
            }
        }
    }
}
