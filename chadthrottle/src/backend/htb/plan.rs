//! What the tables hold that find the class of a packet, as data, and the steps from one state to the next. Pure.
//!
//! ```text
//! upload:    output ── no lease: accept
//!              ├─ levels:    the socket's cgroup ── limit-ID ┐
//!              ├─ sockets-0: addresses ──────────── limit-ID ┴─ the limit's class becomes the packet's priority
//!              └─ small TCP: the class's urgent queue
//!
//! download:  output ── no lease: accept
//!              └─ levels:    the socket's cgroup ── learn-ID: the way back goes into the map heard
//!            arrive (at each device) ── no lease, or queued already: accept
//!              ├─ heard:     the class becomes the packet's priority
//!              ├─ sockets-0: addresses ── limit-ID: the same
//!              └─ small TCP: the class's urgent queue
//!            a second table, at each device ── priority is a class: to the IFB
//! ```
//!
//! The second table is of the family netdev, which alone can send packets to another device, and which does not know
//! sockets.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    backend::{
        addresses::Address,
        tables::{self, CGROUPS, Elements, LEVELS, Place, address_key, change_elements, change_levels},
        tree::Branch,
    },
    kernel::nft::{Compare, Element, Field, Hook, Key, Part, SetKind, Step, Value, Verdict},
    model::{Direction, LimitId},
};

/// Major number of our classes; the eBPF backend's queue has another. Above all numbers of classes, which those of their
/// queues are made of: no two qdiscs of a device have the same.
pub(super) const MAJOR: u32 = 0xf4ae;

/// Priority of packets that have been through the queue, and arrive at a further device.
const QUEUED: u32 = MAJOR << 16 | 0xffff;

/// On output: after whatever others drop.
const OUTPUT: i32 = 90;
/// At devices: after others, and then the second table.
const ARRIVAL: i32 = 1_000;

/// TCP packets of at most so many IP bytes do not wait behind others.
const SMALL: u32 = 120;

/// How long a way back is known after the last packet on the way there, milliseconds. Sockets that are open are also
/// known by their addresses.
const MEMORY_MS: u64 = 10_000;

const SLOT: usize = 0;
const ARRIVE: &str = "arrive";
const CLASSES: &str = "classes";
const URGENT: &str = "urgent";

/// What the first table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub limits: BTreeSet<LimitId>,
    pub cgroups: BTreeMap<Place, LimitId>,
    pub addresses: BTreeMap<Address, LimitId>,
}

/// A limit's classes.
pub(super) fn branch(id: LimitId) -> Branch {
    Branch::new(MAJOR, id.0)
}

/// Another one of these limits that has the classes which this one would have.
pub(super) fn clash(limits: &BTreeSet<LimitId>, id: LimitId) -> Option<LimitId> {
    limits.iter().copied().find(|other| *other != id && branch(*other) == branch(id))
}

/// The chain whose rule is there as long as the limit.
pub(super) fn chain(id: LimitId) -> String {
    format!("limit-{id}")
}

fn learner(id: LimitId) -> String {
    format!("learn-{id}")
}

fn heard(family: u8) -> String {
    format!("heard{}", if family == tables::FAMILIES[0] { 4 } else { 6 })
}

fn classes() -> Step {
    Step::AddSet(CLASSES.into(), SetKind::of(vec![Field::Priority], Value::None))
}

/// The steps that make the first table. It holds nobody yet.
pub(super) fn begin(direction: Direction, lease_ms: u64) -> Vec<Step> {
    let jump = |chain: &str| vec![Part::Do(Verdict::Jump(chain.into()))];
    let rule = |chain: &str, parts| Step::AddRule(chain.into(), parts);
    let urgent = SetKind::of(vec![Field::Priority], Value::Priority);
    let mut steps = vec![
        Step::AddTable,
        tables::lease(),
        tables::cgroups(),
        Step::AddSet(URGENT.into(), urgent),
        Step::AddChain("output".into(), Some((Hook::Output, OUTPUT))),
        Step::AddChain(LEVELS.into(), None),
        rule("output", tables::without_lease()),
        rule("output", jump(LEVELS)),
    ];
    let asks = match direction {
        Direction::Upload => "output",
        Direction::Download => {
            begin_arrival(&mut steps);
            ARRIVE
        }
    };
    tables::add_slot(direction == Direction::Download, SLOT, &mut steps);
    steps.push(rule(asks, jump(&tables::chain(SLOT))));
    let small = vec![
        Part::If(Field::Protocol, Compare::Is, vec![libc::IPPROTO_TCP as u8]),
        Part::If(Field::Length, Compare::AtMost, SMALL.to_ne_bytes().to_vec()),
        Part::SetPriorityFrom { fields: vec![Field::Priority], map: URGENT.into() },
    ];
    steps.push(rule(asks, small));
    steps.push(tables::add_lease(lease_ms));
    steps
}

