//! What there is for downloads in one network namespace.

use std::{
    collections::BTreeMap,
    os::fd::{BorrowedFd, OwnedFd},
};

use chadthrottle_common::abi::{CLASS_MAJOR, HORIZON_NS, TIMED_MAJOR};

use super::{BARE, Class, ETHERNET, Rung};
use crate::{
    backend::{
        made::{self, forget, unmake},
        tree::{Rest, Tree},
    },
    error::{Context, Error, Result},
    kernel::{
        bpf::{Loaded, sys},
        fault,
        journal::{Object, PREFIX},
        netns::Namespace,
        nft::IngressHooks,
        tc::{Device, Does, Hook, Tc, htb::ClassCount},
    },
};

/// What was made on a device.
pub(super) struct Equipped {
    pub name: String,
    pub rung: Rung,
    /// Why it is no higher one.
    pub reasons: Vec<String>,
    /// Whether somebody's chain is in the queue's way.
    fenced: bool,
    /// The window's program, where it is a link.
    _window: Option<OwnedFd>,
    /// In the order in which they were made.
    objects: Vec<Object>,
}

/// How packets wait in an IFB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// In fq, until the time that each carries.
    Times,
    /// In HTB, which has a class for each limit.
    Classes(Tree),
}

impl Means {
    /// Puts it on an IFB.
    pub fn plant(tc: &mut Tc, ifb: u32, timed: bool) -> Result<Self> {
        if timed {
            tc.add_timed_fq(ifb, TIMED_MAJOR, (HORIZON_NS / 1_000) as u32).map(|()| Self::Times)
        } else {
            Tree::plant(tc, ifb, CLASS_MAJOR, Rest::Passes).map(Self::Classes)
        }
    }

    /// The program that sends packets to it.
    pub fn classifier(timed: bool) -> &'static str {
        if timed { "find_departure" } else { "find_socket" }
    }

    /// Whether it is still there.
    fn stands(self, tc: &mut Tc, ifb: u32) -> Result<bool> {
        match self {
            Self::Times => {
                let root = tc.root_qdisc(ifb)?;
                Ok(root.is_some_and(|root| root.kind == "fq" && root.handle == TIMED_MAJOR << 16))
            }
            Self::Classes(tree) => tree.stands(tc, std::iter::empty()),
        }
    }
}

/// A network namespace.
pub(super) struct Place {
    inode: u64,
    namespace: Namespace,
    pub tc: Tc,
    hooks: IngressHooks,
    /// Whether packets carry their time.
    timed: bool,
    /// Our IFB, or why there is none.
    pub ifb: Result<(u32, Means, Object)>,
    pub devices: BTreeMap<u32, Equipped>,
    /// What each class had refused when it was asked last.
    dropped: BTreeMap<u32, u32>,
}

impl Place {
    pub fn open(inode: u64, namespace: Namespace, classes: &[Class], timed: bool) -> Result<Self> {
        let tc = Tc::open_in(&namespace)?;
        let hooks = IngressHooks::open_in(&namespace);
        let mut place = Self {
            inode,
            namespace,
            tc,
            hooks,
            timed,
            ifb: Err(Error::failed("not made yet")),
            devices: BTreeMap::new(),
            dropped: BTreeMap::new(),
        };
        place.ifb = place.make_ifb();
        for class in classes {
            if let Err(error) = place.set_class(*class) {
                place.give_up_queue(error);
            }
        }
        Ok(place)
    }

    /// What each class did, and what it refused since the last time.
    pub fn look_at_classes(&mut self) -> Vec<(u32, ClassCount, u64)> {
        let Ok((_, Means::Classes(tree), _)) = self.ifb else { return Vec::new() };
        let counts = tree.counts(&mut self.tc).unwrap_or_else(|error| {
            tracing::debug!("{error}");
            Vec::new()
        });
        let newly = |(class, count): (u32, ClassCount)| {
            let before = self.dropped.insert(class, count.dropped).unwrap_or(0);
            (class, count, u64::from(count.dropped.wrapping_sub(before)))
        };
        counts.into_iter().map(newly).collect()
    }

    fn make_ifb(&mut self) -> Result<(u32, Means, Object)> {
        let name = own_name();
        let object = Object::Ifb { namespace: self.inode, name: name.clone() };
        let index = make(&object, || {
            let index = self.tc.add_ifb(&name)?;
            fault::point("queue.ifb");
            Ok(index)
        });
        let planted =
            index.and_then(|index| Means::plant(&mut self.tc, index, self.timed).map(|means| (index, means)));
        match planted {
            Ok((index, means)) => Ok((index, means, object)),
            Err(error) => {
                unmake(&object, &mut self.tc);
                Err(error)
            }
        }
    }

