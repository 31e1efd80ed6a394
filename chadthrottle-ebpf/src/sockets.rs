//! Which sockets the limited processes own: at birth, open already, in use.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{file, seq_file},
    helpers::{bpf_get_current_pid_tgid, bpf_seq_write, bpf_skc_to_tcp_sock, bpf_sock_from_file},
    macros::{btf_tracepoint, cgroup_sock},
    programs::{BtfTracePointContext, SockContext},
};
use chadthrottle_common::{
    abi::{
        MAX_NESTED, ProcessEntry, RECORD_FOLLOWS, RECORD_LISTENER, RECORD_LOWERED, RECORD_SHARED,
        RECORD_WAS_UNTAGGED, SocketRecord, TAG_LISTENER, TAG_SHARED, Tag,
    },
    remote::Address,
};

use crate::{
    atomic,
    kernel::{field, global},
    maps::{FLOWS, LOST, PROCESSES, STATE, TAGS, WINDOWS, live_state, note_protocol, now_with_moves},
    remote::FarEnd,
    rules::join_by_user,
};

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
const TCP_LISTEN: u8 = 10;

#[inline(always)]
fn epoch() -> u64 {
    STATE.get(0).map_or(0, |state| now_with_moves(state.epoch))
}

#[inline(always)]
fn own(tag: &mut Tag, tgid: u32, entry: &ProcessEntry) {
    tag.tgid = tgid;
    tag.born = entry.born;
    tag.limits = entry.limits;
    tag.applies = 0;
    tag.epoch = epoch();
}

/// A socket of a limited process carries its tag from birth.
#[cgroup_sock(sock_create)]
pub fn tag_new_socket(ctx: SockContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    join_by_user(tgid);
    // SAFETY: the context is the socket.
    unsafe {
        if let Some(entry) = PROCESSES.get(tgid) {
            note_protocol((*ctx.sock).protocol);
            if let Some(tag) = TAGS.get_or_create(ctx.as_ptr()) {
                own(tag, tgid, entry);
            } else if let Some(lost) = LOST.get_ptr_mut(0) {
                atomic::add(&raw mut (*lost).sockets, 1);
            }
        }
    }
    1
}

#[repr(C)]
pub struct IterMeta {
    pub seq: *mut seq_file,
    session: u64,
    number: u64,
}

#[repr(C)]
pub struct TaskFileContext {
    meta: *mut IterMeta,
    pub task: *mut c_void,
    fd: u32,
    pub file: *mut file,
}

/// Whether the tag's owner is limited and still the process it was.
#[inline(always)]
unsafe fn owner_entry(tag: &Tag) -> Option<&'static ProcessEntry> {
    // SAFETY: the value may be freed meanwhile; `born` tells.
    unsafe { PROCESSES.get(tag.tgid) }.filter(|entry| entry.born == tag.born)
}

#[inline(always)]
fn same_limits(one: &[u64; MAX_NESTED], other: &[u64; MAX_NESTED]) -> bool {
    let mut same = true;
    for (one, other) in one.iter().zip(other) {
        same &= one == other;
    }
    same
}

/// Settles who owns a socket that a limited process holds open; returns the record's flags.
#[inline(always)]
unsafe fn claim(socket: *mut c_void, tgid: u32, entry: &ProcessEntry) -> u32 {
    // SAFETY: the caller's: `socket` is a socket.
    unsafe {
        let listens = field::<u8>(socket, global::SK_STATE()) == TCP_LISTEN;
        let mut flags = if listens { RECORD_LISTENER } else { 0 };
        if TAGS.get(socket).is_none() {
            flags |= RECORD_WAS_UNTAGGED;
        }
        note_protocol(field::<u16>(socket, global::SK_PROTOCOL()).into());
        let Some(tag) = TAGS.get_or_create(socket) else {
            return flags;
        };
        let unused = !listens && tag.flags & TAG_LISTENER != 0;
        let mine = tag.tgid == tgid && tag.born == entry.born;
        if unused {
            // An accepted socket that nobody used yet, but this process holds.
            tag.flags &= !TAG_LISTENER;
            own(tag, tgid, entry);
        } else if mine {
            own(tag, tgid, entry);
        } else if let Some(owner) = owner_entry(tag) {
            if !same_limits(&owner.limits, &entry.limits) {
                tag.flags |= TAG_SHARED;
            }
        } else if tag.flags & TAG_SHARED == 0 {
            if !same_limits(&tag.limits, &entry.limits) {
                flags |= RECORD_WAS_UNTAGGED;
            }
            own(tag, tgid, entry);
        }
        if listens {
            tag.flags |= TAG_LISTENER;
        }
        if tag.flags & TAG_SHARED != 0 {
            flags |= RECORD_SHARED;
        }
        flags
    }
}

