//! Which processes are limited: the owner enters those named by their ids, and rules; fork, exec, new names, new
//! cgroups and exit keep the rest exact.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{file, seq_file},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_seq_write},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use chadthrottle_common::{
    abi::{EVENT_EXIT, Event, ProcessEntry},
    rules::{COMM, FileRecord, ProcessRecord},
};

use crate::{
    atomic,
    kernel::{field, global},
    maps::{EVENTS, LOST, PROCESSES},
    rules::{
        ABOUT_CGROUPS, ANY, BY_CGROUP, BY_EXEC, BY_FORK, BY_NAME, BY_REVIEW, PINNED, review, review_and_tell,
        there_are,
    },
    sockets::IterMeta,
};

/// The name of a task, in place.
#[inline(always)]
fn comm(task: *const c_void) -> *const c_void {
    task.cast::<u8>().wrapping_add(global::TASK_COMM()).cast()
}

/// Runs in the parent before the child is woken: the child's first socket finds its entry.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn follow_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments of sched_process_fork: parent, child; offsets from the kernel's BTF.
    unsafe {
        let parent: *const c_void = ctx.arg(0);
        let child: *const c_void = ctx.arg(1);
        let parent_tgid: u32 = field(parent, global::TASK_TGID());
        let child_tgid: u32 = field(child, global::TASK_TGID());
        if child_tgid == parent_tgid {
            return 0; // a thread
        }
        if let Some(entry) = PROCESSES.get(parent_tgid) {
            if let Some(pinned) = PINNED.get(parent_tgid) {
                let _ = PINNED.insert(child_tgid, pinned, 0);
            }
            let entry = ProcessEntry { born: bpf_ktime_get_ns(), limits: entry.limits };
            if PROCESSES.insert(child_tgid, entry, 0).is_err()
                && let Some(lost) = LOST.get_ptr_mut(0)
            {
                atomic::add(&raw mut (*lost).processes, 1);
            }
        }
        // A child is what its parent is, except that it may be born into another cgroup.
        let home = |task| field::<*const c_void>(task, global::TASK_CGROUPS());
        if there_are(ABOUT_CGROUPS) && home(parent) != home(child) {
            review_and_tell(child, comm(child), BY_FORK);
        }
    }
    0
}

/// The process is another program now, before it runs its first instruction.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn follow_exec(ctx: BtfTracePointContext) -> i32 {
    if !there_are(ANY) {
        return 0;
    }
    // SAFETY: first argument of sched_process_exec is the task.
    unsafe {
        let task: *const c_void = ctx.arg(0);
        review_and_tell(task, comm(task), BY_EXEC);
    }
    0
}

/// A thread gives itself, or is given, a name; the first thread's is the process's.
#[btf_tracepoint(function = "task_rename")]
pub fn follow_rename(ctx: BtfTracePointContext) -> i32 {
    if !there_are(1 << COMM) {
        return 0;
    }
    // SAFETY: arguments of task_rename: task, new name.
    unsafe {
        let task: *const c_void = ctx.arg(0);
        if field::<u32>(task, global::TASK_PID()) == field::<u32>(task, global::TASK_TGID()) {
            review_and_tell(task, ctx.arg(1), BY_NAME);
        }
    }
    0
}

/// A process was moved to another cgroup.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn follow_move(ctx: BtfTracePointContext) -> i32 {
    if !there_are(ANY) {
        return 0;
    }
    // SAFETY: third argument of cgroup_attach_task is the task.
    unsafe {
        let task: *const c_void = ctx.arg(2);
        review_and_tell(task, comm(task), BY_CGROUP);
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
        let _ = PINNED.remove(tgid);
        // A full buffer loses the event; the owner also looks once a second.
        let _ = EVENTS.output::<Event>(Event { kind: EVENT_EXIT, tgid, device: 0, pad: 0 }, 0);
    }
    0
}

#[repr(C)]
pub struct TaskContext {
    meta: *mut IterMeta,
    task: *mut c_void,
}

/// Walks over all processes and puts each under the limits that it should be under. Writes a `ProcessRecord` for
/// each that changed.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn review_processes(ctx: *mut TaskContext) -> i32 {
    // SAFETY: the context's pointers are checked for null; offsets come from the kernel's BTF.
    unsafe {
        let task = (*ctx).task.cast_const();
        if task.is_null() {
            return 0;
        }
        let tgid: u32 = field(task, global::TASK_TGID());
        if field::<u32>(task, global::TASK_PID()) != tgid {
            return 0;
        }
        if let Some(flags) = review(task, comm(task), BY_REVIEW) {
            let mut record = ProcessRecord { tgid, flags };
            let size = size_of::<ProcessRecord>() as u32;
            bpf_seq_write((*(*ctx).meta).seq, (&raw mut record).cast(), size);
        }
    }
    0
}

#[repr(C)]
pub struct FileContext {
    meta: *mut IterMeta,
    task: *mut c_void,
    fd: u32,
    file: *mut file,
}

/// Walks over the open files of the process that reads from it, and tells how the kernel knows them: file
/// systems may show user space another device than they have inside.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub fn tell_files(ctx: *mut FileContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        if field::<u32>(task, global::TASK_TGID()) != (bpf_get_current_pid_tgid() >> 32) as u32 {
            return 0;
        }
        let inode: *const c_void = field(file.cast(), global::FILE_INODE());
        let Ok(block) = bpf_probe_read_kernel(
            inode.cast::<u8>().wrapping_add(global::INODE_SB()).cast::<*const c_void>(),
        ) else {
            return 0;
        };
        let device = bpf_probe_read_kernel(block.cast::<u8>().wrapping_add(global::SB_DEVICE()).cast::<u32>());
        let number =
            bpf_probe_read_kernel(inode.cast::<u8>().wrapping_add(global::INODE_NUMBER()).cast::<u64>());
        if let (Ok(device), Ok(inode)) = (device, number) {
            let mut record = FileRecord { fd: (*ctx).fd, device, inode };
            let seq: *mut seq_file = (*(*ctx).meta).seq;
            bpf_seq_write(seq, (&raw mut record).cast(), size_of::<FileRecord>() as u32);
        }
    }
    0
}
