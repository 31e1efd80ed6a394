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
        netns::Namespace,
        nft::Nft,
        tc::Device,
    },
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

/// On download: the IFB, and who sends to it.
pub(super) struct Arrival {
    pub ifb: u32,
    /// The second table.
    pub forwarder: Nft,
    /// Devices with chains in both tables, by index: their names.
    pub seen: BTreeMap<u32, String>,
    /// Chains made so far.
    pub count: u32,
}

impl Room {
    /// Makes the IFB with its tree, and the second table.
    pub(super) fn make_arrival(&mut self, namespace: &Namespace) -> Result<()> {
        // The eBPF backend has one of its own.
        let name = format!("{PREFIX}{:x}-tc", std::process::id());
        let object = Object::Ifb { namespace: self.inode, name: name.clone() };
        let made = make(&object, || {
            fault::point("htb.recorded");
            self.tc.add_ifb(&name)
        });
        let planted = made.and_then(|ifb| {
            let mut forwarder =
                Nft::open_in(namespace, &format!("{}-ifb_tc-forward", std::process::id()))?.of_devices();
            forwarder.change(&plan::begin_forwarding()).map_err(about_us)?;
            let tree = Tree::plant(&mut self.tc, ifb, MAJOR, Rest::Passes)?;
            Ok((ifb, forwarder, tree))
        });
        match planted {
            Ok((ifb, forwarder, tree)) => {
                let planted = Planted { name, tree, header: HEADER, object };
                self.trees.insert(ifb, planted);
                self.arrival = Some(Arrival { ifb, forwarder, seen: BTreeMap::new(), count: 0 });
                fault::point("htb.planted");
                Ok(())
            }
            Err(error) => {
                unmake(&object, &mut self.tc);
                Err(error)
            }
        }
    }

    /// Equips the devices that are not yet. Fails when one can't be, after all others have been.
    pub(super) fn equip(&mut self) -> Result<()> {
        let all = self.tc.devices()?;
        let mut failure = None;
        let gone: Vec<u32> =
            self.trees.keys().copied().filter(|index| !all.iter().any(|it| it.index == *index)).collect();
        for index in gone {
            let Some(planted) = self.trees.remove(&index) else { continue };
            if self.arrival.as_ref().is_some_and(|arrival| arrival.ifb == index) {
                failure = Some(Error::failed(format!("network device {} is gone", planted.name)));
            }
            forget(&planted.object);
        }
        if let Some(arrival) = &mut self.arrival {
            arrival.seen.retain(|index, name| {
                all.iter().any(|device| device.index == *index && device.name == *name)
            });
        }
        let loopback = self.loopback;
        for device in all.iter().filter(|device| concerns(device, loopback)) {
            let equipped = match self.arrival {
                None => self.plant(device),
                Some(_) => self.see(device),
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
        arrival.count += 1;
        arrival
            .forwarder
            .change(&plan::forward(arrival.count, &device.name, arrival.ifb))
            .and_then(|()| self.nft.change(&plan::see(arrival.count, &device.name)))
            .map_err(about_us)?;
        arrival.seen.insert(device.index, device.name.clone());
        Ok(())
    }
}

/// Whether packets of the namespace's sockets may leave or arrive there. What is a part of another device is not
/// asked: the other one is. Neither are queues; loopback is when limited sockets talk over it.
fn concerns(device: &Device, loopback: bool) -> bool {
    const LOOPBACK: u32 = 1;
    let wanted = device.index != LOOPBACK || loopback;
    device.up && device.master == 0 && device.kind != "ifb" && wanted
}
