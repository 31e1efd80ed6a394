//! Queueing disciplines, filters and nftables tables of a network namespace, asked for with netlink.

use std::collections::BTreeSet;

use chadthrottle::{Error, Result, kernel::netlink::Route};
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE`.
const NFT_GET_TABLE: u16 = 10 << 8 | 1;

/// Lengths of the headers: `nlmsghdr`, `tcmsg`, `nfgenmsg`.
const HEADER: usize = 16;
const TC_HEADER: usize = 20;
const NF_HEADER: usize = 4;

const TCA_KIND: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;

/// Where filters of an ingress or clsact qdisc hang.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Of the calling thread's namespace; each begins with `place`.
pub fn list(place: &str, found: &mut BTreeSet<String>) -> Result<()> {
    for device in Route::open()?.links()? {
        found.insert(format!("{place}network device {} {}", device.index, device.name));
    }
    for qdisc in dump(NETLINK_ROUTE, RTM_GETQDISC, &[0; TC_HEADER])? {
        let Some(Tc { device, handle, parent, kind }) = Tc::parse(&qdisc) else { continue };
        // The kernel's own have no handle.
        if handle == 0 {
            continue;
        }
        found.insert(format!("{place}qdisc {kind} {handle:x} of device {device}, parent {parent:x}"));
        for parent in [handle, INGRESS, EGRESS] {
            let mut request = [0; TC_HEADER];
            request[4..8].copy_from_slice(&device.to_ne_bytes());
            request[12..16].copy_from_slice(&parent.to_ne_bytes());
            for filter in dump(NETLINK_ROUTE, RTM_GETTFILTER, &request)? {
                let Some(Tc { handle, kind, .. }) = Tc::parse(&filter) else { continue };
                found
                    .insert(format!("{place}filter {kind} {handle:x} of device {device}, parent {parent:x}"));
            }
        }
    }
    for table in dump(NETLINK_NETFILTER, NFT_GET_TABLE, &[0; NF_HEADER])? {
        if let (Some(family), Some(name)) = (table.first(), attribute(&table, NF_HEADER, NFTA_TABLE_NAME)) {
            found.insert(format!("{place}nftables table {name} of family {family}"));
        }
    }
    Ok(())
}

/// A qdisc or a filter.
struct Tc {
    device: u32,
    handle: u32,
    parent: u32,
    kind: String,
}

impl Tc {
    fn parse(message: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            device: word(4)?,
            handle: word(8)?,
            parent: word(12)?,
            kind: attribute(message, TC_HEADER, TCA_KIND)?,
        })
    }
}

/// A text attribute after the header.
fn attribute(message: &[u8], header: usize, wanted: u16) -> Option<String> {
    let mut rest = message.get(header..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([rest[2], rest[3]]) == wanted {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// All answers to a request for a list; none where the kernel lacks what is asked for.
fn dump(protocol: isize, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>> {
    let failed = |cause| Error::failed(format!("ask the kernel for a list: {cause}"));
    let mut socket = match Socket::new(protocol) {
        Err(cause) if cause.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket.map_err(failed)?,
    };
    socket.bind_auto().map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(body);
    socket.send(&request, 0).map_err(failed)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().map_err(failed)?;
        let mut rest = &datagram[..];
        while rest.len() >= HEADER {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let message = rest.get(HEADER..length).ok_or_else(|| Error::failed("an answer is cut off"))?;
            match u16::from_ne_bytes([rest[4], rest[5]]) {
                // What is not built in is not there.
                NLMSG_DONE | NLMSG_ERROR => return Ok(answers),
                _ => answers.push(message.to_vec()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