fn begin_arrival(steps: &mut Vec<Step>) {
    let mut rule = |parts| steps.push(Step::AddRule(ARRIVE.into(), parts));
    let queued = Part::If(Field::Priority, Compare::Is, QUEUED.to_ne_bytes().to_vec());
    let has_a_class = Part::Among { fields: vec![Field::Priority], set: CLASSES.into(), not: false };
    let mut rules = vec![
        tables::without_lease(),
        vec![queued, Part::Do(Verdict::Accept)],
        vec![has_a_class, Part::SetPriority(QUEUED), Part::Do(Verdict::Accept)],
    ];
    for family in tables::FAMILIES {
        let fields = tables::flow_key(family, true);
        rules.push(vec![
            Part::If(Field::Family, Compare::Is, vec![family]),
            Part::SetPriorityFrom { fields, map: heard(family) },
        ]);
    }
    rules.drain(..).for_each(&mut rule);
    let sets = tables::FAMILIES.map(|family| {
        let key = tables::flow_key(family, true);
        let kind = SetKind { learns: true, timeout: true, ..SetKind::of(key, Value::Priority) };
        Step::AddSet(heard(family), kind)
    });
    let made = sets.into_iter().chain([classes(), Step::AddChain(ARRIVE.into(), None)]);
    let at = steps.iter().position(|step| matches!(step, Step::AddRule(chain, _) if chain == ARRIVE));
    let at = at.unwrap_or(steps.len());
    steps.splice(at..at, made);
}

/// The steps that make the second table.
pub(super) fn begin_forwarding() -> Vec<Step> {
    vec![Step::AddTable, classes()]
}

/// The steps by which the first table sees what arrives at a device; `number` was not given to a device before.
pub(super) fn see(number: u32, device: &str) -> Vec<Step> {
    let chain = format!("device-{number}");
    let arrivals = Step::AddArrivals { chain: chain.clone(), device: device.into(), priority: ARRIVAL };
    vec![arrivals, Step::AddRule(chain, vec![Part::Do(Verdict::Jump(ARRIVE.into()))])]
}

/// The same of the second; what has a class goes to the IFB with that index.
pub(super) fn forward(number: u32, device: &str, ifb: u32) -> Vec<Step> {
    let chain = format!("device-{number}");
    let arrivals = Step::AddArrivals { chain: chain.clone(), device: device.into(), priority: ARRIVAL + 1 };
    let has_a_class = Part::Among { fields: vec![Field::Priority], set: CLASSES.into(), not: false };
    vec![arrivals, Step::AddRule(chain, vec![has_a_class, Part::Forward(ifb)])]
}

/// The steps by which a table, the first or the second, no longer sees that device.
pub(super) fn unsee(number: u32) -> Vec<Step> {
    let chain = format!("device-{number}");
    vec![Step::FlushChain(chain.clone()), Step::DeleteChain(chain)]
}

/// The keys of a limit's classes.
fn class_keys(id: LimitId) -> Vec<Key> {
    let branch = branch(id);
    [branch.bulk, branch.urgent].map(|class| Key(class.to_ne_bytes().to_vec())).to_vec()
}

/// From now on packets of the limit's classes are queued; the classes must be there.
pub(super) fn add_classes(id: LimitId) -> Step {
    let elements = class_keys(id).into_iter().map(|key| Element { key, ..Element::default() });
    Step::AddElements(CLASSES.into(), elements.collect())
}

/// They are not any more.
pub(super) fn delete_classes(id: LimitId) -> Step {
    Step::DeleteElements(CLASSES.into(), class_keys(id))
}

/// The steps from what the first table holds to what it should hold.
pub(super) fn change(direction: Direction, old: &State, new: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    for id in new.limits.difference(&old.limits) {
        begin_limit(direction, *id, &mut steps);
    }
    change_levels(old.cgroups.keys(), new.cgroups.keys(), &mut steps);
    change_elements(&elements(direction, old), &elements(direction, new), &mut steps);
    if direction == Direction::Download && !old.limits.is_subset(&new.limits) {
        // What is known is not learnt anew: another limit could not have it. The next packets tell what stays.
        steps.extend(tables::FAMILIES.map(|family| Step::FlushSet(heard(family))));
    }
    for id in old.limits.difference(&new.limits) {
        let chains = match direction {
            Direction::Upload => vec![chain(*id)],
            Direction::Download => vec![chain(*id), learner(*id)],
        };
        steps.extend(chains.iter().cloned().map(Step::FlushChain));
        steps.extend(chains.into_iter().map(Step::DeleteChain));
        steps.push(Step::DeleteElements(URGENT.into(), class_keys(*id)[..1].to_vec()));
        if direction == Direction::Download {
            steps.push(delete_classes(*id));
        }
    }
    steps
}

