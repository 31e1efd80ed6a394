//! The maps, with the types of `chadthrottle_common::abi`.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    helpers::{bpf_jiffies64, bpf_ktime_get_ns, bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use chadthrottle_common::abi::{
    ActiveFlows, CgroupThrottleConfig, CountKey, Departure, Flow, FlowWindow, Lost, MAX_COUNTED, MAX_LIMITS, MAX_PROCESSES,
    ProcessCount, ProcessEntry, SocketCount, SocketOwner, SpareCount, State, Tag, ThrottleStats, TokenBucket,
};

/// BTF definition of a BPF_MAP_TYPE_SK_STORAGE map with flags of one's own.
#[repr(C)]
pub struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; 24],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: only its address is used; the pointers are never followed.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    unsafe fn storage(&self, socket: *mut c_void, flags: u64) -> Option<&'static mut T> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the loader replaces the address by the map; the kernel returns null or a value of T
        // that lives as long as the program runs.
        unsafe { bpf_sk_storage_get(map, socket, ptr::null_mut(), flags).cast::<T>().as_mut() }
    }

    /// Takes it off the socket.
    ///
    /// # Safety
    /// `socket` is a socket the verifier knows.
    #[inline(always)]
    pub unsafe fn delete(&self, socket: *mut c_void) {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the loader replaces the address by the map.
        unsafe { bpf_sk_storage_delete(map, socket) };
    }

    /// What the socket carries.
    ///
    /// # Safety
    /// `socket` is a socket the verifier knows.
    #[inline(always)]
    pub unsafe fn get(&self, socket: *mut c_void) -> Option<&'static mut T> {
        // SAFETY: the caller's.
        unsafe { self.storage(socket, 0) }
    }

    /// What the socket carries, from now on at least zeros.
    ///
    /// # Safety
    /// `socket` is a socket the verifier knows.
    #[inline(always)]
    pub unsafe fn get_or_create(&self, socket: *mut c_void) -> Option<&'static mut T> {
        const BPF_SK_STORAGE_GET_F_CREATE: u64 = 1;
        // SAFETY: the caller's.
        unsafe { self.storage(socket, BPF_SK_STORAGE_GET_F_CREATE) }
    }
}

/// BPF_F_NO_PREALLOC | BPF_F_CLONE: an accepted socket inherits its listener's tag.
#[btf_map]
pub static TAGS: SocketStorage<Tag, 0x201> = SocketStorage::new();

/// BPF_F_NO_PREALLOC: what was done to one connection says nothing about those accepted from it.
#[btf_map]
pub static FLOWS: SocketStorage<Flow, 0x1> = SocketStorage::new();

/// As [`TAGS`]: an accepted socket inherits its listener's owner, until somebody uses it.
#[btf_map]
pub static OWNERS: SocketStorage<SocketOwner, 0x201> = SocketStorage::new();

/// As [`FLOWS`].
#[btf_map]
pub static COUNTS: SocketStorage<SocketCount, 0x1> = SocketStorage::new();

/// BPF_F_NO_PREALLOC: takes no memory while nobody monitors.
#[map]
pub static TOTALS: HashMap<CountKey, ProcessCount> = HashMap::with_max_entries(MAX_COUNTED, 1);
#[map]
pub static SPARE: Array<SpareCount> = Array::with_max_entries(2, 0);
/// Bytes of all packets at the hooks but those of loopback: received, sent.
#[map]
pub static WIRED: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// BPF_F_NO_PREALLOC: what is remembered of a connection's windows is not its children's.
#[btf_map]
pub static WINDOWS: SocketStorage<FlowWindow, 0x1> = SocketStorage::new();

