//! What keys and the mouse do, and what becomes of what they order.

use std::sync::Arc;

use chadthrottle::{
    Error, Kind,
    backend::{Priority, Probe},
    model::{Direction, LimitId, Rate, Snapshot, Target},
    output::backends::BackendReport,
    owner::protocol::EndReason,
    tui::{
        app::Screen,
        event::Event,
        order::{Answer, News, Outcome, Step},
    },
};
use ratatui::crossterm::event::{
    Event as TerminalEvent, KeyCode, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};

use crate::{
    scene::Scene,
    stage::{SIZES, Stage},
};

const CURL: u32 = 4188;

/// A scene in which nobody has set a limit.
fn free() -> Scene {
    Scene { limits: Vec::new(), ..Scene::default() }
}

/// The download is selected, and nothing is limited.
fn stage() -> Stage {
    let mut stage = Stage::new(80, 24, &free());
    stage.press("/name:curl\n");
    stage
}

/// The last line.
fn said(stage: &Stage) -> String {
    stage.text().lines().last().unwrap_or_default().to_owned()
}

/// The line about a process.
fn line(stage: &Stage, name: &str) -> String {
    let text = stage.text();
    text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in\n{text}")).to_owned()
}

fn rates(stage: &Stage) -> Vec<(Option<u64>, Option<u64>)> {
    let rate = |report: &chadthrottle::model::LimitReport, direction| {
        report.directions.get(direction).as_ref().map(|held| held.rate.bytes_per_second())
    };
    let of = |report| (rate(report, Direction::Download), rate(report, Direction::Upload));
    stage.limits.values().map(of).collect()
}

/// A snapshot of a monitor that sees the limits that the owner holds.
fn next(stage: &mut Stage, second: u32) {
    let mut snapshot: Snapshot = free().until(second).pop().expect("a snapshot");
    snapshot.limits = stage.limits.values().cloned().collect();
    for process in &mut snapshot.processes {
        let holds = |target: &Target| target.pid() == Some(process.pid);
        let limits = snapshot.limits.iter().filter(|limit| limit.targets.iter().any(holds));
        process.limits = limits.map(|limit| limit.id).collect();
    }
    stage.tell(Event::Snapshot(Arc::new(snapshot)));
}

#[test]
fn two_keys_and_a_rate_make_a_limit() {
    let mut stage = Stage::new(80, 24, &free());
    // The fastest is at the top.
    stage.press("t1M\n");
    assert!(stage.text().contains("applying"), "{}", stage.text());
    let Step::Set(request) = stage.orders[0].step.clone() else { panic!("{:?}", stage.orders) };
    assert_eq!((request.targets, request.rates.download), (vec![Target::Pid(CURL)], Rate::new(1_000_000)));
    assert!(!request.detach);
    stage.answer();
    assert!(said(&stage).contains("limited pid:4188 (curl): download 1 MB/s (8 Mbit/s)"), "{}", stage.text());
    // Before the monitor knows of it.
    let row = line(&stage, "⚡");
    assert!(row.contains("curl") && row.contains("1.00 MB"), "{row}");
    next(&mut stage, 61);
    assert!(line(&stage, "4188").contains("1.00 MB"));
}

#[test]
fn a_refusal_is_shown_where_it_was_asked() {
    let mut stage = stage();
    stage.press("t1M\n");
    stage.refuse(&Error::new(Kind::NotPermitted, "attach the programs: CAP_BPF is missing"));
    assert!(stage.text().contains("CAP_BPF is missing"), "{}", stage.text());
    // It can be mended in place, or given up.
    stage.press("x");
    assert!(stage.text().contains("unknown unit"), "{}", stage.text());
    stage.press("\x1b");
    assert!(stage.app.dialog.is_none() && stage.app.screen == Screen::Processes);
}

#[test]
fn steps_add_up_before_they_are_answered() {
    let mut stage = stage();
    stage.press("t1M\t500K\n");
    stage.answer();
    stage.press("++-");
    stage.answer();
    assert_eq!(rates(&stage), [(Some(1_089_000), Some(544_500))]);
    stage.press("uuu");
    stage.answer();
    assert_eq!(rates(&stage), [(Some(1_000_000), Some(500_000))]);
    stage.press("u");
    stage.answer();
    assert!(rates(&stage).is_empty(), "the first change was the limit itself");
    stage.press("u");
    assert!(said(&stage).contains("nothing to undo"), "{}", said(&stage));
}

