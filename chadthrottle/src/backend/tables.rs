//! What tables of nf_tables have in common that know packets by the cgroup or the address of their socket. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    backend::addresses::Address,
    kernel::nft::{Compare, Element, Field, Key, Part, SetKind, Step, Value, Verdict},
};

/// NFPROTO_* of IPv4 and IPv6.
pub(super) const FAMILIES: [u8; 2] = [2, 10];
/// A set whose elements vanish unless they are renewed.
const LEASE: &str = "lease";
/// The chain that asks which cgroup a packet's socket was made in.
pub(super) const LEVELS: &str = "levels";
/// The map that answers.
pub(super) const CGROUPS: &str = "cgroups";

/// Elements of maps, by the maps' names.
pub(super) type Elements = BTreeMap<String, BTreeMap<Key, Verdict>>;

/// A cgroup, at its depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub level: u32,
    pub cgroup: u64,
}

/// Makes the set of the lease.
pub(super) fn lease() -> Step {
    let kind = SetKind { timeout: true, ..SetKind::of(vec![Field::Family], Value::None) };
    Step::AddSet(LEASE.into(), kind)
}

/// Makes the map of cgroups.
pub(super) fn cgroups() -> Step {
    Step::AddSet(CGROUPS.into(), SetKind::of(vec![Field::Cgroup { level: 0 }], Value::Verdict))
}

/// A rule: without a lease the packet passes.
pub(super) fn without_lease() -> Vec<Part> {
    let absent = Part::Among { fields: vec![Field::Family], set: LEASE.into(), not: true };
    vec![absent, Part::Do(Verdict::Accept)]
}

/// Extends the lease; when it is already over, the first step fails.
pub(super) fn renew(lease_ms: u64) -> Vec<Step> {
    let keys = FAMILIES.map(|family| Key(vec![family])).to_vec();
    vec![Step::DeleteElements(LEASE.into(), keys), add_lease(lease_ms)]
}

/// Begins it anew.
pub(super) fn add_lease(lease_ms: u64) -> Step {
    let element =
        |family| Element { key: Key(vec![family]), timeout_ms: Some(lease_ms), ..Element::default() };
    Step::AddElements(LEASE.into(), FAMILIES.map(element).to_vec())
}

/// The key of a connection's packets: the own end, the other end. `near`: the destination is the own end.
pub(super) fn flow_key(family: u8, near: bool) -> Vec<Field> {
    let port = |destination| Field::Port { destination };
    let ip = |destination| match family {
        2 => Field::Ipv4 { destination },
        _ => Field::Ipv6 { destination },
    };
    vec![Field::Protocol, ip(near), port(near), ip(!near), port(!near)]
}

/// A slot's chain.
pub(super) fn chain(slot: usize) -> String {
    format!("sockets-{slot}")
}

/// The maps of a slot: connections and bound sockets of each family, ports.
fn maps(slot: usize) -> [String; 5] {
    ["flows4", "flows6", "binds4", "binds6", "ports"].map(|name| format!("{name}-{slot}"))
}

/// A slot's maps, and the chain that asks them. `near`: the packets' destination is the own end, otherwise the source.
pub(super) fn add_slot(near: bool, slot: usize, steps: &mut Vec<Step>) {
    let chain = chain(slot);
    let port = |destination| Field::Port { destination };
    let flow = |family| flow_key(FAMILIES[family], near);
    let bind = |family| flow(family)[..3].to_vec();
    let [flows4, flows6, binds4, binds6, ports] = maps(slot);
    let kinds = [
        (flows4, flow(0), Some(FAMILIES[0])),
        (binds4, bind(0), Some(FAMILIES[0])),
        (flows6, flow(1), Some(FAMILIES[1])),
        (binds6, bind(1), Some(FAMILIES[1])),
        (ports, vec![Field::Protocol, port(near)], None),
    ];
    steps.push(Step::AddChain(chain.clone(), None));
    for (map, fields, family) in kinds {
        steps.push(Step::AddSet(map.clone(), SetKind::of(fields.clone(), Value::Verdict)));
        let family = family.map(|family| Part::If(Field::Family, Compare::Is, vec![family]));
        let rule = family.into_iter().chain([Part::Dispatch { fields, map }]).collect();
        steps.push(Step::AddRule(chain.clone(), rule));
    }
}

