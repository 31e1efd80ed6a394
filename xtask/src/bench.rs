//! `cargo xtask bench`: what the engine and the monitor cost and how well they hold, beside what was promised.
//!
//! The engine is measured as users get it, with the committed object; what it is compared with is an
//! object of its own that is built here and kept nowhere.

use crate::{ebpf, sh};
use anyhow::{Result, bail};
use clap::Args;

/// The pages that a full run writes, from the root of the checkout.
const PAGE: &str = "docs/benchmarks/engine.md";
const MONITOR_PAGE: &str = "docs/benchmarks/monitor.md";
/// The part that is a benchmark of its own, and writes its page also when it is asked for alone.
const MONITOR: &str = "monitor";
/// Another one: what the backends cost.
const BACKENDS: &str = "backends";
/// Where the whole matrix of limits is written.
const PAGES: &str = "docs/benchmarks";
/// The example of the eBPF crate that the engine is compared with.
const YARDSTICK: &str = "yardstick";

/// What `bench` takes.
#[derive(Args)]
pub struct Options {
    /// Measure only this; of the engine's parts no page is written. "lossless": limits side by side over lines of
    /// several lengths, of which "beside" is what they cost traffic without a limit; "backends": what each of them costs, with a page
    #[arg(long, value_parser = ["bucket", "packet", "setting", "accuracy", "lossless", "beside", BACKENDS, MONITOR])]
    only: Option<String>,
    /// With `--only lossless`: the whole matrix (an hour), and write its page
    #[arg(long)]
    full: bool,
    /// With `--only lossless`: only these cells, and no page. Words for design (ours, naive, nft, htb), direction, MB/s, round
    /// trip in ms, connections and congestion control, `*` for any: "ours download * 80 8 bbr"
    #[arg(long, requires = "only", conflicts_with = "full")]
    cells: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    if !sh::is_root() {
        bail!(
            "bench: loads eBPF programs and makes network namespaces and a cgroup, which only root may; \
             run `cargo xtask bench` as root"
        );
    }
    if options.only.as_deref() != Some(MONITOR) {
        engine(options)?;
    }
    if options.only.as_deref().is_none_or(|only| only == MONITOR) {
        let mut cargo = sh::cargo();
        cargo
            .current_dir(crate::root())
            .args(["bench", "--package", "chadthrottle", "--bench", "monitor", "--"])
            .arg("--page")
            .arg(crate::root().join(MONITOR_PAGE));
        sh::run(&mut cargo)?;
    }
    Ok(())
}

fn engine(options: &Options) -> Result<()> {
    let yardstick = ebpf::build_example(YARDSTICK)?;
    let mut cargo = sh::cargo();
    cargo
        .current_dir(crate::root())
        .args(["bench", "--package", "chadthrottle", "--bench", "engine", "--"])
        .arg("--yardstick")
        .arg(yardstick);
    if options.full {
        cargo.arg("--full").arg("--lossless").arg(crate::root().join(PAGES));
    }
    if let Some(cells) = &options.cells {
        cargo.arg("--full").arg("--cells").arg(cells);
    }
    if options.only.as_deref() == Some(BACKENDS) {
        cargo.arg("--backends").arg(crate::root().join(PAGES).join("backends.md"));
    }
    match &options.only {
        Some(part) => cargo.args(["--only", part]),
        None => cargo.arg("--page").arg(crate::root().join(PAGE)),
    };
    sh::run(&mut cargo)
}
