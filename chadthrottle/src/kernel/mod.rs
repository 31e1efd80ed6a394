//! The only code that touches the kernel.

pub mod bpf;
pub mod btf;
pub mod caps;
pub mod cgroup;
pub mod clock;
pub mod facts;
pub mod fault;
pub mod journal;
pub mod matching;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nft;
mod nl;
pub mod process;
mod rtnetlink;
pub mod sock_diag;
pub mod socket_table;
pub mod sockets;
pub mod tc;
