//! What a packet at the cgroup hook costs. Its data starts at the IP header.

use core::mem::MaybeUninit;

use aya_ebpf::{EbpfContext, helpers::bpf_skb_load_bytes, programs::SkBuffContext};
use chadthrottle_common::{
    abi::UPLOAD,
    wire::{Wire, on_wire},
};

use crate::remote::FarEnd;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Extension headers of IPv6 that may stand before the transport header.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

/// More of them than these are counted as payload of the first segment only.
const MAX_EXTENSIONS: usize = 4;

#[inline(always)]
fn load_u8(ctx: &SkBuffContext, at: u32) -> Option<u8> {
    let mut byte = 0u8;
    // SAFETY: one byte into one byte.
    let status = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), at, (&raw mut byte).cast(), 1) };
    (status == 0).then_some(byte)
}

/// Protocol and place of the transport header.
#[inline(always)]
fn transport(ctx: &SkBuffContext) -> Option<(u8, u32)> {
    let first = load_u8(ctx, 0)?;
    if first >> 4 != 6 {
        return Some((load_u8(ctx, 9)?, u32::from(first & 15) * 4));
    }
    let mut protocol = load_u8(ctx, 6)?;
    let mut at = 40;
    for _ in 0..MAX_EXTENSIONS {
        if protocol != HOP_BY_HOP && protocol != ROUTING && protocol != DESTINATION {
            break;
        }
        protocol = load_u8(ctx, at)?;
        at += (u32::from(load_u8(ctx, at + 1)?) + 1) * 8;
    }
    Some((protocol, at))
}

/// Reads plain integers.
#[inline(always)]
fn load<T: Copy>(ctx: &SkBuffContext, at: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: as many bytes as T has; only called for integers and arrays of them, which any bytes are.
    unsafe {
        let status = bpf_skb_load_bytes(ctx.as_ptr(), at, value.as_mut_ptr().cast(), size_of::<T>() as u32);
        (status == 0).then(|| value.assume_init())
    }
}

/// Who is at the other end of a packet.
#[inline(always)]
pub fn far_end(ctx: &SkBuffContext, direction: usize) -> Option<FarEnd> {
    let (protocol, at) = transport(ctx)?;
    // The source stands first, and is the far end of what arrives.
    let second = u32::from(direction == UPLOAD);
    let port = if protocol == TCP || protocol == UDP { load(ctx, at + 2 * second).unwrap_or(0) } else { 0 };
    Some(if load_u8(ctx, 0)? >> 4 == 6 {
        FarEnd::v6(load(ctx, 8 + 16 * second)?, port)
    } else {
        FarEnd::v4(load(ctx, 12 + 4 * second)?, port)
    })
}

/// Whether a TCP packet opens, closes or resets its connection.
#[inline(always)]
pub fn is_urgent(ctx: &SkBuffContext) -> bool {
    const FIN_SYN_RST: u8 = 0b111;
    let flags = transport(ctx).and_then(|(_, at)| load_u8(ctx, at + 13));
    flags.is_some_and(|flags| flags & FIN_SYN_RST != 0)
}

/// [`header_bytes`] of plain TCP, read in place: what nearly every GSO buffer is.
#[inline(always)]
fn plain_tcp_header_bytes(ctx: &SkBuffContext) -> Option<u32> {
    // SAFETY: each read lies between data and data_end, as was compared right before it.
    unsafe {
        let (data, end) = ((*ctx.skb.skb).data as usize, (*ctx.skb.skb).data_end as usize);
        if data + 33 > end {
            return None;
        }
        let byte = |at: usize| core::ptr::read_volatile((data + at) as *const u8);
        if byte(0) == 0x45 && byte(9) == TCP {
            return Some(20 + u32::from(byte(32) >> 4) * 4);
        }
        if data + 53 <= end && byte(0) >> 4 == 6 && byte(6) == TCP {
            return Some(40 + u32::from(byte(52) >> 4) * 4);
        }
    }
    None
}

/// Bytes of IP and transport header, which every segment of a GSO buffer repeats.
#[inline(always)]
fn header_bytes(ctx: &SkBuffContext) -> Option<u32> {
    let (protocol, ip) = transport(ctx)?;
    let transport = match protocol {
        TCP => u32::from(load_u8(ctx, ip + 12)? >> 4) * 4,
        UDP => 8,
        _ => 0,
    };
    Some(ip + transport)
}

/// Packets and IP bytes on the wire.
#[inline(always)]
pub fn wire(ctx: &SkBuffContext) -> Wire {
    let skb = ctx.skb.skb;
    // SAFETY: the context's own fields.
    let (length, segments, size) = unsafe { ((*skb).len, (*skb).gso_segs, (*skb).gso_size) };
    let headers =
        if size == 0 { 0 } else { plain_tcp_header_bytes(ctx).or_else(|| header_bytes(ctx)).unwrap_or(0) };
    on_wire(u64::from(length), u64::from(headers), segments, size)
}
