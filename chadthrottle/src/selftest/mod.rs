//! Proves on this machine that each backend holds its limits.

pub mod cgroup;
pub mod interrupt;
pub mod lab;
pub mod meter;
pub mod process;
pub mod traffic;
