//! The words a traffic process understands.

use std::{collections::HashMap, net::SocketAddr, str::FromStr};

use super::Totals;
use crate::error::{Error, Kind, Result};

/// Which way payload goes, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The server sends.
    Get,
    /// The client sends.
    Put,
}

/// A connection's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Plain TCP.
    Tcp,
    /// Multipath TCP.
    Mptcp,
}

/// One command; the table in [`super`] says what each does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `listen tcp|mptcp`
    Listen { stream: Stream, address: SocketAddr, accept: u64 },
    /// `listen udp`
    ListenDatagrams { address: SocketAddr },
    /// `connect`
    Connect {
        stream: Stream,
        address: SocketAddr,
        way: Way,
        flows: u64,
        congestion: String,
        rate: u64,
        run: u64,
    },
    /// `udp`
    Datagrams { address: SocketAddr, way: Way, rate: u64, size: u32, run: u64 },
    /// `close`
    Close,
    /// `time-connect`
    TimeConnect { address: SocketAddr, count: u64 },
    /// `fork take`
    ForkTake,
    /// `fork COMMAND`
    Fork(Box<Command>),
    /// `prefork`
    Prefork { children: u64 },
    /// `burst`
    Burst { address: SocketAddr, count: u64, every_ms: u64, bytes: u64, run: u64 },
    /// `exec`
    Exec,
    /// `adopt`
    Adopt { descriptor: i32, sends: bool, run: u64 },
    /// `totals`
    Totals { run: u64, totals: Totals },
    /// `stop`
    Stop,
}

/// Payload bytes of a datagram when nothing is said: fills an Ethernet packet well under any mtu.
const DATAGRAM: u32 = 1200;

impl FromStr for Command {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self> {
        parse(line).map_err(|reason| Error::new(Kind::Usage, format!("traffic command '{line}': {reason}")))
    }
}

fn parse(line: &str) -> Result<Command, String> {
    let mut words = Words::new(line);
    let command = match words.next()? {
        "listen" => match words.next()? {
            "udp" => Command::ListenDatagrams { address: words.parse()? },
            stream => Command::Listen {
                stream: protocol(stream)?,
                address: words.parse()?,
                accept: words.option("accept", u64::MAX)?,
            },
        },
        "connect" => Command::Connect {
            stream: protocol(words.next()?)?,
            address: words.parse()?,
            way: way(words.next()?)?,
            flows: words.option("flows", 1)?,
            congestion: words.option("cc", String::new())?,
            rate: words.option("rate", 0)?,
            run: words.option("run", 0)?,
        },
        "udp" => Command::Datagrams {
            address: words.parse()?,
            way: way(words.next()?)?,
            rate: words.required("rate")?,
            size: words.option("size", DATAGRAM)?,
            run: words.option("run", 0)?,
        },
        "close" => Command::Close,
        "time-connect" => Command::TimeConnect { address: words.parse()?, count: words.option("count", 1)? },
        "fork" => match words.rest() {
            "take" => Command::ForkTake,
            inner => Command::Fork(Box::new(parse(inner)?)),
        },
        "prefork" => Command::Prefork { children: words.parse()? },
        "burst" => Command::Burst {
            address: words.parse()?,
            count: words.required("count")?,
            every_ms: words.required("every")?,
            bytes: words.required("bytes")?,
            run: words.option("run", 0)?,
        },
        "exec" => Command::Exec,
        "adopt" => Command::Adopt {
            descriptor: words.parse()?,
            sends: words.next()? == "send",
            run: words.required("run")?,
        },
        "totals" => {
            let run = words.parse()?;
            let totals = serde_json::from_str(words.rest()).map_err(|cause| cause.to_string())?;
            Command::Totals { run, totals }
        }
        "stop" => Command::Stop,
        other => return Err(format!("'{other}' is unknown")),
    };
    words.finish().map(|()| command)
}

fn protocol(word: &str) -> Result<Stream, String> {
    match word {
        "tcp" => Ok(Stream::Tcp),
        "mptcp" => Ok(Stream::Mptcp),
        other => Err(format!("'{other}' is no protocol")),
    }
}

fn way(word: &str) -> Result<Way, String> {
    match word {
        "get" => Ok(Way::Get),
        "put" => Ok(Way::Put),
        other => Err(format!("'{other}' is neither get nor put")),
    }
}

/// A line's plain words in order, and its `key=value` words.
struct Words<'a> {
    line: &'a str,
    options: HashMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        Self { line: line.trim(), options: HashMap::new() }
    }

    /// Everything that was not read yet.
    fn rest(&mut self) -> &'a str {
        std::mem::take(&mut self.line)
    }

    fn next(&mut self) -> Result<&'a str, String> {
        let (word, rest) = self.line.split_once(' ').unwrap_or((self.line, ""));
        self.line = rest.trim_start();
        if word.is_empty() { Err("it ends too early".into()) } else { Ok(word) }
    }

    fn parse<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.next()?;
        word.parse().map_err(|_| format!("'{word}' does not parse"))
    }

    fn required<T: FromStr>(&mut self, key: &str) -> Result<T, String> {
        while let Some((key, value)) = self.line.split(' ').next().and_then(|word| word.split_once('=')) {
            self.options.insert(key, value);
            self.next()?;
        }
        let value = self.options.remove(key).ok_or_else(|| format!("{key}= is missing"))?;
        value.parse().map_err(|_| format!("{key}={value} does not parse"))
    }

    fn option<T: FromStr>(&mut self, key: &str, default: T) -> Result<T, String> {
        match self.required(key) {
            Err(reason) if reason.ends_with("is missing") => Ok(default),
            other => other,
        }
    }

    fn finish(self) -> Result<(), String> {
        match self.options.keys().next() {
            Some(key) => Err(format!("{key}= is unknown")),
            None if self.line.is_empty() => Ok(()),
            None => Err(format!("'{}' is too much", self.line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_may_be_left_out() {
        let command: Command = "connect tcp 10.99.0.2:5000 put".parse().unwrap();
        let Command::Connect { flows, congestion, run, way, .. } = command else { panic!("{command:?}") };
        assert_eq!((flows, congestion.as_str(), run, way), (1, "", 0, Way::Put));
    }

    #[test]
    fn options_come_in_any_order() {
        let one: Command = "connect tcp [fd99::2]:1 get run=3 flows=8 cc=bbr".parse().unwrap();
        let other: Command = "connect tcp [fd99::2]:1 get cc=bbr run=3 flows=8".parse().unwrap();
        assert_eq!(one, other);
    }

    #[test]
    fn a_fork_holds_a_command() {
        let command: Command = "fork fork connect mptcp 10.99.0.2:1 put".parse().unwrap();
        assert!(matches!(command, Command::Fork(inner) if matches!(*inner, Command::Fork(_))));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in
            ["", "listen", "udp 10.0.0.1:1 get", "connect tcp 1 put", "stop now", "close x=1", "prefork many"]
        {
            assert!(line.parse::<Command>().is_err(), "{line}");
        }
    }
}