#[map]
pub static CGROUP_FLOWS: HashMap<u64, ActiveFlows> = HashMap::with_max_entries(MAX_LIMITS, 0);
#[map]
pub static CGROUP_CONFIGS: HashMap<u64, [CgroupThrottleConfig; 2]> = HashMap::with_max_entries(MAX_LIMITS, 0);
#[map]
pub static CGROUP_BUCKETS: HashMap<u64, [TokenBucket; 2]> = HashMap::with_max_entries(MAX_LIMITS, 0);
#[map]
pub static CGROUP_STATS: HashMap<u64, [ThrottleStats; 2]> = HashMap::with_max_entries(MAX_LIMITS, 0);
/// BPF_F_NO_PREALLOC: few limits need any.
#[map]
pub static DEPARTURES: HashMap<Departure, u32> = HashMap::with_max_entries(MAX_LIMITS, 1);
#[map]
pub static PROCESSES: HashMap<u32, ProcessEntry> = HashMap::with_max_entries(MAX_PROCESSES, 0);
#[map]
pub static STATE: Array<State> = Array::with_max_entries(1, 0);
#[map]
pub static LOST: Array<Lost> = Array::with_max_entries(1, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// 1: a socket of MPTCP was tagged. As long as none was, packets without a tag need not be asked what
/// stands above their socket.
#[map]
pub static MPTCP: Array<u32> = Array::with_max_entries(1, 0);

/// A time that was read lately.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Clock {
    /// When, by the kernel's count of timer interrupts (one in 1 to 10 ms).
    jiffy: u64,
    /// CLOCK_MONOTONIC ns.
    ns: u64,
}

#[map]
pub static CLOCK: Array<Clock> = Array::with_max_entries(1, 0);

/// A time since the last timer interrupt or so, never one ahead of the clock: costs nothing where the
/// clock itself is a good part of what a packet costs.
///
/// Several processors write the two words without a lock: then they may not belong together, but
/// whatever stands there was the time once.
#[inline(always)]
pub fn recent_ns() -> u64 {
    // SAFETY: no arguments; a map value of two words.
    unsafe {
        let jiffy = bpf_jiffies64();
        let Some(clock) = CLOCK.get_ptr_mut(0) else { return bpf_ktime_get_ns() };
        if ptr::read_volatile(&raw const (*clock).jiffy) == jiffy {
            return ptr::read_volatile(&raw const (*clock).ns);
        }
        let now = bpf_ktime_get_ns();
        ptr::write_volatile(&raw mut (*clock).ns, now);
        ptr::write_volatile(&raw mut (*clock).jiffy, jiffy);
        now
    }
}

/// To be called before a socket of `protocol` is tagged.
#[inline(always)]
pub fn note_protocol(protocol: u32) {
    const IPPROTO_MPTCP: u32 = 262;
    if protocol == IPPROTO_MPTCP
        && let Some(seen) = MPTCP.get_ptr_mut(0)
    {
        // SAFETY: a map value.
        unsafe { ptr::write_volatile(seen, 1) };
    }
}

/// The lease and the epoch, and the [`recent_ns`] at which the lease was found to run; `None` when it ran
/// out.
#[inline(always)]
pub fn live_state() -> Option<(&'static State, u64)> {
    let state = STATE.get(0)?;
    let now = recent_ns();
    (now < state.lease_deadline_ns).then_some((state, now))
}

/// How often a process came under other limits by what it became: the programs' own part of the epoch, which
/// only they write.
#[map]
pub static MOVES: Array<u64> = Array::with_max_entries(1, 0);

/// The owner's epoch and the programs' own in one number; a change of either changes it.
#[inline(always)]
pub fn now_with_moves(epoch: u64) -> u64 {
    epoch.wrapping_add(MOVES.get(0).copied().unwrap_or(0))
}

/// The limits a tag stands for, found out again when the set of limits has changed since.
/// A socket whose owner is gone keeps what it had.
#[inline(always)]
pub fn resolve(tag: &mut Tag, epoch: u64) {
    let epoch = now_with_moves(epoch);
    if tag.epoch == epoch {
        return;
    }
    // SAFETY: the entry may be freed and used again while it is read; then one packet sees another
    // process's limits, which the check of `born` makes unlikely and the next epoch mends.
    if let Some(entry) = unsafe { PROCESSES.get(tag.tgid) }
        && entry.born == tag.born
    {
        tag.limits = entry.limits;
    }
    tag.applies = 0;
    tag.found_ticks = 0;
    tag.epoch = epoch;
    // The owner may have forgotten.
    if tag.told_device != 0 {
        tag.last_device = tag.told_device;
        tag.told_device = 0;
    }
}
