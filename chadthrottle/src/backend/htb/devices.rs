//! A namespace's devices: trees on upload, on download the IFB and what sends to it.

use std::collections::BTreeMap;

use super::{
    means::{Means, branches},
    place::{Room, about_us, room},
    plan,
};
use crate::{
    backend::made::{forget, make, unmake},
    error::{Error, Kind, Result},
    kernel::{
        fault,
        journal::{Object, PREFIX},
        nft::Nft,
        tc::{Device, Tc},
    },
    model::Direction,
};

/// ARPHRD_* of devices whose packets HTB counts with an Ethernet header.
const FRAMED: [u16; 2] = [1, 772];
const HEADER: u64 = 14;

/// A device at which limits are held.
pub(super) struct Planted<M> {
    pub name: String,
    pub tree: M,
    /// Bytes of a packet's link header, which HTB counts and a limit does not.
    pub header: u64,
    /// In the order in which they were made.
    pub objects: Vec<Object>,
}

impl<M> Planted<M> {
    /// Removes what was made there.
    pub fn unmake(&self, tc: &mut Tc) {
        self.objects.iter().rev().for_each(|object| unmake(object, tc));
    }
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

impl<M: Means> Room<M> {
    /// Makes the IFB with its tree, and the second table, with all limits that are in force.
    fn make_arrival(&mut self) -> Result<()> {
        // The eBPF backend has one of its own.
        let name = format!("{PREFIX}{:x}-{}", std::process::id(), M::SUFFIX);
        if let Some(other) = self.tc.devices()?.iter().find(|device| is_anothers(device, &name, M::SUFFIX)) {
            let message = format!(
                "{} of another owner is there, whose limits have the same classes: end them, or clear what it left \
                 (with its --runtime-dir)",
                other.name
            );
            return Err(Error::new(Kind::NoBackend, message));
        }
        let object = Object::Ifb { namespace: self.inode, name: name.clone() };
        let made = make(&object, || {
            fault::point("htb.recorded");
            self.tc.add_ifb(&name)
        });
        let planted = made.and_then(|ifb| {
            let mut forwarder = Nft::open_in(
                &self.namespace,
                &format!("{}-{}-forward", std::process::id(), M::table(self.direction)),
            )?
            .of_devices();
            forwarder.change(&plan::begin_forwarding()).map_err(about_us)?;
            let tree = M::make(&mut self.tc, ifb, self.direction)?;
            for (id, rate) in &self.rates {
                tree.set_branch(&mut self.tc, plan::branch(*id), *rate, room(self.direction, *rate))?;
                forwarder.change(&[plan::add_classes(*id)])?;
            }
            Ok((ifb, forwarder, tree))
        });
        match planted {
            Ok((ifb, forwarder, tree)) => {
                let planted = Planted { name, tree, header: HEADER, objects: vec![object] };
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
                Some(planted) if device.is_some() => {
                    planted.tree.stands(&mut self.tc, branches(self.rates.keys()))?
                }
                _ => false,
            };
            if stands {
                return if device.is_some_and(|device| device.up) { Ok(()) } else { self.tc.set_up(ifb) };
            }
            tracing::warn!("somebody has removed the IFB of downloads, or its {}; it is made again", M::WHAT);
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
            planted.unmake(&mut self.tc);
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
        let gone: Vec<u32> = self.trees.keys().copied().filter(is_gone).collect();
        for planted in gone.iter().filter_map(|index| self.trees.remove(index)) {
            planted.objects.iter().for_each(forget);
        }
        if let Some(arrival) = &mut self.arrival {
            // A chain belongs to a device, or to a name, as the kernel's version has it: a device that has another name
            // gets new ones, and must not have both.
            let is_other = |(index, seen): &(&u32, &Seen)| {
                !all.iter().any(|device| device.index == **index && device.name == seen.name)
            };
            let others: Vec<u32> = arrival.seen.iter().filter(is_other).map(|(index, _)| *index).collect();
            for seen in others.iter().filter_map(|index| arrival.seen.remove(index)) {
                unsee(&mut arrival.forwarder, seen.chain);
                unsee(&mut self.nft, seen.chain);
            }
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

    /// Equips a device for what leaves there.
    fn plant(&mut self, device: &Device) -> Result<()> {
        if let Some(planted) = self.trees.get(&device.index) {
            if planted.tree.stands(&mut self.tc, branches(self.rates.keys()))? {
                return Ok(());
            }
            tracing::warn!("somebody has removed the {} of {}; it is made again", M::WHAT, device.name);
            planted.unmake(&mut self.tc);
            self.trees.remove(&device.index);
        }
        let objects = M::objects(&mut self.tc, self.inode, device)?;
        let planted = objects.iter().try_for_each(|object| make(object, || Ok(()))).and_then(|()| {
            fault::point("htb.recorded");
            let tree = M::make(&mut self.tc, device.index, self.direction)?;
            fault::point("htb.planted");
            for (id, rate) in &self.rates {
                tree.set_branch(&mut self.tc, plan::branch(*id), *rate, room(self.direction, *rate))?;
            }
            Ok(tree)
        });
        match planted {
            Ok(tree) => {
                let header = if FRAMED.contains(&device.hardware) { HEADER } else { 0 };
                let planted = Planted { name: device.name.clone(), tree, header, objects };
                self.trees.insert(device.index, planted);
                Ok(())
            }
            Err(error) => {
                objects.iter().rev().for_each(|object| unmake(object, &mut self.tc));
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

/// Whether a device is the IFB for downloads of another owner; `own` is the name of ours.
fn is_anothers(device: &Device, own: &str, suffix: &str) -> bool {
    let ending = device.name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
    device.kind == "ifb" && device.name != own && ending.is_some_and(|(_, ending)| ending == suffix)
}

/// Whether packets of the namespace's sockets may leave or arrive there. What is a part of another device is not
/// asked: the other one is. Neither are queues; loopback is when limited sockets talk over it.
fn concerns(device: &Device, loopback: bool) -> bool {
    const LOOPBACK: u32 = 1;
    let wanted = device.index != LOOPBACK || loopback;
    device.up && device.master == 0 && device.kind != "ifb" && wanted
}