#[test]
fn a_limit_does_not_fall_below_what_tcp_needs() {
    let mut stage = stage();
    stage.press("t1K\n");
    stage.answer();
    stage.press("-");
    stage.answer();
    assert_eq!(rates(&stage), [(Some(1_000), None)]);
}

#[test]
fn what_was_removed_comes_back() {
    let mut stage = stage();
    stage.press("t1M\n");
    stage.answer();
    next(&mut stage, 61);
    stage.press("r");
    stage.answer();
    assert!(rates(&stage).is_empty());
    assert!(said(&stage).contains("u brings it back"), "{}", said(&stage));
    assert!(!stage.text().contains('⚡'), "{}", stage.text());
    stage.press("u");
    stage.answer();
    assert_eq!(rates(&stage), [(Some(1_000_000), None)]);
    // The change before is undone on the limit that came back.
    stage.press("u");
    stage.answer();
    assert!(rates(&stage).is_empty(), "{}", stage.text());
}

#[test]
fn a_direction_can_be_freed() {
    let mut stage = stage();
    stage.press("t1M\t500K\n");
    stage.answer();
    next(&mut stage, 61);
    stage.press("t\tnone\n");
    assert!(matches!(stage.orders[0].step, Step::Replace { .. }), "{:?}", stage.orders);
    stage.answer();
    assert_eq!(rates(&stage), [(Some(1_000_000), None)]);
    next(&mut stage, 62);
    stage.press("u");
    stage.answer();
    assert_eq!(rates(&stage), [(Some(1_000_000), Some(500_000))]);
}

#[test]
fn suspended_and_brought_back() {
    let mut stage = stage();
    stage.press("t1M\n");
    stage.answer();
    next(&mut stage, 61);
    stage.press("p");
    stage.answer();
    next(&mut stage, 62);
    assert!(rates(&stage).is_empty());
    let row = line(&stage, "4188 curl");
    assert!(row.contains('○') && row.contains("1.00 MB"), "{row}");
    stage.press("3");
    assert!(stage.text().contains("suspended"), "{}", stage.text());
    stage.press("p");
    stage.answer();
    next(&mut stage, 63);
    assert_eq!(rates(&stage), [(Some(1_000_000), None)]);
    stage.press("1");
    assert!(line(&stage, "4188 curl").contains('⚡'));
}

#[test]
fn limits_of_others_are_changed_too() {
    let mut stage = Stage::new(80, 24, &Scene::default());
    stage.press("/transm\n-");
    let Step::Change { id, rates } = &stage.orders[0].step else { panic!("{:?}", stage.orders) };
    assert_eq!((*id, rates.download, rates.upload), (LimitId(2), Rate::new(4_500_000), Rate::new(900_000)));
    stage.orders.clear();
    // They are not ours: nobody asks about them.
    stage.press("q");
    assert!(stage.left);
}

/// The next owner gives the same ids to other limits.
#[test]
fn a_dead_owners_limits_are_not_named_to_the_next() {
    let mut stage = stage();
    stage.press("t1M\n");
    stage.answer();
    next(&mut stage, 61);
    let owner = stage.app.shown.limits[0].owner_pid;
    stage.press("+");
    assert_eq!(stage.orders[0].owner, Some(owner));
    stage.answer();
    stage.press("t");
    assert!(stage.text().contains("Change the limit on"), "{}", stage.text());
    stage.tell(Event::News(News::OwnerGone));
    assert!(stage.text().contains("Enter sets a new one"), "{}", stage.text());
    stage.press("800K\n");
    let order = &stage.orders[0];
    assert!(order.owner.is_none() && matches!(order.step, Step::Set(_)), "{order:?}");
    stage.refuse(&Error::failed("no luck"));
    stage.press("\x1bu");
    assert!(stage.orders.is_empty(), "what is to be undone is over: {:?}", stage.orders);
}

