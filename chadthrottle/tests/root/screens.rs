//! The screens on real traffic, by keys: what a user does, sees, and gets.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chadthrottle::{model::LimitReport, selftest::process::Place};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::{
    actor::{self, Sink},
    live,
    pty::Session,
    support::*,
};

/// The limit that is typed, bytes/s.
const RATE: f64 = 1e6;
/// From a row that is selected to a limit in both directions: three keys and the rates.
const LIMIT: &str = "t1M\t1M\r";

pub fn trials() -> Vec<Trial> {
    vec![
        trial_of("screens::a_limit_by_keys", a_limit_by_keys),
        trial_of("screens::limits_stay_when_the_user_says_so", limits_stay),
        trial_of("screens::limits_end_with_a_signal", signals),
        trial_of("screens::another_backend", another_backend),
        trial_of("screens::tui_limits_a_connection", tui_limits_a_connection),
        trial_of("screens::tui_says_that_the_owner_is_stopped", tui_says_that_the_owner_is_stopped),
        trial_of("screens::tui_begins_while_the_owner_is_stopped", tui_begins_while_the_owner_is_stopped),
        trial_of("screens::tui_finds_another_owner", tui_finds_another_owner),
        trial_of("screens::a_limit_that_does_not_hold", a_limit_that_does_not_hold),
    ]
}

/// What the terminal panics about fails the trial like everything else.
fn trial_of(name: &str, run: impl Fn(&Scene) -> Result<()> + Send + 'static) -> Trial {
    plain(name, move |scene| {
        let told = |panic: Box<dyn std::any::Any + Send>| {
            let text = panic.downcast_ref::<String>().cloned();
            Error::failed(text.unwrap_or_else(|| "the terminal of the trial failed".into()))
        };
        catch_unwind(AssertUnwindSafe(|| run(scene))).map_err(told)?
    })
}

/// The screens, as they are started where limits work at the scene's cgroup.
fn screens(scene: &Scene) -> Session {
    let [folder, cgroup] =
        [scene.runtime_dir(), scene.cgroup().path()].map(|path| path.display().to_string());
    let words = ["--runtime-dir", &folder, "--cgroup-root", &cgroup];
    Session::start((120, 40), program(), &words, &[("HOME", &folder)])
}

/// The row of a process.
fn row(text: &str, pid: u32) -> Option<&str> {
    let pid = pid.to_string();
    text.lines().find(|line| line.split_whitespace().take(2).any(|word| word == pid))
}

/// What a row has below a heading whose numbers end where it ends, in bytes; `None`: nothing.
fn number_below(text: &str, pid: u32, heading: &str) -> Option<f64> {
    let headings = text.lines().find(|line| line.contains("PROCESS") && line.contains(heading))?;
    let (before, _) = headings.split_once(heading)?;
    let end = before.width() + heading.width();
    let mut at = 0;
    let upto: String = row(text, pid)?
        .chars()
        .take_while(|letter| {
            at += letter.width().unwrap_or(0);
            at <= end
        })
        .collect();
    // A cell is nine wide at most.
    let start = upto.char_indices().rev().nth(8).map_or(0, |(start, _)| start);
    let (number, unit) = upto[start..].trim().split_once(' ')?;
    let power = ["B", "KB", "MB", "GB"].iter().position(|known| *known == unit)?;
    Some(number.parse::<f64>().ok()? * 1e3f64.powi(power as i32))
}

/// Whether both rates of a row are those of a limit.
fn is_slow(text: &str, pid: u32, rate: f64) -> bool {
    ["↓/s", "↑/s"].iter().all(|heading| {
        number_below(text, pid, heading).is_some_and(|seen| (0.3..1.7).contains(&(seen / rate)))
    })
}

/// Whether it gets what only traffic without a limit does; smoothed, and on a busy machine.
fn is_fast(text: &str, pid: u32) -> bool {
    number_below(text, pid, "↓/s").is_some_and(|rate| rate > full_speed() / 4.0)
}

