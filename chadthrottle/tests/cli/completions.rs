//! The scripts for the shells, in the shells that are here.

use std::{path::Path, process::Command};

use crate::{chadthrottle, finish};

fn script(shell: &str) -> String {
    let (code, script, _) = finish(chadthrottle(Path::new("/nowhere"), &["completions", shell]));
    assert_eq!(code, 0);
    script
}

/// What bash has completed `line` to, with the colon parting words as it does by default.
fn bash(line: &str) -> Vec<String> {
    let ask = r#"
        compopt() { :; }
        COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$' \t\n"\x27><=;|&(:' COMPREPLY=()
        _chadthrottle
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let folder = Path::new(env!("CARGO_BIN_EXE_chadthrottle")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let text = format!("{}\n{ask}", script("bash"));
    let output = Command::new("bash").args(["-c", &text, "bash", line]).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_what_runs() {
    assert_eq!(bash("chadthrottle li"), ["limit"]);
    assert_eq!(bash("chadthrottle limit pid:1 --download-l"), ["--download-limit"]);
    assert_eq!(bash("chadthrottle limit na"), ["name:"]);
    // Bash has `pid:` already: the answer begins behind the colon.
    let ours = std::process::id().to_string();
    assert!(bash(&format!("chadthrottle limit pid:{ours}")).contains(&ours));
    assert!(bash("chadthrottle limit pid:1 --upload-backend ").contains(&"ebpf".to_owned()));
    assert_eq!(bash("chadthrottle limit pid:1 --scope l"), ["local"]);
    assert_eq!(bash("chadthrottle monitor --group t"), ["tree"]);
    assert_eq!(bash("chadthrottle monitor --sort down-"), ["down-limit"]);
    // So it has what is before an equals sign.
    assert_eq!(bash("chadthrottle limit pid:1 --scope=l"), ["local"]);
    assert_eq!(bash("chadthrottle limit pid:1 --upload-backend=eb"), ["ebpf"]);
    assert!(bash("chadthrottle limit cgroup:/no=t@x:").iter().all(String::is_empty));
}

#[test]
fn every_shell_takes_its_script() {
    for shell in ["bash", "zsh", "fish"] {
        let script = script(shell);
        assert!(script.contains("CHADTHROTTLE_COMPLETE"), "{script}");
        // No blank behind the colon of `name:`.
        assert_eq!(script.contains("-V 'kinds' kinds -S ''"), shell == "zsh", "{script}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        std::fs::write(&file, script).unwrap();
        // Only bash is on every machine.
        match Command::new(shell).arg("-n").arg(&file).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {output:?}"),
            Err(_) => assert_ne!(shell, "bash"),
        }
    }
}

#[test]
fn an_unknown_shell_is_refused() {
    let (code, _, stderr) = finish(chadthrottle(Path::new("/nowhere"), &["completions", "tcsh"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("bash") && stderr.contains("fish"), "{stderr}");
}
