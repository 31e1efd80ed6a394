//! What the table holds, as data, and the steps from one state to the next. Pure.
//!
//! One table for each network namespace and direction. A packet takes this way:
//!
//! ```text
//! base chain ── no lease: accept
//!   ├─ levels:    id of the socket's cgroup at each depth in use ── jump ─┐
//!   └─ sockets-N: addresses of older sockets ──────────────────── goto ──┤
//!                                                                         │
//! limit-ID: small TCP ── goto limit-ID-small   no room ── goto limit-ID-over   else: counted, passes
//! ```
//!
//! Nested limits: a leaf within a leaf is met at both depths; an address that several limits hold is in one map
//! `sockets-N` for each of them.

use std::collections::BTreeMap;

pub(super) use crate::backend::tables::{Place, add_lease, renew};
use crate::{
    backend::{
        addresses::Address,
        tables::{self, CGROUPS, Elements, LEVELS, address_key, change_elements, change_levels},
    },
    kernel::nft::{Bucket, Compare, Field, Hook, Key, Part, Step, Verdict},
    model::{Direction, LimitId},
};

/// After whatever others drop.
const PRIORITY: i32 = 90;

/// Where our packets that empty a bucket end: before all rules of others, who would drop, count or log them.
const DRAIN_PRIORITY: i32 = -1_000;

/// TCP packets of at most so many IP bytes pass while others have to wait: connecting does not wait for the limit.
const SMALL: u32 = 120;
/// And as many of them: this part of the rate.
const SMALL_SHARE: u64 = 10;
const SMALL_BURST: u32 = 4_096;

/// A bucket must hold the largest buffer that stands for many packets. A second's worth it holds in any case.
pub(super) const BURST: u32 = 65_536;

/// nf_tables counts a buffer that stands for many packets with the headers of one. Of a full TCP packet they are 3.5 %,
/// with IPv6 4.8 %; so with this part of the rate, in thousandths, TCP is at most two in a hundred over the limit, and
/// datagrams are three below it.
const SHARE: u64 = 970;

const DRAIN: &str = "drain";

/// A bucket of a limit: a new one for each rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BucketId {
    pub limit: LimitId,
    pub version: u32,
}

impl BucketId {
    fn name(self) -> String {
        format!("{}-{}", self.limit, self.version)
    }

    fn small(self) -> String {
        format!("{}-{}-small", self.limit, self.version)
    }
}

/// A bucket that is made, and full, is emptied by packets of ours with this mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drain {
    pub mark: u32,
    pub bucket: BucketId,
}

/// What a table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Rates, bytes/s.
    pub buckets: BTreeMap<BucketId, u64>,
    pub drain: Option<Drain>,
    /// Limits in force, with the version of their bucket.
    pub limits: BTreeMap<LimitId, u32>,
    pub cgroups: BTreeMap<Place, LimitId>,
    /// The limits of each address, the first one in map 0 and so on.
    pub addresses: BTreeMap<Address, Vec<LimitId>>,
    /// How many maps of addresses there are; they stay.
    pub slots: usize,
}

/// Where the refused go without their sender being told. `None`: it is told.
pub(super) type Nowhere = Option<Verdict>;

/// Names of a limit's counters.
pub(super) fn counters(id: LimitId) -> [String; 2] {
    [format!("{id}-passed"), format!("{id}-dropped")]
}

fn chains(id: LimitId) -> [String; 3] {
    [format!("limit-{id}"), format!("limit-{id}-small"), format!("limit-{id}-over")]
}

/// The steps that make the table. It holds nobody yet.
pub(super) fn begin(direction: Direction, lease_ms: u64) -> Vec<Step> {
    let (hook, name) = base(direction);
    let mut steps = vec![
        Step::AddTable,
        tables::lease(),
        tables::cgroups(),
        Step::AddChain(name.into(), Some((hook, PRIORITY))),
        Step::AddChain(LEVELS.into(), None),
        Step::AddRule(name.into(), tables::without_lease()),
        Step::AddRule(name.into(), vec![Part::Do(Verdict::Jump(LEVELS.into()))]),
    ];
    steps.push(add_lease(lease_ms));
    steps
}

fn base(direction: Direction) -> (Hook, &'static str) {
    match direction {
        Direction::Upload => (Hook::Output, "output"),
        Direction::Download => (Hook::Input, "input"),
    }
}

