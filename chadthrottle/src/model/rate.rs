//! Rates: bytes of the IP layer a second, and how they are written.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::text::quote;
use crate::error::{Error, Kind, Result};

/// Smallest rate accepted, bytes/s.
pub const MIN_RATE: u64 = 1_000;
/// Largest rate accepted, bytes/s (1 Tbit/s).
pub const MAX_RATE: u64 = 125_000_000_000;

/// What every refusal shows.
const ACCEPTED: &str = "accepted are bytes (500K, 1.5MB, 500KB/s, 512KiB/s, 250000), bits (800kbit, 10mbit, \
                        10Mbps, 1gbit) and none, unlimited, off";

/// Bytes a second, between [`MIN_RATE`] and [`MAX_RATE`].
///
/// Read from text with [`FromStr`]; shown in bytes and bits, exactly: `1 MB/s (8 Mbit/s)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Rate(u64);

impl Rate {
    /// `None` outside [`MIN_RATE`]..=[`MAX_RATE`].
    pub fn new(bytes_per_second: u64) -> Option<Self> {
        (MIN_RATE..=MAX_RATE).contains(&bytes_per_second).then_some(Self(bytes_per_second))
    }

    /// Bytes/s.
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }

    /// A rate, or `None` for `none`, `unlimited` and `off`. Errors are those of [`Rate::from_str`].
    pub fn parse_or_none(text: &str) -> Result<Option<Self>> {
        let word = text.trim();
        if ["none", "unlimited", "off"].iter().any(|none| word.eq_ignore_ascii_case(none)) {
            return Ok(None);
        }
        word.parse().map(Some)
    }
}

impl TryFrom<u64> for Rate {
    type Error = String;

    fn try_from(bytes_per_second: u64) -> Result<Self, String> {
        Self::new(bytes_per_second)
            .ok_or_else(|| format!("a rate of {bytes_per_second} bytes/s is out of range"))
    }
}

impl From<Rate> for u64 {
    fn from(rate: Rate) -> Self {
        rate.0
    }
}

impl FromStr for Rate {
    type Err = Error;

    /// Accepts a decimal number and a unit: none, `B` or nothing after K, M, G, T (SI) or Ki, Mi, Gi, Ti
    /// for bytes, `bit` or `bps` for bits, with or without `/s`. Case matters only where `b` could be
    /// both. Fractions of a byte are cut off. Errors are [`Kind::Usage`] and show what is accepted.
    fn from_str(text: &str) -> Result<Self> {
        parse(text.trim())
            .map_err(|why| Error::new(Kind::Usage, format!("{} is no rate: {why}; {ACCEPTED}", quote(text))))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BYTES: [(u64, &str); 4] =
            [(1_000_000_000_000, "TB/s"), (1_000_000_000, "GB/s"), (1_000_000, "MB/s"), (1_000, "KB/s")];
        const BITS: [(u64, &str); 4] = [
            (1_000_000_000_000, "Tbit/s"),
            (1_000_000_000, "Gbit/s"),
            (1_000_000, "Mbit/s"),
            (1_000, "kbit/s"),
        ];
        f.pad(&format!("{} ({})", exact(self.0, &BYTES), exact(self.0 * 8, &BITS)))
    }
}

/// `value` in the largest of `units` (descending) that is not larger than it, with every digit.
fn exact(value: u64, units: &[(u64, &str)]) -> String {
    let Some(&(unit, name)) = units.iter().find(|(unit, _)| *unit <= value) else {
        return value.to_string();
    };
    let digits = unit.ilog10() as usize;
    let fraction = format!("{:0digits$}", value % unit);
    let number = format!("{}.{fraction}", value / unit);
    format!("{} {name}", number.trim_end_matches('0').trim_end_matches('.'))
}

/// The rate, or why it is none.
fn parse(text: &str) -> Result<Rate, String> {
    let (number, unit) = number_and_unit(text)?;
    number.in_range(unit)
}

