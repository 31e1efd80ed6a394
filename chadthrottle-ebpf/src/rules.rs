//! Which limits the rules put a process under, found out when it becomes something else: by exec, by a new name, in
//! another cgroup, as another user; and for all processes when the rules change.
//!
//! User space has the same decision (`chadthrottle/src/kernel/matching.rs`) to explain it; the two must agree.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    helpers::{
        bpf_get_current_uid_gid, bpf_ktime_get_ns, bpf_probe_read_kernel,
        generated::{bpf_probe_read_kernel as read_raw, bpf_probe_read_kernel_str},
    },
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use chadthrottle_common::{
    abi::{EVENT_CHANGED, Event, MAX_NESTED, MAX_PROCESSES, ProcessEntry},
    rules::{
        CGROUP, CGROUP_NAME, COMM, EVERYBODY, FILE, FILE_NAME, LONGEST_NAME, Limits, MAX_LEVELS, MAX_RULES, NameKey,
        NumberKey, PROCESS_JOINED, PROCESS_OVERFULL, Rules, USER,
    },
};

use crate::{
    atomic,
    kernel::{field, global},
    maps::{EVENTS, LOST, MOVES, PROCESSES},
};

#[map]
pub static RULES: Array<Rules> = Array::with_max_entries(1, 0);
#[map]
pub static NAME_RULES: HashMap<NameKey, Limits> = HashMap::with_max_entries(MAX_RULES, 1);
#[map]
pub static NUMBER_RULES: HashMap<NumberKey, Limits> = HashMap::with_max_entries(MAX_RULES, 1);

/// Limits of a process that no rule gives and none takes: those it was named for by its id, or inherited.
#[map]
pub static PINNED: HashMap<u32, Limits> = HashMap::with_max_entries(MAX_PROCESSES, 1);

/// What a look at a process works with. Too large for the stack; and what lies in a map the verifier does not try to
/// follow, which would take it through every combination of what may be found.
#[repr(C)]
pub struct Scratch {
    key: NameKey,
    /// The limits found so far, some of them several times.
    found: [u64; ROOM],
    count: u64,
    /// Each of them once.
    limits: Limits,
    /// 1: the process is below the root.
    within: u64,
}

/// A power of two.
const ROOM: usize = 16;

/// Each program has one of its own, because one may interrupt another.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(PROGRAMS, 0);

const PROGRAMS: u32 = 5;
/// Which program's scratch.
pub const BY_FORK: u32 = 0;
pub const BY_EXEC: u32 = 1;
pub const BY_NAME: u32 = 2;
pub const BY_CGROUP: u32 = 3;
pub const BY_REVIEW: u32 = 4;

const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// A field of any object in the kernel's memory.
#[inline(always)]
unsafe fn peek<T>(object: *const c_void, offset: usize) -> Option<T> {
    // SAFETY: the helper reads what it can and says when it can't.
    unsafe { bpf_probe_read_kernel(object.cast::<u8>().wrapping_add(offset).cast::<T>()) }.ok()
}

/// The same for a pointer, which is none when it is null.
#[inline(always)]
unsafe fn follow(object: *const c_void, offset: usize) -> Option<*const c_void> {
    // SAFETY: the caller's.
    unsafe { peek::<*const c_void>(object, offset) }.filter(|next| !next.is_null())
}

/// A pointer, null when it can't be read: for where a branch less counts. What is read from null is null, too.
#[inline(always)]
unsafe fn follow_blindly(object: *const c_void, offset: usize) -> *const c_void {
    let mut next: *const c_void = ptr::null();
    let from = object.cast::<u8>().wrapping_add(offset);
    // SAFETY: the helper reads what it can, and else leaves zeros.
    unsafe { read_raw((&raw mut next).cast(), 8, from.cast()) };
    next
}

/// Whether there are rules of any of the sorts (`1 << sort`, added).
#[inline(always)]
pub fn there_are(sorts: u64) -> bool {
    RULES.get(0).is_some_and(|rules| rules.sorts & sorts != 0)
}

