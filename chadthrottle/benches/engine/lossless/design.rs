//! What is compared: ours, and what people set up by hand.

use std::{path::Path, process::Command};

use chadthrottle::{
    Error, Kind, Result,
    kernel::netns::Namespace,
    model::Direction,
    selftest::{lab::CLIENT_DEVICE, traffic::now},
};

use crate::{
    scene::Yardstick,
    support::{Limit, Scene},
};

/// A way to hold a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Design {
    /// This program, as users get it.
    Ours,
    /// The same where somebody else's filter decides what arrives before ours can lead it into the queue: windows, and the
    /// bucket.
    Window,
    /// An eBPF program with the token bucket as it is usually written, which drops.
    Naive,
    /// A rule of nftables that drops what is over the rate.
    Nft,
    /// HTB with a class, on download behind an IFB.
    Htb,
}

/// A rate in force.
pub enum Held {
    /// By ours.
    Ours(Limit),
    /// By a program of the benchmark's, since a time; it goes when this is dropped.
    Naive(f64, #[allow(dead_code, reason = "owns the links")] Yardstick),
    /// By hand, since a time; it goes with its namespace.
    ByHand(f64),
}

impl Held {
    /// When it came into force, seconds of CLOCK_MONOTONIC.
    pub fn since(&self) -> f64 {
        match self {
            Self::Ours(limit) => limit.since,
            Self::Naive(since, _) | Self::ByHand(since) => *since,
        }
    }

    /// Ends it.
    pub fn end(self) -> Result<()> {
        match self {
            Self::Ours(limit) => limit.end().map(drop),
            Self::Naive(..) | Self::ByHand(_) => Ok(()),
        }
    }
}

impl Design {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ours, Self::Window, Self::Naive, Self::Nft, Self::Htb];

    /// As the command line calls it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Window => "window",
            Self::Naive => "naive",
            Self::Nft => "nft",
            Self::Htb => "htb",
        }
    }

    /// As the page calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "chadthrottle",
            Self::Window => "the same, no queue",
            Self::Naive => "naive bucket",
            Self::Nft => "nft by hand",
            Self::Htb => "HTB by hand",
        }
    }

    /// Holds the client to a rate, bytes/s. By hand it is the whole namespace, in which nobody else is.
    /// `yardstick` is the object with the naive bucket.
    pub fn set(
        self,
        scene: &Scene,
        direction: Direction,
        rate: u64,
        pid: u32,
        yardstick: &Path,
    ) -> Result<Held> {
        let option = if direction == Direction::Upload { "-u" } else { "-d" };
        let lines: Vec<String> = match (self, direction) {
            (Self::Ours | Self::Window, _) => {
                if self == Self::Window {
                    run(&scene.lab.client, &format!("tc qdisc add dev {CLIENT_DEVICE} clsact"))?;
                    run(
                        &scene.lab.client,
                        &format!(
                            "tc filter add dev {CLIENT_DEVICE} ingress pref 1 u32 match u32 0 0 flowid :1"
                        ),
                    )?;
                }
                return scene.limit(&format!("pid:{pid} {option} {rate}")).map(Held::Ours);
            }
            (Self::Naive, _) => {
                let mut programs = Yardstick::load(yardstick)?;
                programs.attach_naive(scene.cgroup().path(), direction, rate)?;
                return Ok(Held::Naive(now(), programs));
            }
            (Self::Nft, _) => {
                let hook = if direction == Direction::Upload { "output" } else { "input" };
                vec![
                    "nft add table inet chadt-bench".into(),
                    format!("nft add chain inet chadt-bench c {{ type filter hook {hook} priority 0 ; }}"),
                    format!(
                        "nft add rule inet chadt-bench c meta l4proto tcp limit rate over {rate} bytes/second drop"
                    ),
                ]
            }
            (Self::Htb, Direction::Upload) => htb(CLIENT_DEVICE, rate),
            (Self::Htb, Direction::Download) => {
                let mut lines =
                    vec!["ip link add chadt-ifb type ifb".into(), "ip link set chadt-ifb up".into()];
                lines.extend(htb("chadt-ifb", rate));
                lines.push(format!("tc qdisc add dev {CLIENT_DEVICE} ingress"));
                lines.push(format!(
                    "tc filter add dev {CLIENT_DEVICE} parent ffff: protocol all u32 match u32 0 0 action mirred egress \
                     redirect dev chadt-ifb"
                ));
                lines
            }
        };
        for line in lines {
            run(&scene.lab.client, &line)?;
        }
        Ok(Held::ByHand(now()))
    }
}

/// One class that takes all.
fn htb(device: &str, rate: u64) -> Vec<String> {
    vec![
        format!("tc qdisc add dev {device} root handle 1: htb default 1"),
        format!("tc class add dev {device} parent 1: classid 1:1 htb rate {rate}bps"),
    ]
}

/// Runs a command, words separated by spaces, in a namespace.
fn run(namespace: &Namespace, line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    let output = namespace
        .contain(&mut command)?
        .output()
        .map_err(|cause| Error::caused(Kind::Failed, format!("run '{line}'"), &cause))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::failed(format!("'{line}': {}", String::from_utf8_lossy(&output.stderr).trim())))
}
