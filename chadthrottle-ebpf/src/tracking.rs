//! Which processes are limited: the owner enters the first, fork and exit keep the rest exact.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use chadthrottle_common::abi::{EVENT_EXIT, Event, ProcessEntry};

use crate::{
    atomic,
    kernel::{field, global},
    maps::{EVENTS, LOST, PROCESSES},
};

/// Runs in the parent before the child is woken: the child's first socket finds its entry.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn follow_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments of sched_process_fork: parent, child; offsets from the kernel's BTF.
    unsafe {
        let parent: *const c_void = ctx.arg(0);
        let child: *const c_void = ctx.arg(1);
        let parent_tgid: u32 = field(parent, global::TASK_TGID());
        let Some(entry) = PROCESSES.get(parent_tgid) else { return 0 };
        let child_tgid: u32 = field(child, global::TASK_TGID());
        if child_tgid == parent_tgid {
            return 0; // a thread
        }
        let entry = ProcessEntry { born: bpf_ktime_get_ns(), limits: entry.limits };
        if PROCESSES.insert(child_tgid, entry, 0).is_err()
            && let Some(lost) = LOST.get_ptr_mut(0)
        {
            atomic::add(&raw mut (*lost).processes, 1);
        }
    }
    0
}

/// Fires for every thread; the process is over when none lives, not when its first one ends.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn follow_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument of sched_process_exit: the task; offsets from the kernel's BTF.
    unsafe {
        let task: *const c_void = ctx.arg(0);
        let tgid: u32 = field(task, global::TASK_TGID());
        if PROCESSES.get(tgid).is_none() {
            return 0;
        }
        let signal: *const c_void = field(task, global::TASK_SIGNAL());
        if field::<i32>(signal, global::SIGNAL_LIVE()) != 0 {
            return 0;
        }
        let _ = PROCESSES.remove(tgid);
        // A full buffer loses the event; the owner also looks once a second.
        let _ = EVENTS.output::<Event>(Event { kind: EVENT_EXIT, tgid, device: 0, pad: 0 }, 0);
    }
    0
}