/// Any rules.
pub const ANY: u64 = u64::MAX;
/// Rules about cgroups.
pub const ABOUT_CGROUPS: u64 = 1 << CGROUP | 1 << CGROUP_NAME;

/// Adds the limits of a rule to those found. Without a branch for each, or the verifier would have to look at every
/// combination: an id has its top bit ([`NARROW`](chadthrottle_common::abi::NARROW)) set, and what is none is zero.
#[inline(always)]
unsafe fn add(scratch: *mut Scratch, limits: Option<&Limits>) {
    let Some(limits) = limits else { return };
    // SAFETY: scratch is this program's map value; the index stays within it.
    unsafe {
        let found = (&raw mut (*scratch).found).cast::<u64>();
        let mut count = ptr::read_volatile(&raw const (*scratch).count);
        for id in limits {
            ptr::write_volatile(found.add(count as usize & (ROOM - 1)), *id);
            count += *id >> 63;
        }
        ptr::write_volatile(&raw mut (*scratch).count, count);
    }
}

#[inline(always)]
unsafe fn begin(scratch: *mut Scratch, limits: Option<&Limits>) {
    // SAFETY: as above.
    unsafe {
        ptr::write_volatile(&raw mut (*scratch).count, 0);
        ptr::write_volatile(&raw mut (*scratch).within, 0);
        add(scratch, limits);
    }
}

/// Leaves each limit found once in `limits`; true: there are more than have room.
#[inline(always)]
unsafe fn distinct(scratch: *mut Scratch) -> bool {
    // SAFETY: as above.
    unsafe {
        let found = (&raw const (*scratch).found).cast::<u64>();
        let limits = (&raw mut (*scratch).limits).cast::<u64>();
        for slot in 0..MAX_NESTED {
            ptr::write_volatile(limits.add(slot), 0);
        }
        let count = ptr::read_volatile(&raw const (*scratch).count);
        let mut overfull = count > ROOM as u64;
        for index in 0..ROOM {
            if index as u64 >= count {
                break;
            }
            let id = ptr::read_volatile(found.add(index));
            let mut there = false;
            for slot in 0..MAX_NESTED {
                let slot = limits.add(slot);
                let other = ptr::read_volatile(slot);
                if other == 0 {
                    ptr::write_volatile(slot, id);
                }
                if other == 0 || other == id {
                    there = true;
                    break;
                }
            }
            overfull |= !there;
        }
        overfull
    }
}

/// Adds a limit to others; false when there is no room.
#[inline(always)]
fn put(limits: &mut Limits, id: u64) -> bool {
    for slot in limits {
        if *slot == id {
            return true;
        }
        if *slot == 0 {
            *slot = id;
            return true;
        }
    }
    false
}

#[inline(always)]
unsafe fn number_rule(sort: u32, device: u32, number: u64) -> Option<&'static Limits> {
    // SAFETY: the value may be freed and used again while it is read; then one look at one process is wrong,
    // and the next review mends it.
    unsafe { NUMBER_RULES.get(NumberKey { sort, device, number }) }
}

/// The limits of a name: a string in the kernel's memory.
#[inline(always)]
unsafe fn name_rule(scratch: *mut Scratch, sort: u32, name: *const c_void) -> Option<&'static Limits> {
    // SAFETY: scratch is this program's map value, whose key has 33 words.
    unsafe {
        let key = &raw mut (*scratch).key;
        let words = key.cast::<u64>();
        for word in 1..size_of::<NameKey>() / 8 {
            ptr::write_volatile(words.add(word), 0);
        }
        (*key).sort = sort as u64;
        let room = LONGEST_NAME as u32 + 1;
        // What can't be read is no name, and no rule has none.
        bpf_probe_read_kernel_str((&raw mut (*key).name).cast(), room, name);
        NAME_RULES.get(&*key)
    }
}

