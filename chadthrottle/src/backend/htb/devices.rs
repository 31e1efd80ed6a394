//! A namespace's devices: trees on upload, on download the IFB and what sends to it.

use std::collections::BTreeMap;

use super::{
    place::{Room, about_us, room},
    plan::{self, MAJOR},
};
use crate::{
    backend::{
        made::{forget, make, unmake},
        tree::{Rest, Tree},
    },
    error::{Error, Kind, Result},
    kernel::{
        fault,
        journal::{Object, PREFIX},
        nft::Nft,
        tc::Device,
    },
    model::Direction,
};

/// ARPHRD_* of devices whose packets HTB counts with an Ethernet header.
const FRAMED: [u16; 2] = [1, 772];
const HEADER: u64 = 14;

/// A device with a tree.
pub(super) struct Planted {
    pub name: String,
    pub tree: Tree,
    /// Bytes of a packet's link header, which HTB counts and a limit does not.
    pub header: u64,
    pub object: Object,
}

/// A device at which both tables have a chain.
pub(super) struct Seen {
    name: String,
    /// Number of the chains.
    chain: u32,
}

/// On download: the IFB, and who sends to it.
pub(super) struct Arrival {
    pub ifb: u32,
    /// The second table.
    pub forwarder: Nft,
    /// Devices with chains in both tables, by index.
    pub seen: BTreeMap<u32, Seen>,
}

impl Room {
    /// Makes the IFB with its tree, and the second table, with all limits that are in force.
    fn make_arrival(&mut self) -> Result<()> {
        // The eBPF backend has one of its own.
        let name = format!("{PREFIX}{:x}-tc", std::process::id());
        let object = Object::Ifb { namespace: self.inode, name: name.clone() };
        let made = make(&object, || {
            fault::point("htb.recorded");
            self.tc.add_ifb(&name)
        });
        let planted = made.and_then(|ifb| {
            let mut forwarder =
                Nft::open_in(&self.namespace, &format!("{}-ifb_tc-forward", std::process::id()))?
                    .of_devices();
            forwarder.change(&plan::begin_forwarding()).map_err(about_us)?;
            let tree = Tree::plant(&mut self.tc, ifb, MAJOR, Rest::Passes)?;
            for (id, rate) in &self.rates {
                tree.set_branch(&mut self.tc, plan::branch(*id), *rate, room(self.direction, *rate))?;
                forwarder.change(&[plan::add_classes(*id)])?;
            }
            Ok((ifb, forwarder, tree))
        });
        match planted {
            Ok((ifb, forwarder, tree)) => {
                let planted = Planted { name, tree, header: HEADER, object };
                self.trees.insert(ifb, planted);
                self.arrival = Some(Arrival { ifb, forwarder, seen: BTreeMap::new() });
                fault::point("htb.planted");
                Ok(())
            }
            Err(error) => {
                unmake(&object, &mut self.tc);
                Err(error)
            }
        }
    }

    /// Looks whether the IFB and its tree are there and in use, and makes them anew if not: what is sent to an IFB that is
    /// gone is lost.
    fn look_after_arrival(&mut self, all: &[Device]) -> Result<()> {
        if let Some(ifb) = self.arrival.as_ref().map(|arrival| arrival.ifb) {
            let device = all.iter().find(|device| device.index == ifb);
            let stands = match self.trees.get(&ifb) {
                Some(planted) if device.is_some() => planted.tree.stands(&mut self.tc)?,
                _ => false,
            };
            if stands {
                return if device.is_some_and(|device| device.up) { Ok(()) } else { self.tc.set_up(ifb) };
            }
            tracing::warn!("somebody has removed the IFB of downloads, or its HTB; it is made again");
            self.drop_arrival();
        }
        self.make_arrival()
    }

    /// First the second table, then the IFB to which it sends.
    fn drop_arrival(&mut self) {
        let Some(Arrival { ifb, forwarder, seen, .. }) = self.arrival.take() else { return };
        drop(forwarder);
        for device in seen.into_values() {
            unsee(&mut self.nft, device.chain);
        }
        if let Some(planted) = self.trees.remove(&ifb) {
            unmake(&planted.object, &mut self.tc);
        }
    }

