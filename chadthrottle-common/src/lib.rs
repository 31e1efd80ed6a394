//! What the eBPF programs and user space must agree on: the values of the maps, and the arithmetic
//! of the token bucket. `no_std`, no allocation, no panics.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod bucket;
pub mod pacing;
pub mod remote;
pub mod rules;
pub mod window;
pub mod wire;
