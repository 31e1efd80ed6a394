//! One error type: what failed, why, and which exit code that means.

use std::{error, fmt, io};

use serde::{Deserialize, Serialize};

/// What kind of failure it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An operation failed. Exit code 1.
    Failed,
    /// The user's input does not parse or does not fit together. Exit code 2.
    Usage,
    /// A right is missing; the message names it and how to get it. Exit code 3.
    NotPermitted,
    /// The target does not exist. Exit code 4.
    NotFound,
    /// No backend can do it; the message has the reason of each. Exit code 5.
    NoBackend,
}

impl Kind {
    /// The process's exit code for this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotPermitted => 3,
            Self::NotFound => 4,
            Self::NoBackend => 5,
        }
    }
}

/// A failed operation, with its cause. The chain is printed once, in `main`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Error {
    /// Decides the exit code.
    pub kind: Kind,
    /// Lower case; names the operation and the object.
    pub message: String,
    /// Causes, outermost first.
    pub causes: Vec<String>,
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a further cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new() }
    }

    /// [`Kind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// `message` on top of `cause` and the causes of that.
    pub fn caused(kind: Kind, message: impl Into<String>, cause: &dyn error::Error) -> Self {
        let mut causes = vec![cause.to_string()];
        let mut next = cause.source();
        while let Some(inner) = next {
            // Some libraries repeat the source's text in their own.
            if !causes.last().is_some_and(|last| last.contains(&inner.to_string())) {
                causes.push(inner.to_string());
            }
            next = inner.source();
        }
        Self { kind, message: message.into(), causes }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl error::Error for Error {}

/// Adds what was being done to an error.
pub trait Context<T> {
    /// Kind [`Kind::Failed`], except that EPERM and EACCES mean [`Kind::NotPermitted`] and ESRCH [`Kind::NotFound`].
    fn context(self, message: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, message: impl Into<String>) -> Result<T> {
        self.map_err(|cause| {
            let kind = match cause.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Kind::NotPermitted,
                Some(libc::ESRCH) => Kind::NotFound,
                _ => Kind::Failed,
            };
            Error::caused(kind, message, &cause)
        })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, message: impl Into<String>) -> Result<T> {
        self.map_err(io::Error::from).context(message)
    }
}
