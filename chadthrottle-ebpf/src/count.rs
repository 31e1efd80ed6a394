//! What every process moves. Attached only while somebody monitors.
//!
//! Packets are counted at their sockets ([`COUNTS`]). Who owns a socket ([`OWNERS`]) is whoever made it, and from
//! then on whoever sends or receives on it. When a socket changes hands, and when it ends, its bytes are given to
//! its owner ([`TOTALS`]) and it begins at zero again; so nothing is lost with it, and a worker is not charged for
//! what another one moved. An accepted socket that nobody has used has only inherited an owner: whoever uses it
//! first also gets what it has moved before.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock,
    helpers::{
        bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_seq_write, bpf_skc_to_mptcp_sock,
        bpf_skc_to_tcp_sock, bpf_sock_from_file,
    },
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock, fentry},
    programs::{BtfTracePointContext, FEntryContext, SkBuffContext, SockContext},
};
use chadthrottle_common::abi::{
    CountKey, CountRecord, DOWNLOAD, KERNEL, KERNEL_KEY, OTHER, OTHER_KEY, PART, PART_USED, ProcessCount,
    SocketCount, SpareCount, UPLOAD,
};

use crate::{
    atomic,
    kernel::{field, global},
    maps::{COUNTS, MPTCP, OWNERS, SPARE, TOTALS, WIRED, note_protocol},
    packet,
    sockets::{AF_INET, AF_INET6, IterMeta, TaskFileContext},
};

const PASS: i32 = 1;
const LOOPBACK: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const BPF_NOEXIST: u64 = 1;

/// Adds bytes that belong to no process's entry.
#[inline(always)]
fn give_spare(index: u32, rx: u64, tx: u64, overflows: u64) {
    let Some(spare) = SPARE.get_ptr_mut(index) else { return };
    // SAFETY: a map value.
    unsafe {
        let spare: *mut SpareCount = spare;
        atomic::add(&raw mut (*spare).rx_bytes, rx);
        atomic::add(&raw mut (*spare).tx_bytes, tx);
        atomic::add(&raw mut (*spare).overflows, overflows);
    }
}

/// Adds bytes to a process's entry.
#[inline(always)]
fn give(process: &CountKey, rx: u64, tx: u64) {
    if process.tgid == 0 {
        return give_spare(if *process == KERNEL_KEY { KERNEL } else { OTHER }, rx, tx, 0);
    }
    if TOTALS.get_ptr_mut(process).is_none() {
        // Taken out after the process had ended; a socket of it had not.
        let nobody = ProcessCount { rx_bytes: 0, tx_bytes: 0, cgroup: 0, parent: 0, uid: 0, comm: [0; 2] };
        let _ = TOTALS.insert(process, nobody, BPF_NOEXIST);
    }
    match TOTALS.get_ptr_mut(process) {
        // SAFETY: a map value.
        Some(total) => unsafe {
            atomic::add(&raw mut (*total).rx_bytes, rx);
            atomic::add(&raw mut (*total).tx_bytes, tx);
        },
        None => give_spare(OTHER, rx, tx, 1),
    }
}

/// Gives a socket's bytes to its owner.
#[inline(always)]
unsafe fn fold(count: &mut SocketCount, process: &CountKey) {
    // SAFETY: a map value; packets on other processors go on adding.
    unsafe {
        let rx = atomic::swap(&raw mut count.rx_bytes, 0);
        let tx = atomic::swap(&raw mut count.tx_bytes, 0);
        if rx == 0 && tx == 0 {
            return;
        }
        atomic::add(&raw mut count.past_rx_bytes, rx);
        atomic::add(&raw mut count.past_tx_bytes, tx);
        give(process, rx, tx);
    }
}

/// A part of a multipath connection belongs to who owns the whole, which is all that programs see. Asked anew with
/// every packet, for nobody says when the whole changes hands.
#[inline(always)]
unsafe fn follow_whole(socket: *mut bpf_sock, count: &mut SocketCount) {
    // SAFETY: the caller's: a socket from the context; what is above it is checked for null.
    unsafe {
        let whole = bpf_skc_to_mptcp_sock(socket.cast());
        if whole.is_null() {
            return;
        }
        let Some(owner) = OWNERS.get(whole.cast()) else { return };
        let Some(part) = OWNERS.get(socket.cast()) else { return };
        let used = if owner.socket == whole as u64 { PART_USED } else { 0 };
        if part.process != owner.process {
            if part.part & PART_USED != 0 {
                fold(count, &part.process);
            }
            part.process = owner.process;
        }
        part.part = PART | used;
    }
}

