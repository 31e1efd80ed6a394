//! Chains of others at a device's ingress hook. What comes back from an IFB goes past that hook: the kernel takes it for
//! seen (`skb_skip_tc_classify`), so where there is such a chain nothing may be led through a queue.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    attributes,
    encode::{INET, NETDEV, list_chains},
};
use crate::kernel::{
    journal::PREFIX,
    netns::Namespace,
    nl::{Attributes, Netlink},
};

/// Numbers of the hook: NF_NETDEV_INGRESS, NF_INET_INGRESS.
const FAMILIES: [(u8, u32); 2] = [(NETDEV, 0), (INET, 5)];

/// A chain, and the devices at whose ingress it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressChain {
    /// Table and chain, as `nft` writes them.
    pub name: String,
    devices: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Exact(String),
    /// Of all devices whose names begin so.
    Prefix(String),
}

impl IngressChain {
    /// Whether it sees what arrives at a device.
    pub fn is_at(&self, device: &str) -> bool {
        self.devices.iter().any(|name| match name {
            Name::Exact(name) => name == device,
            Name::Prefix(prefix) => device.starts_with(prefix.as_str()),
        })
    }
}

/// The ingress hooks of one network namespace.
pub struct IngressHooks(Option<Netlink>);

impl IngressHooks {
    /// Of a namespace. Where the kernel has no netfilter there are no chains.
    pub fn open_in(namespace: &Namespace) -> Self {
        Self(namespace.run(|| Netlink::open(NETLINK_NETFILTER)).ok())
    }

    /// Chains of others. Those of a family that can't be listed (most often nf_tables is not there, and so is no chain of
    /// it) are not among them.
    pub fn chains(&mut self) -> Vec<IngressChain> {
        let Some(netlink) = &mut self.0 else { return Vec::new() };
        let mut chains = Vec::new();
        for (family, hook) in FAMILIES {
            match netlink.dump(list_chains(family)) {
                Ok(answers) => chains.extend(answers.iter().filter_map(|answer| chain(answer, hook))),
                Err(error) => tracing::debug!("list the chains of nf_tables: {error}"),
            }
        }
        chains
    }
}

fn chain(answer: &[u8], wanted: u32) -> Option<IngressChain> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1;
    const DEVICE: u16 = 3;
    const DEVICES: u16 = 4;
    const DEVICE_PREFIX: u16 = 2;
    let attributes = attributes(answer)?;
    let table = attributes.text(TABLE)?;
    let hook = attributes.within(HOOK)?;
    if table.starts_with(PREFIX) || hook.get(HOOK_NUMBER)? != wanted.to_be_bytes() {
        return None;
    }
    let text =
        |value: &[u8]| String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned();
    let mut devices: Vec<_> = hook.text(DEVICE).map(Name::Exact).into_iter().collect();
    devices.extend(hook.within(DEVICES).into_iter().flat_map(Attributes::all).map(|(kind, value)| {
        if kind == DEVICE_PREFIX { Name::Prefix(text(value)) } else { Name::Exact(text(value)) }
    }));
    let name = format!("{table} {}", attributes.text(NAME)?);
    Some(IngressChain { name, devices })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nl::Message;

    /// An answer of the kernel, without its netlink header.
    fn answer(table: &str, hook: u32, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::new(0, 0, &[NETDEV, 0, 0, 0]);
        message.text(1, table);
        message.text(3, "in");
        message.nested(4, |inner| {
            inner.attribute(1, &hook.to_be_bytes());
            fill(inner);
        });
        message.finish(0, 1)[16..].to_vec()
    }

    #[test]
    fn a_chain_is_at_the_devices_that_it_names() {
        let one = chain(&answer("fw", 0, |hook| hook.text(3, "eth0")), 0).unwrap();
        assert_eq!(one.name, "fw in");
        assert!(one.is_at("eth0") && !one.is_at("eth01"));
        let many = answer("fw", 5, |hook| {
            hook.nested(4, |names| {
                names.text(1, "wan");
                names.text(2, "ppp");
            });
        });
        let many = chain(&many, 5).unwrap();
        assert!(many.is_at("wan") && many.is_at("ppp3") && !many.is_at("wan1"));
    }

    #[test]
    fn other_hooks_and_tables_of_ours_do_not_count() {
        assert_eq!(chain(&answer("fw", 1, |hook| hook.text(3, "eth0")), 0), None);
        assert_eq!(chain(&answer(&format!("{PREFIX}up"), 0, |hook| hook.text(3, "eth0")), 0), None);
        assert_eq!(chain(&answer("fw", 0, |_| {})[..10], 0), None);
    }
}
