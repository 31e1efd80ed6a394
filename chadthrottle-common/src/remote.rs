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

    /// An IPv6 address, its first byte in the highest bits. An IPv4-mapped one is an IPv4 address.
    pub const fn v6(address: u128) -> Self {
        Self { high: (address >> 64) as u64, low: address as u64 }
    }

    /// Whether it is one of IPv4.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == 0xffff
    }
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
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        // Shorter ones could be no part of ::ffff:0:0/96.
        self.mask.high == u64::MAX && self.mask.low >> 32 == 0xffff_ffff && self.address.is_v4()
    }

    /// Whether it holds the address.
    #[inline(always)]
    pub const fn holds(self, address: Address) -> bool {
        address.high & self.mask.high == self.address.high
            && address.low & self.mask.low == self.address.low
            && self.is_v4() == address.is_v4()
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
    let mut local = false;
    for prefix in LOCAL {
        local |= prefix.holds(address);
    }
    local
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

    proptest! {
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
