//! Far ends of connections: an address or a range of them, and the scopes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use chadthrottle_common::remote::{
    Address, INTERNET_ONLY, LISTED_ONLY, LOCAL_ONLY, MAX_REMOTES, PortRange, Prefix, Remotes, is_local,
};
use serde::{Deserialize, Serialize};

use super::{Target, text::quote};
use crate::error::{Error, Kind, Result};

/// An address as the table of prefixes has them.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::v4(ip.to_bits()),
        IpAddr::V6(ip) => Address::v6(ip.to_bits()),
    }
}

/// A range of addresses that begin alike, or one address.
///
/// Written `1.2.3.0/24`, `1.2.3.4`, `[2001:db8::]/32`; also accepted without the brackets, and with bits beyond the
/// prefix, which are left out. An IPv4-mapped range is one of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Remote {
    network: IpAddr,
    length: u8,
}

impl Remote {
    /// `length` is at most 32 for IPv4, 128 for IPv6.
    fn new(ip: IpAddr, length: u8) -> Self {
        let (ip, length) = match ip {
            IpAddr::V6(v6) if length >= 96 => match v6.to_ipv4_mapped() {
                Some(v4) => (IpAddr::V4(v4), length - 96),
                None => (ip, length),
            },
            _ => (ip, length),
        };
        let network = match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask))
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
            }
        };
        Self { network, length }
    }

    /// As the kernel side has it.
    pub fn prefix(self) -> Prefix {
        let before = if self.network.is_ipv4() { 96 } else { 0 };
        Prefix::new(address(self.network), before + u32::from(self.length))
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network {
            IpAddr::V4(ip) if self.length == 32 => write!(f, "{ip}"),
            IpAddr::V4(ip) => write!(f, "{ip}/{}", self.length),
            IpAddr::V6(ip) if self.length == 128 => write!(f, "[{ip}]"),
            IpAddr::V6(ip) => write!(f, "[{ip}]/{}", self.length),
        }
    }
}

impl FromStr for Remote {
    type Err = String;

    /// The error says why it is none.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the address is missing".into());
        }
        let (ip, length) = match text.split_once('/') {
            Some((ip, length)) => (ip, Some(length)),
            None => (text, None),
        };
        let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
        let parsed = match bare {
            Some(ip) => ip.parse().map(IpAddr::V6).ok(),
            None => ip.parse().ok(),
        };
        let ip = parsed.ok_or_else(|| format!("{} is no IP address", quote(ip)))?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => longest,
            Some(text) => text
                .parse()
                .ok()
                .filter(|length| *length <= longest && text.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or_else(|| format!("{} is no length of a prefix: 0 to {longest}", quote(text)))?,
        };
        if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) && length < 96 {
            return Err(format!(
                "{} is an IPv4 address in the form of IPv6: its prefix has 96 to 128",
                quote(text)
            ));
        }
        Ok(Self::new(ip, length))
    }
}

/// A remote port, or all from one to another. Written `443`, `8000-8100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// Whether the port is one of them.
    pub fn hold(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// As the kernel side has them.
    pub fn range(self) -> PortRange {
        PortRange { first: self.first, last: self.last }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    /// The error says why these are none.
    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            if text.is_empty() {
                return Err("the port is missing".into());
            }
            let number = text.bytes().all(|byte| byte.is_ascii_digit());
            match text.parse::<u16>() {
                Ok(port @ 1..) if number => Ok(port),
                _ if number => Err("ports go from 1 to 65535".into()),
                _ => Err(format!("{} is no port number", quote(text))),
            }
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ports = Self { first: port(first)?, last: port(last)? };
        if ports.last < ports.first {
            return Err(format!("the range {} ends before it begins", quote(text)));
        }
        Ok(ports)
    }
}

/// Which remote addresses a limit is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every address.
    #[default]
    All,
    /// Those that are not local.
    Internet,
    /// Private, shared, loopback, link-local, unique local, multicast and broadcast addresses; the table is
    /// [`chadthrottle_common::remote::LOCAL`].
    Local,
}