/// Fails unless `status` has the limit with that rate in both directions.
fn ensure_in_status(scene: &Scene, target: &str, rate: f64) -> Result<LimitReport> {
    let report = scene.report(target)?;
    for (direction, held) in report.directions.iter() {
        let rate_of = held.as_ref().map(|held| held.rate.bytes_per_second());
        ensure!(rate_of == Some(rate as u64), "{direction} has {rate_of:?} instead of {rate}");
    }
    Ok(report)
}

fn ensure_no_limit(scene: &Scene) -> Result<()> {
    let limits = scene.status()?.limits;
    ensure!(limits.is_empty(), "there are still limits: {limits:?}");
    Ok(())
}

fn a_limit_by_keys(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    let slow = scene.client(&[format!("udp {} put rate=100000", scene.udp(Version::V4))])?;
    let mut session = screens(scene);
    session.until("both processes", |text| is_fast(text, pid) && row(text, slow.pid()).is_some());

    // The other one, and back.
    session.press("jt");
    session.see(&format!("({})", slow.pid()));
    session.press("\x1b");
    session.until("no dialog", |text| !text.contains("Applies to"));
    session.press("k");
    session.press(LIMIT);
    session.see("limited pid:");
    let since = now();
    ensure_in_status(scene, &pair.target(), RATE)?;
    pair.ensure_held(since, RATE)?;
    session.until("the rates fall", |text| is_slow(text, pid, RATE));
    session.until("the limit", |text| number_below(text, pid, "↓ LIMIT") == Some(RATE));
    let marked = row(&session.text(), pid).is_some_and(|row| row.starts_with('⚡'));
    ensure!(marked, "the row has no mark:\n{}", session.text());

    session.press("+");
    session.until("the higher limit", |text| number_below(text, pid, "↑ LIMIT") == Some(RATE * 1.1));
    ensure_in_status(scene, &pair.target(), RATE * 1.1)?;
    // As a user would pull at a window; storms of sizes are another test's theme.
    for size in [(60, 15), (200, 60), (120, 40)] {
        session.resize(size.0, size.1);
        sleep_until(now() + 0.3)?;
    }

    session.press("r");
    session.see("removed the limit");
    let removed = now();
    ensure_no_limit(scene)?;
    pair.ensure_free(removed, 10.0)?;
    session.until("the rates rise", |text| is_fast(text, pid));

    session.press("u");
    session.see("undone: limited");
    let since = now();
    ensure_in_status(scene, &pair.target(), RATE * 1.1)?;
    pair.ensure_held(since, RATE * 1.1)?;

    session.press("q");
    session.see("Let them end, or stay");
    session.press("\x1b");
    session.until("no question", |text| !text.contains("Let them end"));
    session.press("qe");
    let status = session.end();
    ensure!(status.success(), "the screens ended with {status}");
    let ended = now();
    ensure_no_limit(scene)?;
    pair.ensure_free(ended, 10.0)
}

fn limits_stay(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    let mut session = screens(scene);
    session.until("the process", |text| is_fast(text, pid));
    session.press(LIMIT);
    session.see("limited pid:");
    session.press("q");
    session.see("Let them end, or stay");
    session.press("k");
    let status = session.end();
    ensure!(status.success(), "the screens ended with {status}");
    let since = now();
    let report = ensure_in_status(scene, &pair.target(), RATE)?;
    ensure!(report.detached, "the limit is not detached");
    pair.ensure_held(since, RATE)?;

    // Who did not set it here may leave without a word.
    let mut session = screens(scene);
    session.until("the limit of before", |text| number_below(text, pid, "↓ LIMIT") == Some(RATE));
    session.press("q");
    let status = session.end();
    ensure!(status.success(), "the screens ended with {status}");
    ensure_in_status(scene, &pair.target(), RATE)?;
    scene.succeed("clear").map(drop)
}

