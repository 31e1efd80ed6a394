//! The page: what was measured, where, beside what was promised.

use std::fmt::Write;

use crate::tool::Which;

/// A tool under a load.
#[derive(Debug)]
pub struct Workload {
    /// Which tool.
    pub tool: Which,
    /// Which load.
    pub what: &'static str,
    /// Bytes that it showed for the load's process.
    pub shown: u64,
    /// Bytes on the wire.
    pub truth: u64,
    /// Share of one processor.
    pub processor: f64,
    /// MB.
    pub memory: f64,
}

/// Our own cost with many sockets: without and with a list of connections.
#[derive(Debug)]
pub struct Crowd {
    /// How many.
    pub sockets: usize,
    /// One reading of all of them in this very process, ms.
    pub read_ms: f64,
    /// Share of one processor at one tick a second.
    pub processor: [f64; 2],
    /// MB.
    pub memory: [f64; 2],
}

/// From the start of the command to its first figures, ms.
#[derive(Debug, Default)]
pub struct Start {
    /// In the middle.
    pub median: f64,
    /// The longest.
    pub worst: f64,
}

/// All of it.
#[derive(Default)]
pub struct Results {
    /// Beside others.
    pub workloads: Vec<Workload>,
    /// By ourselves.
    pub crowds: Vec<Crowd>,
    /// Start.
    pub start: Start,
}

const EXACT: &str = "
## Exactness and cost

One process uploads over a pair of virtual devices: one TCP connection at 2 Gbit/s for 12 s, or 1,500 connections of
64 KB, one after the other, within 8 s. *error*: what the tool shows for that process against the IP bytes of all packets
at the device, both directions. *processor*: user and system time of all processes of the tool over 10 s, share of one
core; ours are the client, the owner and the janitor. *memory*: MB of the same, what they share counted once (Pss).

Promised: error at most 0.1 %, at most 2 % of a core at 2 Gbit/s.

| load | tool | on the wire | error | processor | memory |
|---|---|--:|--:|--:|--:|
";

const CROWDS: &str = "
## Many sockets

Established TCP sockets, 50 pairs of them used ten times a second; a tick a second. *one reading*: totals and every
socket out of the kernel. *processor*, *memory*: of all three; in brackets with `--connections`, which writes a line
of JSON with up to 20,000 connections each second.

Promised: at 10,000 sockets at most 5 % of a core and 40 MB.

| sockets | one reading, ms | processor | memory, MB |
|--:|--:|--:|--:|
";

/// As Markdown.
pub fn write(results: &Results) -> String {
    let mut page = format!(
        "# How exactly the monitor counts, and what it costs\n\nWritten by `cargo xtask bench --only monitor`. {}\n",
        machine()
    );
    // Writing to a string never fails.
    page += EXACT;
    for row in &results.workloads {
        let _ = writeln!(
            page,
            "| {} | {} | {:.1} MB | {:+.3} % | {:.1} % | {:.0} |",
            row.what,
            row.tool.name(),
            row.truth as f64 / 1e6,
            (row.shown as f64 / row.truth as f64 - 1.0) * 100.0,
            row.processor * 100.0,
            row.memory
        );
    }
    page += CROWDS;
    for row in &results.crowds {
        let _ = writeln!(
            page,
            "| {} | {:.1} | {:.1} % ({:.1} %) | {:.0} ({:.0}) |",
            row.sockets,
            row.read_ms,
            row.processor[0] * 100.0,
            row.processor[1] * 100.0,
            row.memory[0],
            row.memory[1]
        );
    }
    let Start { median, worst } = results.start;
    let _ = write!(
        page,
        "\n## Start\n\nFrom the start of `chadthrottle monitor`, with no owner at work, to its first line with rates: {median:.0} ms in \
         the median of seven, {worst:.0} ms at most. Promised: 300 ms.\n"
    );
    page
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    format!(
        "Machine: {}, {} processors of it; Linux {}.",
        model.trim_start_matches([' ', '\t', ':']),
        std::thread::available_parallelism().map_or(1, usize::from),
        read("/proc/sys/kernel/osrelease")
    )
}
