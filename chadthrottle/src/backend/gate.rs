//! act_police at a device: a police for each limit, which lets pass what it has room for and drops the rest.

use super::tree::{Branch, FRAME, PACKET};
use crate::{
    error::{Error, Kind, Result},
    kernel::tc::{
        Tc,
        htb::ClassCount,
        police::{Police, Policed},
    },
    model::Direction,
};

/// What may pass at once: this part of a second, and at least so many bytes. TCP sends buffers of 64 KB, which pass as a
/// whole or not at all: with room for one or two of them it uses half of the rate.
const BURST_PART: u64 = 4;
const LEAST_BURST: u64 = 250_000;

/// Our police at a device, for what leaves there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    device: u32,
    direction: Direction,
}

/// Bytes that pass at once after a pause.
pub(super) fn burst(rate: u64) -> u64 {
    (rate / BURST_PART).max(LEAST_BURST)
}

impl Gate {
    /// At a device, which has somebody's clsact or gets one; nobody is held yet.
    pub fn build(tc: &mut Tc, device: u32, direction: Direction) -> Result<Self> {
        tc.add_clsact(device)?;
        if tc.ingress_kind(device)?.as_deref() != Some("clsact") {
            let message = format!(
                "network device {device} has an ingress qdisc of somebody else, which stays: it leaves no place for what leaves"
            );
            return Err(Error::new(Kind::NoBackend, message));
        }
        Ok(Self { device, direction })
    }

    fn police(self, branch: Branch, rate: u64, burst: u64) -> Police {
        // A police is known in the whole namespace, and a limit has one for each direction.
        let index = match self.direction {
            Direction::Upload => branch.bulk,
            Direction::Download => branch.urgent,
        };
        // A police counts the Ethernet header, a limit does not.
        let framed = |bytes: u64| (u128::from(bytes) * u128::from(FRAME) / u128::from(PACKET)) as u64;
        Police { index, rate: framed(rate), burst: framed(burst) }
    }

    /// Gives a limit's classes, together, this rate (IP bytes/s), at all devices of the namespace.
    pub fn set_branch(self, tc: &mut Tc, branch: Branch, rate: u64) -> Result<()> {
        self.set(tc, branch, rate, burst(rate))
    }

    /// The same; `burst` bytes may pass at once.
    pub fn set(self, tc: &mut Tc, branch: Branch, rate: u64, burst: u64) -> Result<()> {
        let there = tc.policed(self.device)?;
        let police = self.police(branch, rate, burst);
        let missing: Vec<u32> = Self::classes(branch).filter(|class| !has(&there, *class)).collect();
        if missing.is_empty() {
            return tc.change_police(police);
        }
        missing.into_iter().try_for_each(|class| tc.add_police(self.device, class, police))
    }

    /// Ends a limit here.
    pub fn cut_branch(self, tc: &mut Tc, branch: Branch) -> Result<()> {
        Self::classes(branch).try_for_each(|class| tc.delete_police(self.device, class).map(drop))
    }

    /// What each class met.
    pub fn counts(self, tc: &mut Tc) -> Result<Vec<(u32, ClassCount)>> {
        let count = |policed: Policed| ClassCount {
            bytes: policed.passed_bytes,
            packets: policed.passed_packets,
            dropped: policed.met_packets.wrapping_sub(policed.passed_packets),
            ..ClassCount::default()
        };
        Ok(tc.policed(self.device)?.into_iter().map(|(class, policed)| (class, count(policed))).collect())
    }

    /// Whether these limits are still held.
    pub fn stands(self, tc: &mut Tc, branches: impl Iterator<Item = Branch>) -> Result<bool> {
        let there = tc.policed(self.device)?;
        let stands = branches.flat_map(Self::classes).all(|class| has(&there, class));
        Ok(stands && tc.ingress_kind(self.device)?.as_deref() == Some("clsact"))
    }

    /// Both kinds of packets share the rate. Small ones find room where a large buffer found none.
    fn classes(branch: Branch) -> impl Iterator<Item = u32> {
        [branch.bulk, branch.urgent].into_iter()
    }
}

fn has(there: &[(u32, Policed)], class: u32) -> bool {
    there.iter().any(|(priority, _)| *priority == class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polices_of_a_limit() {
        let branch = Branch::new(0xc4ad, 3);
        let mut plan = String::new();
        for rate in [100_000, 1_000_000, 10_000_000, u64::MAX / 8] {
            for direction in Direction::ALL {
                let police = Gate { device: 2, direction }.police(branch, rate, burst(rate));
                plan += &format!("{rate} bytes/s {direction}: {police:?}\n");
            }
        }
        insta::assert_snapshot!("polices", plan);
    }

    #[test]
    fn no_limit_takes_the_police_of_another_one() {
        let mut indices = std::collections::HashSet::new();
        for number in 0..1_000 {
            for direction in Direction::ALL {
                let police = Gate { device: 2, direction }.police(Branch::new(0xc4ad, number), 1, 1);
                assert!(police.index != 0 && indices.insert(police.index), "{number} {direction}");
            }
        }
    }
}