/// One direction goes to another backend and back, by keys.
fn another_backend(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    let mut session = screens(scene);
    session.until("the process", |text| is_fast(text, pid));
    session.press(LIMIT);
    session.see("limited pid:");
    session.press("5");
    session.until("what works here", |text| text.contains("✓ ebpf") && text.contains("✓ nftables"));
    for name in ["nftables", "ebpf"] {
        let chosen = |text: &str| {
            let line = text.lines().find(|line| line.contains("Hold the download by"));
            line.is_some_and(|line| line.split_whitespace().any(|word| word == name))
        };
        // All of them have been seen then.
        for _ in 0..10 {
            if chosen(&session.text()) {
                break;
            }
            let before = session.text();
            session.press("d");
            session.until("another one", |text| text != before);
        }
        ensure!(chosen(&session.text()), "{name} can't be chosen:\n{}", session.text());
        session.see("1 limit is held by another one");
        session.press("\r");
        session.until("that it was moved", |text| {
            !text.contains("held by another one") && text.contains("limited pid:")
        });
        let since = now();
        let report = ensure_in_status(scene, &pair.target(), RATE)?;
        for (direction, wanted) in [(Direction::Download, name), (Direction::Upload, "ebpf")] {
            let held = report.directions.get(direction).as_ref().map(|held| held.backend.as_str());
            ensure!(held == Some(wanted), "{direction} is held by {held:?} instead of {wanted}");
        }
        pair.ensure_held(since, RATE)?;
    }
    session.press("qe");
    let status = session.end();
    ensure!(status.success(), "the screens ended with {status}");
    ensure_no_limit(scene)
}

fn signals(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut session = screens(scene);
        session.until("the process", |text| is_fast(text, pid));
        session.press(LIMIT);
        session.see("limited pid:");
        ensure_in_status(scene, &pair.target(), RATE)?;
        session.signal(signal);
        // Looks at the terminal, too.
        let status = session.end();
        ensure!(status.success(), "after {signal} the screens ended with {status}");
        let ended = now();
        ensure_no_limit(scene)?;
        pair.ensure_free(ended, 10.0)?;
    }
    Ok(())
}

/// By the nearest that there is: the process and the far end.
fn tui_limits_a_connection(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    let mut session = screens(scene);
    session.until("the process", |text| is_fast(text, pid));
    session.press("\rc");
    session.see("its traffic with");
    session.press("1M\t1M\r");
    session.see("limited pid:");
    let limits = scene.status()?.limits;
    let [report] = limits.as_slice() else { return Err(Error::failed(format!("no one limit: {limits:?}"))) };
    let kinds: Vec<_> = report.targets.iter().map(ToString::to_string).collect();
    let expected =
        [format!("pid:{pid}"), "remote:".into(), format!("port:{}", scene.tcp(Version::V4).port())];
    let is_as_expected = kinds.iter().zip(&expected).all(|(kind, expected)| kind.starts_with(expected));
    ensure!(kinds.len() == 3 && is_as_expected, "the targets are {kinds:?}");
    session.until("the mark of the connection", |text| {
        text.lines().any(|line| line.starts_with('⚡') && line.contains("tcp"))
    });
    session.press("qe");
    let status = session.end();
    ensure!(status.success(), "the screens ended with {status}");
    ensure_no_limit(scene)
}

/// It is told within seconds, nothing hangs, and everything goes on as soon as the owner does.
fn tui_says_that_the_owner_is_stopped(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    let mut session = screens(scene);
    session.until("the process", |text| is_fast(text, pid));
    session.press(LIMIT);
    session.see("limited pid:");
    let owner = scene.owner()?;
    let stop = |signal| {
        nix::sys::signal::kill(owner, signal).map_err(|error| Error::failed(format!("{signal}: {error}")))
    };
    stop(Signal::SIGSTOP)?;
    let taken = session.see("Old figures, limits may not hold (key 5)").as_secs_f64();
    // What is asked for meanwhile is refused in words, and is not taken for the answer to what comes later.
    session.press("+");
    session.see("is stopped, and nothing is limited meanwhile");
    stop(Signal::SIGCONT)?;
    ensure!(taken < 5.0, "it was said only after {taken:.1} s");
    session.until("new figures", |text| !text.contains("Old figures"));
    session.press("r");
    session.see("removed the limit");
    ensure_no_limit(scene)?;
    session.press("u");
    session.see("undone: limited");
    stop(Signal::SIGSTOP)?;
    session.see("Old figures, limits may not hold (key 5)");
    let begun = now();
    session.press("qe");
    let status = session.end();
    let left = now() - begun;
    stop(Signal::SIGCONT)?;
    ensure!(status.success() && left < 4.0, "the screens ended with {status} after {left:.1} s");
    eprintln!("said after {taken:.1} s, left after {left:.1} s");
    let ended = now();
    pair.ensure_free(ended, 10.0)?;
    ensure_no_limit(scene)
}

