//! The language by which rows are chosen: `curl port:443 user:alice rate:>1M limited:yes`.
//!
//! Words are separated by spaces; all must hold. A word without a key is looked for in the name (its letters
//! in this order, others between them) and, as it stands, in the rest. `key:value` asks one thing; several
//! values, with commas between, mean any of them. A `-` before a word turns it round. Quotation marks hold
//! together what has spaces or colons: `"tmux: server"`, `name:"a b"`. Case does not matter.

use std::{collections::HashMap, net::IpAddr, str::FromStr};

use super::{Connection, Process, ProcessKey, Snapshot, rate::parse_amount, text::quote};
use crate::error::{Error, Kind, Result};

/// Every key, for help and refusals.
pub const KEYS: &str = "pid, name, exe, cmd, user, unit, container, cgroup, port, remote, proto, state, rate, down, \
                        up, limited, alive";

/// A condition on processes and their connections.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq)]
struct Term {
    negated: bool,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    /// In lower case.
    Text(String),
    Field(Field, Vec<String>),
    Pid(Vec<u32>),
    Port(Vec<u16>),
    Remote(Vec<Network>),
    Protocol(Vec<String>),
    State(Vec<String>),
    Rate(Way, Comparison, u64),
    Limited(bool),
    Alive(bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Field {
    Name,
    Exe,
    Cmd,
    User,
    Unit,
    Container,
    Cgroup,
}

/// Which rate is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Sum,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    More,
    AtLeast,
    Less,
    AtMost,
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`, `[2001:db8::]/32`.
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { address, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= self.bits
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

/// A word of the filter: what stands before its first colon, and the rest.
struct Word {
    negated: bool,
    /// `None`: no key. A colon inside quotation marks makes none.
    key: Option<String>,
    value: String,
}

impl Word {
    /// A lone `-`, or `""`: somebody is about to type more.
    fn is_empty(&self) -> bool {
        self.key.is_none() && self.value.is_empty()
    }
}

/// Splits at spaces; quotation marks hold together.
fn words(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut letters = text.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Ok(words);
        }
        let mut word = Word { negated: false, key: None, value: String::new() };
        let (mut first, mut quoted, mut was_quoted) = (true, false, false);
        while let Some(letter) = letters.next_if(|letter| quoted || !letter.is_whitespace()) {
            match letter {
                '-' if first => word.negated = true,
                '"' => (quoted, was_quoted) = (!quoted, true),
                ':' if !quoted && !was_quoted && word.key.is_none() => {
                    word.key = Some(std::mem::take(&mut word.value));
                }
                letter => word.value.push(letter),
            }
            first = false;
        }
        if quoted {
            return Err("a quotation mark is missing".into());
        }
        words.push(word);
    }
}

impl FromStr for Filter {
    type Err = Error;

    /// Errors are [`Kind::Usage`] and say what would be understood. The empty text lets everything through.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why| Error::new(Kind::Usage, format!("{} is no filter: {why}", quote(text)));
        let words = words(text).map_err(refuse)?;
        let terms = words
            .into_iter()
            .filter(|word| !word.is_empty())
            .map(term)
            .collect::<Result<_, _>>()
            .map_err(refuse)?;
        Ok(Self { terms })
    }
}

fn term(word: Word) -> Result<Term, String> {
    let Word { negated, key, value } = word;
    let what = match key {
        None => What::Text(value.to_lowercase()),
        // `10.0.0.1:80`, `https://…`: has a colon, but is no question of ours.
        Some(key) if value.starts_with("//") || !key.chars().all(|letter| letter.is_ascii_alphabetic()) => {
            What::Text(format!("{key}:{value}").to_lowercase())
        }
        Some(key) => condition(&key.to_lowercase(), &value)?,
    };
    Ok(Term { negated, what })
}

