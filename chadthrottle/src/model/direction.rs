//! Upload and download as a value.

use std::fmt;

use chadthrottle_common::abi;
use serde::{Deserialize, Serialize};

/// Seen from the limited process: what it sends, what it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Egress at the hook.
    Upload,
    /// Ingress at the hook.
    Download,
}

impl Direction {
    /// Both, upload first.
    pub const ALL: [Self; 2] = [Self::Upload, Self::Download];

    /// Index into the two-element map values of [`chadthrottle_common::abi`].
    pub fn index(self) -> usize {
        match self {
            Self::Upload => abi::UPLOAD,
            Self::Download => abi::DOWNLOAD,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Upload => "upload",
            Self::Download => "download",
        })
    }
}

/// A value for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerDirection<T> {
    /// The value for upload.
    pub upload: T,
    /// The value for download.
    pub download: T,
}

impl<T> PerDirection<T> {
    /// The value of one direction.
    pub fn get(&self, direction: Direction) -> &T {
        match direction {
            Direction::Upload => &self.upload,
            Direction::Download => &self.download,
        }
    }

    /// The value of one direction, to change it.
    pub fn get_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Upload => &mut self.upload,
            Direction::Download => &mut self.download,
        }
    }

    /// `make` for each direction.
    pub fn from_fn(mut make: impl FnMut(Direction) -> T) -> Self {
        Self { upload: make(Direction::Upload), download: make(Direction::Download) }
    }

    /// Both values with their directions, upload first.
    pub fn iter(&self) -> impl Iterator<Item = (Direction, &T)> {
        Direction::ALL.into_iter().map(move |direction| (direction, self.get(direction)))
    }
}