/// The executable's name and identity.
#[inline(always)]
unsafe fn by_file(scratch: *mut Scratch, sorts: u64, mm: *const c_void) -> Option<()> {
    // SAFETY: every step is read by the helper; offsets come from the kernel's BTF.
    unsafe {
        let file = follow(mm, global::MM_EXE_FILE())?;
        if sorts & 1 << FILE != 0 {
            let inode = follow(file, global::FILE_INODE())?;
            let device: u32 = peek(follow(inode, global::INODE_SB())?, global::SB_DEVICE())?;
            let number: u64 = peek(inode, global::INODE_NUMBER())?;
            add(scratch, number_rule(FILE, device, number));
        }
        if sorts & 1 << FILE_NAME != 0 {
            let entry = follow(file, global::FILE_DENTRY())?;
            add(scratch, name_rule(scratch, FILE_NAME, follow(entry, global::DENTRY_NAME())?));
        }
    }
    Some(())
}

/// The cgroup (version 2) and those above it.
#[inline(always)]
unsafe fn by_cgroup(scratch: *mut Scratch, rules: &Rules, task: *const c_void) -> Option<()> {
    // SAFETY: as above. `self` is the first field of a cgroup, so a pointer to one is one to the other.
    unsafe {
        let set = follow(task, global::TASK_CGROUPS())?;
        let mut cgroup = follow(set, global::CSS_SET_CGROUP())?;
        for _ in 0..MAX_LEVELS {
            let node = follow_blindly(cgroup, global::CGROUP_KN());
            let id = follow_blindly(node, global::KN_ID()) as u64;
            if id == rules.root {
                ptr::write_volatile(&raw mut (*scratch).within, 1);
            }
            add(scratch, number_rule(CGROUP, 0, id));
            if rules.sorts & 1 << CGROUP_NAME != 0 {
                add(scratch, name_rule(scratch, CGROUP_NAME, follow_blindly(node, global::KN_NAME())));
            }
            cgroup = follow_blindly(cgroup, global::CGROUP_PARENT());
            if cgroup.is_null() {
                break;
            }
        }
    }
    Some(())
}

/// Finds the limits that hold a process by its id and by the rules. `comm`: its name, where that is just being
/// changed. `None`: it is on its way in or out, and nothing can be said.
#[inline(always)]
unsafe fn evaluate(task: *const c_void, tgid: u32, comm: *const c_void, slot: u32) -> Option<*mut Scratch> {
    // SAFETY: as above; map values may be freed while they are read, see `number_rule`.
    unsafe {
        let rules = RULES.get(0)?;
        let scratch = SCRATCH.get_ptr_mut(slot)?;
        // A process's main thread that has ended has none, and says nothing any more about the others.
        let mm = follow(task, global::TASK_MM())?;
        begin(scratch, PINNED.get(tgid));
        if rules.root != 0 || rules.sorts & ABOUT_CGROUPS != 0 {
            // Ends without an answer above the root of them all.
            let _ = by_cgroup(scratch, rules, task);
            if rules.root != 0 && ptr::read_volatile(&raw const (*scratch).within) == 0 {
                begin(scratch, PINNED.get(tgid));
                return Some(scratch);
            }
        }
        if rules.sorts & 1 << COMM != 0 {
            add(scratch, name_rule(scratch, COMM, comm));
        }
        if rules.sorts & (1 << FILE | 1 << FILE_NAME) != 0 {
            let _ = by_file(scratch, rules.sorts, mm);
        }
        if rules.sorts & 1 << USER != 0 {
            let uid: u32 = peek(follow(task, global::TASK_REAL_CRED())?, global::CRED_UID())?;
            add(scratch, number_rule(USER, 0, u64::from(uid)));
        }
        if rules.sorts & 1 << EVERYBODY != 0 {
            add(scratch, number_rule(EVERYBODY, 0, 0));
        }
        Some(scratch)
    }
}

#[inline(always)]
fn same(one: &Limits, other: &Limits) -> bool {
    let mut same = true;
    for (one, other) in one.iter().zip(other) {
        same &= one == other;
    }
    same
}