/// The steps from what a table holds to what it should hold.
pub(super) fn change(direction: Direction, old: &State, new: &State, nowhere: &Nowhere) -> Vec<Step> {
    let mut steps = Vec::new();
    for (id, rate) in new.buckets.iter().filter(|(id, _)| !old.buckets.contains_key(id)) {
        let rate = (u128::from(*rate) * u128::from(SHARE) / 1000) as u64;
        let rate = rate.max(1);
        steps.push(Step::AddLimit(id.name(), Bucket { rate, burst: BURST }));
        let small = Bucket { rate: (rate / SMALL_SHARE).max(1), burst: SMALL_BURST };
        steps.push(Step::AddLimit(id.small(), small));
    }
    if old.drain != new.drain {
        end_drain(old.drain, &mut steps);
        begin_drain(new.drain, &mut steps);
    }
    for slot in old.slots..new.slots {
        tables::add_slot(direction == Direction::Download, slot, &mut steps);
        let (_, base) = base(direction);
        steps.push(Step::AddRule(base.into(), vec![Part::Do(Verdict::Jump(tables::chain(slot)))]));
    }
    for (id, version) in &new.limits {
        match old.limits.get(id) {
            Some(before) if before == version => continue,
            Some(_) => steps.extend(chains(*id).map(Step::FlushChain)),
            None => {
                steps.extend(counters(*id).map(Step::AddCounter));
                steps.extend(chains(*id).map(|name| Step::AddChain(name, None)));
            }
        }
        rules(direction, BucketId { limit: *id, version: *version }, nowhere, &mut steps);
    }
    change_levels(old.cgroups.keys(), new.cgroups.keys(), &mut steps);
    change_elements(&elements(old), &elements(new), &mut steps);
    for id in old.limits.keys().filter(|id| !new.limits.contains_key(id)) {
        steps.extend(chains(*id).map(Step::FlushChain));
        steps.extend(chains(*id).map(Step::DeleteChain));
        steps.extend(counters(*id).map(Step::DeleteCounter));
    }
    for id in old.buckets.keys().filter(|id| !new.buckets.contains_key(id)) {
        steps.push(Step::DeleteLimit(id.name()));
        steps.push(Step::DeleteLimit(id.small()));
    }
    steps
}

fn begin_drain(drain: Option<Drain>, steps: &mut Vec<Step>) {
    let Some(Drain { mark, bucket }) = drain else { return };
    let marked = || Part::If(Field::Mark, Compare::Is, mark.to_ne_bytes().to_vec());
    steps.push(Step::AddChain(DRAIN.into(), Some((Hook::Output, DRAIN_PRIORITY))));
    steps.push(Step::AddRule(DRAIN.into(), vec![marked(), Part::Over(bucket.name())]));
    steps.push(Step::AddRule(DRAIN.into(), vec![marked(), Part::Do(Verdict::Drop)]));
}

fn end_drain(drain: Option<Drain>, steps: &mut Vec<Step>) {
    if drain.is_some() {
        steps.push(Step::FlushChain(DRAIN.into()));
        steps.push(Step::DeleteChain(DRAIN.into()));
    }
}

/// The rules of a limit's chains.
fn rules(direction: Direction, bucket: BucketId, nowhere: &Nowhere, steps: &mut Vec<Step>) {
    let [limit, small, over] = chains(bucket.limit);
    let [passed, dropped] = counters(bucket.limit);
    let is = |protocol: i32| Part::If(Field::Protocol, Compare::Is, vec![protocol as u8]);
    let is_small = Part::If(Field::Length, Compare::AtMost, SMALL.to_ne_bytes().to_vec());
    let mut rule = |chain: &String, parts: Vec<Part>| steps.push(Step::AddRule(chain.clone(), parts));
    rule(&limit, vec![is(libc::IPPROTO_TCP), is_small, Part::Do(Verdict::Goto(small.clone()))]);
    rule(&limit, vec![Part::Over(bucket.name()), Part::Do(Verdict::Goto(over.clone()))]);
    rule(&limit, vec![Part::Count(passed.clone())]);
    let no_room = vec![
        Part::Over(bucket.name()),
        Part::Over(bucket.small()),
        Part::Count(dropped.clone()),
        Part::Do(Verdict::Drop),
    ];
    rule(&small, no_room);
    rule(&small, vec![Part::Count(passed)]);
    rule(&over, vec![Part::Count(dropped)]);
    // TCP that is told keeps the packet and sends it later; UDP would hand the error to the program.
    if let (Direction::Upload, Some(vanish)) = (direction, nowhere) {
        rule(&over, vec![is(libc::IPPROTO_UDP), Part::Do(vanish.clone())]);
    }
    rule(&over, vec![Part::Do(Verdict::Drop)]);
}