/// What a socket is counted in; made with its first packet.
#[inline(always)]
unsafe fn count_of(socket: *mut bpf_sock) -> Option<&'static mut SocketCount> {
    // SAFETY: the caller's: a socket from the context.
    unsafe {
        let may_be_part = global::HAVE_MPTCP() != 0 && MPTCP.get(0).is_some_and(|seen| *seen != 0);
        if let Some(count) = COUNTS.get(socket.cast()) {
            if count.is_part != 0 && may_be_part {
                follow_whole(socket, count);
            }
            return Some(count);
        }
        let count = COUNTS.get_or_create(socket.cast())?;
        // Every socket that is counted is also listed, which goes by owners.
        let owner = match OWNERS.get(socket.cast()) {
            Some(owner) => owner,
            None => OWNERS.get_or_create(socket.cast())?,
        };
        if may_be_part && !bpf_skc_to_mptcp_sock(socket.cast()).is_null() {
            count.is_part = 1;
            owner.socket = socket as u64;
            owner.part = PART;
            follow_whole(socket, count);
        }
        Some(count)
    }
}

#[inline(always)]
unsafe fn count(ctx: &SkBuffContext, direction: usize) {
    // SAFETY: fields of the context; the socket is checked for null; map values.
    unsafe {
        let skb = ctx.skb.skb;
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return;
        }
        let bytes = packet::wire(ctx).bytes;
        if (*skb).ifindex != LOOPBACK
            && let Some(wired) = WIRED.get_ptr_mut(if direction == UPLOAD { 1 } else { 0 })
        {
            // A softirq may come in between.
            atomic::add(wired, bytes);
        }
        match count_of(socket) {
            Some(count) if direction == UPLOAD => atomic::add(&raw mut count.tx_bytes, bytes),
            Some(count) => atomic::add(&raw mut count.rx_bytes, bytes),
            None if direction == UPLOAD => give_spare(OTHER, 0, bytes, 1),
            None => give_spare(OTHER, bytes, 0, 1),
        }
    }
}

/// Takes back a packet that a limit refused: all programs at the hook see it, whatever the others say.
///
/// # Safety
/// `socket` comes from the packet's context.
#[inline(always)]
pub unsafe fn take_back(socket: *mut bpf_sock, direction: usize, bytes: u64) {
    // SAFETY: the caller's.
    unsafe {
        let Some(count) = COUNTS.get(socket.cast()) else { return };
        let word = if direction == UPLOAD { &raw mut count.tx_bytes } else { &raw mut count.rx_bytes };
        atomic::add(word, bytes.wrapping_neg());
    }
}

/// `egress` as for the limiter.
#[cgroup_skb(egress)]
pub fn count_egress(ctx: SkBuffContext) -> i32 {
    // SAFETY: a context of this program.
    unsafe { count(&ctx, UPLOAD) };
    PASS
}

#[cgroup_skb(ingress)]
pub fn count_ingress(ctx: SkBuffContext) -> i32 {
    // SAFETY: as above.
    unsafe { count(&ctx, DOWNLOAD) };
    PASS
}

/// Names a task's process.
#[inline(always)]
unsafe fn key_of(leader: *const c_void) -> CountKey {
    // SAFETY: the caller's: a task the verifier knows; offsets from the kernel's BTF.
    unsafe {
        CountKey {
            tgid: field(leader, global::TASK_TGID()),
            reserved: 0,
            start_ns: field(leader, global::TASK_START()),
        }
    }
}

/// Writes down who a process is, for those that end before anybody looks.
#[inline(always)]
unsafe fn know(process: &CountKey, leader: *const c_void) {
    // SAFETY: the caller's: a task the verifier knows; offsets from the kernel's BTF.
    unsafe {
        let comm: [u64; 2] =
            [field(leader, global::TASK_COMM()), field(leader, global::TASK_COMM() + size_of::<u64>())];
        if let Some(known) = TOTALS.get_ptr_mut(process) {
            // It may be another program by now.
            (*known).comm = comm;
            return;
        }
        let parent: *const c_void = field(leader, global::TASK_PARENT());
        let cred: *const c_void = field(leader, global::TASK_REAL_CRED());
        let groups: *const c_void = field(leader, global::TASK_CGROUPS());
        let group: *const c_void = field(groups, global::CSS_SET_CGROUP());
        let node: *const c_void = field(group, global::CGROUP_KN());
        let known = ProcessCount {
            rx_bytes: 0,
            tx_bytes: 0,
            cgroup: field(node, global::KN_ID()),
            parent: field(parent, global::TASK_TGID()),
            uid: field(cred, global::CRED_UID()),
            comm,
        };
        if TOTALS.insert(process, known, BPF_NOEXIST).is_err() {
            give_spare(OTHER, 0, 0, 1);
        }
    }
}

