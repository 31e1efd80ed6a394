//! Whose traffic a limit holds, and how it is written.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::text::quote;
use crate::error::{Error, Kind, Result};

/// What a refusal shows.
const KINDS: &str = "pid:1234 (or just 1234), tree:1234";

/// A process, or a process with its descendants.
///
/// Written, also in JSON and between client and owner, as users write it: `pid:1234`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// `pid:1234`: the process and the children it forks from now on.
    Pid(u32),
    /// `tree:1234`: also the descendants it already has.
    Tree(u32),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::Pid(pid) => format!("pid:{pid}"),
            Self::Tree(pid) => format!("tree:{pid}"),
        })
    }
}

impl FromStr for Target {
    type Err = Error;

    /// Accepts `pid:1234`, `1234` and `tree:1234`. Errors are [`Kind::Usage`] and list the kinds.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: String| {
            Err(Error::new(Kind::Usage, format!("{} is no target: {why}; targets are {KINDS}", quote(text))))
        };
        let (kind, value) = text.split_once(':').unwrap_or(("pid", text));
        if text.is_empty() {
            return refuse("it is empty".into());
        }
        let make = match kind {
            "pid" => Self::Pid,
            "tree" => Self::Tree,
            _ => return refuse(format!("unknown kind {}", quote(kind))),
        };
        process_id(value).map(make).or_else(refuse)
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

/// A process id as the kernel has them (`pid_t`), or why it is none.
fn process_id(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Err("the process id is missing".into());
    }
    let negative = text.len() > 1 && text.starts_with('-');
    let digits = &text[usize::from(negative)..];
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{} is no process id", quote(text)));
    }
    match text.parse::<i32>() {
        Ok(pid @ 1..) => Ok(pid.unsigned_abs()),
        Ok(_) => Err("process ids begin at 1".into()),
        Err(_) if negative => Err("process ids begin at 1".into()),
        Err(_) => Err(format!("process ids end at {}", i32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_kinds() {
        assert_eq!("pid:1234".parse::<Target>().unwrap(), Target::Pid(1234));
        assert_eq!("1234".parse::<Target>().unwrap(), Target::Pid(1234));
        assert_eq!("tree:1".parse::<Target>().unwrap(), Target::Tree(1));
        assert_eq!("2147483647".parse::<Target>().unwrap(), Target::Pid(2_147_483_647));
        assert_eq!(serde_json::to_string(&Target::Tree(7)).unwrap(), "\"tree:7\"");
        assert!(serde_json::from_str::<Target>("\"tree:0\"").is_err());
    }

    #[test]
    fn every_refusal_says_why() {
        for (text, why) in [
            ("", "empty"),
            ("pid:", "id is missing"),
            ("tree:", "id is missing"),
            ("0", "begin at 1"),
            ("pid:0", "begin at 1"),
            ("pid:-5", "begin at 1"),
            ("-5", "begin at 1"),
            ("-99999999999999999999", "begin at 1"),
            ("2147483648", "end at 2147483647"),
            ("pid:99999999999999999999999", "end at 2147483647"),
            ("+5", "no process id"),
            ("-", "no process id"),
            ("pid:12a", "no process id"),
            ("pid: 12", "no process id"),
            ("firefox", "no process id"),
            ("name:firefox", "unknown kind 'name'"),
            ("PID:5", "unknown kind"),
            (":5", "unknown kind ''"),
            ("\x1b[31m:5", "unknown kind '\\u{1b}[31m'"),
            ("pid:5\n", "'5\\n' is no process id"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.message.contains(why), "{text:?}: {error}");
            assert!(error.message.contains("pid:1234") && error.message.contains("tree:1234"), "{error}");
            assert!(!error.message.contains(['\x1b', '\n']), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            let _ = text.parse::<Target>();
        }

        #[test]
        fn what_is_shown_is_read_back(pid in 1u32..=i32::MAX as u32, tree in any::<bool>()) {
            let target = if tree { Target::Tree(pid) } else { Target::Pid(pid) };
            prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
    }
}