/// The rules of chain [`LEVELS`], when other depths are in use.
pub(super) fn change_levels<'a>(
    old: impl Iterator<Item = &'a Place>,
    new: impl Iterator<Item = &'a Place>,
    steps: &mut Vec<Step>,
) {
    let old: BTreeSet<u32> = old.map(|place| place.level).collect();
    let new: BTreeSet<u32> = new.map(|place| place.level).collect();
    if old != new {
        steps.push(Step::FlushChain(LEVELS.into()));
        for level in new {
            let dispatch = Part::Dispatch { fields: vec![Field::Cgroup { level }], map: CGROUPS.into() };
            steps.push(Step::AddRule(LEVELS.into(), vec![dispatch]));
        }
    }
}

/// Elements by map: what leaves first, so that what changes can come again.
pub(super) fn change_elements(old: &Elements, new: &Elements, steps: &mut Vec<Step>) {
    for (map, before) in old {
        let after = new.get(map);
        let gone: Vec<_> = before
            .iter()
            .filter(|(key, verdict)| after.is_none_or(|after| after.get(*key) != Some(*verdict)))
            .map(|(key, _)| key.clone())
            .collect();
        if !gone.is_empty() {
            steps.push(Step::DeleteElements(map.clone(), gone));
        }
    }
    for (map, after) in new {
        let before = old.get(map);
        let come: Vec<_> = after
            .iter()
            .filter(|(key, verdict)| before.is_none_or(|before| before.get(*key) != Some(*verdict)))
            .map(|(key, verdict)| Element {
                key: key.clone(),
                verdict: Some(verdict.clone()),
                ..Element::default()
            })
            .collect();
        if !come.is_empty() {
            steps.push(Step::AddElements(map.clone(), come));
        }
    }
}

/// The map that an address goes to, and its key there.
pub(super) fn address_key(address: Address, slot: usize) -> (String, Key) {
    let [flows4, flows6, binds4, binds6, ports] = maps(slot);
    let end = |key: Key, end: std::net::SocketAddr| {
        let key = match end.ip() {
            std::net::IpAddr::V4(ip) => key.and(&ip.octets()),
            std::net::IpAddr::V6(ip) => key.and(&ip.octets()),
        };
        key.and(&end.port().to_be_bytes())
    };
    let start = |protocol: u8| Key::default().and(&[protocol]);
    match address {
        Address::Flow { protocol, local, remote } => {
            let map = if local.is_ipv4() { flows4 } else { flows6 };
            (map, end(end(start(protocol), local), remote))
        }
        Address::Bind { protocol, local } => {
            let map = if local.is_ipv4() { binds4 } else { binds6 };
            (map, end(start(protocol), local))
        }
        Address::Port { protocol, port } => (ports, start(protocol).and(&port.to_be_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = libc::IPPROTO_TCP as u8;

    #[test]
    fn keys_are_as_long_as_their_maps_want() {
        let long = |address| address_key(address, 0);
        let [local, remote] = ["10.0.0.1:1", "10.0.0.2:2"].map(|end| end.parse().unwrap());
        let (map, key) = long(Address::Flow { protocol: TCP, local, remote });
        assert_eq!((map.as_str(), key.0.len()), ("flows4-0", 20));
        let [local, remote] = ["[::1]:1", "[::2]:2"].map(|end| end.parse().unwrap());
        let (map, key) = long(Address::Flow { protocol: TCP, local, remote });
        assert_eq!((map.as_str(), key.0.len()), ("flows6-0", 44));
        assert_eq!(long(Address::Port { protocol: TCP, port: 80 }).1.0, [6, 0, 0, 0, 0, 80, 0, 0]);
    }
}
