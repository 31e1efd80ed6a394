//! What to do when a right is missing.

use std::ffi::OsString;

use crate::{
    error::{Error, Kind},
    kernel::caps,
    model::text::escape,
};

/// For an error that tells of a missing right: the capabilities that are missing if the command is one that
/// `limits`, and the same call under sudo. `None` where the error says it all, and where this process has
/// every right it could get.
pub fn mend(error: &Error, limits: bool, words: &[OsString]) -> Option<String> {
    if error.kind != Kind::NotPermitted || error.to_string().contains("sudo ") {
        return None;
    }
    let missing = caps::missing(&caps::FOR_EBPF);
    if missing.is_empty() && error.message.contains("make the runtime folder") {
        return Some("use a folder of your own: --runtime-dir \"$XDG_RUNTIME_DIR/chadthrottle\"".to_owned());
    }
    let missing = (limits && !missing.is_empty()).then(|| format!("missing: {}", caps::names(&missing)));
    let line = (!nix::unistd::geteuid().is_root()).then(|| format!("as root: {}", sudo_line(words)));
    match (missing, line) {
        (Some(missing), Some(line)) => Some(format!("{missing}; {line}")),
        (Some(missing), None) => Some(format!("{missing} (root in a container without them?)")),
        (None, line) => line,
    }
}

/// The same call again under sudo, by its full path: sudo has a search path of its own.
fn sudo_line(words: &[OsString]) -> String {
    let program = std::env::current_exe().ok().map(OsString::from);
    let program = program.iter().chain(words.first()).next();
    let words = program.into_iter().chain(words.iter().skip(1));
    let words: Vec<_> = words.map(|word| shell_word(&word.to_string_lossy())).collect();
    format!("sudo {}", words.join(" "))
}

/// `word` as a shell reads it back.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    match word {
        "" => "''".to_owned(),
        _ if word.chars().all(plain) => word.to_owned(),
        _ => format!("'{}'", escape(word).replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(shell_word("--pid=5"), "--pid=5");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(shell_word("1 MB"), "'1 MB'");
    }

    #[test]
    fn the_whole_line() {
        let line = sudo_line(&["chadthrottle".into(), "limit".into(), "5".into(), "-d".into(), "1 M".into()]);
        assert!(line.starts_with("sudo /") && line.ends_with(" limit 5 -d '1 M'"), "{line}");
    }
}
