//! The project's own commands: `cargo xtask build-ebpf | test | vm | bench`.
fn main() {}