/// A socket belongs to who makes it.
#[cgroup_sock(sock_create)]
pub fn own_new_socket(ctx: SockContext) -> i32 {
    // SAFETY: the context is the socket; the current task is one.
    unsafe {
        note_protocol((*ctx.sock).protocol);
        let task: *const c_void = bpf_get_current_task_btf().cast();
        let leader: *const c_void = field(task, global::TASK_GROUP_LEADER());
        if let Some(owner) = OWNERS.get_or_create(ctx.as_ptr()) {
            owner.process = key_of(leader);
            owner.socket = ctx.as_ptr() as u64;
            know(&owner.process, leader);
        }
    }
    1
}

/// The current process uses a socket: from now on it is its.
#[inline(always)]
unsafe fn adopt(socket: *mut c_void) {
    // SAFETY: the caller's: `socket` is a socket; offsets from the kernel's BTF.
    unsafe {
        let family: u16 = field(socket, global::SK_FAMILY());
        if family != AF_INET && family != AF_INET6 {
            return;
        }
        let Some(owner) = OWNERS.get_or_create(socket) else { return };
        let task: *const c_void = bpf_get_current_task_btf().cast();
        let leader: *const c_void = field(task, global::TASK_GROUP_LEADER());
        let process = key_of(leader);
        let used = owner.socket == socket as u64;
        if used && owner.process == process {
            return;
        }
        if used
            && owner.process.tgid != 0
            && let Some(count) = COUNTS.get(socket)
        {
            fold(count, &owner.process);
        }
        owner.process = process;
        owner.socket = socket as u64;
        owner.part = 0;
        know(&process, leader);
    }
}

#[btf_tracepoint(function = "sock_send_length")]
pub fn own_on_send(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument is the socket.
    unsafe { adopt(ctx.arg(0)) };
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
pub fn own_on_receive(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument is the socket.
    unsafe { adopt(ctx.arg(0)) };
    0
}

/// The two above come when a call is over, which may take long; this comes while TCP takes in what is sent (6.16).
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
pub fn own_while_sending(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument is the socket.
    unsafe { adopt(ctx.arg(0)) };
    0
}

/// As [`adopt`], of what a process calls a socket.
#[inline(always)]
unsafe fn adopt_whole(ctx: &FEntryContext) {
    // SAFETY: the first argument of these functions is a `struct socket`; offsets from the kernel's BTF.
    unsafe {
        let socket: *const c_void = ctx.arg(0);
        adopt(field(socket, global::SOCKET_SK()));
    }
}

macro_rules! own_at {
    ($($program:ident at $function:literal),* $(,)?) => { $(
        #[fentry(function = $function)]
        pub fn $program(ctx: FEntryContext) -> i32 {
            // SAFETY: a context of this program.
            unsafe { adopt_whole(&ctx) };
            0
        }
    )* };
}

// Where some of the tracepoints above are missing (before 6.16): these come when a call begins.
own_at! {
    own_at_send at "inet_sendmsg",
    own_at_send6 at "inet6_sendmsg",
    own_at_sendfile at "inet_sendpage",
    own_at_receive at "inet_recvmsg",
    own_at_receive6 at "inet6_recvmsg",
}

/// Where neither can be had: called when a process has read from a TCP socket.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn own_on_tcp_read(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument is the socket.
    unsafe { adopt(ctx.arg(0)) };
    0
}

/// The end of a TCP socket, or of a part of a multipath connection.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn fold_tcp(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: first argument is the socket.
    unsafe {
        let socket: *mut c_void = ctx.arg(0);
        if let Some(count) = COUNTS.get(socket)
            && let Some(owner) = OWNERS.get(socket)
        {
            fold(count, &owner.process);
        }
    }
    0
}