/// Whether a limit holds is not known while its owner does not answer.
#[test]
fn limits_of_a_silent_owner_are_not_said_to_hold() {
    for (width, height) in SIZES {
        let mut stage = Stage::new(width, height, &Scene::default());
        assert!(stage.text().contains('⚡'));
        stage.tell(Event::FeedSilent(Error::failed("the owner (process 7) is stopped")));
        let text = stage.text();
        assert!(!text.contains('⚡') && text.contains("Old figures, limits may not hold"), "{text}");
        stage.press("3");
        assert!(!stage.text().contains('⚡'), "{}", stage.text());
    }
}

#[test]
fn leaving_asks_about_limits_set_here() {
    let mut stage = stage();
    stage.press("t1M\n");
    stage.answer();
    stage.press("q");
    assert!(!stage.left && stage.text().contains("stay"), "{}", stage.text());
    stage.press("\x1b");
    assert!(!stage.left && !stage.app.leaving);
    stage.press("qk");
    let Step::Keep(requests) = &stage.orders[0].step else { panic!("{:?}", stage.orders) };
    assert!(requests.len() == 1 && requests[0].detach && requests[0].targets == [Target::Pid(CURL)]);
    stage.refuse(&Error::failed("no luck"));
    assert!(!stage.left && stage.text().contains("no luck"), "{}", stage.text());
    stage.press("k");
    stage.answer();
    assert!(stage.left);
    let mut stage = self::stage();
    stage.press("t1M\n");
    stage.answer();
    stage.press("qe");
    assert!(stage.left);
}

#[test]
fn esc_never_quits() {
    let mut stage = Stage::new(80, 24, &Scene::default());
    for screen in ["1", "2", "3", "4", "5", "?"] {
        stage.press(screen);
        stage.press("\x1b\x1b\x1b\x1b");
        assert!(!stage.left && stage.app.screen == Screen::Processes);
    }
    stage.press("q");
    assert!(stage.left);
}

#[test]
fn what_has_ended_takes_no_commands() {
    let mut stage = Stage::new(80, 24, &free());
    stage.press("/wget\n");
    assert!(line(&stage, "5301").contains('✗'), "{}", stage.text());
    stage.press("t");
    assert!(stage.app.dialog.is_none() && said(&stage).contains("has ended"), "{}", stage.text());
    for key in ["+", "-", "r", "p"] {
        stage.press(key);
        assert!(stage.orders.is_empty() && !said(&stage).is_empty(), "{key}");
    }
    stage.press("\x1b/name:kernel\nt");
    assert!(said(&stage).contains("no process is known"), "{}", stage.text());
}

#[test]
fn a_recording_is_only_looked_at() {
    let mut stage = stage();
    assert!(said(&stage).contains("limit"), "{}", said(&stage));
    stage.app.read_only = Some("this is a recording".into());
    assert!(!said(&stage).contains("limit"), "{}", said(&stage));
    for key in ["t", "+", "r", "p", "u"] {
        stage.press(key);
        assert!(said(&stage).contains("recording") && stage.orders.is_empty(), "{key}: {}", said(&stage));
    }
}

#[test]
fn the_dialog_offers_what_the_row_belongs_to() {
    let mut stage = stage();
    stage.press("t1M\t\t");
    let labels: Vec<_> = stage
        .app
        .dialog
        .as_ref()
        .unwrap()
        .choices
        .iter()
        .map(|choice| choice.targets[0].to_string())
        .collect();
    assert_eq!(labels, ["pid:4188", "tree:4188", "name:curl", "unit:session-4.scope", "user:alice"]);
    stage.key(KeyCode::Right);
    stage.press("\n");
    let Step::Set(request) = &stage.orders[0].step else { panic!("{:?}", stage.orders) };
    assert_eq!(request.targets, [Target::Tree(CURL)]);
    // A group is limited as one.
    let mut stage = Stage::new(80, 24, &free());
    stage.press("vv/nginx\nt1M\n");
    let Step::Set(request) = &stage.orders[0].step else { panic!("{:?}", stage.orders) };
    assert_eq!(request.targets[0].to_string(), "unit:nginx.service");
    // In a tree what is below belongs to it.
    let mut stage = Stage::new(80, 24, &free());
    stage.press("vt1M\n");
    let Step::Set(request) = &stage.orders[0].step else { panic!("{:?}", stage.orders) };
    assert_eq!(request.targets, [Target::Tree(4120)]);
}

