//! What a limit is to be on: whether there is such a thing, and what to call it.

use std::path::Path;

use crate::{
    error::{Error, Kind, Result},
    kernel::{cgroup, facts, matching::Census, process},
    model::{Target, cgroups},
};

/// All targets must be there, unless `wait`: then those that never end may come later. Returns a name for them: of the
/// first one's process, or user.
///
/// # Errors
/// [`Kind::NotFound`] for a target that is not there; [`Kind::Usage`] without a target, or for one that could mean
/// several things.
pub(super) fn look(targets: &[Target], wait: bool) -> Result<String> {
    let mut name = None;
    let mut census = None;
    for target in targets {
        let own = match target {
            Target::Pid(pid) | Target::Tree(pid) => process::target(*pid)?,
            Target::User(id) => {
                let id =
                    id.parse().map_err(|_| Error::new(Kind::Usage, format!("{target} names no user id")))?;
                facts::user_name(id).unwrap_or_default()
            }
            // They are about the packets of the processes, or of all.
            Target::Remote(_) | Target::Port(_) => continue,
            _ => {
                let census = match &census {
                    Some(census) => census,
                    None => census.insert(Census::take(Path::new(process::PROC))?),
                };
                match standing(target, census) {
                    Err(error) if !(wait && error.kind == Kind::NotFound && can_be_awaited(target)) => {
                        return Err(error);
                    }
                    _ => String::new(),
                }
            }
        };
        name.get_or_insert(own);
    }
    match name {
        Some(name) => Ok(name),
        None if targets.is_empty() => Err(Error::new(Kind::Usage, "a limit needs a target")),
        None => Ok(String::new()),
    }
}

/// A container is only known by the beginning of its id while it runs.
fn can_be_awaited(target: &Target) -> bool {
    !matches!(target, Target::Container(id) if !cgroups::is_container_id(id))
}

/// Whether what a target names is there, with or without processes.
fn standing(target: &Target, census: &Census) -> Result<()> {
    let there = match target {
        Target::Container(wanted) => return census.container(wanted).map(drop),
        Target::Exe(path) if Path::new(path).is_file() => true,
        Target::Cgroup(path) => cgroup::mount()?.join(path.trim_start_matches('/')).is_dir(),
        _ => !census.matches(std::slice::from_ref(target)).is_empty(),
    };
    if there {
        return Ok(());
    }
    Err(Error::new(
        Kind::NotFound,
        format!(
            "there is nothing now that {target} means; with --wait the limit is set for what comes later"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(texts: &[&str], wait: bool) -> Result<String, (Kind, String)> {
        let targets: Vec<Target> = texts.iter().map(|text| text.parse().unwrap()).collect();
        look(&targets, wait).map_err(|error| (error.kind, error.message))
    }

    #[test]
    fn what_is_there() {
        let me = std::process::id().to_string();
        let own = process::comm(std::process::id()).unwrap();
        assert_eq!(answer(&[&me], false), Ok(own.clone()));
        let exe = format!("exe:{}", std::env::current_exe().unwrap().display());
        for texts in [&[exe.as_str()][..], &[&format!("name:{own}")], &["user:12345"]] {
            assert_eq!(answer(texts, false), Ok(String::new()), "{texts:?}");
        }
        assert_eq!(answer(&["user:0", &exe], false), Ok("root".into()));
    }

    #[test]
    fn what_is_not_there_may_be_awaited() {
        for text in ["name:no-such-name", "exe:/no/such/file", "unit:no-such-unit", "cgroup:/no/such/cgroup"]
        {
            let (kind, message) = answer(&[text], false).unwrap_err();
            assert!(kind == Kind::NotFound && message.contains("--wait"), "{message}");
            assert_eq!(answer(&[text], true), Ok(String::new()));
        }
        for text in ["pid:2147483647", "container:00ff00ff00ff"] {
            assert_eq!(answer(&[text], true).unwrap_err().0, Kind::NotFound, "{text}");
        }
        assert_eq!(answer(&[], true).unwrap_err().0, Kind::Usage);
        assert_eq!(answer(&["user:alice"], true).unwrap_err().0, Kind::Usage);
    }
}
