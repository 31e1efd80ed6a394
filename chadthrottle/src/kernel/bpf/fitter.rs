//! Sets the congestion windows of connections that were open before their limit: only an eBPF program can, one that walks
//! over a network namespace's TCP sockets. It is so small that it is written out here, and needs nothing but the map: so the
//! janitor, and the next owner, can run it over what a killed one has left.

use std::{
    io::{self, Read},
    mem::offset_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use ::caps::Capability;
use chadthrottle_common::abi::Flow;

use super::{
    FlowMap, refusal_of,
    sys::{self, BPF_PROG_LOAD, BPF_TRACE_ITER, bpf_fd},
};
use crate::{
    error::{Context, Result},
    kernel::{btf::Btf, caps, netns::Namespace},
};

/// The program's name.
const NAME: &str = "chadt_fit";

const SOL_TCP: i32 = 6;
const TCP_BPF_SNDCWND_CLAMP: i32 = 1002;

// Helpers, from include/uapi/linux/bpf.h.
const SETSOCKOPT: i32 = 49;
const SK_STORAGE_GET: i32 = 107;
const SKC_TO_TCP_SOCK: i32 = 137;

/// What the program has to know of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// The type of the function that stands for the walk, bpf_iter_tcp.
    function: u32,
    /// Where a struct tcp_sock has what its congestion window is held to.
    clamp: u32,
}

impl Walk {
    /// `None`: this kernel has no such walk (5.9).
    pub fn find(kernel: &Btf) -> Option<Self> {
        let clamp = kernel.offset("tcp_sock", "snd_cwnd_clamp").ok()?;
        Some(Self { function: kernel.function("bpf_iter_tcp")?, clamp })
    }

    /// Whether we may walk in other network namespaces than ours.
    pub fn may_enter() -> bool {
        caps::missing(&[Capability::CAP_SYS_ADMIN]).is_empty()
    }

    /// Whether a program on the walk may set anything (5.15).
    pub fn may_set(self) -> bool {
        // Arguments are looked at after the helper is found.
        let program = [call(SETSOCKOPT), set(0, 0), instruction(0x95, 0, 0, 0, 0)];
        let Err((_, log)) = load(&program, self.function) else { return true };
        !log.is_empty() && !log.contains("unknown func") && !log.contains("cannot use helper")
    }
}

/// The program, loaded for one map of paced connections.
#[derive(Debug)]
pub struct Fitter(OwnedFd);

impl Fitter {
    /// # Errors
    /// The verifier's word where such a program may not set anything (before 5.15).
    pub fn load(flows: FlowMap<'_>, walk: Walk) -> Result<Self> {
        load(&program(flows.0, walk.clamp), walk.function)
            .map(Self)
            .map_err(|(cause, log)| refusal_of(NAME, &cause, &log))
    }

    /// [`Fitter::load`], for who has not looked at the kernel's types yet; `None`: this kernel has no such walk.
    pub fn for_flows(flows: FlowMap<'_>) -> Result<Option<Self>> {
        Walk::find(&Btf::from_kernel()?).map(|walk| Self::load(flows, walk)).transpose()
    }

    /// Grants what is wished for in the map to the connections of a network namespace.
    pub fn fit(&self, namespace: &Namespace) -> Result<()> {
        let doing = "set the congestion windows of limited connections";
        namespace.run(|| {
            let mut walk = sys::open_socket_iterator(self.0.as_fd()).context(doing)?;
            // It writes nothing; to be read to its end is what makes it walk.
            walk.read_to_end(&mut Vec::new()).context(doing).map(drop)
        })
    }
}

const BPF_PROG_TYPE_TRACING: u32 = 26;