/// The screens count themselves as well as they can, and leave it to the owner as soon as that goes on.
fn tui_begins_while_the_owner_is_stopped(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    let limit = scene.start(&format!("limit {} -d {RATE}", pair.target()))?;
    limit.await_message("limited")?;
    let owner = scene.owner()?;
    let stop = |signal| {
        nix::sys::signal::kill(owner, signal).map_err(|error| Error::failed(format!("{signal}: {error}")))
    };
    stop(Signal::SIGSTOP)?;
    let mut session = screens(scene);
    session.see("only TCP is counted");
    stop(Signal::SIGCONT)?;
    session.until("the owner's figures", |text| {
        // With rates its row is the first.
        let fast = number_below(text, pid, "↑/s").is_some_and(|rate| rate > 2.0 * RATE);
        fast && !text.contains("only TCP is counted") && number_below(text, pid, "↓ LIMIT") == Some(RATE)
    });
    session.press("r");
    session.see("removed the limit");
    session.press("q");
    let status = session.end();
    ensure!(status.success(), "the screens ended with {status}");
    ensure_no_limit(scene)
}

/// In place of one that was killed.
fn tui_finds_another_owner(scene: &Scene) -> Result<()> {
    let pair = Pair::new(scene)?;
    let pid = pair.client.pid();
    let mut session = screens(scene);
    session.until("the process", |text| is_fast(text, pid));
    session.press(LIMIT);
    session.see("limited pid:");
    let killed = nix::sys::signal::kill(scene.owner()?, Signal::SIGKILL);
    killed.map_err(|error| Error::failed(format!("kill the owner: {error}")))?;
    session.see("the limits with it");
    session.until("new figures, and fast", |text| !text.contains("Old figures") && is_fast(text, pid));
    session.press(LIMIT);
    session.see("limited pid:");
    ensure_in_status(scene, &pair.target(), RATE)?;
    session.press("qe");
    let status = session.end();
    ensure!(status.success(), "the screens ended with {status}");
    ensure_no_limit(scene)
}

/// A connection from outside the cgroup, where no program sees its packets.
fn a_limit_that_does_not_hold(scene: &Scene) -> Result<()> {
    let sink = Sink::new(scene)?;
    let place = Place { namespace: Some(&scene.lab.client), cgroup: None };
    let (mut giver, taker) = live::giver_and_taker(scene, &sink, place)?;
    let pid = taker.pid();
    let target = format!("pid:{pid}");
    let mut limit = scene.start(&format!("limit {target} -u {RATE} -d {RATE}"))?;
    limit.await_message("limited")?;
    let mut session = screens(scene);
    // The process has no connection yet, and is shown all the same.
    session.until("the row of a limited process", |text| {
        row(text, pid).is_some_and(|row| row.starts_with('⚡'))
    });
    actor::go_on(&mut giver)?;
    actor::await_line(&taker, "taken")?;
    let since = now();
    session.until("the mark of a limit that does not hold", |text| {
        row(text, pid).is_some_and(|row| row.starts_with("!!"))
    });
    let taken = now() - since;
    ensure!(taken < live::PROMISE, "it was shown only after {taken:.1} s");
    eprintln!("shown after {taken:.1} s");
    // And how, in words.
    session.see("its sockets moved");
    session.press("q");
    let status = session.end();
    ensure!(status.success(), "the screens ended with {status}");
    limit.process().signal(Signal::SIGINT);
    limit.finish().map(drop)
}