    pub fn set_class(&mut self, class: Class) -> Result<()> {
        let Ok((_, Means::Classes(tree), _)) = self.ifb else { return Ok(()) };
        tree.set_leaf(&mut self.tc, class.id, class.rate, class.length())
    }

    /// No packet may be sent to a class that is not there: it would pass without being held.
    pub fn give_up_queue(&mut self, error: Error) {
        tracing::warn!("no queue in network namespace {}: {error}", self.inode);
        for equipped in self.devices.values_mut() {
            equipped.rung = equipped.rung.min(Rung::Window);
            equipped.reasons.push(error.to_string());
            for filter in equipped.objects.extract_if(.., |object| leads_to_queue(object)) {
                unmake(&filter, &mut self.tc);
            }
        }
        if let Ok((_, _, object)) = std::mem::replace(&mut self.ifb, Err(error)) {
            unmake(&object, &mut self.tc);
        }
    }

    pub fn equip(&mut self, loaded: &mut Loaded, index: u32) -> Result<()> {
        if self.devices.contains_key(&index) {
            return Ok(());
        }
        let Some(device) = self.tc.devices()?.into_iter().find(|device| device.index == index) else {
            return Err(Error::failed(format!("there is no network device {index}")));
        };
        // Packets must not be led from a queue into a queue. They never arrive there, but others may say so.
        if device.kind == "ifb" {
            return Err(Error::failed(format!("{} is a queue itself", device.name)));
        }
        let mut equipped = Equipped {
            name: device.name.clone(),
            rung: Rung::Bucket,
            reasons: Vec::new(),
            fenced: false,
            _window: None,
            objects: Vec::new(),
        };
        match self.attach_window(loaded, &device, &mut equipped.objects) {
            Ok(link) => {
                equipped.rung = Rung::Window;
                equipped._window = link;
            }
            Err(error) => equipped.reasons.push(error.to_string()),
        }
        fault::point("queue.window");
        let fence = self.hooks.chains().into_iter().find(|chain| chain.is_at(&device.name));
        equipped.fenced = fence.is_some();
        let queued = match fence {
            None => self.attach_queue(loaded, &device, &mut equipped.objects),
            Some(chain) => Err(Error::failed(format!(
                "what has waited in a queue would go past the netfilter chain {} at the ingress of {}",
                chain.name, device.name
            ))),
        };
        match queued {
            Ok(()) => equipped.rung = Rung::Queue,
            Err(error) => equipped.reasons.push(error.to_string()),
        }
        match equipped.rung {
            Rung::Queue => {}
            Rung::Window => tracing::warn!(
                "on {} downloads lose some packets where the line is short: {}",
                device.name,
                equipped.reasons.join("; ")
            ),
            Rung::Bucket => tracing::warn!(
                "on {} what is too much of a download is dropped, and sent again: {}",
                device.name,
                equipped.reasons.join("; ")
            ),
        }
        self.devices.insert(index, equipped);
        Ok(())
    }

    /// By a link where the kernel has them (Linux 6.6), else by a filter.
    fn attach_window(
        &mut self,
        loaded: &mut Loaded,
        device: &Device,
        objects: &mut Vec<Object>,
    ) -> Result<Option<OwnedFd>> {
        let program = match device.hardware {
            ETHERNET => "lower_window",
            bare if BARE.contains(&bare) => "lower_window_bare",
            other => {
                return Err(Error::failed(format!(
                    "lower the windows on {}: its link header (type {other}) is not known",
                    device.name
                )));
            }
        };
        let program = loaded.classifier(program)?;
        let link = self.namespace.run(|| {
            sys::attach_to_egress(program, device.index)
                .context(format!("attach a program to the egress of {}", device.name))
        });
        match link {
            Ok(link) => Ok(Some(link)),
            Err(error) => {
                tracing::debug!("{error}; by a filter then");
                self.add_filter(device, Hook::Egress, program, Does::AsTheProgramSays, objects)?;
                Ok(None)
            }
        }
    }

    fn attach_queue(
        &mut self,
        loaded: &mut Loaded,
        device: &Device,
        objects: &mut Vec<Object>,
    ) -> Result<()> {
        let ifb = match &self.ifb {
            Ok((index, _, _)) => *index,
            Err(error) => return Err(error.clone()),
        };
        let program = loaded.classifier(Means::classifier(self.timed))?;
        self.add_filter(device, Hook::Ingress, program, Does::RedirectTo(ifb), objects)
    }