#[test]
fn news_of_limits_are_told() {
    let mut stage = stage();
    stage.press("t1M\n");
    stage.answer();
    let last = stage.limits.pop_first().expect("a limit").1;
    stage.tell(Event::News(News::Ended(EndReason::TargetEnded, Box::new(last))));
    assert!(said(&stage).contains("its process has ended"), "{}", said(&stage));
    assert!(!stage.text().contains('⚡'), "{}", stage.text());
    let mut stage = self::stage();
    stage.press("t1M\n");
    stage.answer();
    stage.tell(Event::News(News::OwnerGone));
    assert!(said(&stage).contains("limits with it"), "{}", said(&stage));
    assert!(!stage.text().contains('⚡'), "{}", stage.text());
}

#[test]
fn a_connection_is_limited_by_its_far_end() {
    let mut stage = Stage::new(80, 24, &free());
    stage.press("/name:nginx\n\n");
    stage.press("jc");
    assert!(stage.text().contains("its traffic with 203.0.113.5:61033"), "{}", stage.text());
    assert!(stage.text().contains("The nearest to one connection"), "{}", stage.text());
    stage.press("100K\n");
    let Step::Set(request) = stage.orders[0].step.clone() else { panic!("{:?}", stage.orders) };
    let targets: Vec<_> = request.targets.iter().map(Target::to_string).collect();
    assert_eq!(targets, ["pid:1034", "remote:203.0.113.5", "port:61033"]);
    stage.answer();
    next(&mut stage, 61);
    let marked: Vec<_> = stage.app.shown.limits.iter().map(|limit| limit.id).collect();
    assert_eq!(marked, [LimitId(101)]);
    // It alone has the mark, and the process can have a limit of its own.
    let text = stage.text();
    let rows: Vec<_> = text.lines().filter(|line| line.contains('⚡') && line.contains("tcp")).collect();
    assert!(rows.len() == 1 && rows[0].contains("203.0.113.5:61033"), "{text}");
    stage.press("c");
    assert!(stage.text().contains("Change the limit on nginx (1034)"), "{}", stage.text());
    stage.press("\x1bt");
    assert!(stage.text().contains(" Limit nginx (1034)"), "{}", stage.text());
    // It is among what the row's own dialog offers, too.
    stage.press("1M\t\t");
    stage.key(KeyCode::Left);
    assert!(stage.text().contains("its traffic with 203.0.113.5:61033"), "{}", stage.text());
}

#[test]
fn a_connection_without_a_far_end_is_not_limited() {
    let mut stage = Stage::new(80, 24, &free());
    let mut snapshot = free().until(61).pop().expect("a snapshot");
    snapshot.connections.iter_mut().for_each(|connection| connection.remote = None);
    stage.tell(Event::Snapshot(Arc::new(snapshot)));
    stage.press("/name:curl\n\nc");
    assert!(stage.app.dialog.is_none() && said(&stage).contains("no far end"), "{}", stage.text());
}

#[test]
fn the_cursor_stays_on_its_connection() {
    let mut stage = Stage::new(80, 24, &free());
    stage.press("/name:nginx\n\nj");
    let mut snapshot = free().until(61).pop().expect("a snapshot");
    let fast = |connection: &&mut chadthrottle::model::Connection| {
        connection.remote.is_some_and(|remote| remote.port() == 61033)
    };
    snapshot.connections.iter_mut().find(fast).expect("the connection").rx_rate = 1_000_000_000;
    stage.tell(Event::Snapshot(Arc::new(snapshot)));
    assert_eq!(stage.app.connections.selected, 0);
    stage.press("c");
    assert!(stage.text().contains("203.0.113.5:61033"), "{}", stage.text());
}

