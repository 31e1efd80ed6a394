//! Pictures of every screen. After a wanted change: `INSTA_UPDATE=always cargo test --test tui`.

use chadthrottle::{
    Error, Kind,
    backend::{Priority, Probe, Requirement},
    model::{Direction, Notice, Source},
    output::backends::BackendReport,
    tui::{
        event::Event,
        order::{Answer, Outcome},
    },
};

use crate::{
    scene::Scene,
    stage::{SIZES, Stage},
};

/// A picture at each size.
fn pictures(name: &str, scene: &Scene, act: impl Fn(&mut Stage)) {
    for (width, height) in SIZES {
        let mut stage = Stage::new(width, height, scene);
        act(&mut stage);
        picture(&format!("{name}_{width}x{height}"), &stage);
    }
}

fn picture(name: &str, stage: &Stage) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name.to_owned(), stage.text()));
}

fn of_default(name: &str, keys: &str) {
    pictures(name, &Scene::default(), |stage| stage.press(keys));
}

#[test]
fn processes() {
    of_default("processes", "");
}

#[test]
fn trees() {
    of_default("trees", "vjjj");
}

#[test]
fn units() {
    of_default("units", "vvl");
}

#[test]
fn filter() {
    of_default("filter", "/user:alice rate:>1M");
}

#[test]
fn bad_filter() {
    of_default("bad_filter", "/port:x");
}

#[test]
fn detail() {
    // The download that is limited.
    of_default("detail", "/curl\n\n");
}

#[test]
fn limits() {
    of_default("limits", "3j");
}

#[test]
fn interfaces() {
    of_default("interfaces", "4");
}

#[test]
fn help() {
    of_default("help", "?");
}

#[test]
fn limit_dialog() {
    of_default("limit_dialog", "/transm\n\x1bjt1.5M\t300kbit");
}

#[test]
fn limit_dialog_of_a_connection() {
    of_default("limit_dialog_of_a_connection", "/name:nginx\n\njc");
}

#[test]
fn old_figures() {
    pictures("old_figures", &Scene::default(), |stage| {
        let text = "the owner (process 4243) is stopped, and nothing is limited meanwhile: 'kill -CONT 4243' lets it go on";
        stage.tell(Event::FeedSilent(Error::failed(text)));
    });
}

#[test]
fn limit_dialog_refuses() {
    of_default("limit_dialog_refuses", "t5Mb\n");
}

#[test]
fn degraded() {
    let mut scene = Scene { source: Source::SockDiag, ..Scene::default() };
    scene.notices.push(Notice {
        what: "UDP, and connections that ended".into(),
        why: "eBPF needs CAP_BPF and CAP_NET_ADMIN".into(),
        mend: Some("sudo chadthrottle".into()),
    });
    scene.limits[1].escape = Some("its sockets moved 7.80 MB/s more than passed the hook");
    pictures("degraded", &scene, |_| {});
}

#[test]
fn backends() {
    let requirement =
        |name: &str, found: &str, state| Requirement { name: name.into(), found: found.into(), state };
    let missing = Probe::Unavailable {
        reason: "the kernel has no act_police".into(),
        mend: Some("a kernel with CONFIG_NET_ACT_POLICE".into()),
    };
    pictures("backends", &Scene::default(), |stage| {
        stage.press("5");
        let number = stage.orders.remove(0).number;
        let reports = vec![
            BackendReport {
                name: "ebpf",
                priority: Priority::Best,
                directions: &Direction::ALL,
                available: Probe::Ready,
                requirements: vec![
                    requirement("kernel", "6.18.5", Probe::Ready),
                    requirement("CAP_BPF", "", Probe::Ready),
                    requirement("cgroup2 mount", "/sys/fs/cgroup", Probe::Ready),
                ],
            },
            BackendReport {
                name: "tc_police",
                priority: Priority::Fallback,
                directions: &[Direction::Download],
                available: missing.clone(),
                requirements: vec![requirement("act_police", "", missing.clone())],
            },
        ];
        stage.tell(Event::Answer(Answer { number, result: Ok(Outcome::Backends(reports)) }));
    });
}

#[test]
fn quit_question() {
    let scene = Scene { limits: Vec::new(), ..Scene::default() };
    pictures("quit_question", &scene, |stage| {
        stage.press("/curl\n\x1bt2M\n");
        stage.answer();
        stage.press("q");
    });
}

/// Before the first look there is nothing to show; after it, what was seen stays.
#[test]
fn nothing_can_be_watched() {
    let error =
        || Error::new(Kind::NotPermitted, "open the kernel's list of sockets: Operation not permitted");
    for (width, height) in SIZES {
        let mut stage = Stage::empty(width, height);
        stage.tell(Event::FeedOver(Some(error())));
        picture(&format!("nothing_can_be_watched_{width}x{height}"), &stage);
    }
    pictures("no_more_can_be_watched", &Scene::default(), |stage| {
        stage.tell(Event::FeedOver(Some(error())));
    });
}

#[test]
fn before_the_first_look() {
    let stage = Stage::empty(60, 15);
    assert!(stage.text().contains("Waiting for the first look"), "{}", stage.text());
}

#[test]
fn ascii_and_mono() {
    for (width, height) in SIZES {
        for keys in ["", "vv", "3", "4", "\n", "?", "t", "/x"] {
            let mut stage = Stage::new(width, height, &Scene::default());
            stage.app.ascii = true;
            stage.app.theme = chadthrottle::tui::theme::ThemeName::Mono;
            stage.press(keys);
            assert!(stage.text().is_ascii(), "{}", stage.text());
            let terminal = stage.terminal();
            let colours = terminal.backend().buffer().content.iter().filter(|cell| {
                cell.fg != ratatui::style::Color::Reset || cell.bg != ratatui::style::Color::Reset
            });
            assert_eq!(colours.count(), 0, "{keys:?} at {width}x{height}");
        }
    }
    let mut stage = Stage::new(60, 15, &Scene::default());
    stage.app.ascii = true;
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!("ascii_60x15", stage.text());
    });
}