impl Scope {
    /// Whether it holds an address.
    pub fn holds(self, ip: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Internet => !is_local(address(ip)),
            Self::Local => is_local(address(ip)),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::All => "all",
            Self::Internet => "internet",
            Self::Local => "local",
        })
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "all" => Ok(Self::All),
            "internet" => Ok(Self::Internet),
            "local" => Ok(Self::Local),
            _ => Err(Error::new(
                Kind::Usage,
                format!("{} is no scope: scopes are all, internet, local", quote(text)),
            )),
        }
    }
}

/// Which packets of a process a limit is about: those with a remote address in the scope, and in one of the ranges
/// if there are any, and with one of the ports if there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// Which addresses.
    pub scope: Scope,
    /// Which addresses; none: all.
    pub remotes: Vec<Remote>,
    /// Which remote ports; none: all.
    pub ports: Vec<Ports>,
}

impl Narrowing {
    /// What the targets of a limit say about the remote side.
    pub fn new(scope: Scope, targets: &[Target]) -> Self {
        let mut narrowing = Self { scope, ..Self::default() };
        for target in targets {
            match target {
                Target::Remote(remote) => narrowing.remotes.push(*remote),
                Target::Port(ports) => narrowing.ports.push(*ports),
                _ => {}
            }
        }
        narrowing
    }

    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether traffic with that far end belongs to the limit.
    pub fn holds(&self, remote: SocketAddr) -> bool {
        self.scope.holds(remote.ip())
            && (self.remotes.is_empty()
                || self.remotes.iter().any(|range| range.prefix().holds(address(remote.ip()))))
            && (self.ports.is_empty() || self.ports.iter().any(|ports| ports.hold(remote.port())))
    }

    /// Whether all traffic of a socket that is connected to there belongs to the limit. Zeros: it is not connected.
    pub fn covers(&self, remote: Address, port: u16) -> bool {
        let ip = Ipv6Addr::from_bits(u128::from(remote.high) << 64 | u128::from(remote.low));
        self.is_everything() || remote != Address::default() && self.holds(SocketAddr::new(ip.into(), port))
    }

    /// The bits in a limit's id that tell the kernel side of it.
    pub fn bits(&self) -> u64 {
        let scope = match self.scope {
            Scope::All => 0,
            Scope::Internet => INTERNET_ONLY,
            Scope::Local => LOCAL_ONLY,
        };
        let listed = !self.remotes.is_empty() || !self.ports.is_empty();
        scope | if listed { LISTED_ONLY } else { 0 }
    }