fn begin_limit(direction: Direction, id: LimitId, steps: &mut Vec<Step>) {
    let branch = branch(id);
    let urgent = Element {
        key: Key(branch.bulk.to_ne_bytes().to_vec()),
        priority: Some(branch.urgent),
        ..Element::default()
    };
    steps.push(Step::AddElements(URGENT.into(), vec![urgent]));
    steps.push(Step::AddChain(chain(id), None));
    steps.push(Step::AddRule(chain(id), vec![Part::SetPriority(branch.bulk)]));
    if direction == Direction::Upload {
        return;
    }
    steps.push(add_classes(id));
    steps.push(Step::AddChain(learner(id), None));
    for family in tables::FAMILIES {
        let learn = Part::Learn {
            fields: tables::flow_key(family, false),
            map: heard(family),
            priority: branch.bulk,
            timeout_ms: MEMORY_MS,
        };
        let rule = vec![Part::If(Field::Family, Compare::Is, vec![family]), learn];
        steps.push(Step::AddRule(learner(id), rule));
    }
}

fn elements(direction: Direction, state: &State) -> Elements {
    let mut maps = Elements::new();
    for (place, id) in &state.cgroups {
        let key = Key(place.cgroup.to_ne_bytes().to_vec());
        let chain = match direction {
            Direction::Upload => chain(*id),
            Direction::Download => learner(*id),
        };
        maps.entry(CGROUPS.into()).or_default().insert(key, Verdict::Jump(chain));
    }
    for (address, id) in &state.addresses {
        let (map, key) = address_key(*address, SLOT);
        maps.entry(map).or_default().insert(key, Verdict::Jump(chain(*id)));
    }
    maps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_limit() -> State {
        let id = LimitId(7);
        let flow = Address::Flow {
            protocol: libc::IPPROTO_TCP as u8,
            local: "10.0.0.1:4660".parse().unwrap(),
            remote: "10.0.0.2:80".parse().unwrap(),
        };
        let six = Address::Bind { protocol: libc::IPPROTO_UDP as u8, local: "[fd99::1]:53".parse().unwrap() };
        State {
            limits: [id].into(),
            cgroups: [(Place { level: 2, cgroup: 99 }, id)].into(),
            addresses: [(flow, id), (six, id)].into(),
        }
    }

    fn show(steps: &[Step]) -> String {
        steps.iter().map(|step| format!("{step}\n")).collect()
    }

    #[test]
    fn no_queue_has_the_number_of_the_tree() {
        for number in 0..0x1_0000 {
            let branch = branch(LimitId(number));
            assert!([branch.bulk, branch.urgent].iter().all(|class| class & 0xffff != MAJOR), "{number}");
        }
    }

    #[test]
    fn numbers_of_classes_are_given_again() {
        let far =
            (1..).map(LimitId).find(|far| *far != LimitId(7) && branch(*far) == branch(LimitId(7))).unwrap();
        let held = [LimitId(7), LimitId(8)].into();
        assert_eq!(clash(&held, far), Some(LimitId(7)));
        assert_eq!(clash(&held, LimitId(far.0 + 2)), None);
        assert_eq!(clash(&held, LimitId(7)), None, "its own");
    }

    #[test]
    fn tables_begin_without_limits() {
        insta::assert_snapshot!("begin_upload", show(&begin(Direction::Upload, 3_000)));
        insta::assert_snapshot!("begin_download", show(&begin(Direction::Download, 3_000)));
    }

    #[test]
    fn a_first_limit() {
        let steps = |direction| show(&change(direction, &State::default(), &one_limit()));
        insta::assert_snapshot!("first_upload", steps(Direction::Upload));
        insta::assert_snapshot!("first_download", steps(Direction::Download));
    }

    #[test]
    fn a_device_is_seen_and_forwarded() {
        let steps = [begin_forwarding(), see(3, "eth0"), forward(3, "eth0", 12)].concat();
        insta::assert_snapshot!("device", show(&steps));
    }

    #[test]
    fn the_last_limit_takes_everything_of_its_own_along() {
        let steps = |direction| show(&change(direction, &one_limit(), &State::default()));
        insta::assert_snapshot!("last_upload", steps(Direction::Upload));
        insta::assert_snapshot!("last_download", steps(Direction::Download));
    }

    #[test]
    fn nothing_new_is_no_step() {
        assert_eq!(change(Direction::Download, &one_limit(), &one_limit()), []);
    }
}