    /// Adds a filter, and clsact where there is none; what was made is in `objects`. After an error nothing
    /// of the filter is left.
    fn add_filter(
        &mut self,
        device: &Device,
        hook: Hook,
        program: BorrowedFd<'_>,
        does: Does,
        objects: &mut Vec<Object>,
    ) -> Result<()> {
        let clsact = Object::Clsact { namespace: self.inode, device: device.index };
        if !objects.contains(&clsact) {
            match make(&clsact, || self.tc.add_clsact(device.index)) {
                Ok(true) => objects.push(clsact),
                // Another owner's, who may be gone before us.
                Ok(false) if self.tc.only_ours(device.index)? => objects.push(clsact),
                // Somebody else's.
                Ok(false) => forget(&clsact),
                Err(error) => {
                    unmake(&clsact, &mut self.tc);
                    return Err(error);
                }
            }
        }
        fault::point("queue.clsact");
        let name = own_name();
        let filter = Object::Filter { namespace: self.inode, device: device.index, hook, name: name.clone() };
        match make(&filter, || self.tc.add_filter(device.index, hook, program, &name, does)) {
            Ok(()) => {
                objects.push(filter);
                fault::point("queue.filter");
                Ok(())
            }
            Err(error) => {
                unmake(&filter, &mut self.tc);
                Err(error)
            }
        }
    }

    /// Fails when somebody removed something of ours, or put something in the way or out of it. Devices that are gone are
    /// just forgotten. `classes`: what an HTB has to have.
    pub fn is_whole(&mut self, mut classes: impl Iterator<Item = u32>) -> Result<()> {
        let devices = self.tc.devices()?;
        let there = |index: u32| devices.iter().find(|device| device.index == index);
        if let Ok((ifb, _, object)) = &self.ifb
            && !there(*ifb).is_some_and(|device| device.up && device.name.starts_with(PREFIX))
        {
            return Err(Error::failed(format!("{object} is gone")));
        }
        if let Ok((ifb, means, object)) = self.ifb.as_ref() {
            if !means.stands(&mut self.tc, *ifb)? {
                return Err(Error::failed(format!("{object} has lost its queue")));
            }
            if let Means::Classes(tree) = means {
                let counts = tree.counts(&mut self.tc)?;
                let there = |class: u32| counts.iter().any(|(id, _)| *id == class);
                if let Some(class) = classes.find(|class| !there(*class)) {
                    return Err(Error::failed(format!("{object} has lost the class {class:x}")));
                }
            }
        }
        let fences = self.hooks.chains();
        for equipped in self.devices.values() {
            if equipped.fenced != fences.iter().any(|chain| chain.is_at(&equipped.name)) {
                let change = if equipped.fenced { "left" } else { "come to" };
                return Err(Error::failed(format!(
                    "a netfilter chain has {change} the ingress of {}",
                    equipped.name
                )));
            }
        }
        let gone: Vec<_> = self.devices.keys().copied().filter(|index| there(*index).is_none()).collect();
        for index in gone {
            if let Some(equipped) = self.devices.remove(&index) {
                equipped.objects.iter().for_each(forget);
            }
        }
        for equipped in self.devices.values() {
            for object in &equipped.objects {
                if let Object::Filter { device, hook, name, .. } = object
                    && !self.tc.filters(*device, *hook)?.iter().any(|filter| filter.name == *name)
                {
                    return Err(Error::failed(format!("{object} is gone")));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    /// Filters before the IFB they lead to.
    fn drop(&mut self) {
        for equipped in self.devices.values_mut() {
            for object in equipped.objects.drain(..).rev() {
                unmake(&object, &mut self.tc);
            }
        }
        if let Ok((_, _, object)) = &self.ifb {
            unmake(object, &mut self.tc);
        }
    }
}

/// Whether it sends packets to the IFB.
fn leads_to_queue(object: &Object) -> bool {
    matches!(object, Object::Filter { hook: Hook::Ingress, .. })
}

/// Name of this owner's IFB and filters: by its process id, so that two owners are not in each other's way.
pub(super) fn own_name() -> String {
    format!("{PREFIX}{:x}", std::process::id())
}

/// Makes an object after it was written down.
fn make<T>(object: &Object, make: impl FnOnce() -> Result<T>) -> Result<T> {
    made::make(object, || {
        fault::point("queue.recorded");
        make()
    })
}
