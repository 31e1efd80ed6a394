//! What interfaces moved that no socket did: forwarded packets, answers of the kernel itself.
//!
//! It is what the outermost interfaces moved less what was counted at sockets. Both are read at slightly different
//! times, drivers count the headers of large buffers differently, and traffic between containers is counted but passes
//! no outer interface: then less seems to have moved than was counted. Such a debt is set against what comes in the
//! next seconds, and forgotten after; so noise does not grow into traffic that never was.

use std::time::{Duration, Instant};

use super::reading::Bytes;
use crate::kernel::netlink::Device;

/// A debt is carried so long.
const CARRIED: Duration = Duration::from_secs(3);
/// Link-layer header of Ethernet.
const ETHERNET: u64 = 14;
/// Devices whose packets come from, or go to, another device of the machine, or another namespace.
const TUNNELS: &[&str] =
    &["tun", "wireguard", "gre", "gretap", "ipip", "sit", "vxlan", "geneve", "ip6tnl", "ifb"];

/// Keeps the balance.
#[derive(Debug, Default)]
pub struct Rest {
    last: Option<(Bytes, Bytes)>,
    rx: Balance,
    tx: Balance,
}

#[derive(Debug, Default)]
struct Balance {
    total: u64,
    debt: u64,
    debt_since: Option<Instant>,
}

impl Balance {
    fn enter(&mut self, moved: u64, counted: u64, now: Instant) -> u64 {
        if self.debt_since.is_some_and(|since| now.saturating_duration_since(since) > CARRIED) {
            (self.debt, self.debt_since) = (0, None);
        }
        let owed = self.debt + counted;
        if moved >= owed {
            self.total += moved - owed;
            (self.debt, self.debt_since) = (0, None);
        } else {
            // What is owed anew is no older than now; the rest was there before.
            if owed - moved > self.debt {
                self.debt_since = Some(now);
            }
            self.debt = owed - moved;
        }
        self.total
    }
}

impl Rest {
    /// The rest up to now.
    pub fn update(&mut self, devices: &[Device], counted: Bytes, now: Instant) -> Bytes {
        let moved = outermost(devices);
        if let Some((moved_before, counted_before)) = self.last.replace((moved, counted)) {
            let (moved, counted) = (moved.since(moved_before), counted.since(counted_before));
            self.rx.enter(moved.rx, counted.rx, now);
            self.tx.enter(moved.tx, counted.tx, now);
        }
        Bytes { rx: self.rx.total, tx: self.tx.total }
    }
}

/// IP bytes of the interfaces that lead out of the machine: hardware; where there is none (a container, a virtual
/// network) all but tunnels.
fn outermost(devices: &[Device]) -> Bytes {
    let leads_out = |device: &&Device| !device.loopback;
    let hardware = |device: &&Device| leads_out(device) && device.kind.is_none();
    let virtual_one = |device: &&Device| {
        leads_out(device) && device.kind.as_deref().is_some_and(|kind| !TUNNELS.contains(&kind))
    };
    let sum = |chosen: &dyn Fn(&&Device) -> bool| {
        let mut sum = Bytes::default();
        for device in devices.iter().filter(|device| chosen(device)) {
            let header = if device.ethernet { ETHERNET } else { 0 };
            sum += Bytes {
                rx: device.rx_bytes.saturating_sub(header * device.rx_packets),
                tx: device.tx_bytes.saturating_sub(header * device.tx_packets),
            };
        }
        sum
    };
    if devices.iter().any(|device| hardware(&device) && device.up) {
        sum(&hardware)
    } else {
        sum(&virtual_one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, kind: Option<&str>, rx_bytes: u64) -> Device {
        Device {
            name: name.into(),
            up: true,
            loopback: name == "lo",
            ethernet: kind != Some("tun"),
            kind: kind.map(str::to_owned),
            rx_bytes,
            rx_packets: rx_bytes / 114,
            ..Device::default()
        }
    }

    #[test]
    fn hardware_counts_and_tunnels_do_not() {
        let lo = device("lo", None, 999);
        let all = [
            lo.clone(),
            device("eth0", None, 1140),
            device("tun0", Some("tun"), 500),
            device("br0", Some("bridge"), 114),
        ];
        assert_eq!(outermost(&all).rx, 1000);
        let inside = [lo, device("eth0", Some("veth"), 570), device("tun0", Some("tun"), 500)];
        assert_eq!(outermost(&inside).rx, 500);
    }

    #[test]
    fn noise_does_not_add_up_and_old_debts_are_forgotten() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut balance = Balance::default();
        // Read a little early, then a little late.
        assert_eq!(balance.enter(950, 1000, at(1)), 0);
        assert_eq!(balance.enter(1050, 1000, at(2)), 0);
        // Forwarded beside.
        assert_eq!(balance.enter(1300, 1000, at(3)), 300);
        // Traffic between containers, for long; then forwarding.
        for second in 4..10 {
            assert_eq!(balance.enter(0, 1000, at(second)), 300);
        }
        assert_eq!(balance.enter(100, 0, at(20)), 400);
    }

    #[test]
    fn it_begins_with_the_first_look() {
        let mut rest = Rest::default();
        let now = Instant::now();
        let look = |rest: &mut Rest, moved, counted| {
            rest.update(&[device("eth0", None, moved)], Bytes { rx: counted, tx: 0 }, now).rx
        };
        assert_eq!(look(&mut rest, 114_000, 5), 0);
        assert_eq!(look(&mut rest, 114_000 + 1140, 405), 600);
    }
}
