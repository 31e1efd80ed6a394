//! From arguments to what they mean. All refusals are [`Kind::Usage`].

use std::path::{Path, PathBuf};

use crate::{
    backend::{self, Site},
    cli::args::{self, Duration, Global, Rates},
    error::{Context, Error, Kind, Result},
    kernel::{cgroup, facts},
    model::{Direction, PerDirection, Rate, Scope, Target, text::quote},
    owner::protocol::LimitRequest,
};

/// Longest `--duration`, seconds (ten years of 365 days).
const LONGEST: f64 = 315_360_000.0;
/// Shortest `--duration`, seconds.
const SHORTEST: f64 = 0.001;

/// What `limit` and `run` ask for; `targets` may still be empty.
pub fn request(global: &Global, rates: &Rates, targets: Vec<Target>) -> Result<LimitRequest> {
    Ok(LimitRequest {
        targets,
        scope: Scope::default(),
        wait: false,
        rates: self::rates(rates)?,
        backends: backends(global)?,
        no_fallback: global.no_fallback,
        partial: global.partial,
        duration: None,
        detach: false,
        site: site(global)?,
    })
}

/// Targets, each once, in the one form that the owner knows them by.
pub fn targets(texts: &[String]) -> Result<Vec<Target>> {
    let mut targets = Vec::with_capacity(texts.len());
    for text in texts {
        let target = canonical(text.parse()?)?;
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    Ok(targets)
}

/// Users by their ids, files by their real paths, cgroups by their paths in the hierarchy.
///
/// # Errors
/// [`Kind::NotFound`] when there is no such user.
fn canonical(target: Target) -> Result<Target> {
    Ok(match target {
        Target::User(name) => Target::User(match name.parse::<u32>() {
            // (uid_t)-1 stands for "no user" in the kernel's calls.
            Ok(u32::MAX) => {
                return Err(Error::new(Kind::NotFound, format!("no process can have the user id {name}")));
            }
            Ok(id) => id.to_string(),
            Err(_) => {
                let failed = || format!("look for user {}", quote(&name));
                let found =
                    facts::user_id(&name).map_err(|cause| Error::caused(Kind::Failed, failed(), &cause))?;
                let nobody = || Error::new(Kind::NotFound, format!("there is no user {}", quote(&name)));
                found.ok_or_else(nobody)?.to_string()
            }
        }),
        // A file that is gone may still run.
        Target::Exe(path) => {
            let real = Path::new(&path)
                .canonicalize()
                .ok()
                .and_then(|real| real.into_os_string().into_string().ok());
            Target::Exe(real.unwrap_or(path))
        }
        Target::Cgroup(path) => {
            let mount = cgroup::mount().ok();
            let below = mount.and_then(|mount| Path::new(&path).strip_prefix(mount).ok().map(Path::to_owned));
            let below = below.and_then(|below| below.into_os_string().into_string().ok());
            Target::Cgroup(below.map_or(path, |below| format!("/{below}")))
        }
        other => other,
    })
}

/// `--scope`.
pub fn scope(scope: &args::Scope) -> Result<Scope> {
    scope.scope.as_deref().map_or(Ok(Scope::default()), str::parse)
}

/// The value of `--pid`.
pub fn pid(text: &str) -> Result<Target> {
    match text.parse()? {
        target @ Target::Pid(_) => Ok(target),
        target => Err(Error::new(
            Kind::Usage,
            format!("--pid takes a process id; use `limit {target}` for {target}"),
        )),
    }
}

/// The rates; at least one is there.
fn rates(rates: &Rates) -> Result<PerDirection<Option<Rate>>> {
    let parse = |flag: &str, text: &Option<String>| match text {
        Some(text) => Rate::parse_or_none(text)
            .map_err(|error| Error { message: format!("{flag}: {}", error.message), ..error }),
        None => Ok(None),
    };
    let rates = PerDirection {
        upload: parse("--upload-limit", &rates.upload)?,
        download: parse("--download-limit", &rates.download)?,
    };
    if rates.iter().all(|(_, rate)| rate.is_none()) {
        return Err(Error::new(
            Kind::Usage,
            "nothing to limit: give a rate for download (-d 1M), upload (-u 500K) or both",
        ));
    }
    Ok(rates)
}

/// The backends asked for by name, all known.
pub fn backends(global: &Global) -> Result<PerDirection<Option<String>>> {
    let backends =
        PerDirection { upload: global.upload_backend.clone(), download: global.download_backend.clone() };
    for direction in Direction::ALL {
        if let Some(name) = backends.get(direction) {
            backend::find(name, direction)?;
        }
    }
    Ok(backends)
}

/// Where the backends work. The path is made absolute, for an owner that is at home elsewhere.
pub fn site(global: &Global) -> Result<Site> {
    let absolute = |path: &PathBuf| {
        path.canonicalize().context(format!("find the cgroup root {}", quote(&path.to_string_lossy())))
    };
    Ok(Site { cgroup_root: global.cgroup_root.as_ref().map(absolute).transpose()? })
}

/// Seconds.
pub fn duration(duration: &Duration) -> Result<Option<f64>> {
    let Some(text) = &duration.duration else { return Ok(None) };
    seconds(text).map(Some).map_err(|why| {
        Error::new(
            Kind::Usage,
            format!("--duration: {} is no duration: {why}; accepted are 30, 0.5, 30s, 5m, 1h", quote(text)),
        )
    })
}

/// The value of `--interval`.
pub fn interval(text: &str) -> Result<std::time::Duration> {
    between("--interval", text, (0.1, "100 ms"), (3600.0, "an hour"))
}

/// The value of `--refresh`.
pub fn refresh(text: &str) -> Result<std::time::Duration> {
    between("--refresh", text, (0.25, "250 ms"), (10.0, "10 s"))
}

fn between(
    option: &str,
    text: &str,
    (least, least_name): (f64, &str),
    (most, most_name): (f64, &str),
) -> Result<std::time::Duration> {
    let refuse = |why: String| {
        let message =
            format!("{option}: {} is no interval: {why}; accepted are 1, 0.5, 250ms, 2s", quote(text));
        Error::new(Kind::Usage, message)
    };
    let milliseconds = text.trim().strip_suffix("ms").map(|number| seconds(number).map(|ms| ms / 1000.0));
    let seconds = milliseconds.unwrap_or_else(|| seconds(text)).map_err(refuse)?;
    if seconds < least {
        return Err(refuse(format!("it is less than {least_name}")));
    }
    if seconds > most {
        return Err(refuse(format!("it is more than {most_name}")));
    }
    Ok(std::time::Duration::from_secs_f64(seconds))
}

/// Seconds out of `30`, `0.5`, `30s`, `5m`, `1h`; or why not.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.starts_with('-') {
        return Err("it is not above 0".into());
    }
    // Digits and points only: neither an exponent nor "inf" comes this far.
    let Some(number) = number.parse::<f64>().ok().filter(|_| !number.ends_with('.')) else {
        return Err("it does not begin with a number".into());
    };
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit {}", quote(unit))),
    };
    match number * factor {
        0.0 => Err("it is not above 0".into()),
        ..SHORTEST => Err("it is less than a millisecond".into()),
        ..=LONGEST => Ok(number * factor),
        _ => Err("it is more than ten years".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("30", 30.0),
            ("0.5", 0.5),
            (".5", 0.5),
            ("30s", 30.0),
            ("5m", 300.0),
            ("1.5h", 5400.0),
            ("2 H", 7200.0),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for (text, why) in [
            ("", "empty"),
            ("0", "not above 0"),
            ("0.0h", "not above 0"),
            ("-1", "not above 0"),
            ("0.0001", "less than a millisecond"),
            ("abc", "begin with a number"),
            ("inf", "begin with a number"),
            ("1.", "begin with a number"),
            ("1..2", "begin with a number"),
            ("1e5", "unknown unit"),
            ("3 weeks", "unknown unit 'weeks'"),
            ("5\n", "5"),
            ("99999999999", "ten years"),
        ] {
            match seconds(text) {
                Ok(seconds) => assert_eq!(seconds.to_string(), why),
                Err(message) => assert!(message.contains(why), "{text}: {message}"),
            }
        }
    }

    #[test]
    fn intervals() {
        for (text, expected) in
            [("1", 1000), ("0.1", 100), ("250ms", 250), (" 500 ms", 500), ("2s", 2000), ("1h", 3_600_000)]
        {
            assert_eq!(interval(text).unwrap().as_millis(), expected, "{text}");
        }
        for (text, why) in [
            ("99ms", "less than 100 ms"),
            ("2h", "more than an hour"),
            ("0", "not above 0"),
            ("ms", "empty"),
            ("5ms s", "unknown unit"),
        ] {
            let error = interval(text).unwrap_err();
            assert!(error.kind == Kind::Usage && error.message.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            let _ = seconds(&text);
        }

        #[test]
        fn digits_are_answered(text in "[0-9.]{0,400}[smh]?") {
            if let Ok(seconds) = seconds(&text) {
                prop_assert!((SHORTEST..=LONGEST).contains(&seconds));
            }
        }
    }
}
