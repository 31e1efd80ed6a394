//! Remote addresses: prefixes, and which addresses are local. One table, for the eBPF programs and for
//! those who explain what they do.
//!
//! An IPv4 address is held as the IPv4-mapped one (RFC 4291, 2.5.5.2: `::ffff:a.b.c.d`), so that a socket of
//! IPv6 that speaks to an IPv4 host is judged by that host.

/// An address, as two numbers whose bits are in the order of the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    /// The first eight bytes.
    pub high: u64,
    /// The last eight.
    pub low: u64,
}

impl Address {
    /// An IPv4 address, its first byte in the highest bits.
    #[inline(always)]
    pub const fn v4(address: u32) -> Self {
        Self { high: 0, low: 0xffff_0000_0000 | address as u64 }
    }

    /// An IPv6 address as it is on the wire.
    #[inline(always)]
    pub const fn from_wire(high: u64, low: u64) -> Self {
        Self { high: u64::from_be(high), low: u64::from_be(low) }
    }

    /// An IPv6 address, its first byte in the highest bits. An IPv4-mapped one is an IPv4 address.
    pub const fn v6(address: u128) -> Self {
        Self { high: (address >> 64) as u64, low: address as u64 }
    }

    /// Whether it is one of IPv4.
    pub const fn is_v4(self) -> bool {
        self.not_v4() == 0
    }

    /// 0 when it is one of IPv4.
    #[inline(always)]
    const fn not_v4(self) -> u64 {
        self.high | (self.low >> 32 ^ 0xffff)
    }
}

/// 1 when any bit is set, else 0; in a form that the compiler does not make a branch of.
#[inline(always)]
const fn is_set(bits: u64) -> u64 {
    ((bits >> 32 | bits & 0xffff_ffff) + 0xffff_ffff) >> 32
}

/// All addresses that begin with the same bits. One of IPv6 holds no address of IPv4, also `::/0`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The bits; those past the length are zero.
    pub address: Address,
    /// The bits of a [`Prefix::length`], all ones; the others zero.
    pub mask: Address,
}

/// The first `length` (0 to 64) bits.
const fn mask(length: u32) -> u64 {
    match u64::MAX.checked_shr(length) {
        Some(rest) => !rest,
        None => u64::MAX,
    }
}

impl Prefix {
    /// `length` counts from the first bit of the IPv6 form (0 to 128): that of an IPv4 prefix is 96 more.
    pub const fn new(address: Address, length: u32) -> Self {
        let mask = Address {
            high: mask(if length < 64 { length } else { 64 }),
            low: mask(length.saturating_sub(64)),
        };
        let address = Address { high: address.high & mask.high, low: address.low & mask.low };
        Self { address, mask }
    }

    /// How many bits the addresses have in common, in the IPv6 form.
    pub const fn length(self) -> u32 {
        self.mask.high.count_ones() + self.mask.low.count_ones()
    }

    /// Whether it is one of IPv4.
    pub const fn is_v4(self) -> bool {
        self.not_v4() == 0
    }

    /// Whether it holds the address.
    pub const fn holds(self, address: Address) -> bool {
        self.differs(address) == 0
    }

    /// 0 when it holds the address, else 1. Without a branch: where the eBPF programs go through many prefixes, each
    /// would double the ways that the verifier has to follow.
    #[inline(always)]
    pub const fn differs(self, address: Address) -> u64 {
        let high = address.high & self.mask.high ^ self.address.high;
        let low = address.low & self.mask.low ^ self.address.low;
        is_set(high | low | (is_set(self.not_v4()) ^ is_set(address.not_v4())))
    }

    /// 0 when it is one of IPv4.
    #[inline(always)]
    const fn not_v4(self) -> u64 {
        // Shorter ones could be no part of ::ffff:0:0/96.
        !self.mask.high | (self.mask.low >> 32 ^ 0xffff_ffff) | self.address.not_v4()
    }
}

const fn v4(a: u8, b: u8, length: u32) -> Prefix {
    Prefix::new(Address::v4((a as u32) << 24 | (b as u32) << 16), 96 + length)
}

const fn v6(first: u16, length: u32) -> Prefix {
    Prefix::new(Address::v6((first as u128) << 112), length)
}

/// What is local, with where that is written. Everything else is the internet: also the documentation and
/// benchmarking ranges (RFC 5737, RFC 2544), which nobody uses but as examples of it.
pub const LOCAL: [Prefix; 14] = [
    v4(0, 0, 8),                       // this host on this network: RFC 1122, 3.2.1.3
    v4(10, 0, 8),                      // private: RFC 1918, 3
    v4(172, 16, 12),                   // private: RFC 1918, 3
    v4(192, 168, 16),                  // private: RFC 1918, 3
    v4(100, 64, 10),                   // behind the provider's address translation: RFC 6598, 7
    v4(127, 0, 8),                     // loopback: RFC 1122, 3.2.1.3
    v4(169, 254, 16),                  // link-local: RFC 3927, 8
    v4(224, 0, 4),                     // multicast: RFC 5771, 3
    Prefix::new(Address::v4(!0), 128), // broadcast: RFC 919, 7
    Prefix::new(Address::v6(0), 127),  // unspecified and loopback, :: and ::1: RFC 4291, 2.5.2 and 2.5.3
    v6(0xfe80, 10),                    // link-local: RFC 4291, 2.5.6
    v6(0xfec0, 10),                    // site-local, as it was called before: RFC 3879, 4
    v6(0xfc00, 7),                     // unique local: RFC 4193, 3.1
    v6(0xff00, 8),                     // multicast: RFC 4291, 2.7
];

