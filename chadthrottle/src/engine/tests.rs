//! The engine over made-up backends, whose kernel is a thread-local table.

use std::{cell::RefCell, collections::BTreeMap, os::fd::RawFd, process::Command};

use super::*;
use crate::{
    backend::{Applied, Checked, Priority, Probe},
    model::{Counters, EscapeKind, Limit, Scope},
};

type Key = (&'static str, Direction, u64);

/// What the kernel would know, and how the backends behave.
#[derive(Default)]
struct World {
    in_force: BTreeMap<Key, u64>,
    log: Vec<String>,
    unavailable: Vec<&'static str>,
    undecided: Vec<&'static str>,
    refuse_open: Vec<(&'static str, Kind)>,
    refuse_apply: Vec<(&'static str, Direction, Kind)>,
    /// It fails once, after the limit was written.
    stumble: bool,
    refuse_remove: bool,
    refuse_check: bool,
    refuse_renew: bool,
    passed: u64,
    processes: u32,
    escapes: Vec<Escape>,
    ended: Vec<LimitId>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

fn world<T>(look: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(look)
}

struct Fake {
    name: &'static str,
    direction: Direction,
}

impl Backend for Fake {
    fn apply(&mut self, limit: &Limit) -> Result<Applied> {
        world(|world| {
            world.log.push(format!(
                "apply {} {} {}",
                self.name,
                self.direction,
                limit.rate.bytes_per_second()
            ));
            let refused = |(name, direction, _): &&(&str, Direction, Kind)| {
                *name == self.name && *direction == self.direction
            };
            if let Some((.., kind)) = world.refuse_apply.iter().find(refused) {
                return Err(Error::new(*kind, format!("{} says no", self.name)));
            }
            world.in_force.insert((self.name, self.direction, limit.id.0), limit.rate.bytes_per_second());
            if std::mem::take(&mut world.stumble) {
                return Err(Error::failed("half-way"));
            }
            Ok(Applied { processes: 1, sockets: 3 })
        })
    }

    fn narrows(&self) -> bool {
        self.name == "best"
    }

    fn remove(&mut self, id: LimitId) -> Result<()> {
        world(|world| {
            if world.refuse_remove {
                return Err(Error::failed("stuck"));
            }
            world.in_force.remove(&(self.name, self.direction, id.0));
            Ok(())
        })
    }

    fn stats(&mut self, _: LimitId) -> Result<Counters> {
        Ok(Counters { passed_bytes: world(|world| world.passed), ..Counters::default() })
    }

    fn check(&mut self, _: LimitId) -> Result<Checked> {
        world(|world| {
            if world.refuse_check {
                return Err(Error::failed("blind"));
            }
            Ok(Checked {
                processes: world.processes,
                sockets: 2,
                escapes: world.escapes.clone(),
                ..Checked::default()
            })
        })
    }

    fn renew(&mut self) -> Result<()> {
        if world(|world| world.refuse_renew) { Err(Error::failed("no map")) } else { Ok(()) }
    }

    fn ended(&mut self) -> Result<Vec<LimitId>> {
        Ok(world(|world| std::mem::take(&mut world.ended)))
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn clear(&mut self) -> Result<()> {
        world(|world| world.in_force.retain(|key, _| (key.0, key.1) != (self.name, self.direction)));
        Ok(())
    }
}

fn probe(name: &'static str) -> Probe {
    world(|world| {
        world.log.push(format!("probe {name}"));
        if world.unavailable.contains(&name) {
            Probe::Unavailable { reason: format!("no {name} here"), mend: None }
        } else if world.undecided.contains(&name) {
            Probe::Unknown { reason: "too dark".into() }
        } else {
            Probe::Ready
        }
    })
}

fn open(name: &'static str, direction: Direction) -> Result<Box<dyn Backend>> {
    world(|world| {
        world.log.push(format!("open {name} {direction}"));
        match world.refuse_open.iter().find(|(other, _)| *other == name) {
            Some((_, kind)) => Err(Error::new(*kind, format!("{name} does not open"))),
            None => Ok(Box::new(Fake { name, direction }) as Box<dyn Backend>),
        }
    })
}

static DRIVERS: &[Driver] = &[
    Driver {
        name: "best",
        priority: Priority::Best,
        directions: &Direction::ALL,
        probe: |_| probe("best"),
        requirements: |_| Vec::new(),
        open: |_, direction| open("best", direction),
    },
    Driver {
        name: "good",
        priority: Priority::Good,
        directions: &Direction::ALL,
        probe: |_| probe("good"),
        requirements: |_| Vec::new(),
        open: |_, direction| open("good", direction),
    },
    Driver {
        name: "down",
        priority: Priority::Fallback,
        directions: &[Direction::Download],
        probe: |_| probe("down"),
        requirements: |_| Vec::new(),
        open: |_, direction| open("down", direction),
    },
];

const ALICE: Asker = Asker { client: ClientId(1), pid: 11 };
const BOB: Asker = Asker { client: ClientId(2), pid: 12 };

fn engine() -> Engine {
    world(|world| *world = World { processes: 1, ..World::default() });
    Engine::new(Site::default(), DRIVERS, |_| Ok(()))
}

fn rates(upload: u64, download: u64) -> PerDirection<Option<Rate>> {
    PerDirection { upload: Rate::new(upload), download: Rate::new(download) }
}

/// Of this very process.
fn request(upload: u64, download: u64) -> LimitRequest {
    LimitRequest {
        targets: vec![Target::Pid(std::process::id())],
        scope: Scope::All,
        wait: false,
        rates: rates(upload, download),
        backends: PerDirection::default(),
        no_fallback: false,
        partial: false,
        duration: None,
        detach: false,
        site: Site::default(),
    }
}

fn in_force() -> Vec<(Key, u64)> {
    world(|world| world.in_force.iter().map(|(key, rate)| (*key, *rate)).collect())
}

fn log() -> Vec<String> {
    world(|world| std::mem::take(&mut world.log))
}

fn ended(events: &[Event]) -> Vec<(Option<ClientId>, EndReason)> {
    let reason = |event: &Event| match &event.what {
        What::Ended { reason, .. } => Some((event.client, *reason)),
        What::Escaped(_) => None,
    };
    events.iter().filter_map(reason).collect()
}

fn escaped_kinds(events: &[Event]) -> Vec<EscapeKind> {
    let kind = |event: &Event| match &event.what {
        What::Escaped(escape) => Some(escape.kind),
        What::Ended { .. } => None,
    };
    events.iter().filter_map(kind).collect()
}

const UP: Direction = Direction::Upload;
const DOWN: Direction = Direction::Download;

#[test]
fn both_directions_come_into_force_and_end_with_their_client() {
    let mut engine = engine();
    let (report, notices) = engine.set(&request(1_000, 2_000), ALICE).unwrap();
    assert!(notices.is_empty());
    assert_eq!(in_force(), [(("best", UP, 1), 1_000), (("best", DOWN, 1), 2_000)]);
    assert_eq!((report.processes, report.sockets, report.client_pid), (1, 3, 11));
    assert_eq!(report.name, crate::kernel::process::comm(std::process::id()).unwrap());
    // A second limit of the same process is another one.
    engine.set(&request(5_000, 0), BOB).unwrap();
    assert_eq!(engine.status(Instant::now()).limits.len(), 2);
    assert_eq!(log().iter().filter(|line| line.starts_with("probe")).count(), 1, "probed once");
    assert_eq!(engine.client_gone(ALICE.client), 1);
    assert_eq!(in_force(), [(("best", UP, 2), 5_000)]);
    assert_eq!(engine.client_gone(ALICE.client), 0);
    drop(engine);
    assert!(in_force().is_empty());
}

#[test]
fn what_can_not_be_right_is_refused_before_any_backend_is_touched() {
    let mut engine = engine();
    let me = std::process::id();
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let base = request(1_000, 0);
    let cases = [
        (LimitRequest { targets: vec![], ..base.clone() }, Kind::Usage),
        (
            LimitRequest { targets: vec![Target::Pid(me), Target::Tree(child.id())], ..base.clone() },
            Kind::NotFound,
        ),
        (LimitRequest { rates: PerDirection::default(), ..base.clone() }, Kind::Usage),
        (LimitRequest { duration: Some(0.0), ..base.clone() }, Kind::Usage),
        (LimitRequest { duration: Some(f64::NAN), ..base.clone() }, Kind::Usage),
        (LimitRequest { duration: Some(f64::INFINITY), ..base.clone() }, Kind::Usage),
    ];
    for (request, kind) in cases {
        let error = engine.set(&request, ALICE).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
    let mut unknown = base;
    unknown.backends.upload = Some("down".into());
    let error = engine.set(&unknown, ALICE).unwrap_err();
    assert_eq!((error.kind, log().len()), (Kind::Usage, 0));
    assert_eq!(error.message, "unknown upload backend 'down': there are best, good");
    assert!(engine.is_empty() && engine.next_due().is_none());
}

#[test]
fn an_idle_owner_moves_to_another_site_a_busy_one_refuses() {
    let mut engine = engine();
    let elsewhere =
        |path: &str| LimitRequest { site: Site { cgroup_root: Some(path.into()) }, ..request(1_000, 0) };
    engine.set(&elsewhere("/x/y"), ALICE).unwrap();
    let error = engine.set(&request(1_000, 0), ALICE).unwrap_err();
    assert_eq!(error.kind, Kind::Failed);
    assert!(error.message.contains("works at cgroup root /x/y, not at the root of"), "{error}");
    engine.client_gone(ALICE.client);
    engine.set(&request(1_000, 0), ALICE).unwrap();
    assert_eq!(in_force().len(), 1);
}

#[test]
fn the_next_backend_takes_over_with_a_notice() {
    let mut engine = engine();
    world(|world| world.refuse_apply.push(("best", DOWN, Kind::Failed)));
    let (report, notices) = engine.set(&request(1_000, 2_000), ALICE).unwrap();
    assert_eq!(in_force(), [(("best", UP, 1), 1_000), (("good", DOWN, 1), 2_000)]);
    assert_eq!(notices, ["download: best failed (best says no); good holds it instead"]);
    assert_eq!(report.directions.download.unwrap().backend, "good");
    let refused = LimitRequest { no_fallback: true, ..request(1_000, 2_000) };
    let error = engine.set(&refused, ALICE).unwrap_err();
    assert_eq!(error.kind, Kind::NoBackend);
    assert_eq!(in_force().len(), 2, "nothing of the second is left");
}

#[test]
fn a_target_that_is_refused_is_not_tried_elsewhere() {
    for kind in [Kind::NotFound, Kind::Usage] {
        let mut engine = engine();
        world(|world| world.refuse_apply.push(("best", DOWN, kind)));
        let error = engine.set(&request(1_000, 2_000), ALICE).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (kind, "best says no"));
        assert!(in_force().is_empty() && engine.is_empty());
        assert!(!log().iter().any(|line| line.contains("good")));
    }
}

#[test]
fn a_named_backend_or_none() {
    let mut engine = engine();
    let mut named = request(1_000, 0);
    named.backends.upload = Some("good".into());
    engine.set(&named, ALICE).unwrap();
    assert_eq!(log(), ["open good upload", "apply good upload 1000"]);
    for (given, told) in [(Kind::Failed, Kind::NoBackend), (Kind::NotPermitted, Kind::NotPermitted)] {
        world(|world| world.refuse_open = vec![("best", given)]);
        named.backends.upload = Some("best".into());
        let error = engine.set(&named, ALICE).unwrap_err();
        assert_eq!(error.kind, told);
        assert_eq!(error.to_string(), "upload backend best is unavailable: best does not open");
    }
}

#[test]
fn nobody_can_do_it() {
    let mut engine = engine();
    world(|world| {
        world.unavailable = vec!["best", "down"];
        world.undecided = vec!["good"];
        world.refuse_open = vec![("good", Kind::Failed)];
    });
    let error = engine.set(&request(0, 1_000), ALICE).unwrap_err();
    assert_eq!(error.kind, Kind::NoBackend);
    let expected = "no backend can limit download: best: no best here; good: good does not open; \
                    down: no down here";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn half_a_limit_only_if_the_user_accepts_it() {
    let mut engine = engine();
    world(|world| world.unavailable = vec!["best", "good"]);
    let error = engine.set(&request(1_000, 2_000), ALICE).unwrap_err();
    assert_eq!(error.kind, Kind::NoBackend);
    let text = error.to_string();
    assert!(
        text.contains("can limit upload") && text.contains("download alone") && text.contains("--partial"),
        "{text}"
    );
    assert!(in_force().is_empty());
    let (report, notices) =
        engine.set(&LimitRequest { partial: true, ..request(1_000, 2_000) }, ALICE).unwrap();
    assert_eq!(notices.len(), 3, "{notices:?}");
    assert_eq!(notices[0], "best is unavailable (no best here); down limits instead");
    assert!(notices[2].starts_with("only download is limited"), "{notices:?}");
    assert!(report.directions.upload.is_none() && report.directions.download.is_some());
    // Both halves impossible: --partial does not help, and both reasons are told.
    world(|world| world.refuse_apply.push(("down", DOWN, Kind::Failed)));
    let error = engine.set(&LimitRequest { partial: true, ..request(1_000, 2_000) }, ALICE).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("can limit upload") && text.contains("can limit download"), "{text}");
}

#[test]
fn a_change_is_in_place_and_all_or_nothing() {
    let mut engine = engine();
    let (report, _) = engine.set(&request(1_000, 2_000), ALICE).unwrap();
    log();
    engine.change(report.id, &rates(3_000, 0)).unwrap();
    assert_eq!(log(), ["apply best upload 3000"]);
    assert_eq!(in_force(), [(("best", UP, 1), 3_000), (("best", DOWN, 1), 2_000)]);
    world(|world| world.refuse_apply.push(("best", DOWN, Kind::Failed)));
    engine.change(report.id, &rates(9_000, 9_000)).unwrap_err();
    assert_eq!(in_force(), [(("best", UP, 1), 3_000), (("best", DOWN, 1), 2_000)]);
    assert_eq!(
        engine.status(Instant::now()).limits[0].directions.upload.as_ref().unwrap().rate,
        Rate::new(3_000).unwrap()
    );
    assert_eq!(engine.change(LimitId(99), &rates(3_000, 0)).unwrap_err().kind, Kind::NotFound);
    assert_eq!(engine.change(report.id, &rates(0, 0)).unwrap_err().kind, Kind::Usage);
    assert_eq!(engine.clear(&[], Instant::now()).len(), 1, "still in the books");
}

#[test]
fn a_change_that_fails_half_way_is_taken_back() {
    let mut engine = engine();
    let (report, _) = engine.set(&request(1_000, 0), ALICE).unwrap();
    world(|world| world.stumble = true);
    engine.change(report.id, &rates(3_000, 0)).unwrap_err();
    assert_eq!(in_force(), [(("best", UP, 1), 1_000)]);
}

#[test]
fn a_limit_is_held_by_the_new_backend_before_the_old_one_lets_go() {
    let mut engine = engine();
    let (report, _) = engine.set(&request(1_000, 2_000), ALICE).unwrap();
    // While the old one can't let go both hold it, which is no gap; it is tried again.
    world(|world| world.refuse_remove = true);
    let (moved, _) = engine.hand_over(report.id, DOWN, "down").unwrap();
    assert_eq!(moved.directions.download.unwrap().backend, "down");
    assert_eq!(moved.directions.upload.unwrap().backend, "best");
    assert_eq!(
        in_force(),
        [(("best", UP, 1), 1_000), (("best", DOWN, 1), 2_000), (("down", DOWN, 1), 2_000)]
    );
    world(|world| world.refuse_remove = false);
    engine.renew();
    assert_eq!(in_force(), [(("best", UP, 1), 1_000), (("down", DOWN, 1), 2_000)]);

    world(|world| world.refuse_apply.push(("best", DOWN, Kind::Failed)));
    let error = engine.hand_over(report.id, DOWN, "best").unwrap_err();
    assert_eq!(error.kind, Kind::NoBackend);
    assert_eq!(in_force(), [(("best", UP, 1), 1_000), (("down", DOWN, 1), 2_000)], "the old one stays");
    assert_eq!(engine.hand_over(report.id, UP, "down").unwrap_err().kind, Kind::Usage);
    assert_eq!(engine.hand_over(LimitId(99), UP, "best").unwrap_err().kind, Kind::NotFound);
    let (single, _) = engine.set(&request(1_000, 0), ALICE).unwrap();
    assert_eq!(engine.hand_over(single.id, DOWN, "best").unwrap_err().kind, Kind::NotFound);
}

#[test]
fn who_can_not_narrow_a_limit_does_not_get_it() {
    let mut engine = engine();
    let port: Target = "port:443".parse().unwrap();
    let narrow = [
        LimitRequest { scope: Scope::Local, ..request(1_000, 0) },
        LimitRequest { targets: vec![port], ..request(1_000, 0) },
    ];
    for request in &narrow {
        let id = engine.set(request, ALICE).unwrap().0.id;
        assert!(in_force().contains(&(("best", UP, id.0), 1_000)), "{:?}", in_force());
        let mut insisted = request.clone();
        insisted.backends.upload = Some("good".into());
        let error = engine.set(&insisted, ALICE).unwrap_err();
        assert!(
            error.kind == Kind::NoBackend && error.to_string().contains("remote addresses or ports"),
            "{error}"
        );
        assert_eq!(engine.hand_over(id, UP, "good").unwrap_err().kind, Kind::NoBackend);
    }
    let ports = (1..=17).map(|port| format!("port:{port}").parse().unwrap()).collect();
    let error = engine.set(&LimitRequest { targets: ports, ..request(1_000, 0) }, ALICE).unwrap_err();
    assert!(error.kind == Kind::Usage && error.message.contains("16"), "{error}");
    assert_eq!(in_force().len(), 2);
}

#[test]
fn limits_of_other_scopes_are_no_twins() {
    let mut engine = engine();
    for scope in [Scope::Local, Scope::Internet, Scope::Local] {
        engine.set(&LimitRequest { detach: true, scope, ..request(1_000, 0) }, ALICE).unwrap();
    }
    let limits = engine.status(Instant::now()).limits;
    assert_eq!(limits.iter().map(|limit| limit.scope).collect::<Vec<_>>(), [Scope::Local, Scope::Internet]);
    assert!(limits[1].subject().ends_with(" --scope internet"), "{}", limits[1].subject());
}

#[test]
fn a_detached_limit_stays_and_is_changed_by_its_twin() {
    let mut engine = engine();
    let detached = |upload, download| LimitRequest { detach: true, ..request(upload, download) };
    let (first, _) = engine.set(&detached(1_000, 0), ALICE).unwrap();
    assert_eq!(engine.client_gone(ALICE.client), 0);
    let mut twin = LimitRequest { duration: Some(60.0), ..detached(0, 2_000) };
    twin.backends.download = Some("good".into());
    let (second, _) = engine.set(&twin, BOB).unwrap();
    assert_eq!((second.id, second.client_pid), (first.id, BOB.pid));
    assert!(second.remaining.is_some());
    assert_eq!(in_force(), [(("good", DOWN, 1), 2_000)]);
    // To another backend: the old one lets go once the new one holds.
    let (third, _) = engine.set(&detached(0, 3_000), BOB).unwrap();
    assert_eq!((third.id, third.remaining), (first.id, None));
    twin.backends.download = Some("best".into());
    engine.set(&twin, BOB).unwrap();
    assert_eq!(in_force(), [(("best", DOWN, 1), 2_000)]);
    // A failure leaves it as it was.
    world(|world| world.refuse_apply.push(("good", DOWN, Kind::Failed)));
    twin.backends.download = Some("good".into());
    engine.set(&twin, BOB).unwrap_err();
    assert_eq!(in_force(), [(("best", DOWN, 1), 2_000)]);
    // Not the same targets, or not detached: another limit.
    let tree = LimitRequest { targets: vec![Target::Tree(std::process::id())], ..detached(1_000, 0) };
    engine.set(&tree, BOB).unwrap();
    engine.set(&request(1_000, 0), BOB).unwrap();
    assert_eq!(engine.status(Instant::now()).limits.len(), 3);
}

#[test]
fn one_limit_is_ended_by_its_id() {
    let mut engine = engine();
    let (first, _) = engine.set(&request(1_000, 0), ALICE).unwrap();
    let (second, _) = engine.set(&request(2_000, 0), ALICE).unwrap();
    let events = engine.remove(first.id, Instant::now()).unwrap();
    assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), [first.id]);
    assert_eq!(in_force(), [(("best", UP, 2), 2_000)]);
    assert_eq!(engine.remove(first.id, Instant::now()).unwrap_err().kind, Kind::NotFound);
    assert_eq!(engine.remove(second.id, Instant::now()).unwrap().len(), 1);
}

#[test]
fn clear_takes_those_whose_targets_are_all_named() {
    let mut engine = engine();
    let me = std::process::id();
    let targets = vec![Target::Pid(me), Target::Tree(me)];
    engine.set(&LimitRequest { targets: targets.clone(), ..request(1_000, 0) }, ALICE).unwrap();
    engine.set(&request(2_000, 0), BOB).unwrap();
    let now = Instant::now();
    assert!(engine.clear(&[Target::Tree(me)], now).is_empty());
    let events = engine.clear(&[Target::Pid(me)], now);
    assert_eq!(ended(&events), [(Some(BOB.client), EndReason::Cleared)]);
    assert_eq!(ended(&engine.clear(&targets, now)), [(Some(ALICE.client), EndReason::Cleared)]);
    assert!(in_force().is_empty() && engine.is_empty() && engine.next_due().is_none());
}

#[test]
fn durations_and_ends() {
    let mut engine = engine();
    engine.set(&LimitRequest { duration: Some(0.4), ..request(1_000, 0) }, ALICE).unwrap();
    let (other, _) = engine.set(&request(2_000, 3_000), BOB).unwrap();
    let due = engine.next_due().unwrap();
    assert!(engine.tick(due - Duration::from_millis(1)).is_empty());
    assert_eq!(ended(&engine.tick(due)), [(Some(ALICE.client), EndReason::Duration)]);
    // Both directions' backends may report it; it ends once.
    world(|world| world.ended = vec![other.id, other.id, LimitId(77)]);
    assert_eq!(ended(&engine.collect_ended(due)), [(Some(BOB.client), EndReason::TargetEnded)]);
    assert!(in_force().is_empty());
    // The check notices, too.
    engine.set(&request(2_000, 0), BOB).unwrap();
    world(|world| world.processes = 0);
    let due = engine.next_due().unwrap();
    assert_eq!(ended(&engine.tick(due)), [(Some(BOB.client), EndReason::TargetEnded)]);
    engine.set(&request(2_000, 0), ALICE).unwrap();
    assert_eq!(ended(&engine.stop(due)), [(Some(ALICE.client), EndReason::OwnerStopped)]);
}

#[test]
fn each_kind_of_escape_is_told_once() {
    let mut engine = engine();
    engine.set(&request(1_000_000, 1_000_000), ALICE).unwrap();
    let untagged = Escape { kind: EscapeKind::UntaggedSocket, message: "socket 5".into() };
    world(|world| world.escapes = vec![untagged]);
    let tick = |engine: &mut Engine, passed| {
        world(|world| world.passed += passed);
        engine.tick(engine.next_due().unwrap())
    };
    assert_eq!(escaped_kinds(&tick(&mut engine, 1_000_000)), [EscapeKind::UntaggedSocket]);
    assert!(tick(&mut engine, 1_000_000).is_empty());
    let report = engine.status(Instant::now()).limits.remove(0);
    assert_eq!((report.escapes.len(), report.sockets), (1, 2));
    let measured = report.directions.upload.unwrap().measured.unwrap();
    assert!((950_000..1_050_000).contains(&measured), "{measured}");
    tick(&mut engine, 1_000_000);
    assert_eq!(escaped_kinds(&tick(&mut engine, 9_000_000)), [EscapeKind::AboveLimit]);
    assert!(tick(&mut engine, 9_000_000).is_empty());
    world(|world| world.refuse_check = true);
    assert!(tick(&mut engine, 0).is_empty() && tick(&mut engine, 0).is_empty());
    assert_eq!(escaped_kinds(&tick(&mut engine, 0)), [EscapeKind::Unchecked]);
    assert!(tick(&mut engine, 0).is_empty());
    world(|world| world.refuse_renew = true);
    assert_eq!(escaped_kinds(&engine.renew()), [EscapeKind::DeadLink]);
    assert!(engine.renew().is_empty());
}

#[test]
fn what_can_not_be_removed_is_tried_again() {
    let mut engine = engine();
    engine.set(&request(1_000, 0), ALICE).unwrap();
    world(|world| world.refuse_remove = true);
    engine.client_gone(ALICE.client);
    engine.renew();
    assert_eq!(in_force().len(), 1);
    world(|world| world.refuse_remove = false);
    engine.renew();
    assert!(in_force().is_empty());
}

#[test]
fn many_limits_share_the_time() {
    let mut engine = engine();
    for _ in 0..500 {
        engine.set(&request(1_000, 0), ALICE).unwrap();
    }
    let now = Instant::now() + CHECK_PERIOD;
    let mut rounds = 0;
    while engine.next_due().is_some_and(|due| due <= now) {
        let begun = Instant::now();
        engine.tick(now);
        assert!(begun.elapsed() < Duration::from_secs(1));
        rounds += 1;
    }
    assert!(rounds >= 1);
    let every = engine
        .status(now)
        .limits
        .iter()
        .all(|limit| limit.directions.upload.as_ref().unwrap().measured.is_some());
    assert!(every);
}
