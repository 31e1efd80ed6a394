//! What a shell offers when Tab is pressed, also of what runs at this moment.
//!
//! The script that a shell sources only passes the words on to this very program, which is told so by the variable
//! [`ASKED`]; so it offers just what the parser takes, from the one definition in [`super::args`].

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::Path,
};

use clap::{CommandFactory, ValueEnum};
use clap_complete::{
    CompleteEnv, CompletionCandidate,
    env::{self, EnvCompleter, Shells},
};

use super::args::Args;
use crate::{
    backend::DRIVERS,
    error::{Context, Error, Kind, Result},
    kernel::facts::{self, Facts},
    model::{Direction, Grouping, SortBy, cgroups, text::escape},
    output,
};

/// Set to the shell's name by its script.
const ASKED: &str = "CHADTHROTTLE_COMPLETE";
/// What the user types.
const NAME: &str = "chadthrottle";
const PROC: &str = "/proc";

/// Shells there is a script for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Answers a shell, if it is one that asks; then there is nothing else to do.
pub fn answer(words: &[OsString]) -> Result<bool> {
    let asked =
        CompleteEnv::with_factory(Args::command).var(ASKED).shells(Shells(&[&Bash, &Zsh, &env::Fish]));
    let folder = std::env::current_dir().ok();
    asked
        .try_complete(words, folder.as_deref())
        .map_err(|cause| Error::caused(Kind::Failed, "complete the command line", &cause))
}

/// `completions SHELL`.
pub fn script(shell: Shell) -> Result<()> {
    let shell: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &env::Fish,
    };
    let mut text = Vec::new();
    shell.write_registration(ASKED, NAME, NAME, NAME, &mut text).context("write the script")?;
    output::result(&String::from_utf8_lossy(&text))
}

/// Bash takes the colon of `pid:1234` for the end of a word, as it does an equals sign and an `@`. This script parts
/// words at blanks only, and leaves from the answers what bash has already.
struct Bash;

const BASH: &str = r#"_NAME() {
    local line=${COMP_LINE:0:COMP_POINT} words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local current=${words[-1]} IFS=$'\n'
    COMPREPLY=($(
        _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) VAR=bash COMPLETER -- "${words[@]}" 2>/dev/null
    ))
    local breaks mark
    for mark in : = @; do
        [[ $COMP_WORDBREAKS == *$mark* ]] && breaks+=$mark
    done
    if [[ -n $breaks && $current == *[$breaks]* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*[$breaks]}"}"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=/] ]]; then
        compopt -o nospace
    fi
}
complete -o bashdefault -F _NAME NAME
"#;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        env::Bash.name()
    }

    fn is(&self, name: &str) -> bool {
        env::Bash.is(name)
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        _bin: &str,
        completer: &str,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let script = BASH.replace("NAME", name).replace("VAR", var).replace("COMPLETER", completer);
        buf.write_all(script.as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        env::Bash.write_complete(command, words, folder, buf)
    }
}

/// Zsh puts a blank behind what it has completed; behind the colon of `name:` there is more to come.
struct Zsh;