/// Whether the address is in [`LOCAL`].
#[inline(always)]
pub fn is_local(address: Address) -> bool {
    let mut differs = 1;
    for prefix in &LOCAL {
        differs &= prefix.differs(address);
    }
    differs == 0
}

/// Prefixes, and ranges of ports, that one limit may be narrowed to.
pub const MAX_REMOTES: usize = 16;

/// Remote ports, from the first to the last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// Far ends that a limit is narrowed to. Map `REMOTES`. There is no count: all slots are looked at, and those that are
/// not needed repeat another one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remotes {
    /// Any of these addresses …
    pub prefixes: [Prefix; MAX_REMOTES],
    /// … and any of these ports.
    pub ports: [PortRange; MAX_REMOTES],
}

impl Remotes {
    /// Addresses in any of the prefixes, or all when there are none; and ports in any of the ranges, or all. `None`:
    /// there are more than [`MAX_REMOTES`] of either.
    pub fn new(prefixes: &[Prefix], ports: &[PortRange]) -> Option<Self> {
        let everything = [Prefix::new(Address::v4(0), 96), Prefix::new(Address::v6(0), 0)];
        let prefixes = if prefixes.is_empty() { &everything } else { prefixes };
        // What has no port at all has port 0.
        let every_port = [PortRange { first: 0, last: u16::MAX }];
        let ports = if ports.is_empty() { &every_port } else { ports };
        if prefixes.len() > MAX_REMOTES || ports.len() > MAX_REMOTES {
            return None;
        }
        let mut remotes = Self { prefixes: [prefixes[0]; MAX_REMOTES], ports: [ports[0]; MAX_REMOTES] };
        remotes.prefixes[..prefixes.len()].copy_from_slice(prefixes);
        remotes.ports[..ports.len()].copy_from_slice(ports);
        Some(remotes)
    }

    /// 0 when they hold a far end, else 1.
    #[inline(always)]
    pub fn exclude(&self, address: Address, port: u16) -> u64 {
        let mut differs = 1;
        for prefix in &self.prefixes {
            differs &= prefix.differs(address);
        }
        let mut outside = 1;
        for range in &self.ports {
            let below = u64::from(port).wrapping_sub(u64::from(range.first));
            let above = u64::from(range.last).wrapping_sub(u64::from(port));
            outside &= (below | above) >> 63;
        }
        differs | outside
    }
}

/// In a limit's id: it is only about packets with a remote address that is [local](is_local).
pub const LOCAL_ONLY: u64 = 1 << LOCAL_BIT;
/// In a limit's id: it is only about packets with a remote address that is not.
pub const INTERNET_ONLY: u64 = 1 << INTERNET_BIT;
/// In a limit's id: it is only about packets with a far end that its [`Remotes`] hold.
pub const LISTED_ONLY: u64 = 1 << 60;
/// Any of these: with another id a limit is about all packets.
pub const SELECTIVE: u64 = LOCAL_ONLY | INTERNET_ONLY | LISTED_ONLY;

const LOCAL_BIT: u32 = 62;
const INTERNET_BIT: u32 = 61;

/// 0 when the scope in a limit's id holds an address, else 1.
#[inline(always)]
pub fn scope_excludes(id: u64, local: bool) -> u64 {
    let local = u64::from(local);
    (id >> LOCAL_BIT & (local ^ 1) | id >> INTERNET_BIT & local) & 1
}

