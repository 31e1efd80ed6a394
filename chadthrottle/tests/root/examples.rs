//! Every example of the README and of the manual page, run as it stands there.

use std::path::Path;

use chadthrottle::selftest::process::Place;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::{
    support::*,
    targets::{Homes, ID, Kin},
};

const README: &str = include_str!("../../../README.md");

/// These take a terminal; `tests/tui` runs them.
const SCREENS: [&str; 2] = ["chadthrottle", "chadthrottle --replay traffic.jsonl"];

pub fn trials() -> Vec<Trial> {
    vec![plain("examples::readme_and_manual_page", all)]
}

/// Lines of a text that are commands of ours, as they stand in it.
fn commands(text: &str) -> Vec<&str> {
    let lines = text.lines().map(|line| line.trim().trim_start_matches("sudo "));
    lines.filter(|line| *line == "chadthrottle" || line.starts_with("chadthrottle ")).collect()
}

fn all(scene: &Scene) -> Result<()> {
    let page = scene.succeed("man")?.replace("\\-", "-");
    let (_, examples) = page.split_once(".SH EXAMPLES").ok_or_else(|| Error::failed("no examples"))?;
    let examples = examples.split(".SH").next().unwrap_or_default();
    let readme: String = README.split("```").skip(1).step_by(2).collect();
    let (readme, examples) = (commands(&readme), commands(examples));
    ensure!(readme.len() >= 20 && examples.len() >= 3, "{readme:?} {examples:?}");

    // What they speak of.
    let (one, other) = (scene.client(&[])?, scene.client(&[])?);
    let firefox = Kin::copy("firefox")?;
    let _firefox = firefox.start(scene, None, &[])?;
    let (unit, container) =
        (Homes::new(scene, "system.slice/nginx.service")?, Homes::new(scene, &format!("docker/{ID}"))?);
    let place = |homes: &Homes| -> Result<Traffic> {
        let place = Place { namespace: Some(&scene.lab.client), cgroup: Some(homes.inner()) };
        Traffic::spawn(&program(), "a member", place, &[])
    };
    let _members = (place(&unit)?, place(&container)?);
    let recording = scene.runtime_dir().join("traffic.jsonl");
    let here = |line: &str| {
        line.replace("1234", &one.pid().to_string())
            .replace("1240", &other.pid().to_string())
            .replace("user:alice", "user:root")
            .replace("/user.slice", &scene.cgroup().path().display().to_string())
            .replace("curl -O https://example.org/file", "true")
            .replace("traffic.jsonl", &recording.display().to_string())
    };
    for line in readme.into_iter().chain(examples).filter(|line| !SCREENS.contains(line)) {
        let words = here(line);
        let words = words.strip_prefix("chadthrottle ").unwrap_or(&words);
        run(scene, words).map_err(|error| Error::failed(format!("'{line}': {error}")))?;
    }
    ensure!(Path::new(&recording).exists(), "nothing was recorded");
    Ok(())
}

/// What goes on until Ctrl-C gets that.
fn run(scene: &Scene, words: &str) -> Result<()> {
    let has = |word: &str| words.split(' ').any(|other| other == word);
    if (words.starts_with("limit ") || has("--pid")) && !has("--detach") {
        let limit = scene.start(words)?;
        limit.await_message("limited")?;
        return end(limit);
    }
    if words.starts_with("monitor ") && !has("--count") {
        let monitor = scene.start(words)?;
        sleep_until(now() + 1.5)?;
        return end(monitor);
    }
    scene.succeed(words).map(drop)
}

fn end(mut call: Call) -> Result<()> {
    call.process().signal(Signal::SIGINT);
    let (status, output) = call.finish()?;
    ensure!(status.success(), "{status}: {}", output.messages());
    Ok(())
}