    /// Equips the devices that are not yet. Fails when one can't be, after all others have been.
    pub(super) fn equip(&mut self) -> Result<()> {
        let all = self.tc.devices()?;
        if self.direction == Direction::Download {
            self.look_after_arrival(&all)?;
        }
        let mut failure = None;
        // A new IFB is not among those that were listed before.
        let ifb = self.arrival.as_ref().map(|arrival| arrival.ifb);
        let is_gone = |index: &u32| Some(*index) != ifb && !all.iter().any(|device| device.index == *index);
        self.trees.retain(|index, planted| {
            let gone = is_gone(index);
            if gone {
                forget(&planted.object);
            }
            !gone
        });
        if let Some(arrival) = &mut self.arrival {
            // A chain belongs to a device, or to a name, as the kernel's version has it: a device that has another name
            // gets new ones, and must not have both.
            let (forwarder, nft) = (&mut arrival.forwarder, &mut self.nft);
            arrival.seen.retain(|index, seen| {
                let same = all.iter().any(|device| device.index == *index && device.name == seen.name);
                if !same {
                    unsee(forwarder, seen.chain);
                    unsee(nft, seen.chain);
                }
                same
            });
        }
        let loopback = self.loopback;
        for device in all.iter().filter(|device| concerns(device, loopback)) {
            let equipped = match self.direction {
                Direction::Upload => self.plant(device),
                Direction::Download => self.see(device),
            };
            if let Err(error) = equipped {
                failure = Some(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// A tree on a device, in place of the kernel's own root qdisc.
    fn plant(&mut self, device: &Device) -> Result<()> {
        if let Some(planted) = self.trees.get(&device.index) {
            if planted.tree.stands(&mut self.tc)? {
                return Ok(());
            }
            tracing::warn!("somebody has removed the {}; it is made again", planted.object);
            forget(&planted.object);
            self.trees.remove(&device.index);
        }
        if let Some(root) = self.tc.root_qdisc(device.index)?.filter(|root| root.handle != 0) {
            let message = format!(
                "{} has a root qdisc of somebody else ({} {:x}:), which stays: what leaves there would not be held",
                device.name,
                root.kind,
                root.handle >> 16
            );
            return Err(Error::new(Kind::NoBackend, message));
        }
        let object = Object::Htb { namespace: self.inode, device: device.index, major: MAJOR };
        let planted = make(&object, || {
            fault::point("htb.recorded");
            let tree = Tree::plant(&mut self.tc, device.index, MAJOR, Rest::HasAClass)?;
            fault::point("htb.planted");
            for (id, rate) in &self.rates {
                tree.set_branch(&mut self.tc, plan::branch(*id), *rate, room(self.direction, *rate))?;
            }
            Ok(tree)
        });
        match planted {
            Ok(tree) => {
                let header = if FRAMED.contains(&device.hardware) { HEADER } else { 0 };
                let planted = Planted { name: device.name.clone(), tree, header, object };
                self.trees.insert(device.index, planted);
                Ok(())
            }
            Err(error) => {
                unmake(&object, &mut self.tc);
                Err(error)
            }
        }
    }

    /// Sends what arrives at a device and has a class to the IFB.
    fn see(&mut self, device: &Device) -> Result<()> {
        let Some(arrival) = &mut self.arrival else { return Ok(()) };
        if arrival.seen.contains_key(&device.index) {
            return Ok(());
        }
        self.chains += 1;
        let chain = self.chains;
        arrival.forwarder.change(&plan::forward(chain, &device.name, arrival.ifb)).map_err(about_us)?;
        if let Err(error) = self.nft.change(&plan::see(chain, &device.name)) {
            unsee(&mut arrival.forwarder, chain);
            return Err(about_us(error));
        }
        arrival.seen.insert(device.index, Seen { name: device.name.clone(), chain });
        Ok(())
    }
}

/// Removes a device's chain from a table. The kernel may have done it when the device went.
fn unsee(table: &mut Nft, chain: u32) {
    match table.change(&plan::unsee(chain)) {
        Err(error) if error.kind != Kind::NotFound => tracing::error!("{error}"),
        _ => {}
    }
}

/// Whether packets of the namespace's sockets may leave or arrive there. What is a part of another device is not
/// asked: the other one is. Neither are queues; loopback is when limited sockets talk over it.
fn concerns(device: &Device, loopback: bool) -> bool {
    const LOOPBACK: u32 = 1;
    let wanted = device.index != LOOPBACK || loopback;
    device.up && device.master == 0 && device.kind != "ifb" && wanted
}
