//! What `cargo test` and libtest's likes print, counted.

use std::{fmt, ops::AddAssign};

/// Tests by outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub ignored: u32,
}

impl Counts {
    /// Of a `test result: …` line; None for every other line.
    pub fn parse(line: &str) -> Option<Self> {
        let parts = line.trim().strip_prefix("test result: ")?.split_once(". ")?.1;
        let mut counts = Self::default();
        for part in parts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse() else { continue };
            match what {
                "passed" => counts.passed = number,
                "failed" => counts.failed = number,
                "ignored" => counts.ignored = number,
                _ => {}
            }
        }
        Some(counts)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_both_harnesses() {
        let libtest =
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(Counts::parse(libtest), Some(Counts { passed: 2, failed: 0, ignored: 1 }));
        let mimic = "test result: FAILED. 7 passed; 3 failed; 0 ignored; 0 measured; 2 filtered out; finished in 9.20s\r";
        assert_eq!(Counts::parse(mimic), Some(Counts { passed: 7, failed: 3, ignored: 0 }));
        assert_eq!(Counts::parse("test bucket ... ok"), None);
    }
}