fn condition(key: &str, value: &str) -> Result<What, String> {
    if value.is_empty() {
        return Err(format!("{key}: wants a value"));
    }
    let values = || value.split(',').filter(|value| !value.is_empty());
    let texts = || values().map(str::to_lowercase).collect();
    fn all<T>(values: impl Iterator<Item = Result<T, String>>) -> Result<Vec<T>, String> {
        values.collect()
    }
    Ok(match key {
        "name" => What::Field(Field::Name, texts()),
        "exe" => What::Field(Field::Exe, texts()),
        "cmd" => What::Field(Field::Cmd, texts()),
        "user" => What::Field(Field::User, texts()),
        "unit" => What::Field(Field::Unit, texts()),
        "container" => What::Field(Field::Container, texts()),
        "cgroup" => What::Field(Field::Cgroup, texts()),
        "pid" => What::Pid(all(
            values().map(|value| value.parse().map_err(|_| format!("{} is no process id", quote(value))))
        )?),
        "port" => What::Port(all(
            values().map(|value| value.parse().map_err(|_| format!("{} is no port", quote(value))))
        )?),
        "remote" => What::Remote(all(values().map(|value| {
            Network::parse(value).ok_or_else(|| {
                format!("{} is no address (192.0.2.1, 192.0.2.0/24, 2001:db8::/32)", quote(value))
            })
        }))?),
        "proto" => What::Protocol(texts()),
        "state" => What::State(texts()),
        "rate" => comparison(Way::Sum, value)?,
        "down" => comparison(Way::Down, value)?,
        "up" => comparison(Way::Up, value)?,
        "limited" => What::Limited(yes(key, value)?),
        "alive" => What::Alive(yes(key, value)?),
        _ => {
            return Err(format!(
                "unknown key {}; keys are {KEYS}; text with a colon goes into quotation marks",
                quote(key)
            ));
        }
    })
}

fn comparison(way: Way, value: &str) -> Result<What, String> {
    let (comparison, rate) = [
        (">=", Comparison::AtLeast),
        ("<=", Comparison::AtMost),
        (">", Comparison::More),
        ("<", Comparison::Less),
        // A bare rate asks for that much.
        ("", Comparison::AtLeast),
    ]
    .into_iter()
    .find_map(|(sign, comparison)| Some((comparison, value.strip_prefix(sign)?)))
    .unwrap_or((Comparison::AtLeast, value));
    let rate = parse_amount(rate)
        .map_err(|why| format!("{} is no rate: {why} (rate:>1M, rate:<=10mbit)", quote(rate)))?;
    Ok(What::Rate(way, comparison, rate))
}

fn yes(key: &str, value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "yes" | "y" | "true" | "1" => Ok(true),
        "no" | "n" | "false" | "0" => Ok(false),
        _ => Err(format!("{key}: is yes or no")),
    }
}

/// Whether the letters of `wanted` stand in `text` in this order. Both in lower case.
fn has_letters_of(text: &str, wanted: &str) -> bool {
    let mut letters = text.chars();
    wanted.chars().all(|wanted| letters.any(|letter| letter == wanted))
}

fn field(process: &Process, field: Field) -> &str {
    match field {
        Field::Name => &process.name,
        Field::Exe => process.exe.as_deref().unwrap_or_default(),
        Field::Cmd => &process.cmdline,
        Field::User => &process.user,
        Field::Unit => process.unit.as_deref().unwrap_or_default(),
        Field::Container => process.container.as_deref().unwrap_or_default(),
        Field::Cgroup => &process.cgroup,
    }
}

impl What {
    /// Asks about connections, not about the process.
    fn is_about_connections(&self) -> bool {
        matches!(self, Self::Port(_) | Self::Remote(_) | Self::Protocol(_) | Self::State(_))
    }

