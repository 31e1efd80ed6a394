//! Rates: bytes of the IP layer a second.

use serde::{Deserialize, Serialize};

/// Smallest rate accepted, bytes/s.
pub const MIN_RATE: u64 = 1_000;
/// Largest rate accepted, bytes/s (1 Tbit/s).
pub const MAX_RATE: u64 = 125_000_000_000;

/// Bytes a second, between [`MIN_RATE`] and [`MAX_RATE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
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
}
