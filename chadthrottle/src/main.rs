//! The `chadthrottle` command.

fn main() {}
