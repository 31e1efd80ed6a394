//! Network devices and addresses, through rtnetlink.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{
        InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkLayerType,
        LinkMessage,
    },
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::netns::Namespace;
use crate::error::{Context, Error, Kind, Result};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// A network device and what it has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// What it is made of, where it is no hardware: `veth`, `tun`, `bridge` …
    pub kind: Option<String>,
    /// Bytes of the link layer received since it was made.
    pub rx_bytes: u64,
    /// Bytes of the link layer sent.
    pub tx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

/// A connection to rtnetlink; it speaks to the namespace in which it was opened, wherever it is used.
pub struct Route {
    socket: Socket,
    sequence: u32,
}

impl Route {
    /// For the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("open a netlink socket")?;
        socket.bind_auto().context("bind a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("connect a netlink socket")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// For another namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)
    }

    /// Makes a pair of devices: `name` here, `peer` in `peer_namespace`.
    pub fn add_veth(&mut self, name: &str, peer: &str, peer_namespace: &Namespace) -> Result<()> {
        let mut far = LinkMessage::default();
        far.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        far.attributes.push(LinkAttribute::NetNsFd(peer_namespace.as_fd().as_raw_fd()));
        let mut near = LinkMessage::default();
        near.attributes.push(LinkAttribute::IfName(name.to_owned()));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.act(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|cause| explain(cause, format!("make the devices {name} and {peer}")))
    }

    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let replies = self
            .exchange(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)
            .map_err(|cause| explain(cause, "list network devices"))?;
        Ok(replies.into_iter().filter_map(link).collect())
    }

    /// All devices with their counters, by name.
    pub fn devices(&mut self) -> Result<Vec<Device>> {
        let replies = self
            .exchange(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)
            .map_err(|cause| explain(cause, "read the counters of network devices"))?;
        let mut devices: Vec<_> = replies.into_iter().filter_map(device).collect();
        devices.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(devices)
    }

    /// The number of the device `name`.
    pub fn index(&mut self, name: &str) -> Result<u32> {
        let found = self.links()?.into_iter().find(|link| link.name == name);
        found
            .map(|link| link.index)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no network device {name}")))
    }

    /// Takes a device into use.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.act(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|cause| explain(cause, format!("take network device {index} into use")))
    }

    /// Sets the largest packet a device takes, in bytes of the IP layer.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.act(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|cause| explain(cause, format!("set the mtu of network device {index}")))
    }

    /// Removes a device, and with it the other end of a pair.
    pub fn delete(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.act(RouteNetlinkMessage::DelLink(message), 0)
            .map_err(|cause| explain(cause, format!("remove network device {index}")))
    }

    /// Gives a device an address. An IPv6 address can be used at once: nobody is asked for duplicates.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = prefix;
        message.header.index = index;
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        self.act(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|cause| explain(cause, format!("give network device {index} the address {address}")))
    }

    /// A request that is only acknowledged.
    fn act(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.exchange(request, flags | NLM_F_ACK).map(drop)
    }

    /// Sends a request and collects the answers up to the acknowledgement or the end of the dump.
    fn exchange(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).context("send a netlink request")?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().context("receive a netlink answer")?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|cause| Error::caused(Kind::Failed, "read a netlink answer", &cause))?;
                // Messages are padded to four bytes.
                let length = (answer.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
                rest = &rest[length..];
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return Err(error.to_io()).context("the kernel refused");
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

/// A failed exchange, under the name of what was wanted.
fn explain(cause: Error, message: impl Into<String>) -> Error {
    Error::caused(cause.kind, message, &cause)
}

fn device(message: RouteNetlinkMessage) -> Option<Device> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let LinkHeader { link_layer_type, flags, .. } = message.header;
    let mut device = Device {
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        ethernet: link_layer_type == LinkLayerType::Ether,
        ..Device::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name,
            LinkAttribute::Stats64(stats) => {
                (device.rx_bytes, device.tx_bytes) = (stats.rx_bytes, stats.tx_bytes);
                (device.rx_packets, device.tx_packets) = (stats.rx_packets, stats.tx_packets);
            }
            LinkAttribute::LinkInfo(info) => {
                device.kind = info.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!device.name.is_empty()).then_some(device)
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let name = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })?;
    Some(Link { index: message.header.index, name })
}
