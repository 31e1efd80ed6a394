//! Memory of this very process.

/// Gives the kernel back what has been freed and the allocator keeps. Does nothing where that is not glibc's.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and locks what it needs itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
