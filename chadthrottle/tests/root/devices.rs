//! Downloads that come over other devices than a plain one: what stands on it, goes through it, or comes and goes.

use chadthrottle::{
    kernel::{netlink::Route, netns::Namespace},
    model::RungKind,
};
use libtest_mimic::Trial;

use crate::{foreign::run, support::*};

const RATE: f64 = 1e6;
/// Where the peers of a device of its own are.
const NEAR: &str = "10.98.0.1";
const FAR: &str = "10.98.0.2:5000";

/// A device on both ends of the scene's cable, with an address of its own, or in place of the client's end of it.
#[derive(Clone, Copy)]
enum Upper {
    /// Bridge of which the device is a port.
    Bridge,
    /// Another Ethernet address on the same device.
    Macvlan,
    /// Ethernet in UDP: a packet passes both devices.
    Vxlan,
    /// A tag in the Ethernet header.
    Vlan,
}

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![plain("devices::come_and_go", come_and_go)];
    for (name, upper) in [
        ("bridge", Upper::Bridge),
        ("macvlan", Upper::Macvlan),
        ("vxlan", Upper::Vxlan),
        ("vlan", Upper::Vlan),
    ] {
        // Where nobody may make it to find out, the trial says what is missing.
        if upper.can_be_made().unwrap_or(true) {
            trials.push(plain(&format!("devices::{name}"), move |scene| over(scene, upper)));
        }
    }
    trials
}

impl Upper {
    /// What a user would type at the client's end and at the server's; `@` stands for its number.
    fn lines(self) -> (Vec<String>, Vec<String>) {
        let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
        let moved = |device: &str| {
            [
                "ip address del 10.99.0.1/24 dev chadt-c".to_owned(),
                format!("ip address add 10.99.0.1/24 dev {device}"),
                format!("ip link set {device} up"),
            ]
        };
        let at_both = |kind: &dyn Fn(&str, u8) -> String| {
            let one = |device: &str, host: u8, peer: u8| {
                vec![
                    kind(device, peer),
                    format!("ip address add 10.98.0.{host}/24 dev chadt-u"),
                    "ip link set chadt-u up".to_owned(),
                ]
            };
            (one("chadt-c", 1, 2), one("chadt-s", 2, 1))
        };
        match self {
            Self::Bridge => {
                let mut own: Vec<_> =
                    lines(&["ip link add chadt-u type bridge", "ip link set chadt-c master chadt-u"]);
                own.extend(moved("chadt-u"));
                (own, Vec::new())
            }
            Self::Macvlan => {
                let mut own: Vec<_> =
                    lines(&["ip link add link chadt-c name chadt-u type macvlan mode bridge"]);
                own.extend(moved("chadt-u"));
                (own, Vec::new())
            }
            Self::Vxlan => at_both(&|device, peer| {
                format!("ip link add chadt-u type vxlan id 5 dstport 4789 remote 10.99.0.{peer} dev {device}")
            }),
            Self::Vlan => {
                at_both(&|device, _| format!("ip link add link {device} name chadt-u type vlan id 5"))
            }
        }
    }

    /// Whether the kernel has such devices, and this machine ip(8).
    fn can_be_made(self) -> Result<bool> {
        let namespace = Namespace::new()?;
        Route::open_in(&namespace)?.add_veth("chadt-c", "chadt-s", &namespace)?;
        let line = self.lines().0.remove(0);
        Ok(matches!(run(&namespace, &line), Ok(Some(_))))
    }

    /// Whether it has addresses of its own.
    fn is_apart(self) -> bool {
        matches!(self, Self::Vxlan | Self::Vlan)
    }
}