/// Bytes/s, written like a rate but of any size, for comparisons; more than [`MAX_RATE`] is as good as that.
/// Or why it is none.
pub(super) fn parse_amount(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text.trim())?;
    Ok(number.bytes(unit).map_or(MAX_RATE, |bytes| bytes.min(MAX_RATE)))
}

/// A number, and the bits/s of its unit.
fn number_and_unit(text: &str) -> Result<(Decimal, u128), String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.starts_with('-') {
        return Err("a rate is not negative".into());
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit_text) = (&text[..end], text[end..].trim_start());
    if number.is_empty() {
        return Err("it does not begin with a number".into());
    }
    if unit_text.starts_with(',') {
        return Err("the decimal sign is a point, and digits are not grouped".into());
    }
    let unit = unit(unit_text).map_err(|why| match why {
        BadUnit::Unknown => format!("unknown unit {}", quote(unit_text)),
        BadUnit::Ambiguous { prefix } => format!(
            "{} may mean bits or bytes: write {number}{prefix}bit for bits or {number}{prefix}B for bytes",
            quote(unit_text)
        ),
    })?;
    let number = Decimal::parse(number).ok_or_else(|| format!("{} is no number", quote(number)))?;
    Ok((number, unit))
}

/// A decimal number: `mantissa / 10^decimals`.
struct Decimal {
    mantissa: u128,
    decimals: u32,
    /// More digits before the point than any rate has.
    huge: bool,
}

impl Decimal {
    /// Of digits and at most one point, with a digit behind it.
    fn parse(text: &str) -> Option<Self> {
        // Up to 20 + 18 digits fit into a u128; past the 18th decimal is less than a billionth of a byte.
        const MOST_DIGITS: usize = 20;
        const MOST_DECIMALS: usize = 18;
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return None,
            Some((whole, fraction)) => (whole, fraction),
            None => (text, ""),
        };
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return None;
        }
        let whole = whole.trim_start_matches('0');
        let huge = whole.len() > MOST_DIGITS;
        let whole = if huge { "" } else { whole };
        let fraction = &fraction[..fraction.len().min(MOST_DECIMALS)];
        let mantissa =
            whole.bytes().chain(fraction.bytes()).fold(0, |sum, digit| sum * 10 + u128::from(digit - b'0'));
        Some(Self { mantissa, decimals: fraction.len() as u32, huge })
    }

    /// Whole bytes/s, counted in units of `bits` bits/s; `None`: too many.
    fn bytes(&self, bits: u128) -> Option<u64> {
        let product = self.mantissa.checked_mul(bits).filter(|_| !self.huge)?;
        u64::try_from(product / 10u128.pow(self.decimals) / 8).ok()
    }

    /// As a rate, counted in units of `bits` bits/s.
    fn in_range(&self, bits: u128) -> Result<Rate, String> {
        let scale = 10u128.pow(self.decimals);
        let product = self.mantissa.checked_mul(bits).filter(|_| !self.huge);
        let Some(product) = product.filter(|product| *product <= u128::from(MAX_RATE) * 8 * scale) else {
            return Err("it is more than 1 Tbit/s (125 GB/s)".into());
        };
        if product == 0 {
            return Err("0 would stop all traffic".into());
        }
        // Not above MAX_RATE, so it fits.
        Rate::new((product / scale / 8) as u64)
            .ok_or_else(|| "it is less than 1 KB/s (8 kbit/s), below which TCP no longer moves".into())
    }
}

enum BadUnit {
    Unknown,
    /// `Mb` or `MBps`, with the part before the `b`.
    Ambiguous {
        prefix: String,
    },
}

