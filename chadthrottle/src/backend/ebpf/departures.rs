//! What nothing paces, and is too much for an upload limit (UDP): a device with fq keeps it until its time, instead of
//! its being dropped. The programs ask about a device when something too much leaves by it first; those that have fq
//! when a limit is set are told of before.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Instant,
};

use chadthrottle_common::abi::{DEVICE_KEEPS, Departure};

use super::{check::FRESH, holder::Holder};
use crate::{
    error::{Error, Kind, Result},
    kernel::{
        netns::Namespace,
        tc::{Tc, fq::Sending},
    },
    model::{Rung, RungKind},
};

const DEPARTURES: &str = "DEPARTURES";

/// Of so many processes of a limit it is looked in which namespaces they are.
const ASKED: usize = 16;

const LOOPBACK: u32 = 1;

/// Devices of a namespace: name, and how it sends.
type Devices = BTreeMap<u32, (String, Sending)>;

/// What was found lately, by inode of the namespace.
#[derive(Default)]
pub(super) struct Departures {
    places: BTreeMap<u64, (Instant, Devices)>,
}

impl Departures {
    /// The devices of the namespaces in which these processes are.
    fn of_processes(&mut self, pids: &[u32]) -> Result<Vec<Devices>> {
        self.places.retain(|_, (at, _)| at.elapsed() <= FRESH);
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for pid in pids.iter().take(ASKED) {
            // Ended meanwhile.
            let Ok(namespace) = Namespace::of_process(*pid) else { continue };
            let inode = namespace.inode()?;
            if !seen.insert(inode) {
                continue;
            }
            let (_, devices) = match self.places.entry(inode) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert((Instant::now(), devices(&namespace)?)),
            };
            found.push(devices.clone());
        }
        Ok(found)
    }
}

fn devices(namespace: &Namespace) -> Result<Devices> {
    let mut tc = Tc::open_in(namespace)?;
    let sending = tc.sending()?;
    let all = tc.devices()?.into_iter().filter(|device| device.index != LOOPBACK);
    Ok(all
        .filter_map(|device| Some((device.index, (device.name, sending.get(&device.index)?.clone()))))
        .collect())
}

/// How the device of a number sends; where it is another one in each of several namespaces, the one that keeps
/// nothing counts.
fn of_device(places: &[Devices], device: u32) -> Option<&(String, Sending)> {
    places.iter().filter_map(|devices| devices.get(&device)).min_by_key(|(_, sending)| sending.keeps)
}

impl Holder {
    /// Tells the programs by which devices packets of this limit may leave later: those that have fq now. Without it
    /// they ask, and the first second of UDP that is too much is dropped.
    pub(super) fn prepare_departures(&mut self, key: u64, pids: &[u32]) -> Result<()> {
        let places = self.departures.of_processes(pids)?;
        let numbers: BTreeSet<u32> = places.iter().flat_map(|devices| devices.keys().copied()).collect();
        for device in numbers {
            if of_device(&places, device).is_some_and(|(_, sending)| sending.keeps) {
                self.answer(key, device, DEVICE_KEEPS)?;
            }
        }
        Ok(())
    }

    /// Answers what the programs asked about this limit (`asked`: numbers of devices, and the last answers), and tells
    /// how it is held at these devices.
    pub(super) fn review_departures(
        &mut self,
        key: u64,
        pids: &[u32],
        asked: &[(u32, u32)],
    ) -> Result<Vec<Rung>> {
        let mut rungs = Vec::new();
        if asked.is_empty() {
            return Ok(rungs);
        }
        let places = self.departures.of_processes(pids)?;
        for &(device, answer) in asked {
            let Some((name, sending)) = of_device(&places, device) else {
                // It is gone, or was another namespace's.
                if answer != 0 {
                    self.answer(key, device, 0)?;
                }
                continue;
            };
            let now = if sending.keeps { DEVICE_KEEPS } else { 0 };
            let (kind, reason) = if sending.keeps {
                (RungKind::PacingEdt, None)
            } else {
                let mend =
                    format!("(its qdisc is {}; mend: tc qdisc replace dev {name} root fq)", sending.kind);
                (RungKind::PacingBucket, Some(format!("UDP that is too much is dropped without fq {mend}")))
            };
            rungs.push(Rung { device: Some(name.clone()), kind, reason });
            if now != answer {
                self.answer(key, device, now)?;
            }
        }
        Ok(rungs)
    }

    /// What the programs asked, and what they were told, by key of the limit.
    pub(super) fn asked_departures(&self) -> Result<BTreeMap<u64, Vec<(u32, u32)>>> {
        let mut asked = BTreeMap::<u64, Vec<_>>::new();
        for (departure, answer) in self.loaded.entries::<Departure, u32>(DEPARTURES)? {
            asked.entry(departure.limit).or_default().push((departure.device, answer));
        }
        asked.values_mut().for_each(|devices| devices.sort_unstable());
        Ok(asked)
    }

    /// Forgets what is about limits that are over.
    pub(super) fn forget_departures(&mut self, keys: &[u64]) {
        let Ok(asked) = self.asked_departures() else { return };
        for (limit, devices) in asked.into_iter().filter(|(limit, _)| keys.contains(limit)) {
            for (device, _) in devices {
                let departure = Departure { limit, device, reserved: 0 };
                let _ = self.loaded.hash::<Departure, u32>(DEPARTURES).map(|mut map| map.remove(&departure));
            }
        }
    }

    fn answer(&mut self, limit: u64, device: u32, answer: u32) -> Result<()> {
        self.loaded
            .hash::<Departure, u32>(DEPARTURES)?
            .insert(Departure { limit, device, reserved: 0 }, answer, 0)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write the eBPF map {DEPARTURES}"), &cause))
    }
}

/// Tries it in a network namespace of its own that goes with all that is in it.
pub(super) fn try_fq() -> Result<()> {
    let added = Tc::open_in(&Namespace::new()?)?.add_fq(LOOPBACK);
    added.map_err(|cause| match cause.kind {
        Kind::NotFound => Error::caused(cause.kind, "the kernel has no sch_fq", &cause),
        _ => cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_several_devices_keeps_only_where_all_do() {
        let device = |keeps| BTreeMap::from([(2, ("eth0".to_owned(), Sending { kind: "x".into(), keeps }))]);
        let keeps = |places: &[Devices]| of_device(places, 2).map(|(_, sending)| sending.keeps);
        assert_eq!(keeps(&[device(true), device(true)]), Some(true));
        assert_eq!(keeps(&[device(true), device(false)]), Some(false));
        assert_eq!(keeps(&[BTreeMap::new()]), None);
    }
}