#[test]
fn old_figures_are_said_to_be_old() {
    for (width, height) in crate::stage::SIZES {
        let mut stage = Stage::new(width, height, &free());
        stage.tell(Event::FeedSilent(Error::failed("the owner (process 7) is stopped")));
        let text = stage.text();
        assert!(text.contains("Old figures (key 5): the owner (process 7) is stopped"), "{text}");
        assert!(text.contains("curl"), "what was known is still there: {text}");
        next(&mut stage, 61);
        assert!(!stage.text().contains("Old figures"), "{}", stage.text());
    }
    let mut stage = Stage::empty(80, 24);
    stage.tell(Event::FeedSilent(Error::failed("the owner (process 7) is stopped")));
    assert!(stage.text().contains("Nothing can be watched"), "{}", stage.text());
}

#[test]
fn what_is_not_now_is_marked_in_any_size() {
    for (width, height) in SIZES {
        let mut stage = Stage::new(width, height, &free());
        for (key, screen) in [("", "processes"), ("2", "detail"), ("5", "backends")] {
            stage.press(key);
            assert!(!stage.text().contains("FROZEN"));
            stage.press(" ");
            assert!(stage.text().contains(" FROZEN"), "{screen} {width}x{height}:\n{}", stage.text());
            stage.press(" ");
        }
        stage.tell(Event::FeedOver(None));
        assert!(stage.text().contains(" end of recording"), "{width}x{height}:\n{}", stage.text());
    }
}

#[test]
fn what_a_filter_lacks_is_said_in_whole() {
    let mut stage = Stage::new(60, 15, &free());
    // What was typed before the colon hides everything.
    stage.press("/zzz foo:x");
    let text = stage.text();
    assert!(text.contains("This is no filter yet: unknown key 'foo'"), "{text}");
    assert!(!text.contains("Nothing matches"), "{text}");
}

#[test]
fn a_time_that_no_calendar_has_is_unknown() {
    let mut stage = Stage::new(80, 24, &free());
    let mut snapshot = free().until(61).pop().expect("a snapshot");
    snapshot.processes.iter_mut().for_each(|process| process.start_time = u64::MAX);
    stage.tell(Event::Snapshot(Arc::new(snapshot)));
    stage.press("g\n");
    let text = stage.text();
    assert!(text.lines().any(|line| line.contains("Started") && line.contains("unknown")), "{text}");
}

#[test]
fn frozen_pictures_stand_still() {
    let mut stage = Stage::new(80, 24, &free());
    stage.press(" ");
    let before = stage.text();
    next(&mut stage, 61);
    assert_eq!(stage.text(), before);
    stage.press(" ");
    assert_ne!(stage.text(), before);
}

fn mouse(stage: &mut Stage, kind: MouseEventKind, column: u16, row: u16) {
    let event = MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE };
    stage.tell(Event::Terminal(TerminalEvent::Mouse(event)));
}

/// Where a text stands.
fn find(stage: &Stage, text: &str) -> (u16, u16) {
    for (row, line) in stage.text().lines().enumerate() {
        if let Some(at) = line.find(text) {
            return (line[..at].chars().count() as u16, row as u16);
        }
    }
    panic!("no {text} in\n{}", stage.text());
}

#[test]
fn the_mouse_chooses() {
    const CLICK: MouseEventKind = MouseEventKind::Down(MouseButton::Left);
    let mut stage = Stage::new(80, 24, &free());
    let (column, row) = find(&stage, "PROCESS");
    mouse(&mut stage, CLICK, column, row);
    assert!(stage.text().contains("PROCESS▲"), "{}", stage.text());
    mouse(&mut stage, CLICK, column, row);
    assert!(stage.text().contains("PROCESS▼"), "{}", stage.text());
    let (column, row) = find(&stage, "restic");
    mouse(&mut stage, CLICK, column, row);
    assert_eq!(stage.app.processes.selected().unwrap().row.label, "restic");
    mouse(&mut stage, CLICK, column, row);
    assert_eq!(stage.app.screen, Screen::Detail);
    let (column, row) = find(&stage, "Limits");
    mouse(&mut stage, CLICK, column, row);
    assert_eq!(stage.app.screen, Screen::Limits);
    mouse(&mut stage, MouseEventKind::ScrollDown, 3, 3);
}

