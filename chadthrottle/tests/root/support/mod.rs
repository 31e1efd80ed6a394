//! What the trials share: a place to measure in, and the command line under test.

pub mod edges;
mod machine;
pub mod network;
mod pair;
mod pins;
pub mod relay;
mod scene;
pub mod sniff;

pub use chadthrottle::{
    Error, Result,
    model::Direction,
    selftest::{
        lab::Version,
        meter::{DATAGRAM_HEADERS_V4, DATAGRAM_HEADERS_V6},
        process::{Call, Traffic, sleep_until},
        traffic::{Totals, now},
    },
};
pub use machine::Machine;
pub use pair::Pair;
pub use pins::{Exclusive, Pins};
pub use scene::{Limit, Scene, TCP_PORT, await_full_speed, ensure_held, full_speed, received};

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use libtest_mimic::{Completion, Failed, Trial};

/// Fails the trial, with a message, unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(chadthrottle::Error::failed(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// Set to 1: what would be skipped fails.
const REQUIRE_ROOT: &str = "CHADT_REQUIRE_ROOT";

/// How long each trial took.
static TAKEN: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// What a trial finds out.
pub enum Finding {
    /// It holds.
    Holds,
    /// It can't be tried here; why not.
    Skipped(String),
}

/// The binary under test: `CHADT_BIN`, where the tests run without their build folder.
pub fn program() -> PathBuf {
    std::env::var_os("CHADT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_chadthrottle").into(), PathBuf::from)
}

/// A trial in a scene of its own, after which nothing of ours may be left on the machine.
pub fn trial(name: &str, run: impl Fn(&Scene) -> Result<Finding> + Send + 'static) -> Trial {
    trial_in(name, missing, Scene::new, run)
}

/// [`trial`] in a scene with a line.
pub fn line_trial(
    name: &str,
    make: impl Fn() -> Result<Scene> + Send + 'static,
    run: impl Fn(&Scene) -> Result<Finding> + Send + 'static,
) -> Trial {
    trial_in(name, || missing().or_else(relay::missing), make, run)
}

fn trial_in(
    name: &str,
    missing: impl Fn() -> Option<String> + Send + 'static,
    make: impl Fn() -> Result<Scene> + Send + 'static,
    run: impl Fn(&Scene) -> Result<Finding> + Send + 'static,
) -> Trial {
    let label = name.to_owned();
    let required = std::env::var_os(REQUIRE_ROOT).is_some_and(|value| value == "1");
    Trial::ignorable_test(name, move || {
        let finding = match missing() {
            Some(reason) => Finding::Skipped(reason),
            None => {
                let start = Instant::now();
                let finding = in_scene(&label, make, run);
                TAKEN.lock().expect("nobody panics with it").push((start.elapsed(), label));
                finding.map_err(|error| Failed::from(error.to_string()))?
            }
        };
        match finding {
            Finding::Holds => Ok(Completion::Completed),
            Finding::Skipped(reason) if required => Err(Failed::from(format!("skipped: {reason}"))),
            Finding::Skipped(reason) => Ok(Completion::ignored_with(reason)),
        }
    })
}

/// Says where the time of a long run went.
pub fn tell_slowest() {
    const SHOWN: usize = 10;
    let mut taken = std::mem::take(&mut *TAKEN.lock().expect("nobody panics with it"));
    if taken.len() > SHOWN {
        taken.sort_unstable_by(|a, b| b.cmp(a));
        let slowest = taken[..SHOWN].iter().map(|(time, name)| format!("{name} {:.0} s", time.as_secs_f64()));
        eprintln!("the slowest: {}", slowest.collect::<Vec<_>>().join(", "));
        let mut themes = BTreeMap::<&str, Duration>::new();
        for (time, name) in &taken {
            *themes.entry(name.split("::").next().unwrap_or(name)).or_default() += *time;
        }
        let themes = themes.iter().map(|(theme, time)| format!("{theme} {:.0} s", time.as_secs_f64()));
        eprintln!("by theme: {}", themes.collect::<Vec<_>>().join(", "));
    }
}

/// [`trial`] for those that can be tried wherever there are the rights.
pub fn plain(name: &str, run: impl Fn(&Scene) -> Result<()> + Send + 'static) -> Trial {
    trial(name, move |scene| run(scene).map(|()| Finding::Holds))
}

/// How often a trial that fails is taken again.
const SECOND_CHANCES: usize = 2;

/// All trials measure rates or times, and what is measured on a busy machine may be the machine: one that fails is
/// taken again, in a new scene, and that is said. What any of the tries leaves behind fails.
fn in_scene(
    name: &str,
    make: impl Fn() -> Result<Scene>,
    run: impl Fn(&Scene) -> Result<Finding>,
) -> Result<Finding> {
    let before = Machine::look(&[])?;
    let mut finding = in_new_scene(&make, &run);
    for _ in 0..SECOND_CHANCES {
        let Err(error) = &finding else { break };
        eprintln!("{name} failed, and is tried again: {error}");
        before.ensure_restored()?;
        finding = in_new_scene(&make, &run);
    }
    let finding = finding?;
    before.ensure_restored()?;
    Ok(finding)
}

fn in_new_scene(
    make: &impl Fn() -> Result<Scene>,
    run: &impl Fn(&Scene) -> Result<Finding>,
) -> Result<Finding> {
    let scene = make()?;
    let before = scene.machine()?;
    let finding = run(&scene)?;
    before.ensure_restored()?;
    Ok(finding)
}

/// Which right is missing.
fn missing() -> Option<String> {
    let root = nix::unistd::geteuid().is_root();
    (!root).then(|| "needs root: sudo cargo test, or cargo xtask test".into())
}

/// Whether the kernel offers a congestion control to the scene's namespaces.
pub fn has_congestion_control(name: &str) -> bool {
    let path = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    std::fs::read_to_string(path).is_ok_and(|names| names.split_whitespace().any(|other| other == name))
}
