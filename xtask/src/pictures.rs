//! `cargo xtask pictures`: the pictures of the README, from what the screens draw.

use crate::sh;
use anyhow::Result;

/// The test that compares them, and writes them when it is told to.
const TEST: &str = "pictures::pictures_are_up_to_date";
const WRITE: &str = "CHADT_WRITE_PICTURES";

pub fn run() -> Result<()> {
    let mut cargo = sh::cargo();
    cargo
        .current_dir(crate::root())
        .args(["test", "--quiet", "--package", "chadthrottle", "--test", "tui", "--", "--exact", TEST])
        .env(WRITE, "1");
    sh::run(&mut cargo)
}
