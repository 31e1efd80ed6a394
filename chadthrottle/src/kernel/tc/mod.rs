//! Traffic control through rtnetlink: the IFB, clsact, filters that redirect; `htb`: queues with classes; `police`; `fq`:
//! who keeps packets until their time.
//!
//! The messages are written here, because the options of HTB, mirred and cls_bpf are in none of the
//! netlink crates. Layouts and numbers: include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls,tc_act/tc_mirred}.h.

pub mod fq;
pub mod htb;
pub mod police;

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
    process::{Command, Stdio},
};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::{
    journal::PREFIX,
    netns::Namespace,
    nl::{Attributes, Message, Netlink},
    rtnetlink,
};
use crate::error::{Error, Kind, Result};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const CREATE_NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_CLSACT: u32 = 0xffff_fff1;
/// Handle of clsact and of the older ingress qdisc: a device has one of them at most.
const INGRESS_HANDLE: u32 = 0xffff_0000;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Place of our filters among others': the last, for what we send to a queue comes back past all of them.
pub const PREFERENCE: u16 = 0xffff;

/// Which filters of a device; the value is their parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// Packets that come in.
    Ingress,
    /// Packets that go out.
    Egress,
}

impl Hook {
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// ARPHRD_*: what stands before the IP header.
    pub hardware: u16,
    /// Whether it is in use.
    pub up: bool,
    /// "ifb", "veth" …; empty for hardware.
    pub kind: String,
    /// It is a part of this device (a bridge, a bond), which has the addresses; 0: of none.
    pub master: u32,
}

/// A filter, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    preference: u16,
    protocol: u16,
    handle: u32,
    kind: String,
    /// Name that a bpf filter was given.
    pub name: String,
}

/// The queue of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassQueue {
    /// Whose it is.
    pub class: u32,
    /// Bytes that wait in it.
    pub bytes: u32,
    /// Packets (GRO buffers) that it had no room for. Wraps.
    pub dropped: u32,
}

/// What a filter does.
#[derive(Clone, Copy, Debug)]
pub enum Does {
    /// What the program answers.
    AsTheProgramSays,
    /// Packets that the program matches go to this device.
    RedirectTo(u32),
}

/// Traffic control of one namespace.
pub struct Tc(Netlink);

impl Tc {
    /// For the calling thread's namespace.
    pub fn open() -> Result<Self> {
        Netlink::open(NETLINK_ROUTE).map(Self)
    }