/// Puts a process under limits; what changed, as `PROCESS_*` bits, or `None`.
#[inline(always)]
unsafe fn enroll(tgid: u32, limits: &Limits) -> Option<u32> {
    // SAFETY: an entry that is freed while it is read belongs to a process that ends.
    unsafe {
        let old = PROCESSES.get(tgid);
        let Some(old) = old else {
            if limits[0] == 0 {
                return None;
            }
            let entry = ProcessEntry { born: bpf_ktime_get_ns(), limits: *limits };
            if PROCESSES.insert(tgid, entry, BPF_NOEXIST).is_err()
                && PROCESSES.get(tgid).is_none()
                && let Some(lost) = LOST.get_ptr_mut(0)
            {
                atomic::add(&raw mut (*lost).processes, 1);
            }
            return Some(PROCESS_JOINED);
        };
        if same(&old.limits, limits) {
            return None;
        }
        let _ = PROCESSES.insert(tgid, ProcessEntry { born: old.born, limits: *limits }, BPF_EXIST);
        // Its sockets' tags are looked at again.
        if let Some(moves) = MOVES.get_ptr_mut(0) {
            atomic::add(moves, 1);
        }
        Some(0)
    }
}

#[inline(always)]
pub fn tell_changed(tgid: u32) {
    // A full buffer loses it; then the sockets that are open already are found within a second.
    let _ = EVENTS.output::<Event>(Event { kind: EVENT_CHANGED, tgid, device: 0, pad: 0 }, 0);
}

/// Looks at a process anew; what changed, as `PROCESS_*` bits, or `None`.
///
/// # Safety
/// `task` is a task that the verifier knows, `comm` its name or the one it is being given, `slot` the calling
/// program's.
#[inline(always)]
pub unsafe fn review(task: *const c_void, comm: *const c_void, slot: u32) -> Option<u32> {
    // SAFETY: the caller's.
    unsafe {
        let tgid: u32 = field(task, global::TASK_TGID());
        let signal: *const c_void = field(task, global::TASK_SIGNAL());
        let scratch = evaluate(task, tgid, comm, slot)?;
        let overfull = distinct(scratch);
        let changed = enroll(tgid, &(*scratch).limits);
        if changed == Some(PROCESS_JOINED) && peek::<i32>(signal, global::SIGNAL_LIVE()) == Some(0) {
            // Its exit has been seen, or is about to be: either way it must not be left behind.
            let _ = PROCESSES.remove(tgid);
            return None;
        }
        if overfull { Some(changed.unwrap_or(0) | PROCESS_OVERFULL) } else { changed }
    }
}

/// [`review`], telling the owner what it must know.
///
/// # Safety
/// As for [`review`].
#[inline(always)]
pub unsafe fn review_and_tell(task: *const c_void, comm: *const c_void, slot: u32) {
    // SAFETY: the caller's.
    unsafe {
        let Some(changed) = review(task, comm, slot) else { return };
        tell_changed(field(task, global::TASK_TGID()));
        if changed & PROCESS_OVERFULL != 0
            && let Some(lost) = LOST.get_ptr_mut(0)
        {
            atomic::add(&raw mut (*lost).processes, 1);
        }
    }
}

/// A process that is not under its user's limits yet, as when it became that user without an exec, comes under
/// them. Those of the user it was before go with the next review.
#[inline(always)]
pub fn join_by_user(tgid: u32) {
    if !there_are(1 << USER) {
        return;
    }
    let uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: see `number_rule`, and `enroll`.
    unsafe {
        let Some(limits) = number_rule(USER, 0, u64::from(uid)) else { return };
        let mut all = PROCESSES.get(tgid).map_or([0; MAX_NESTED], |entry| entry.limits);
        for id in limits {
            if *id != 0 {
                put(&mut all, *id);
            }
        }
        if enroll(tgid, &all) == Some(PROCESS_JOINED) {
            tell_changed(tgid);
        }
    }
}