    fn holds_for_process(&self, process: &Process, limited: &dyn Fn(&Process) -> bool) -> bool {
        let has = |of: Field, wanted: &str| field(process, of).to_lowercase().contains(wanted);
        match self {
            Self::Text(wanted) => {
                has_letters_of(&process.name.to_lowercase(), wanted)
                    || [Field::Exe, Field::Cmd, Field::User, Field::Unit, Field::Container]
                        .into_iter()
                        .any(|of| has(of, wanted))
                    || process.pid.to_string() == *wanted
            }
            // Names of users are short and many begin alike.
            Self::Field(Field::User, wanted) => {
                wanted.iter().any(|wanted| process.user.to_lowercase() == *wanted)
            }
            Self::Field(of, wanted) => wanted.iter().any(|wanted| has(*of, wanted)),
            Self::Pid(wanted) => wanted.contains(&process.pid),
            Self::Rate(way, comparison, than) => {
                let rate = match way {
                    Way::Sum => process.traffic().rate(),
                    Way::Down => process.rx_rate,
                    Way::Up => process.tx_rate,
                };
                match comparison {
                    Comparison::More => rate > *than,
                    Comparison::AtLeast => rate >= *than,
                    Comparison::Less => rate < *than,
                    Comparison::AtMost => rate <= *than,
                }
            }
            Self::Limited(wanted) => limited(process) == *wanted,
            Self::Alive(wanted) => process.alive == *wanted,
            Self::Port(_) | Self::Remote(_) | Self::Protocol(_) | Self::State(_) => true,
        }
    }

    fn holds_for_connection(&self, connection: &Connection) -> bool {
        match self {
            Self::Port(wanted) => {
                let remote = connection.remote.map(|remote| remote.port());
                wanted.iter().any(|port| *port == connection.local.port() || Some(*port) == remote)
            }
            Self::Remote(wanted) => {
                let remote = connection.remote_ip();
                remote.is_some_and(|remote| wanted.iter().any(|network| network.contains(remote)))
            }
            Self::Protocol(wanted) => wanted.contains(&connection.protocol.to_string()),
            Self::State(wanted) => wanted.contains(&connection.state.to_string()),
            _ => true,
        }
    }
}

impl Filter {
    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether it asks about connections, so that a snapshot without them can't be filtered.
    pub fn needs_connections(&self) -> bool {
        self.terms.iter().any(|term| term.what.is_about_connections())
    }

    /// Whether a connection is one of those asked for; terms about processes are not looked at.
    pub fn matches_connection(&self, connection: &Connection) -> bool {
        let mut terms = self.terms.iter().filter(|term| term.what.is_about_connections());
        terms.all(|term| term.what.holds_for_connection(connection) != term.negated)
    }

    /// Whether a process is asked for. `connections` are its own; when the filter asks about connections, one
    /// of them has to be all that is asked. `limited` tells whether a process counts as limited.
    fn matches<'a>(
        &self,
        process: &Process,
        connections: impl IntoIterator<Item = &'a Connection>,
        limited: &dyn Fn(&Process) -> bool,
    ) -> bool {
        let mut terms = self.terms.iter().filter(|term| !term.what.is_about_connections());
        terms.all(|term| term.what.holds_for_process(process, limited) != term.negated)
            && (!self.needs_connections()
                || connections.into_iter().any(|connection| self.matches_connection(connection)))
    }

    /// Indices of the processes of a snapshot that are asked for. Limited is who is held by a limit.
    pub fn select(&self, snapshot: &Snapshot) -> Vec<usize> {
        self.select_where(snapshot, &|process| !process.limits.is_empty())
    }

    /// The same, for somebody who means something else by `limited`.
    pub fn select_where(&self, snapshot: &Snapshot, limited: &dyn Fn(&Process) -> bool) -> Vec<usize> {
        let by_owner: HashMap<ProcessKey, Vec<&Connection>> =
            if self.needs_connections() { snapshot.connections_by_owner() } else { HashMap::new() };
        let none = Vec::new();
        let matches = |process: &Process| {
            let own = by_owner.get(&process.key()).unwrap_or(&none);
            self.matches(process, own.iter().copied(), limited)
        };
        let processes = snapshot.processes.iter().enumerate();
        processes.filter(|(_, process)| matches(process)).map(|(index, _)| index).collect()
    }
}

#[cfg(test)]
mod tests;