/// What passes two devices is charged once, and waits in one queue.
fn over(scene: &Scene, upper: Upper) -> Result<()> {
    let (near, far) = upper.lines();
    for (namespace, lines) in [(&scene.lab.client, near), (&scene.lab.server, far)] {
        for line in lines {
            run(namespace, &line)?;
        }
    }
    let address = if upper.is_apart() { FAR.to_owned() } else { scene.tcp(Version::V4).to_string() };
    let server = scene.peer(&[format!("listen tcp {address}")])?;
    let transfer = scene.run();
    let words = format!("connect tcp {address} get flows=2 cc=cubic run={transfer}");
    let client = scene.client(&[words])?;
    sleep_until(now() + 1.0)?;
    let target = format!("pid:{}", client.pid());
    let limit = scene.limit(&format!("{target} -d {RATE}"))?;
    sleep_until(limit.since + 2.0)?;
    let start = server.meter_at(now())?.totals(transfer);
    let (from, before) = scene.passed(&target, Direction::Download)?;
    sleep_until(from + 5.0)?;
    let (to, after) = scene.passed(&target, Direction::Download)?;
    let share = received(&client, transfer, from, to)? / RATE;
    let end = server.meter_at(to)?.totals(transfer);
    let passed = (after - before) as f64 / (to - from) / RATE;
    let again = (end.retransmitted - start.retransmitted) as f64 / (end.sent - start.sent) as f64;
    let held = scene.report(&target)?.directions.download;
    let rungs = held.map_or_else(Vec::new, |held| held.rungs);
    eprintln!("received {share:.3}, passed {passed:.3}, sent again {again:.5}, {rungs:?}");
    let queued = |device: &str| {
        let kind = rungs.iter().find(|rung| rung.device.as_deref() == Some(device)).map(|rung| rung.kind);
        matches!(kind, Some(RungKind::IfbFqWindow | RungKind::IfbHtbWindow))
    };
    ensure!(queued("chadt-u"), "the status tells of {rungs:?}");
    ensure!((0.92..=0.985).contains(&share), "received {share:.3} of the limit");
    ensure!((0.97..=1.03).contains(&passed), "charged {passed:.3} of the limit");
    ensure!(again <= 0.002, "sent again {again:.5}");
    let ended = limit.end()?;
    await_full_speed(&client, transfer, ended, 1.0)?;
    for (namespace, there) in [(&scene.lab.client, true), (&scene.lab.server, upper.is_apart())] {
        if there {
            run(namespace, "ip link del chadt-u")?;
        }
    }
    Ok(())
}

/// A second device appears under a limit, carries traffic of it, and is gone again.
fn come_and_go(scene: &Scene) -> Result<()> {
    let _server = scene.server()?;
    let (first, second) = (scene.run(), scene.run());
    let mut client =
        scene.client(&[format!("connect tcp {} get cc=cubic run={first}", scene.tcp(Version::V4))])?;
    let target = format!("pid:{}", client.pid());
    let limit = scene.limit(&format!("{target} -d {RATE}"))?;
    ensure_held(&client, first, limit.since, RATE)?;

    let mut route = Route::open_in(&scene.lab.client)?;
    route.add_veth("chadt-c2", "chadt-s2", &scene.lab.server)?;
    let ip = |address: &str| address.parse().map_err(|_| Error::failed("no address"));
    let mut ends = [(route, "chadt-c2", NEAR), (Route::open_in(&scene.lab.server)?, "chadt-s2", "10.98.0.2")];
    for (route, device, address) in &mut ends {
        let index = route.index(device)?;
        route.add_address(index, ip(address)?, 24)?;
        route.set_up(index)?;
    }
    let other = scene.peer(&[format!("listen tcp {FAR}")])?;
    client.tell(&format!("connect tcp {FAR} get cc=cubic run={second}"))?;
    let from = now() + 2.0;
    let before = other.meter_at(from)?.totals(second);
    let shares = [received(&client, first, from, from + 5.0)?, received(&client, second, from, from + 5.0)?];
    let after = other.meter_at(from + 5.0)?.totals(second);
    let again =
        (after.retransmitted - before.retransmitted) as f64 / (after.sent - before.sent).max(1) as f64;
    let sum = (shares[0] + shares[1]) / RATE;
    eprintln!("over two devices {shares:.0?}, sent again {again:.5}");
    ensure!((0.92..=0.985).contains(&sum), "over both devices {sum:.3} of the limit");
    ensure!(shares[0].min(shares[1]) >= 0.25 * RATE, "shares of {shares:.0?}");
    ensure!(again <= 0.002, "sent again {again:.5}");
    let rungs = scene.report(&target)?.directions.download.map_or_else(Vec::new, |held| held.rungs);
    let names: Vec<_> = rungs.iter().filter_map(|rung| rung.device.as_deref()).collect();
    ensure!(names.contains(&"chadt-c") && names.contains(&"chadt-c2"), "the status tells of {rungs:?}");

    let (route, device, _) = &mut ends[0];
    let index = route.index(device)?;
    route.delete(index)?;
    let from = now() + 2.0;
    let share = received(&client, first, from, from + 4.0)? / RATE;
    eprintln!("with the first device alone {share:.3}");
    ensure!((0.92..=0.985).contains(&share), "with the first device alone {share:.3} of the limit");
    let ended = limit.end()?;
    await_full_speed(&client, first, ended, 1.0).map(drop)
}
