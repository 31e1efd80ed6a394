//! Whose traffic a limit holds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process, or a process with its descendants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "value")]
pub enum Target {
    /// `pid:1234`: the process and the children it forks from now on.
    Pid(u32),
    /// `tree:1234`: also the descendants it already has.
    Tree(u32),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Tree(pid) => write!(f, "tree:{pid}"),
        }
    }
}
