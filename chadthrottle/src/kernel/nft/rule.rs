//! What goes into a table of nf_tables, as data. Shown (`Display`) much as nft(8) writes it.

use std::fmt;

/// What of a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// IPv4 or IPv6: NFPROTO_*, one byte.
    Family,
    /// Number of the transport protocol, one byte.
    Protocol,
    /// IP bytes of the packet, or of the buffer that stands for many: four bytes.
    Length,
    /// The packet's mark, four bytes.
    Mark,
    /// The packet's priority, which may be the id of a class: four bytes.
    Priority,
    /// IPv4 source, or destination.
    Ipv4 {
        /// Which.
        destination: bool,
    },
    /// IPv6 source, or destination.
    Ipv6 {
        /// Which.
        destination: bool,
    },
    /// TCP or UDP port: source, or destination.
    Port {
        /// Which.
        destination: bool,
    },
    /// Id of the ancestor of the socket's cgroup at this depth; the root's is 0. Eight bytes.
    Cgroup {
        /// Depth.
        level: u32,
    },
}

impl Field {
    /// Bytes.
    pub fn length(self) -> usize {
        match self {
            Self::Family | Self::Protocol => 1,
            Self::Port { .. } => 2,
            Self::Length | Self::Mark | Self::Priority | Self::Ipv4 { .. } => 4,
            Self::Cgroup { .. } => 8,
            Self::Ipv6 { .. } => 16,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |destination: &bool| if *destination { 'd' } else { 's' };
        match self {
            Self::Family => f.write_str("meta nfproto"),
            Self::Protocol => f.write_str("meta l4proto"),
            Self::Length => f.write_str("meta length"),
            Self::Mark => f.write_str("meta mark"),
            Self::Priority => f.write_str("meta priority"),
            Self::Ipv4 { destination } => write!(f, "ip {}addr", way(destination)),
            Self::Ipv6 { destination } => write!(f, "ip6 {}addr", way(destination)),
            Self::Port { destination } => write!(f, "th {}port", way(destination)),
            Self::Cgroup { level } => write!(f, "socket cgroupv2 level {level}"),
        }
    }
}

/// Bytes of a key as they stand in a set: its fields one after the other, each padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub Vec<u8>);

impl Key {
    /// Adds a field, in network byte order unless it is [`Field::Length`], [`Field::Mark`],
    /// [`Field::Priority`] or [`Field::Cgroup`].
    pub fn and(mut self, field: &[u8]) -> Self {
        self.0.extend(field);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No further rule of this base chain looks at it.
    Accept,
    /// It is gone, and the sender is told (EPERM).
    Drop,
    /// It is gone, and nobody is told: it goes to userspace where nobody listens.
    Vanish {
        /// Number of the queue, which must have no listener.
        queue: u16,
        /// By xtables' target NFQUEUE, where the kernel has no nft_queue.
        xtables: bool,
    },
    /// On in the chain that jumped here.
    Return,
    /// On in another chain, and then here.
    Jump(String),
    /// On in another chain, and then where this one was jumped to from.
    Goto(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Vanish { queue, xtables: false } => write!(f, "queue to {queue}"),
            Self::Vanish { queue, xtables: true } => write!(f, "xt target NFQUEUE {queue}"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// How a field compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Is this.
    Is,
    /// Is not this.
    IsNot,
    /// As a number of the machine's byte order, is at most this.
    AtMost,
}

/// A part of a rule; a rule goes on to its next part only when this one says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Goes on when it compares so.
    If(Field, Compare, Vec<u8>),
    /// Goes on when the fields together are (not) in the set.
    Among {
        /// The key.
        fields: Vec<Field>,
        /// Name of the set.
        set: String,
        /// Not in it.
        not: bool,
    },
    /// Does what the map says of these fields; goes on when they are not in it.
    Dispatch {
        /// The key.
        fields: Vec<Field>,
        /// Name of the map.
        map: String,
    },
    /// Charges the named limit, and goes on when it had no room.
    Over(String),
    /// Counts in the named counter, and goes on.
    Count(String),
    /// Gives the packet this priority, and goes on.
    SetPriority(u32),
    /// Gives the packet the priority that the map says; goes on when it does.
    SetPriorityFrom {
        /// The key.
        fields: Vec<Field>,
        /// Name of the map.
        map: String,
    },
    /// Writes a priority into a map, or prolongs its stay there, and goes on.
    Learn {
        /// The key.
        fields: Vec<Field>,
        /// Name of the map.
        map: String,
        /// What it says.
        priority: u32,
        /// When it vanishes, milliseconds.
        timeout_ms: u64,
    },
    /// Sends the packet out of this device (its index). Only in the family netdev.
    Forward(u32),
    /// Does this.
    Do(Verdict),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = |fields: &[Field]| fields.iter().map(Field::to_string).collect::<Vec<_>>().join(" . ");
        match self {
            Self::If(field, compare, value) => {
                let sign = match compare {
                    Compare::Is => "",
                    Compare::IsNot => "!= ",
                    Compare::AtMost => "<= ",
                };
                write!(f, "{field} {sign}{}", number(*field, value))
            }
            Self::Among { fields, set, not } => {
                write!(f, "{} {}@{set}", key(fields), if *not { "!= " } else { "" })
            }
            Self::Dispatch { fields, map } => write!(f, "{} vmap @{map}", key(fields)),
            Self::Over(limit) => write!(f, "limit name \"{limit}\""),
            Self::Count(counter) => write!(f, "counter name \"{counter}\""),
            Self::SetPriority(priority) => write!(f, "meta priority set {priority:#x}"),
            Self::SetPriorityFrom { fields, map } => {
                write!(f, "meta priority set {} map @{map}", key(fields))
            }
            Self::Learn { fields, map, priority, timeout_ms } => {
                write!(f, "update @{map} {{ {} timeout {timeout_ms}ms : {priority:#x} }}", key(fields))
            }
            Self::Forward(device) => write!(f, "fwd to {device}"),
            Self::Do(verdict) => verdict.fmt(f),
        }
    }
}

/// A value as people read it.
fn number(field: Field, value: &[u8]) -> String {
    let native = matches!(field, Field::Length | Field::Mark | Field::Priority | Field::Cgroup { .. })
        && cfg!(target_endian = "little");
    let fold = |sum: u128, byte: &u8| sum << 8 | u128::from(*byte);
    if native { value.iter().rev().fold(0, fold) } else { value.iter().fold(0, fold) }.to_string()
}

/// Where a base chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets for sockets of this namespace.
    Input,
    /// Packets from sockets of this namespace.
    Output,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
        })
    }
}

