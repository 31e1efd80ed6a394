//! Measured numbers, for people: three digits are what a measurement is worth.

/// Bytes/s in bytes and bits: `998 KB/s (7.98 Mbit/s)`.
pub fn rate(bytes_per_second: u64) -> String {
    let bytes = bytes_per_second as f64;
    format!("{}/s ({}/s)", short(bytes, ["B", "KB", "MB", "GB", "TB"]), {
        short(bytes * 8.0, ["bit", "kbit", "Mbit", "Gbit", "Tbit"])
    })
}

/// Bytes/s: `998 KB/s`.
pub fn byte_rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// Bytes: `998 KB`.
pub fn bytes(bytes: u64) -> String {
    short(bytes as f64, ["B", "KB", "MB", "GB", "TB"])
}

fn short(value: f64, units: [&str; 5]) -> String {
    let mut value = value;
    let mut index = 0;
    // 999.5 would be shown as 1000.
    while value >= 999.5 && index + 1 < units.len() {
        value /= 1000.0;
        index += 1;
    }
    let decimals = match value {
        _ if index == 0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", units[index])
}

/// Seconds as `5s`, `3m12s`, `2h05m`, `3d04h`.
pub fn time(seconds: f64) -> String {
    // Saturates; negative and NaN become 0.
    let s = seconds as u64;
    match s {
        ..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// As [`time`], of something that may be over at once: `0.4s`.
pub fn span(seconds: f64) -> String {
    if seconds < 1.0 { format!("{seconds:.1}s") } else { time(seconds) }
}

/// `1 socket`, `3 sockets`.
pub fn count(number: u32, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        assert_eq!([0.0, 0.44, 1.0, 61.5].map(span), ["0.0s", "0.4s", "1s", "1m01s"]);
    }

    #[test]
    fn rates() {
        assert_eq!(rate(0), "0 B/s (0 bit/s)");
        assert_eq!(rate(998_123), "998 KB/s (7.98 Mbit/s)");
        assert_eq!(rate(999_600), "1.00 MB/s (8.00 Mbit/s)");
        assert_eq!(rate(12_345_678), "12.3 MB/s (98.8 Mbit/s)");
        assert_eq!(rate(9_996_000), "10.0 MB/s (80.0 Mbit/s)");
        assert!(rate(u64::MAX).contains("TB/s"));
        assert_eq!((bytes(0).as_str(), byte_rate(1_234_567).as_str()), ("0 B", "1.23 MB/s"));
    }

    #[test]
    fn times() {
        let shown = [(0.9, "0s"), (59.9, "59s"), (192.0, "3m12s"), (7500.0, "2h05m"), (273_600.0, "3d04h")];
        for (seconds, expected) in shown {
            assert_eq!(time(seconds), expected);
        }
        assert_eq!(time(f64::NAN), "0s");
        assert_eq!(time(-1.0), "0s");
    }
}
