//! Numbers and text as they fit into a column.

use std::{fmt::Write, time::SystemTime};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::escape;

/// Bytes or bytes/s with three digits, at most seven columns wide: `998 KB`, `1.25 MB`.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = number as f64;
    let mut unit = 0;
    // 999.5 would be shown as 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A round trip time: `850 µs`, `12.3 ms`, `1.20 s`.
pub fn round_trip(microseconds: u32) -> String {
    match microseconds {
        ..1000 => format!("{microseconds} µs"),
        1000..100_000 => format!("{:.1} ms", f64::from(microseconds) / 1e3),
        100_000..1_000_000 => format!("{} ms", microseconds / 1000),
        _ => format!("{:.2} s", f64::from(microseconds) / 1e6),
    }
}

/// A time in UTC, to the second. `None` when no calendar has it: a recording may say anything.
pub fn moment(time: SystemTime) -> Option<String> {
    let mut text = String::new();
    write!(text, "{}", humantime::format_rfc3339_seconds(time)).ok()?;
    Some(text.replace('T', " ").replace('Z', " UTC"))
}

/// Text from outside, made safe and cut to `width` columns.
pub fn outside(text: &str, width: usize) -> String {
    cut(&escape(text), width)
}

/// Text cut to `width` columns; what is left out is marked.
pub fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut used = 0;
    for letter in text.chars() {
        let own = letter.width().unwrap_or(0);
        if used + own + 1 > width {
            break;
        }
        used += own;
        shown.push(letter);
    }
    if width > 0 {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn amounts_fit() {
        for (number, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 KB"),
            (12_345, "12.3 KB"),
            (999_499, "999 KB"),
            (999_500, "1.00 MB"),
            (1_250_000, "1.25 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(number), expected);
            assert!(bytes(number).width() <= 7);
        }
    }

    #[test]
    fn round_trips() {
        for (time, expected) in
            [(85, "85 µs"), (1500, "1.5 ms"), (99_949, "99.9 ms"), (250_000, "250 ms"), (1_200_000, "1.20 s")]
        {
            assert_eq!(round_trip(time), expected);
        }
    }

    #[test]
    fn moments() {
        let after = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(moment(after(1_767_225_600)).as_deref(), Some("2026-01-01 00:00:00 UTC"));
        assert_eq!(moment(after(u64::MAX / 100)), None);
    }

    #[test]
    fn nothing_is_wider_than_asked() {
        assert_eq!(cut("firefox", 7), "firefox");
        assert_eq!(cut("firefox", 5), "fire…");
        assert_eq!(cut("名前名前", 5), "名前…");
        assert_eq!(cut("名前", 1), "…");
        assert_eq!(cut("abc", 0), "");
        assert_eq!(outside("a\nb", 10), "a\\nb");
    }
}
