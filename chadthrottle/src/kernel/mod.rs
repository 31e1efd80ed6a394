//! The only code that touches the kernel.

pub mod bpf;
pub mod btf;
pub mod caps;
pub mod cgroup;
pub mod clock;
pub mod fault;
pub mod journal;
pub mod netlink;
pub mod netns;
pub mod nft;
mod nl;
pub mod process;
pub mod sock_diag;
pub mod sockets;