/// Walks over open files. Sockets of limited processes get their tag and are written out as
/// `SocketRecord`; a tagged socket that an unlimited process holds too is marked as shared, which
/// takes a second walk to see for those met before their limited holder.
///
/// aya-ebpf has no macro for iterators.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn tag_open_sockets(ctx: *mut TaskFileContext) -> i32 {
    // SAFETY: the context's pointers are checked for null; offsets come from the kernel's BTF.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let socket = bpf_sock_from_file(file);
        if socket.is_null() {
            return 0;
        }
        let sk: *mut c_void = field(socket.cast(), global::SOCKET_SK());
        if sk.is_null() {
            return 0;
        }
        let family: u16 = field(sk, global::SK_FAMILY());
        if family != AF_INET && family != AF_INET6 {
            return 0;
        }
        let tgid: u32 = field(task, global::TASK_TGID());
        let Some(entry) = PROCESSES.get(tgid) else {
            if let Some(tag) = TAGS.get(sk)
                && tag.tgid != tgid
                && owner_entry(tag).is_some()
            {
                tag.flags |= TAG_SHARED;
            }
            return 0;
        };
        let mut record = SocketRecord {
            tgid,
            fd: (*ctx).fd,
            socket: sk as u64,
            flags: claim(sk, tgid, entry),
            protocol: u32::from(field::<u16>(sk, global::SK_PROTOCOL())),
            bytes_acked: 0,
            bytes_received: 0,
            level: 0,
            namespace: 0,
            device: 0,
            remote: Address { high: 0, low: 0 },
            remote_port: 0,
            pad: 0,
        };
        let far_end = FarEnd::of_socket(sk);
        record.remote = far_end.address;
        record.remote_port = far_end.port.into();
        let net: *const c_void = field(sk, global::SK_NET());
        if !net.is_null() {
            record.namespace = field(net, global::NET_INUM());
        }
        if let Some(flow) = WINDOWS.get(sk)
            && flow.limit != 0
            && entry.limits.iter().any(|limit| *limit == flow.limit)
        {
            record.flags |= RECORD_LOWERED;
        }
        if global::SK_RX_DEVICE() != 0 {
            record.device = field(sk, global::SK_RX_DEVICE());
        }
        // Datagrams leave no trace of their device on the socket.
        if record.device == 0
            && let Some(tag) = TAGS.get(sk)
        {
            record.device = if tag.told_device != 0 { tag.told_device } else { tag.last_device };
        }
        if let Some(flow) = FLOWS.get(sk) {
            record.level = flow.level;
            if flow.follows != 0 {
                record.flags |= RECORD_FOLLOWS;
            }
        }
        let tcp: *const c_void = bpf_skc_to_tcp_sock(sk).cast();
        if !tcp.is_null() {
            record.bytes_acked = field(tcp, global::TCP_BYTES_ACKED());
            record.bytes_received = field(tcp, global::TCP_BYTES_RECEIVED());
        }
        bpf_seq_write((*(*ctx).meta).seq, (&raw mut record).cast(), size_of::<SocketRecord>() as u32);
    }
    0
}

/// The current process uses a socket: when several could, it owns it from now on.
#[inline(always)]
unsafe fn adopt(socket: *mut c_void) -> Option<()> {
    // SAFETY: the caller's: `socket` is a socket.
    unsafe {
        let tag = TAGS.get(socket)?;
        if tag.flags & TAG_SHARED == 0 {
            return None;
        }
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        live_state()?;
        tag.flags &= !TAG_LISTENER;
        match PROCESSES.get(tgid) {
            Some(entry) => own(tag, tgid, entry),
            None => own(tag, tgid, &ProcessEntry { born: 0, limits: [0; MAX_NESTED] }),
        }
    }
    Some(())
}

#[btf_tracepoint(function = "sock_send_length")]
pub fn adopt_on_send(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument is the socket.
    let _ = unsafe { adopt(ctx.arg(0)) };
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
pub fn adopt_on_receive(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument is the socket.
    let _ = unsafe { adopt(ctx.arg(0)) };
    0
}

/// Where the two above are missing (before 6.3): called when a process has read from a TCP socket.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn adopt_on_tcp_read(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument is the socket.
    let _ = unsafe { adopt(ctx.arg(0)) };
    0
}