const ZSH_VALUES: &str = "[[ -n $other ]] && _describe -V 'values' other";
const ZSH_KINDS: &str = r"local -a kinds=(${(M)other:#*\\:(|:*)})
        [[ -n $kinds ]] && _describe -V 'kinds' kinds -S ''
        other=(${other:#*\\:(|:*)})
        ";

impl EnvCompleter for Zsh {
    fn name(&self) -> &'static str {
        env::Zsh.name()
    }

    fn is(&self, name: &str) -> bool {
        env::Zsh.is(name)
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let mut text = Vec::new();
        env::Zsh.write_registration(var, name, bin, completer, &mut text)?;
        let script = String::from_utf8_lossy(&text).replace(ZSH_VALUES, &format!("{ZSH_KINDS}{ZSH_VALUES}"));
        buf.write_all(script.as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        env::Zsh.write_complete(command, words, folder, buf)
    }
}

/// Names of the backends that can limit a direction.
pub fn backends(direction: Direction, current: &OsStr) -> Vec<CompletionCandidate> {
    let able = DRIVERS.iter().filter(|driver| driver.directions.contains(&direction));
    matching(current, able.map(|driver| (driver.name.to_owned(), String::new())))
}

/// What a row of the monitor may stand for.
pub fn groupings(current: &OsStr) -> Vec<CompletionCandidate> {
    matching(current, Grouping::ALL.map(|grouping| (grouping.to_string(), String::new())))
}

/// Orders of the monitor's rows.
pub fn orders(current: &OsStr) -> Vec<CompletionCandidate> {
    matching(current, SortBy::ALL.map(|order| (order.to_string(), String::new())))
}

/// Scopes.
pub fn scopes(current: &OsStr) -> Vec<CompletionCandidate> {
    matching(current, ["all", "internet", "local"].map(|name| (name.to_owned(), String::new())))
}

/// Targets: the kinds, and behind the colon what runs now.
pub fn targets(current: &OsStr) -> Vec<CompletionCandidate> {
    const KINDS: [(&str, &str); 10] = [
        ("pid", "a process, and its children from now on"),
        ("tree", "a process and all its descendants"),
        ("name", "processes of that name"),
        ("exe", "processes that run that file"),
        ("cgroup", "processes in that cgroup"),
        ("unit", "processes of that systemd unit"),
        ("container", "processes of that container"),
        ("user", "processes of that user"),
        ("remote", "only traffic with these addresses"),
        ("port", "only traffic with this remote port"),
    ];
    let kind = current.to_str().and_then(|word| word.split_once(':')).map(|(kind, _)| kind);
    let Some(kind) = kind else {
        return matching(current, KINDS.map(|(kind, what)| (format!("{kind}:"), what.to_owned())));
    };
    // Completing is a courtesy: what can't be read is not offered.
    let running = Facts::all(Path::new(PROC)).unwrap_or_default();
    let found: BTreeSet<(String, String)> = running.iter().flat_map(|facts| offered(kind, facts)).collect();
    matching(current, found.into_iter().map(|(value, what)| (format!("{kind}:{value}"), what)))
}

/// What a process has to offer for targets of a kind, each with an explanation.
fn offered(kind: &str, facts: &Facts) -> Vec<(String, String)> {
    let comm = String::from_utf8_lossy(&facts.comm).into_owned();
    let plain = |values: Vec<String>| values.into_iter().map(|value| (value, String::new())).collect();
    let paths = || facts.cgroups.iter().map(|membership| membership.path.as_str());
    match kind {
        "pid" | "tree" => vec![(facts.pid.to_string(), comm)],
        "name" => plain(vec![comm]),
        "exe" => plain(facts.exe.iter().map(|exe| exe.path.to_string_lossy().into_owned()).collect()),
        "cgroup" => plain(facts.cgroup().map(str::to_owned).into_iter().collect()),
        "unit" => plain(paths().filter_map(cgroups::unit).map(str::to_owned).collect()),
        "container" => {
            plain(paths().flat_map(cgroups::containers).map(|found| found.cgroup_name().to_owned()).collect())
        }
        "user" => plain(vec![facts::user_name(facts.uid).unwrap_or_else(|| facts.uid.to_string())]),
        _ => Vec::new(),
    }
}

/// What begins with the word, without what a shell would read otherwise than it is written.
fn matching(
    current: &OsStr,
    candidates: impl IntoIterator<Item = (String, String)>,
) -> Vec<CompletionCandidate> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+@/:%,".contains(c);
    let Some(current) = current.to_str() else { return Vec::new() };
    let fitting =
        candidates.into_iter().filter(|(value, _)| value.starts_with(current) && value.chars().all(is_plain));
    let candidate = |(value, what): (String, String)| {
        CompletionCandidate::new(value).help((!what.is_empty()).then(|| escape(&what).to_string().into()))
    };
    fitting.map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(candidates: &[CompletionCandidate]) -> Vec<&str> {
        candidates.iter().filter_map(|candidate| candidate.get_value().to_str()).collect()
    }

    #[test]
    fn kinds_come_before_the_colon() {
        assert_eq!(values(&targets("p".as_ref())), ["pid:", "port:"]);
        for candidate in targets("".as_ref()) {
            let written = format!("{}1", candidate.get_value().display());
            let known = written.parse::<crate::model::Target>().err().map(|error| error.to_string());
            assert!(!known.as_ref().is_some_and(|error| error.contains("unknown kind")), "{known:?}");
        }
    }

    #[test]
    fn what_runs_comes_behind_it() {
        let ours = format!("pid:{}", std::process::id());
        assert!(values(&targets(ours.as_ref())).contains(&ours.as_str()));
        assert!(values(&targets("exe:/".as_ref())).iter().all(|value| value.starts_with("exe:/")));
        assert!(targets("remote:".as_ref()).is_empty());
    }

    #[test]
    fn hostile_names_are_not_offered() {
        let names = ["good-1.2", "two words", "$(reboot)", "a\nb", "\u{202e}x", "`x`", "a;b"];
        let names = names.map(|name| (name.to_owned(), "a\nb".to_owned()));
        let offered = matching("".as_ref(), names);
        assert_eq!(values(&offered), ["good-1.2"]);
        assert_eq!(offered[0].get_help().unwrap().to_string(), "a\\nb");
    }

    #[test]
    fn help_names_what_is_offered() {
        let command = Args::command();
        let monitor = command.find_subcommand("monitor").unwrap();
        for (option, offered) in [("group", groupings("".as_ref())), ("sort", orders("".as_ref()))] {
            let argument = monitor.get_arguments().find(|argument| argument.get_id() == option).unwrap();
            let help = argument.get_help().unwrap().to_string();
            let named: Vec<_> = help.split_once(": ").unwrap().1.split([',', ' ', '(', ')']).collect();
            for name in values(&offered) {
                assert!(named.contains(&name), "{name} is not in '{help}'");
            }
        }
    }

    #[test]
    fn every_backend_is_offered_for_its_directions() {
        for direction in Direction::ALL {
            for driver in DRIVERS.iter().filter(|driver| driver.directions.contains(&direction)) {
                assert!(values(&backends(direction, "".as_ref())).contains(&driver.name));
            }
        }
    }
}
