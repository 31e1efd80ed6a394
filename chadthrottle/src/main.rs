//! The `chadthrottle` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    chadthrottle::cli::main()
}
