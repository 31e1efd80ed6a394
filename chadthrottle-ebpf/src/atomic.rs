//! Atomics on map values.

use core::intrinsics::{
    AtomicOrdering::{Relaxed, SeqCst},
    atomic_cxchg, atomic_xadd, atomic_xchg,
};

use chadthrottle_common::bucket::Word;

/// Adds; one BPF_XADD instruction, which every kernel has.
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<u64, u64, { Relaxed }>(counter, amount) };
}

/// Takes the value and leaves `new`; for kernels since 5.12.
///
/// # Safety
/// `word` points into a map value.
#[inline(always)]
pub unsafe fn swap(word: *mut u64, new: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { atomic_xchg::<u64, { SeqCst }>(word, new) }
}

/// A bucket's virtual time in a map value. `CAS`: whether the kernel has compare-and-swap (5.12);
/// a program with that instruction anywhere does not load on older ones, so it takes two programs.
pub struct MapWord<const CAS: bool>(pub *mut u64);

impl<const CAS: bool> Word for MapWord<CAS> {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: made from a pointer into a map value, which stays valid while the program runs.
        unsafe { core::ptr::read_volatile(self.0) }
    }

    #[inline(always)]
    fn add(&self, ticks: u64) {
        // SAFETY: as above.
        unsafe { add(self.0, ticks) }
    }

    #[inline(always)]
    fn replace(&self, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        unsafe {
            if CAS {
                atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0, old, new).1
            } else {
                core::ptr::write_volatile(self.0, new);
                true
            }
        }
    }
}