    /// The addresses and ports as the kernel side has them.
    ///
    /// # Errors
    /// [`Kind::Usage`] when there are more than it has room for.
    pub fn listed(&self) -> Result<Remotes> {
        let prefixes: Vec<_> = self.remotes.iter().map(|remote| remote.prefix()).collect();
        let ports: Vec<_> = self.ports.iter().map(|ports| ports.range()).collect();
        Remotes::new(&prefixes, &ports).ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!(
                    "a limit takes at most {MAX_REMOTES} targets remote: and {MAX_REMOTES} targets port:"
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_said_back_in_one_form() {
        for (text, shown) in [
            ("1.2.3.0/24", "1.2.3.0/24"),
            ("1.2.3.4/24", "1.2.3.0/24"),
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3.4/32", "1.2.3.4"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("[2001:db8::]/32", "[2001:db8::]/32"),
            ("2001:db8::/32", "[2001:db8::]/32"),
            ("[2001:DB8:0::1]", "[2001:db8::1]"),
            ("::1", "[::1]"),
            ("[::]/0", "[::]/0"),
            ("[::ffff:1.2.3.4]", "1.2.3.4"),
            ("[::ffff:1.2.3.4]/104", "1.0.0.0/8"),
        ] {
            let remote: Remote = text.parse().unwrap();
            assert_eq!(remote.to_string(), shown);
            assert_eq!(remote.to_string().parse(), Ok(remote));
        }
    }

    #[test]
    fn what_is_no_range() {
        for (text, why) in [
            ("", "missing"),
            ("1.2.3", "no IP address"),
            ("1.2.3.4/33", "0 to 32"),
            ("1.2.3.4/", "0 to 32"),
            ("1.2.3.4/+8", "0 to 32"),
            ("[::]/129", "0 to 128"),
            ("[::", "no IP address"),
            ("[1.2.3.4]", "no IP address"),
            ("fe80::1%eth0", "no IP address"),
            ("1.2.3.4:80", "no IP address"),
            ("[::ffff:1.2.3.4]/64", "96 to 128"),
            ("\x1b[2J", "\\u{1b}[2J"),
        ] {
            let refusal = text.parse::<Remote>().unwrap_err();
            assert!(refusal.contains(why), "{text}: {refusal}");
        }
    }

    #[test]
    fn narrows_by_and() {
        let targets: Vec<Target> =
            ["name:steam", "remote:10.0.0.0/8", "remote:[2001:db8::]/32", "port:443", "port:80"]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect();
        let all = Narrowing::new(Scope::All, &targets);
        let local = Narrowing::new(Scope::Local, &targets);
        for (text, in_all, in_local) in [
            ("10.1.2.3:443", true, true),
            ("10.1.2.3:80", true, true),
            ("10.1.2.3:22", false, false),
            ("11.1.2.3:443", false, false),
            ("[2001:db8::1]:443", true, false),
            ("[2001:db9::1]:443", false, false),
            ("[::ffff:10.1.2.3]:443", true, true),
        ] {
            let remote = text.parse().unwrap();
            assert_eq!((all.holds(remote), local.holds(remote)), (in_all, in_local), "{text}");
        }
        let ranges = ["port:443".parse().unwrap(), "port:8000-8010".parse().unwrap()];
        let ranges = Narrowing::new(Scope::All, &ranges);
        for (port, held) in [(443, true), (7999, false), (8000, true), (8010, true), (8011, false)] {
            assert_eq!(ranges.holds(SocketAddr::new([1, 2, 3, 4].into(), port)), held, "{port}");
        }
        assert!(Narrowing::default().is_everything() && !local.is_everything());
        assert!(Narrowing::new(Scope::All, &targets[..1]).is_everything());
    }

    proptest! {
        #[test]
        fn an_address_is_in_its_own_range(ip in any::<IpAddr>(), length in 0u8..=128) {
            let length = if ip.is_ipv4() { length % 33 } else { length };
            let remote = Remote::new(ip, length);
            prop_assert!(remote.prefix().holds(address(ip)) || matches!(ip, IpAddr::V6(v6)
                if length < 96 && v6.to_ipv4_mapped().is_some()));
            prop_assert_eq!(remote.to_string().parse(), Ok(remote));
        }

        #[test]
        fn the_kernel_side_is_told_the_same(
            ip in any::<IpAddr>(),
            port in any::<u16>(),
            other in any::<IpAddr>(),
            length in 0u8..=32,
            ports in any::<(u16, u16)>(),
            parts in any::<(bool, bool, u8)>(),
        ) {
            let scope = [Scope::All, Scope::Internet, Scope::Local][usize::from(parts.2 % 3)];
            let narrowing = Narrowing {
                scope,
                remotes: parts.0.then(|| Remote::new(other, length)).into_iter().collect(),
                ports: parts.1.then(|| Ports { first: ports.0.min(ports.1), last: ports.0.max(ports.1) }).into_iter().collect(),
            };
            let far = address(ip);
            let mut excluded = chadthrottle_common::remote::scope_excludes(narrowing.bits(), is_local(far));
            if narrowing.bits() & LISTED_ONLY != 0 {
                excluded |= narrowing.listed().unwrap().exclude(far, port);
            }
            prop_assert_eq!(narrowing.holds(SocketAddr::new(ip, port)), excluded == 0);
            prop_assert!(far == Address::default() || narrowing.covers(far, port) == (excluded == 0));
            prop_assert_eq!(narrowing.covers(Address::default(), port), narrowing.is_everything());
        }

        #[test]
        fn every_address_has_one_scope(ip in any::<IpAddr>()) {
            prop_assert!(Scope::All.holds(ip));
            prop_assert!(Scope::Internet.holds(ip) != Scope::Local.holds(ip));
        }
    }
}
