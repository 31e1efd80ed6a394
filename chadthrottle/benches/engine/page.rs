//! The page: tables that say by themselves what was measured, where, and what was promised.

use std::fmt::Write;

use crate::{accuracy, bucket::Step, packet, setting::Times};
use chadthrottle::model::Direction;

/// Everything that a full run measures; what was left out has no table.
#[derive(Default)]
pub struct Results {
    /// The bucket alone.
    pub step: Option<Step>,
    /// Packets.
    pub packets: Vec<packet::Row>,
    /// Limits.
    pub times: Vec<Times>,
    /// Rates.
    pub rates: Vec<accuracy::Row>,
}

const COST: &str = "\
## What a packet costs

Every packet of a measured socket runs through three programs at the same cgroup hook: an **empty** one, the
**engine**, and a **naive** token bucket (three hash look-ups by the packet's cgroup, values copied out, \
changed and inserted again). The kernel times each run (BPF_ENABLE_STATS). Columns, in ns for each packet:

- *empty*: the empty program; what timing itself costs is in it.
- *engine*, *naive*: what they take more than the empty one: the median over windows of 4 ms, and in \
brackets the quietest tenth of them, which is what it costs when nobody else disturbs the processor.
- *limits*: limits in force; *sockets*: open tagged sockets of the process whose packets are measured. \
\"all in turn\" sends over each of these once before it comes back to the first, so that none is in a \
cache when it is needed: the time is the memory's, and only the first hook of the packet pays it.

UDP: datagrams of 64 bytes that a socket sends to itself as fast as it can. TCP: one connection at full speed \
over a pair of virtual devices. Limits are so high that nothing is refused.

Promised: a packet of an untagged socket costs at most 50 ns more than the empty program (goal: 20), of a \
limited one 150 (goal: 60), whatever the number of limits and sockets.

| traffic | hook | limits | sockets | empty | engine | naive |
|---|---|--:|--:|--:|--:|--:|
";

const STEP: &str = "
## The bucket step alone

Asking and charging one bucket, without finding it. Promised: about 50 cycles.

| where | ns | cycles of the time stamp counter |
|---|--:|--:|
";

const TIMES: &str = "
## Setting, changing, removing a limit

Milliseconds until it is in force and verified, with so many other limits in force and traffic on up to 64 of \
them. *library*: a backend in the same process, one direction. *by the owner*: a request over the owner's \
socket. *from the command line*: from the start of the process to its line \"limited …\".

Promised: adding takes less than 10 ms in the median.

| what | limits | median | 99 of 100 below |
|---|--:|--:|--:|
";

const RATES: &str = "
## Accuracy at 100 MB/s

Shares of the limit. *passed*: IP bytes that the hook let through in seconds 2 to 10 (promised: 0.97-1.02); \
*first second*: the same from the moment the limit is set (promised: at most 1.3); *received*: TCP payload that \
arrived in seconds 2 to 10, of which full packets carry 0.965 (promised: 0.88-1.05). *without*: the same transfer before the \
limit, MB/s.

| direction | connections | sender's control | passed | first second | received | without |
|---|--:|---|--:|--:|--:|--:|
";

/// All of it, as Markdown.
pub fn write(results: &Results) -> String {
    let mut page = format!(
        "# What the engine costs, and how well it holds\n\nWritten by `cargo xtask bench`. {}\n\n",
        machine()
    );
    // Writing to a string never fails.
    if !results.packets.is_empty() {
        page += COST;
    }
    for row in &results.packets {
        let hook = if row.direction == Direction::Upload { "egress" } else { "ingress" };
        let (engine, naive) = (row.engine, row.naive);
        let _ = writeln!(
            page,
            "| {} | {hook} | {} | {} | {:.0} | **+{:.0}** ({:.0}) | +{:.0} ({:.0}) |",
            row.what,
            row.limits,
            row.sockets,
            row.empty,
            engine.median,
            engine.quiet,
            naive.median,
            naive.quiet,
        );
    }
    if let Some(step) = &results.step {
        page += STEP;
        for (place, ns) in [
            ("in the kernel: 100 in a row (BPF_PROG_TEST_RUN), less the loop without them", step.kernel_ns),
            ("the same code on the host", step.host_ns),
        ] {
            let cycles =
                step.cycles_per_ns.map_or_else(|| "none here".into(), |rate| format!("{:.0}", rate * ns));
            let _ = writeln!(page, "| {place} | {ns:.1} | {cycles} |");
        }
    }
    if !results.times.is_empty() {
        page += TIMES;
    }
    for row in &results.times {
        let _ = writeln!(page, "| {} | {} | {:.2} | {:.2} |", row.what, row.limits, row.median, row.p99);
    }
    if !results.rates.is_empty() {
        page += RATES;
    }
    for row in &results.rates {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {:.3} | {:.2} | {:.3} | {:.0} |",
            row.direction,
            row.flows,
            row.congestion,
            row.passed,
            row.first,
            row.received,
            row.free / 1e6
        );
    }
    page
}

/// Kernel, processor, and what makes calls in the kernel dear.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let mitigations: Vec<_> = ["spectre_v2", "spec_rstack_overflow", "retbleed"]
        .into_iter()
        .map(|name| (name, read(&format!("/sys/devices/system/cpu/vulnerabilities/{name}"))))
        .filter(|(_, state)| !state.is_empty() && state != "Not affected")
        .map(|(name, state)| format!("{name}: {state}"))
        .collect();
    format!(
        "Machine: {}, {count} processors of it; Linux {}; mitigations: {}.",
        model.trim_start_matches([' ', '\t', ':']),
        read("/proc/sys/kernel/osrelease"),
        if mitigations.is_empty() { "none".to_owned() } else { mitigations.join("; ") }
    )
}