/// Nobody holds the socket any more. TCP goes on sending what is queued, and ends later.
#[cgroup_sock(sock_release)]
pub fn fold_released(ctx: SockContext) -> i32 {
    // SAFETY: the context is the socket.
    unsafe {
        if (*ctx.sock).protocol != IPPROTO_TCP
            && let Some(count) = COUNTS.get(ctx.as_ptr())
            && let Some(owner) = OWNERS.get(ctx.as_ptr())
        {
            fold(count, &owner.process);
        }
    }
    1
}

/// Walks over open files: sockets that nobody owns yet belong to the first who is met with one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn own_open_sockets(ctx: *mut TaskFileContext) -> i32 {
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
        note_protocol(field::<u16>(sk, global::SK_PROTOCOL()).into());
        let Some(owner) = OWNERS.get_or_create(sk) else { return 0 };
        if owner.process.tgid == 0 {
            let leader: *const c_void = field(task, global::TASK_GROUP_LEADER());
            owner.process = key_of(leader);
            owner.socket = sk as u64;
            know(&owner.process, leader);
        }
    }
    0
}

#[repr(C)]
pub struct SocketMapContext {
    meta: *mut IterMeta,
    map: *mut c_void,
    socket: *mut c_void,
    value: *mut c_void,
}

/// Writes out every socket of `OWNERS` as `CountRecord`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn list_counted(ctx: *mut SocketMapContext) -> i32 {
    // SAFETY: the context's pointers are checked for null; offsets come from the kernel's BTF.
    unsafe {
        let sk = (*ctx).socket;
        if sk.is_null() {
            return 0;
        }
        let Some(owner) = OWNERS.get(sk) else { return 0 };
        let socket: *const c_void = field(sk, global::SK_SOCKET());
        let mut has_file = 0;
        if !socket.is_null() {
            let file: *const c_void = field(socket, global::SOCKET_FILE());
            if !file.is_null() {
                has_file = 1;
            } else if owner.process == OTHER_KEY {
                owner.process = KERNEL_KEY;
            }
        }
        let mut record = CountRecord {
            cookie: bpf_get_socket_cookie(sk),
            owner: owner.process,
            count: SocketCount { rx_bytes: 0, tx_bytes: 0, past_rx_bytes: 0, past_tx_bytes: 0, is_part: 0 },
            local: [0; 2],
            remote: [0; 2],
            local_port: field(sk, global::SK_LOCAL_PORT()),
            remote_port: field(sk, global::SK_REMOTE_PORT()),
            family: field(sk, global::SK_FAMILY()),
            protocol: field(sk, global::SK_PROTOCOL()),
            state: field::<u8>(sk, global::SK_STATE()).into(),
            srtt: 0,
            retransmits: 0,
            has_file,
            is_part: 0,
            reserved: 0,
        };
        if owner.part != 0 && owner.socket == sk as u64 {
            record.is_part = 1;
        }
        if let Some(count) = COUNTS.get(sk) {
            record.count.rx_bytes = count.rx_bytes;
            record.count.tx_bytes = count.tx_bytes;
            record.count.past_rx_bytes = count.past_rx_bytes;
            record.count.past_tx_bytes = count.past_tx_bytes;
        }
        if record.family == AF_INET6 {
            const HALF: usize = size_of::<u64>();
            record.local = [field(sk, global::SK_LOCAL6()), field(sk, global::SK_LOCAL6() + HALF)];
            record.remote = [field(sk, global::SK_REMOTE6()), field(sk, global::SK_REMOTE6() + HALF)];
        } else {
            record.local[0] = field::<u32>(sk, global::SK_LOCAL()).into();
            record.remote[0] = field::<u32>(sk, global::SK_REMOTE()).into();
        }
        let tcp: *const c_void = bpf_skc_to_tcp_sock(sk).cast();
        if !tcp.is_null() {
            record.srtt = field(tcp, global::TCP_SRTT_US());
            record.retransmits = field(tcp, global::TCP_RETRANSMITS());
        }
        bpf_seq_write((*(*ctx).meta).seq, (&raw mut record).cast(), size_of::<CountRecord>() as u32);
    }
    0
}

/// Takes all that the monitor has put onto sockets off them again.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn forget_counted(ctx: *mut SocketMapContext) -> i32 {
    // SAFETY: the socket is checked for null.
    unsafe {
        let sk = (*ctx).socket;
        if !sk.is_null() {
            COUNTS.delete(sk);
            OWNERS.delete(sk);
        }
    }
    0
}