/// What belongs to each element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    None,
    /// A verdict.
    Verdict,
    /// A priority.
    Priority,
}

/// Type of a set, by the fields of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetKind {
    /// The key.
    pub fields: Vec<Field>,
    /// With a value, it is a map.
    pub value: Value,
    /// Packets can add elements ([`Part::Learn`]).
    pub learns: bool,
    /// Elements can vanish by themselves.
    pub timeout: bool,
}

impl SetKind {
    /// A set of such keys, or map to verdicts, that only we change.
    pub fn of(fields: Vec<Field>, value: Value) -> Self {
        Self { fields, value, learns: false, timeout: false }
    }
}

/// An element of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Its key.
    pub key: Key,
    /// In a map of verdicts, what is to be done.
    pub verdict: Option<Verdict>,
    /// In a map of priorities, which.
    pub priority: Option<u32>,
    /// When it vanishes, from the moment on when it is added, milliseconds.
    pub timeout_ms: Option<u64>,
}

/// A token bucket that only says whether there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes/s.
    pub rate: u64,
    /// Bytes it holds beyond one second's worth, which it holds in any case.
    pub burst: u32,
}

/// One step of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the table; it goes with the connection that made it.
    AddTable,
    /// Makes a chain; with a hook, a base chain with this priority.
    AddChain(String, Option<(Hook, i32)>),
    /// Makes a base chain that sees what arrives at a device, by its name, with this priority.
    AddArrivals {
        /// The chain.
        chain: String,
        /// The device.
        device: String,
        /// Lower ones come first.
        priority: i32,
    },
    /// Removes a chain, which must be empty and unused.
    DeleteChain(String),
    /// Empties a chain.
    FlushChain(String),
    /// Adds a rule at the end of a chain.
    AddRule(String, Vec<Part>),
    /// Makes a set or map.
    AddSet(String, SetKind),
    /// Adds elements.
    AddElements(String, Vec<Element>),
    /// Removes elements.
    DeleteElements(String, Vec<Key>),
    /// Removes all elements.
    FlushSet(String),
    /// Makes a limit, whose bucket is full.
    AddLimit(String, Bucket),
    /// Removes one, which must be unused.
    DeleteLimit(String),
    /// Makes a counter.
    AddCounter(String),
    /// Removes one, which must be unused.
    DeleteCounter(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => f.write_str("add table { flags owner; }"),
            Self::AddChain(name, None) => write!(f, "add chain {name}"),
            Self::AddChain(name, Some((hook, priority))) => {
                write!(f, "add chain {name} {{ type filter hook {hook} priority {priority}; }}")
            }
            Self::AddArrivals { chain, device, priority } => {
                write!(
                    f,
                    "add chain {chain} {{ type filter hook ingress device {device} priority {priority}; }}"
                )
            }
            Self::DeleteChain(name) => write!(f, "delete chain {name}"),
            Self::FlushChain(name) => write!(f, "flush chain {name}"),
            Self::AddRule(chain, parts) => {
                write!(f, "add rule {chain}")?;
                parts.iter().try_for_each(|part| write!(f, " {part}"))
            }
            Self::AddSet(name, kind) => {
                let fields: Vec<_> = kind.fields.iter().map(Field::to_string).collect();
                let (word, value) = match kind.value {
                    Value::None => ("set", ""),
                    Value::Verdict => ("map", " : verdict"),
                    Value::Priority => ("map", " : meta priority"),
                };
                let flags = match (kind.timeout, kind.learns) {
                    (false, false) => "",
                    (true, false) => " flags timeout;",
                    (false, true) => " flags dynamic;",
                    (true, true) => " flags timeout, dynamic;",
                };
                write!(f, "add {word} {name} {{ typeof {}{value};{flags} }}", fields.join(" . "))
            }
            Self::AddElements(set, elements) => {
                write!(f, "add element {set} {{")?;
                for Element { key, verdict, priority, timeout_ms } in elements {
                    write!(f, " {key}")?;
                    timeout_ms.iter().try_for_each(|timeout| write!(f, " timeout {timeout}ms"))?;
                    verdict.iter().try_for_each(|verdict| write!(f, " : {verdict}"))?;
                    priority.iter().try_for_each(|priority| write!(f, " : {priority:#x}"))?;
                }
                f.write_str(" }")
            }
            Self::DeleteElements(set, keys) => {
                write!(f, "delete element {set} {{")?;
                keys.iter().try_for_each(|key| write!(f, " {key}"))?;
                f.write_str(" }")
            }
            Self::FlushSet(name) => write!(f, "flush set {name}"),
            Self::AddLimit(name, Bucket { rate, burst }) => {
                write!(f, "add limit {name} {{ rate over {rate} bytes/second burst {burst} bytes; }}")
            }
            Self::DeleteLimit(name) => write!(f, "delete limit {name}"),
            Self::AddCounter(name) => write!(f, "add counter {name}"),
            Self::DeleteCounter(name) => write!(f, "delete counter {name}"),
        }
    }
}
