//! The only code that touches the kernel.

pub mod fault;
pub mod journal;
pub mod process;