/// Bits/s of one unit.
fn unit(text: &str) -> Result<u128, BadUnit> {
    let lower = text.to_ascii_lowercase();
    let (lower, per_second) = match lower.strip_suffix("/s") {
        Some(rest) => (rest, true),
        None => (lower.as_str(), false),
    };
    let power = lower.chars().next().and_then(|first| "kmgt".find(first)).map_or(0, |index| index as u32 + 1);
    let prefix = &lower[..power.min(1) as usize];
    let (factor, prefix) = match lower[prefix.len()..].strip_prefix('i') {
        Some(_) if power > 0 => (1024u128.pow(power), &lower[..prefix.len() + 1]),
        _ => (1000u128.pow(power), prefix),
    };
    // Lower-casing ASCII keeps positions.
    let capital = text.as_bytes().get(prefix.len()) == Some(&b'B');
    let ambiguous = || Err(BadUnit::Ambiguous { prefix: text[..prefix.len()].to_owned() });
    match &lower[prefix.len()..] {
        "" if !per_second || power > 0 => Ok(factor * 8),
        "b" if capital => Ok(factor * 8),
        "b" => ambiguous(),
        "bit" | "bits" => Ok(factor),
        "bps" if per_second => Err(BadUnit::Unknown),
        "bps" if capital => ambiguous(),
        "bps" => Ok(factor),
        _ => Err(BadUnit::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> u64 {
        text.parse::<Rate>().unwrap_or_else(|error| panic!("{error}")).bytes_per_second()
    }

    fn refusal(text: &str) -> String {
        let error = Rate::parse_or_none(text).expect_err(text);
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.message.contains("10mbit") && error.message.contains("none"), "{error}");
        error.to_string()
    }

    #[test]
    fn every_way_of_writing() {
        for (text, expected) in [
            ("500K", 500_000),
            ("500k", 500_000),
            ("500KB", 500_000),
            ("500kB", 500_000),
            ("500KB/s", 500_000),
            ("500K/s", 500_000),
            ("500 KB/S", 500_000),
            ("500Ki", 512_000),
            ("500ki", 512_000),
            ("500KiB/s", 512_000),
            ("1MiB", 1 << 20),
            ("1GiB/s", 1 << 30),
            ("0.1TiB/s", 109_951_162_777),
            ("800kbit", 100_000),
            ("800Kbit/s", 100_000),
            ("10mbit", 1_250_000),
            ("10Mbit/s", 1_250_000),
            ("10MBIT", 1_250_000),
            ("10Mbits/s", 1_250_000),
            ("10Mbps", 1_250_000),
            ("10mbps", 1_250_000),
            ("1Mibit", 131_072),
            ("1gbit", 125_000_000),
            ("1tbit", MAX_RATE),
            ("1.5M", 1_500_000),
            ("0.5mbit", 62_500),
            (".5M", 500_000),
            ("1m", 1_000_000),
            ("1g", 1_000_000_000),
            ("0.125T", MAX_RATE),
            ("250000", 250_000),
            ("250000B/s", 250_000),
            ("64000bit/s", 8_000),
            ("0001M", 1_000_000),
            (" 1M ", 1_000_000),
            ("1000.9", 1_000),
            ("1.0000000000000000000000000000000000000001M", 1_000_000),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        for text in ["none", "unlimited", "off", "NONE", "Off"] {
            assert_eq!(Rate::parse_or_none(text).unwrap(), None);
        }
    }

    #[test]
    fn every_refusal_says_why() {
        for (text, why) in [
            ("0", "0 would stop"),
            ("0.0M", "0 would stop"),
            ("-1", "not negative"),
            ("-5M", "not negative"),
            ("", "empty"),
            ("  ", "empty"),
            ("fast", "does not begin with a number"),
            ("+5M", "does not begin with a number"),
            ("nan", "does not begin with a number"),
            ("inf", "does not begin with a number"),
            ("5X", "unknown unit 'X'"),
            ("1e6", "unknown unit 'e6'"),
            ("10 furlongs", "unknown unit 'furlongs'"),
            ("10Mbps/s", "unknown unit"),
            ("10/s", "unknown unit"),
            ("10i", "unknown unit"),
            ("1,5M", "decimal sign"),
            ("1_000K", "unknown unit"),
            ("1.2.3M", "no number"),
            ("5.M", "no number"),
            (".", "no number"),
            ("10Mb", "write 10Mbit for bits or 10MB for bytes"),
            ("10Kb", "write 10Kbit for bits or 10KB for bytes"),
            ("10kb/s", "write 10kbit for bits or 10kB for bytes"),
            ("10Gib", "write 10Gibit for bits or 10GiB for bytes"),
            ("5000b", "write 5000bit for bits or 5000B for bytes"),
            ("10MBps", "write 10Mbit for bits or 10MB for bytes"),
            ("999", "less than 1 KB/s"),
            ("0.9999K", "less than 1 KB/s"),
            ("7999bit", "less than 1 KB/s"),
            ("1.1tbit", "more than 1 Tbit/s"),
            ("125000000000.1", "more than 1 Tbit/s"),
            ("99999999999999999999999999999999999999999999", "more than 1 Tbit/s"),
            ("99999999999999999999T", "more than 1 Tbit/s"),
            ("1\x1b[31mM", "unknown unit '\\u{1b}[31mM'"),
        ] {
            let message = refusal(text);
            assert!(message.contains(why), "{text:?}: {message}");
            assert!(!message.contains('\x1b'), "{message}");
        }
    }

    #[test]
    fn the_edges() {
        assert_eq!(bytes("1KB/s"), MIN_RATE);
        assert_eq!(bytes("8kbit"), MIN_RATE);
        assert_eq!(bytes("1Tbit/s"), MAX_RATE);
        assert_eq!(Rate::new(MIN_RATE - 1), None);
        assert_eq!(Rate::new(MAX_RATE + 1), None);
        assert!(serde_json::from_str::<Rate>("999").is_err());
        assert_eq!(serde_json::from_str::<Rate>("1000").unwrap().bytes_per_second(), 1_000);
    }

    #[test]
    fn shown_in_both() {
        for (bytes, shown) in [
            (1_000_000, "1 MB/s (8 Mbit/s)"),
            (1_000, "1 KB/s (8 kbit/s)"),
            (62_500, "62.5 KB/s (500 kbit/s)"),
            (512_000, "512 KB/s (4.096 Mbit/s)"),
            (1_000_001, "1.000001 MB/s (8.000008 Mbit/s)"),
            (MAX_RATE, "125 GB/s (1 Tbit/s)"),
        ] {
            assert_eq!(Rate::new(bytes).unwrap().to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            let _ = Rate::parse_or_none(&text);
        }

        #[test]
        fn anything_like_a_rate_is_answered(text in "[-+]?[0-9.,]{0,60} ?[kKmMgGtT]?i?[bB]?(it|ps)?(/s)?") {
            if let Ok(Some(rate)) = Rate::parse_or_none(&text) {
                prop_assert!((MIN_RATE..=MAX_RATE).contains(&rate.bytes_per_second()));
            }
        }

        #[test]
        fn what_is_shown_is_read_back(bytes in MIN_RATE..=MAX_RATE) {
            let rate = Rate::new(bytes).unwrap();
            let shown = rate.to_string();
            let (in_bytes, in_bits) = shown.strip_suffix(')').unwrap().split_once(" (").unwrap();
            prop_assert_eq!(in_bytes.parse::<Rate>().unwrap(), rate);
            prop_assert_eq!(in_bits.parse::<Rate>().unwrap(), rate);
        }

        #[test]
        fn more_is_more(a in 1_000u64..125_000_000, b in 1_000u64..125_000_000, decimals in 0u64..1000,
                        unit in prop::sample::select(vec!["", "K", "KB/s", "kbit", "Kbps"])) {
            let (low, high) = (a.min(b), a.max(b));
            let read = |whole: u64| format!("{whole}.{decimals:03}{unit}").parse::<Rate>().ok();
            if let (Some(low), Some(high)) = (read(low), read(high)) {
                prop_assert!(low <= high);
            }
        }
    }
}
