//! The only code that touches the kernel.

pub mod fault;
pub mod netlink;
pub mod netns;