#[test]
fn any_size_at_any_time() {
    let mut stage = Stage::new(80, 24, &Scene::default());
    for keys in ["", "vjjj", "/a b", "\n\x1b\n", "3", "4", "5", "?", "1t", "\x1b1"] {
        stage.press(keys);
        for (width, height) in
            [(1, 1), (0, 0), (500, 200), (60, 15), (59, 15), (3, 80), (200, 2), (61, 16), (80, 24)]
        {
            stage.tell(Event::Terminal(TerminalEvent::Resize(width, height)));
            let terminal = stage.terminal();
            assert_eq!(terminal.backend().buffer().area.width, width);
            stage.press("j");
            stage.key(KeyCode::PageDown);
            stage.key(KeyCode::PageUp);
        }
    }
}

fn backend(name: &'static str) -> BackendReport {
    BackendReport {
        name,
        priority: Priority::Good,
        directions: &Direction::ALL,
        available: Probe::Ready,
        requirements: Vec::new(),
    }
}

#[test]
fn limits_go_to_the_backend_that_is_chosen() {
    let mut stage = stage();
    stage.press("t1M\t1M\n");
    stage.answer();
    stage.press("5d");
    assert!(said(&stage).contains("not known yet"));
    let number = stage.orders.remove(0).number;
    let unavailable = Probe::Unavailable { reason: "not here".into(), mend: None };
    let reports = vec![
        backend("ebpf"),
        BackendReport { available: unavailable, ..backend("tc_police") },
        BackendReport { directions: &[Direction::Upload], ..backend("tc_htb") },
        backend("nftables"),
    ];
    stage.tell(Event::Answer(Answer { number, result: Ok(Outcome::Backends(reports)) }));

    // The limit is where it should be.
    stage.press("d\n");
    assert!(stage.orders.is_empty() && said(&stage).contains("no limit is held by another"));
    stage.press("duuu");
    let text = stage.text();
    assert!(text.contains("download by  nftables   1 limit is held by another one"), "{text}");
    assert!(text.contains("upload by    nftables   1 limit is held by another one"), "{text}");
    stage.press("\n");
    let step = |id, direction| Step::Move { id: LimitId(id), direction, backend: "nftables".into() };
    let steps: Vec<_> = stage.orders.iter().map(|order| order.step.clone()).collect();
    assert_eq!(steps, Direction::ALL.map(|direction| step(101, direction)));

    // One can't, and stays where it is; the other can.
    let refused = stage.orders.remove(0);
    let error = Error::new(Kind::NoBackend, "nftables: the kernel says no");
    stage.tell(Event::Answer(Answer { number: refused.number, result: Err(error) }));
    stage.answer();
    assert!(said(&stage).contains("the kernel says no"), "{}", said(&stage));
    assert_eq!(stage.text().matches("held by another one").count(), 1);

    // Who comes later is asked for with them.
    stage.press("1r");
    stage.answer();
    stage.press("t2M\n");
    let Some(Step::Set(request)) = stage.orders.first().map(|order| &order.step) else { panic!("no limit") };
    assert!(request.backends.iter().all(|(_, name)| name.as_deref() == Some("nftables")));
    // After the last one, the best again.
    stage.answer();
    stage.press("5du");
    assert_eq!(stage.text().matches("the best that works").count(), 2);
}

#[test]
fn a_text_longer_than_the_screen_says_so() {
    let mut stage = Stage::new(80, 24, &free());
    stage.press("?");
    let status = |stage: &Stage| stage.text().lines().nth(1).unwrap_or_default().to_owned();
    let begin = status(&stage);
    assert!(begin.contains(" 1-20 of ") && begin.ends_with('↓'), "{begin}");
    stage.key(KeyCode::End);
    let end = status(&stage);
    assert!(end.ends_with('↑'), "{end}");
    let mut stage = Stage::new(200, 90, &free());
    stage.press("?");
    assert!(!status(&stage).contains(|letter| "↓↑↕".contains(letter)), "{}", status(&stage));
}

