//! Far ends of connections: an address or a range of them, and the scopes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use chadthrottle_common::remote::{Address, Prefix, is_local};
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
        Ok(Self::new(ip, length))
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
    pub ports: Vec<u16>,
}

impl Narrowing {
    /// What the targets of a limit say about the remote side.
    pub fn new(scope: Scope, targets: &[Target]) -> Self {
        let mut narrowing = Self { scope, ..Self::default() };
        for target in targets {
            match target {
                Target::Remote(remote) => narrowing.remotes.push(*remote),
                Target::Port(port) => narrowing.ports.push(*port),
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
            && (self.ports.is_empty() || self.ports.contains(&remote.port()))
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
        fn every_address_has_one_scope(ip in any::<IpAddr>()) {
            prop_assert!(Scope::All.holds(ip));
            prop_assert!(Scope::Internet.holds(ip) != Scope::Local.holds(ip));
        }
    }
}