/// `union bpf_attr` for BPF_PROG_LOAD, up to the type of what a program is attached to.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// Loads a program for the iterator that a kernel's function stands for, or says why not, and what the verifier says.
fn load(instructions: &[u64], function: u32) -> Result<OwnedFd, (io::Error, String)> {
    let mut log = vec![0u8; 64 * 1024];
    let mut attributes = Load {
        prog_type: BPF_PROG_TYPE_TRACING,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log_buf: log.as_mut_ptr() as u64,
        expected_attach_type: BPF_TRACE_ITER,
        attach_btf_id: function,
        ..Load::default()
    };
    attributes.name[..NAME.len()].copy_from_slice(NAME.as_bytes());
    bpf_fd(BPF_PROG_LOAD, &mut attributes).map_err(|cause| {
        let length = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        (cause, String::from_utf8_lossy(&log[..length]).into_owned())
    })
}

/// The fields of `struct bpf_insn`, in 64 bits.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

const fn load32(to: u8, from: u8, offset: usize) -> u64 {
    instruction(0x61, to, from, offset as i16, 0)
}

const fn load64(to: u8, from: u8, offset: usize) -> u64 {
    instruction(0x79, to, from, offset as i16, 0)
}

const fn store32(to: u8, offset: i16, from: u8) -> u64 {
    instruction(0x63, to, from, offset, 0)
}

const fn copy(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}

const fn set(to: u8, value: i32) -> u64 {
    instruction(0xb7, to, 0, 0, value)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

/// Jumps over so many when the register is, or is not, the value.
const fn if_is(register: u8, value: i32, over: i16) -> u64 {
    instruction(0x15, register, 0, over, value)
}

const fn if_not(register: u8, value: i32, over: i16) -> u64 {
    instruction(0x55, register, 0, over, value)
}

/// A jump over so many goes to the end.
const ALL: i16 = i16::MAX;

/// The same as `Flow::grant` for each socket, with a wish for nothing where no level holds any more.
fn program(flows: BorrowedFd<'_>, clamp: u32) -> Vec<u64> {
    const WISH: usize = offset_of!(Flow, window);
    const GRANTED: usize = offset_of!(Flow, window_set);
    const FOUND: usize = offset_of!(Flow, window_found);
    let mut program = vec![
        // r6: the socket, which is the second word of the context. What waits for its end is no tcp_sock.
        load64(6, 1, 8),
        if_is(6, 0, ALL),
        copy(1, 6),
        call(SKC_TO_TCP_SOCK),
        if_is(0, 0, ALL),
        copy(6, 0),
        // r7: its Flow, if it has one. A map takes two instructions.
        instruction(0x18, 1, 1, 0, flows.as_raw_fd()),
        0,
        copy(2, 6),
        set(3, 0),
        set(4, 0),
        call(SK_STORAGE_GET),
        if_is(0, 0, ALL),
        copy(7, 0),
        // r8: the wish; nothing to do when it is granted.
        load32(8, 7, WISH),
        load64(1, 7, offset_of!(Flow, level)),
        if_not(1, 0, 1),
        set(8, 0),
        load32(9, 7, GRANTED),
        instruction(0x1d, 8, 9, ALL, 0),
        // The first one: what is there will come back, as far as it can be set.
        if_not(9, 0, 4),
        load32(1, 6, clamp as usize),
        instruction(0xb5, 1, 0, 1, i32::MAX), // if r1 <= i32::MAX, over one
        set(1, i32::MAX),
        store32(7, FOUND as i16, 1),
        // r1: what to set.
        load32(1, 7, FOUND),
        if_is(8, 0, 2),
        instruction(0xbd, 1, 8, 1, 0), // if r1 <= r8, over one
        copy(1, 8),
        store32(10, -4, 1),
        copy(1, 6),
        set(2, SOL_TCP),
        set(3, TCP_BPF_SNDCWND_CLAMP),
        copy(4, 10),
        instruction(0x07, 4, 0, 0, -4), // r4 += -4
        set(5, 4),
        call(SETSOCKOPT),
        if_not(0, 0, ALL),
        store32(7, GRANTED as i16, 8),
        set(0, 0),
        instruction(0x95, 0, 0, 0, 0),
    ];
    let end = program.len() - 2;
    for (at, word) in program.iter_mut().enumerate() {
        if (*word >> 16) as i16 == ALL {
            *word = *word & !(0xffff << 16) | ((end - at - 1) as u64) << 16;
        }
    }
    program
}
