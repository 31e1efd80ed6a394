//! Proves on this machine that each backend holds its limits.
