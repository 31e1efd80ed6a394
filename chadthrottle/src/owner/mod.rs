//! The one process per host that holds the kernel objects.

pub mod protocol;