#[test]
fn what_is_pasted_by_mistake_is_refused() {
    let mut stage = stage();
    stage.press("t");
    stage.tell(Event::Terminal(TerminalEvent::Paste("x".repeat(500))));
    let text = stage.text();
    assert!(text.contains("500 letters were pasted") && !text.contains("xxx"), "{text}");
    stage.tell(Event::Terminal(TerminalEvent::Paste("1.5MB".into())));
    stage.press("\n");
    let Step::Set(request) = stage.orders[0].step.clone() else { panic!("{:?}", stage.orders) };
    assert_eq!(request.rates.download, Rate::new(1_500_000));
}

#[test]
fn undo_of_what_another_has_ended_is_explained() {
    let mut stage = stage();
    stage.press("t1M\n");
    stage.answer();
    stage.press("u");
    stage.refuse(&Error::new(Kind::NotFound, "no limit has the id 1"));
    assert!(said(&stage).contains("nothing to undo: the limit on"), "{}", said(&stage));
}

/// Keys never mean a row that has just taken the place of another.
#[test]
fn a_row_that_ends_leaves_its_keys_to_nobody() {
    let mut stage = Stage::new(80, 24, &Scene::default());
    stage.press("/transm\n");
    stage.press("\x1b");
    let mut snapshot = Scene::default().until(61).pop().expect("a snapshot");
    let at =
        snapshot.processes.iter().position(|process| process.name.contains("transm")).expect("it is there");
    let gone = snapshot.processes.remove(at);
    snapshot.connections.retain(|connection| connection.owner != gone.key());
    stage.tell(Event::Snapshot(Arc::new(snapshot)));
    for key in ["+", "-", "r", "p", "t"] {
        stage.press(key);
        assert!(stage.orders.is_empty() && stage.app.dialog.is_none(), "{key}: {:?}", stage.orders);
        assert!(said(&stage).contains("the selected row is gone"), "{}", said(&stage));
    }
    stage.press("gt");
    assert!(stage.app.dialog.is_some(), "{}", stage.text());
}

#[test]
fn the_selection_stays_with_its_limit() {
    let mut stage = Stage::new(80, 24, &free());
    for name in ["curl", "fire", "transm"] {
        stage.press(&format!("/{name}\nt1M\n"));
        stage.answer();
        stage.press("\x1b");
    }
    next(&mut stage, 61);
    let ids: Vec<LimitId> = stage.limits.keys().copied().collect();
    stage.press("3j");
    // The one above ends, then the selected one is suspended and comes back with another number, then it ends.
    stage.limits.remove(&ids[0]);
    next(&mut stage, 62);
    stage.press("p");
    let Step::Remove { id } = stage.orders[0].step.clone() else { panic!("{:?}", stage.orders) };
    assert_eq!(id, ids[1]);
    stage.answer();
    next(&mut stage, 63);
    stage.press("p");
    stage.answer();
    next(&mut stage, 64);
    let back = *stage.limits.keys().last().expect("it is back");
    stage.press("+");
    assert!(matches!(stage.orders[0].step, Step::Change { id, .. } if id == back), "{:?}", stage.orders);
    stage.answer();
    stage.limits.remove(&back);
    // What was just changed is believed for some snapshots.
    (65..70).for_each(|second| next(&mut stage, second));
    stage.press("r");
    assert!(stage.orders.is_empty(), "{:?}", stage.orders);
    assert!(said(&stage).contains("the selected limit is gone"), "{}", said(&stage));
    stage.press("k");
    stage.press("r");
    let Step::Remove { id } = stage.orders[0].step.clone() else { panic!("{:?}", stage.orders) };
    assert_eq!(id, ids[2]);
}

/// What is suspended can be found where it is brought back.
#[test]
fn a_filter_takes_suspended_rows_for_limited() {
    let mut stage = stage();
    stage.press("t1M\n");
    stage.answer();
    next(&mut stage, 61);
    stage.press("/\x1b/limited:yes\n");
    stage.press("p");
    stage.answer();
    next(&mut stage, 62);
    assert!(line(&stage, "curl").contains('○'), "{}", stage.text());
    stage.press("p");
    stage.answer();
    assert_eq!(rates(&stage), [(Some(1_000_000), None)]);
}
