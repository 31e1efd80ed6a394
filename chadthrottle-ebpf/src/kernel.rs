//! Fields of kernel objects, and what this kernel can do. The loader finds the offsets in the
//! kernel's BTF and writes them into these globals, which are frozen before the programs are
//! verified: the verifier sees constants, and skips branches that a constant rules out.

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $( $(#[$doc])* #[unsafe(no_mangle)] static $name: u32 = 0; )*
        #[allow(non_snake_case)] // named like the global each of them reads
        pub mod global {
            $(
                #[inline(always)]
                pub fn $name() -> usize {
                    // Volatile, or the compiler would fold the zero in.
                    // SAFETY: a static of this type.
                    unsafe { core::ptr::read_volatile(&super::$name) as usize }
                }
            )*
        }
    };
}

globals! {
    TASK_PID,
    TASK_COMM,
    TASK_MM,
    TASK_REAL_CRED,
    TASK_CGROUPS,
    MM_EXE_FILE,
    FILE_DENTRY,
    FILE_INODE,
    DENTRY_NAME,
    INODE_NUMBER,
    INODE_SB,
    SB_DEVICE,
    CRED_UID,
    CSS_SET_CGROUP,
    CGROUP_KN,
    CGROUP_PARENT,
    KN_ID,
    KN_NAME,
    TASK_TGID,
    TASK_SIGNAL,
    SIGNAL_LIVE,
    SOCKET_SK,
    SK_FAMILY,
    SK_STATE,
    SK_PROTOCOL,
    SK_MAX_PACING_RATE,
    TCP_BYTES_ACKED,
    TCP_BYTES_RECEIVED,
    TASK_GROUP_LEADER,
    TASK_START,
    TASK_PARENT,
    SOCKET_FILE,
    SK_SOCKET,
    SK_LOCAL,
    SK_REMOTE,
    SK_LOCAL6,
    SK_REMOTE6,
    SK_LOCAL_PORT,
    SK_REMOTE_PORT,
    TCP_RETRANSMITS,
    SK_NET,
    NET_INUM,
    /// 0: this kernel has no such field.
    SK_RX_DEVICE,
    TCP_RCV_WSCALE,
    /// Bit of that byte at which it starts.
    TCP_RCV_WSCALE_SHIFT,
    TCP_RCV_RTT_US,
    TCP_SRTT_US,
    /// A struct minmax: the value of its first sample comes after that one's time.
    TCP_MIN_RTT,
    TCP_CWND_CLAMP,
    /// 1 when congestion windows that are held can be given back by a walk over the sockets (5.15).
    MAY_HOLD_WINDOWS,
    /// 1 when bpf_skc_to_mptcp_sock is there (5.19).
    HAVE_MPTCP,
}

/// Reads a field of a kernel object whose type the verifier knows.
///
/// # Safety
/// `object` is such a pointer and `offset` came from the kernel's BTF.
#[inline(always)]
pub unsafe fn field<T: Copy>(object: *const core::ffi::c_void, offset: usize) -> T {
    // SAFETY: the caller's; the verifier checks it again.
    unsafe { core::ptr::read_volatile(object.cast::<u8>().add(offset).cast::<T>()) }
}