    /// For another namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)
    }

    /// All devices.
    pub fn devices(&mut self) -> Result<Vec<Device>> {
        let message = rtnetlink::link(RTM_GETLINK, 0, 0, 0);
        let answers = self.0.dump(message).map_err(|cause| explain(cause, "list network devices"))?;
        Ok(answers.iter().filter_map(|answer| device(answer)).collect())
    }

    /// What packets to this host have as their destination: the devices' own addresses and their broadcast addresses.
    pub fn own_addresses(&mut self) -> Result<Vec<IpAddr>> {
        const RTM_GETADDR: u16 = 22;
        /// `struct ifaddrmsg`.
        const HEADER: usize = 8;
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        const IFA_BROADCAST: u16 = 4;
        let answers = self
            .0
            .dump(Message::new(RTM_GETADDR, 0, &[0; HEADER]))
            .map_err(|cause| explain(cause, "list network addresses"))?;
        let mut found = Vec::new();
        for answer in &answers {
            let attributes = Attributes::of(answer.get(HEADER..).unwrap_or_default());
            // IFA_ADDRESS is the other end's where a line has two ends; IPv6 has no IFA_LOCAL elsewhere.
            let own = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS));
            let bytes = own.into_iter().chain(attributes.get(IFA_BROADCAST));
            found.extend(bytes.filter_map(|bytes| match bytes.len() {
                4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// Makes an IFB and takes it into use. It gets no IPv6 address, so that it stays as quiet as it looks.
    pub fn add_ifb(&mut self, name: &str) -> Result<u32> {
        const IFLA_IFNAME: u16 = 3;
        const IFLA_LINKINFO: u16 = 18;
        const IFLA_INFO_KIND: u16 = 1;
        const IFLA_AF_SPEC: u16 = 26;
        const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
        const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
        let doing = || format!("make the network device {name}");
        if !Path::new("/sys/module/ifb").exists() {
            // Loaded by the kernel on demand, it would make two devices of its own that nobody wants. Where
            // this fails, the kernel tries.
            let _ =
                Command::new("modprobe").args(["--quiet", "ifb", "numifbs=0"]).stderr(Stdio::null()).status();
        }
        let mut message = rtnetlink::link(RTM_NEWLINK, CREATE_NEW, 0, 0);
        message.text(IFLA_IFNAME, name);
        message.nested(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "ifb"));
        self.0.act(message).map_err(|cause| explain(cause, doing()))?;
        let index = self
            .devices()?
            .into_iter()
            .find(|device| device.name == name)
            .ok_or_else(|| Error::failed(format!("{}: it is gone again", doing())))?
            .index;
        // A kernel without IPv6 refuses, and needs it as little.
        let mut message = rtnetlink::link(RTM_NEWLINK, 0, index, 0);
        message.nested(IFLA_AF_SPEC, |families| {
            families.nested(libc::AF_INET6 as u16, |inet6| {
                inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        });
        let _ = self.0.act(message);
        self.set_up(index)?;
        Ok(index)
    }

    /// Takes a device into use.
    pub fn set_up(&mut self, device: u32) -> Result<()> {
        let up = rtnetlink::link(RTM_NEWLINK, 0, device, libc::IFF_UP as u32);
        self.0.act(up).map_err(|cause| explain(cause, format!("take network device {device} into use")))
    }

    /// Removes an IFB of ours by its name, with its qdisc. True when it was still there.
    ///
    /// # Errors
    /// When a device of that name is no IFB, or has a name that is none of ours.
    pub fn delete_ifb(&mut self, name: &str) -> Result<bool> {
        let doing = || format!("remove network device {name}");
        if !name.starts_with(PREFIX) {
            return Err(Error::failed(format!("{}: its name is none of ours", doing())));
        }
        let Some(device) = self.devices()?.into_iter().find(|device| device.name == name) else {
            return Ok(false);
        };
        if device.kind != "ifb" {
            return Err(Error::failed(format!("{}: it is no IFB", doing())));
        }
        absent_is_fine(self.0.act(rtnetlink::link(RTM_DELLINK, 0, device.index, 0)))
            .map_err(|cause| explain(cause, doing()))
    }

    /// Adds clsact to a device. False when it has one, or the older ingress qdisc, already: that is
    /// somebody else's, which stays, and takes our filters as well.
    pub fn add_clsact(&mut self, device: u32) -> Result<bool> {
        let mut message = rtnetlink::tc(RTM_NEWQDISC, CREATE_NEW, device, INGRESS_HANDLE, TC_H_CLSACT, 0);
        message.text(TCA_KIND, "clsact");
        match self.0.act(message) {
            Ok(()) => Ok(true),
            Err(error) if self.ingress_kind(device).is_ok_and(|kind| kind.is_some()) => {
                tracing::debug!("device {device} has filters of others: {error}");
                Ok(false)
            }
            Err(cause) => Err(explain(cause, format!("add clsact to network device {device}"))),
        }
    }

    /// Removes clsact, if nobody has a filter there. True when it did.
    pub fn delete_clsact(&mut self, device: u32) -> Result<bool> {
        if self.ingress_kind(device)?.as_deref() != Some("clsact") {
            return Ok(false);
        }
        for hook in [Hook::Ingress, Hook::Egress] {
            if !self.filters(device, hook)?.is_empty() {
                return Ok(false);
            }
        }
        let message = rtnetlink::tc(RTM_DELQDISC, 0, device, INGRESS_HANDLE, TC_H_CLSACT, 0);
        absent_is_fine(self.0.act(message))
            .map_err(|cause| explain(cause, format!("remove clsact from network device {device}")))
    }

    /// Whether a device has clsact for owners of ours only: whoever of them is the last to go takes it along.
    pub fn only_ours(&mut self, device: u32) -> Result<bool> {
        if self.ingress_kind(device)?.as_deref() != Some("clsact") {
            return Ok(false);
        }
        let mut filters = self.filters(device, Hook::Ingress)?;
        filters.extend(self.filters(device, Hook::Egress)?);
        Ok(!filters.is_empty() && filters.iter().all(|filter| filter.name.starts_with(PREFIX)))
    }

    /// "clsact", "ingress" or none: what takes a device's filters.
    pub fn ingress_kind(&mut self, device: u32) -> Result<Option<String>> {
        let message = rtnetlink::tc(RTM_GETQDISC, 0, device, 0, 0, 0);
        let answers = self
            .0
            .dump(message)
            .map_err(|cause| explain(cause, format!("list the qdiscs of network device {device}")))?;
        let kind = answers.iter().find_map(|answer| {
            let (index, handle, _, _) = tc_header(answer)?;
            let attributes = Attributes::of(answer.get(TC_HEADER..)?);
            (index == device && handle == INGRESS_HANDLE).then(|| attributes.text(TCA_KIND))?
        });
        Ok(kind)
    }

    /// Adds a filter under [`PREFERENCE`], beside any that are there.
    pub fn add_filter(
        &mut self,
        device: u32,
        hook: Hook,
        program: BorrowedFd<'_>,
        name: &str,
        does: Does,
    ) -> Result<()> {
        const TCA_MIRRED_PARMS: u16 = 2;
        const TCA_ACT_KIND: u16 = 1;
        const TCA_ACT_OPTIONS: u16 = 2;
        const TC_ACT_STOLEN: u32 = 4;
        const TCA_EGRESS_REDIR: u32 = 1;
        let info = filter_info(PREFERENCE, (libc::ETH_P_ALL as u16).to_be());
        let mut message = rtnetlink::tc(RTM_NEWTFILTER, CREATE_NEW, device, 0, hook.parent(), info);
        message.text(TCA_KIND, "bpf");
        message.nested(TCA_OPTIONS, |options| {
            options.words(TCA_BPF_FD, &[program.as_raw_fd() as u32]);
            options.text(TCA_BPF_NAME, name);
            match does {
                Does::AsTheProgramSays => options.words(TCA_BPF_FLAGS, &[TCA_BPF_FLAG_ACT_DIRECT]),
                Does::RedirectTo(target) => options.nested(TCA_BPF_ACT, |actions| {
                    actions.nested(1, |action| {
                        action.text(TCA_ACT_KIND, "mirred");
                        action.nested(TCA_ACT_OPTIONS, |parameters| {
                            // struct tc_mirred: index, capabilities, action, two counts, what, where.
                            let words = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, target];
                            parameters.words(TCA_MIRRED_PARMS, &words);
                        });
                    });
                }),
            }
        });
        self.0
            .act(message)
            .map_err(|cause| explain(cause, format!("add a filter to network device {device}")))
    }

    /// The filters of a device.
    pub fn filters(&mut self, device: u32, hook: Hook) -> Result<Vec<Filter>> {
        let message = rtnetlink::tc(RTM_GETTFILTER, 0, device, 0, hook.parent(), 0);
        let answers = match self.0.dump(message) {
            Ok(answers) => answers,
            // Without clsact there is nothing to list.
            Err(error) if error.kind == Kind::NotFound => Vec::new(),
            Err(cause) => {
                return Err(explain(cause, format!("list the filters of network device {device}")));
            }
        };
        // Each preference is listed by itself, and then with each of its filters.
        Ok(answers.iter().filter_map(|answer| filter(answer)).filter(|filter| filter.handle != 0).collect())
    }

    /// Removes our filter of that name. True when it was still there.
    pub fn delete_filter(&mut self, device: u32, hook: Hook, name: &str) -> Result<bool> {
        let ours =
            |filter: &Filter| filter.kind == "bpf" && filter.preference == PREFERENCE && filter.name == name;
        let mut deleted = false;
        for filter in self.filters(device, hook)?.into_iter().filter(ours) {
            let info = filter_info(filter.preference, filter.protocol);
            let mut message = rtnetlink::tc(RTM_DELTFILTER, 0, device, filter.handle, hook.parent(), info);
            message.text(TCA_KIND, "bpf");
            deleted |= absent_is_fine(self.0.act(message))
                .map_err(|cause| explain(cause, format!("remove filter {name}")))?;
        }
        Ok(deleted)
    }
}

fn filter_info(preference: u16, protocol: u16) -> u32 {
    u32::from(preference) << 16 | u32::from(protocol)
}

fn absent_is_fine(result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind == Kind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A failed exchange, under the name of what was wanted.
fn explain(cause: Error, message: impl Into<String>) -> Error {
    Error::caused(cause.kind, message, &cause)
}

/// struct tcmsg.
const TC_HEADER: usize = 20;

/// Device, handle, parent and info of a message.
fn tc_header(message: &[u8]) -> Option<(u32, u32, u32, u32)> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    Some((word(4)?, word(8)?, word(12)?, word(16)?))
}

fn filter(message: &[u8]) -> Option<Filter> {
    let (_, handle, _, info) = tc_header(message)?;
    let attributes = Attributes::of(message.get(TC_HEADER..)?);
    let options = attributes.get(TCA_OPTIONS).map(Attributes::of);
    Some(Filter {
        preference: (info >> 16) as u16,
        protocol: info as u16,
        handle,
        kind: attributes.text(TCA_KIND)?,
        name: options.and_then(|options| options.text(TCA_BPF_NAME)).unwrap_or_default(),
    })
}

fn device(message: &[u8]) -> Option<Device> {
    const HEADER: usize = 16; // struct ifinfomsg
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_MASTER: u16 = 10;
    const IFLA_INFO_KIND: u16 = 1;
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let attributes = Attributes::of(message.get(HEADER..)?);
    let info = attributes.get(IFLA_LINKINFO).map(Attributes::of);
    Some(Device {
        index: word(4)?,
        name: attributes.text(IFLA_IFNAME)?,
        hardware: u16::from_ne_bytes(message.get(2..4)?.try_into().ok()?),
        up: word(8)? & libc::IFF_UP as u32 != 0,
        kind: info.and_then(|info| info.text(IFLA_INFO_KIND)).unwrap_or_default(),
        master: attributes
            .get(IFLA_MASTER)
            .and_then(|value| value.try_into().ok())
            .map_or(0, u32::from_ne_bytes),
    })
}