const _: () = {
    assert!(size_of::<Prefix>() == 32);
    assert!(size_of::<Remotes>() == MAX_REMOTES * 36);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers only, sizes above leave no room for padding; any bytes are a value.
    unsafe impl aya::Pod for super::Remotes {}
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        match text.parse().unwrap() {
            IpAddr::V4(address) => Address::v4(address.to_bits()),
            IpAddr::V6(address) => Address::v6(address.to_bits()),
        }
    }

    #[test]
    fn first_and_last_of_each_local_range() {
        for (first, last) in [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("224.0.0.0", "239.255.255.255"),
            ("255.255.255.255", "255.255.255.255"),
            ("::", "::1"),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("::ffff:10.0.0.0", "::ffff:10.255.255.255"),
        ] {
            assert!(is_local(address(first)) && is_local(address(last)), "{first} to {last}");
        }
    }

    #[test]
    fn their_neighbours_are_the_internet() {
        for text in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "223.255.255.255",
            "240.0.0.0",
            "255.255.255.254",
            "203.0.113.7",
            "198.51.100.7",
            "192.0.2.1",
            "198.18.0.1",
            "8.8.8.8",
            "::2",
            "::1:0:0:1",
            "64:ff9b::a00:1",
            "2001:db8::1",
            "2606:4700::1111",
            "fbff::1",
            "fe00::1",
            "fe7f::1",
            "::fffe:10.0.0.1",
            "::ffff:8.8.8.8",
            "100::1",
        ] {
            assert!(!is_local(address(text)), "{text}");
        }
    }

    #[test]
    fn a_prefix_of_one_ip_holds_none_of_the_other() {
        let everything_v6 = Prefix::new(Address::v6(0), 0);
        assert!(everything_v6.holds(address("2001:db8::1")) && !everything_v6.holds(address("1.2.3.4")));
        let everything_v4 = Prefix::new(Address::v4(0), 96);
        assert!(everything_v4.holds(address("1.2.3.4")) && !everything_v4.holds(address("::1.2.3.4")));
    }

    #[test]
    fn more_than_there_is_room_for() {
        let prefix = Prefix::new(Address::v4(0), 96);
        assert!(Remotes::new(&[prefix; MAX_REMOTES], &[]).is_some());
        assert!(Remotes::new(&[prefix; MAX_REMOTES + 1], &[]).is_none());
        assert!(Remotes::new(&[], &[PortRange::default(); MAX_REMOTES + 1]).is_none());
    }

    #[test]
    fn scopes_in_ids() {
        for (id, held_local, held_internet) in
            [(1, true, true), (LOCAL_ONLY | 1, true, false), (INTERNET_ONLY | 1, false, true)]
        {
            let id = 1 << 63 | id;
            assert_eq!(
                [scope_excludes(id, true) == 0, scope_excludes(id, false) == 0],
                [held_local, held_internet]
            );
        }
    }

    proptest! {
        #[test]
        fn holds_what_any_slot_holds(
            bits in any::<u128>(),
            lengths in prop::collection::vec((any::<u128>(), 0u32..=128), 0..=MAX_REMOTES),
            ranges in prop::collection::vec((any::<u16>(), any::<u16>()), 0..=MAX_REMOTES),
            port in any::<u16>(),
            near in any::<bool>(),
            mapped in any::<bool>(),
        ) {
            let bits = if mapped { bits & 0xffff_ffff | 0xffff << 32 } else { bits };
            // Some that begin like the address.
            let of = |(other, length): &(u128, u32)| Prefix::new(Address::v6(if near { bits ^ other >> 100 } else { *other }), *length);
            let prefixes: std::vec::Vec<_> = lengths.iter().map(of).collect();
            let ports: std::vec::Vec<_> = ranges.iter().map(|(a, b)| PortRange { first: *a.min(b), last: *a.max(b) }).collect();
            let held = (prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.holds(Address::v6(bits))))
                && (ports.is_empty() || ports.iter().any(|range| (range.first..=range.last).contains(&port)));
            let remotes = Remotes::new(&prefixes, &ports).unwrap();
            prop_assert_eq!(remotes.exclude(Address::v6(bits), port), u64::from(!held));
        }

        #[test]
        fn holds_what_begins_alike(bits in any::<u128>(), other in any::<u128>(), length in 0u32..=128) {
            let mask = if length == 0 { 0 } else { u128::MAX << (128 - length) };
            let prefix = Prefix::new(Address::v6(bits), length);
            prop_assert_eq!(prefix.length(), length);
            let near = bits & mask | other & !mask;
            for candidate in [near, other] {
                let address = Address::v6(candidate);
                let alike = candidate & mask == bits & mask && prefix.is_v4() == address.is_v4();
                prop_assert_eq!(prefix.holds(address), alike);
            }
        }

        #[test]
        fn v4_is_judged_as_the_library_does(bits in any::<u32>()) {
            let ip = std::net::Ipv4Addr::from_bits(bits);
            let expected = ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast()
                || ip.is_broadcast() || ip.octets()[0] == 0 || bits >> 22 == 0b01_1001_0001;
            prop_assert_eq!(is_local(Address::v4(bits)), expected);
            prop_assert_eq!(is_local(Address::v6(ip.to_ipv6_mapped().to_bits())), expected);
        }

        #[test]
        fn v6_is_judged_as_the_library_does(bits in any::<u128>(), near in 0u128..4) {
            for bits in [bits, near, bits >> 16 | 0xfe80 << 112, bits >> 16 | 0xfd00 << 112] {
                let ip = Ipv6Addr::from_bits(bits);
                let site_local = ip.segments()[0] & 0xffc0 == 0xfec0;
                let expected = ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local()
                    || ip.is_unicast_link_local() || ip.is_multicast() || site_local;
                if ip.to_ipv4_mapped().is_none() {
                    prop_assert_eq!(is_local(Address::v6(bits)), expected);
                }
            }
        }
    }
}