fn elements(state: &State) -> Elements {
    let mut maps = Elements::new();
    let chain = |id: &LimitId| chains(*id)[0].clone();
    for (place, id) in &state.cgroups {
        let key = Key(place.cgroup.to_ne_bytes().to_vec());
        maps.entry(CGROUPS.into()).or_default().insert(key, Verdict::Jump(chain(id)));
    }
    for (address, ids) in &state.addresses {
        for (slot, id) in ids.iter().enumerate() {
            let (map, key) = address_key(*address, slot);
            maps.entry(map).or_default().insert(key, Verdict::Goto(chain(id)));
        }
    }
    maps
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = libc::IPPROTO_TCP as u8;

    fn one_limit() -> State {
        let id = LimitId(7);
        let flow = Address::Flow {
            protocol: TCP,
            local: "10.0.0.1:4660".parse().unwrap(),
            remote: "10.0.0.2:80".parse().unwrap(),
        };
        let six = Address::Bind { protocol: libc::IPPROTO_UDP as u8, local: "[fd99::1]:53".parse().unwrap() };
        State {
            buckets: [(BucketId { limit: id, version: 1 }, 1_000_000)].into(),
            drain: None,
            limits: [(id, 1)].into(),
            cgroups: [(Place { level: 2, cgroup: 99 }, id)].into(),
            addresses: [(flow, vec![id]), (six, vec![id])].into(),
            slots: 1,
        }
    }

    fn show(steps: &[Step]) -> String {
        steps.iter().map(|step| format!("{step}\n")).collect()
    }

    fn vanish() -> Nowhere {
        Some(Verdict::Vanish { queue: 5, xtables: false })
    }

    #[test]
    fn a_table_begins_without_limits() {
        insta::assert_snapshot!(show(&begin(Direction::Upload, 3_000)));
    }

    #[test]
    fn a_first_upload_limit() {
        let steps = change(Direction::Upload, &State::default(), &one_limit(), &vanish());
        insta::assert_snapshot!(show(&steps));
    }

    #[test]
    fn a_first_download_limit() {
        let steps = change(Direction::Download, &State::default(), &one_limit(), &None);
        insta::assert_snapshot!(show(&steps));
    }

    #[test]
    fn another_rate_swaps_the_bucket_once_it_is_empty() {
        let bucket = BucketId { limit: LimitId(7), version: 2 };
        let old = one_limit();
        let mut draining = old.clone();
        draining.buckets.insert(bucket, 500_000);
        draining.drain = Some(Drain { mark: MARK, bucket });
        let mut new = draining.clone();
        new.drain = None;
        new.buckets.retain(|id, _| *id == bucket);
        new.limits.insert(bucket.limit, bucket.version);
        let steps = [
            change(Direction::Upload, &old, &draining, &None),
            change(Direction::Upload, &draining, &new, &None),
        ];
        insta::assert_snapshot!(show(&steps.concat()));
    }

    #[test]
    fn a_second_limit_on_the_same_socket_gets_the_next_map() {
        let old = one_limit();
        let mut new = old.clone();
        let id = LimitId(8);
        new.buckets.insert(BucketId { limit: id, version: 1 }, 2_000);
        new.limits.insert(id, 1);
        new.cgroups.insert(Place { level: 3, cgroup: 100 }, id);
        for ids in new.addresses.values_mut() {
            ids.push(id);
        }
        new.slots = 2;
        insta::assert_snapshot!(show(&change(Direction::Upload, &old, &new, &None)));
    }

    #[test]
    fn the_last_limit_takes_everything_of_its_own_along() {
        let empty = State { slots: 1, ..State::default() };
        insta::assert_snapshot!(show(&change(Direction::Download, &one_limit(), &empty, &None)));
    }

    #[test]
    fn nothing_new_is_no_step() {
        assert_eq!(change(Direction::Upload, &one_limit(), &one_limit(), &None), []);
    }

    const MARK: u32 = 0x1234;
}
