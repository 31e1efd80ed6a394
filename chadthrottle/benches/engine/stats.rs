//! Run-time statistics of eBPF programs (BPF_ENABLE_STATS, Linux 5.8), and of the machine.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use aya::programs::ProgramInfo;
use chadthrottle::{Error, Kind, Result};

/// `struct bpf_prog_info` up to the counters.
#[repr(C)]
struct Info {
    head: [u64; 24],
    run_time_ns: u64,
    run_count: u64,
}

/// `union bpf_attr` of BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// A program whose runs are counted and timed.
pub struct Timed(OwnedFd);

/// Runs so far.
#[derive(Clone, Copy, Default)]
struct Sum {
    ns: u64,
    runs: u64,
}

impl Timed {
    /// Any program.
    pub fn new(info: &ProgramInfo) -> Result<Self> {
        let fd = info.fd().map_err(|cause| Error::caused(Kind::Failed, "open an eBPF program", &cause))?;
        let fd = fd.as_fd().try_clone_to_owned();
        fd.map(Self).map_err(|cause| Error::caused(Kind::Failed, "open an eBPF program", &cause))
    }

    fn sum(&self) -> Result<Sum> {
        let mut info = Info { head: [0; 24], run_time_ns: 0, run_count: 0 };
        let mut attributes = InfoByFd {
            fd: self.0.as_raw_fd() as u32,
            length: size_of::<Info>() as u32,
            info: (&raw mut info) as u64,
        };
        // SAFETY: the command's arm of union bpf_attr, at its size; `info` is as long as it says and
        // outlives the call; its zeros ask for none of the arrays.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attributes, size_of::<InfoByFd>())
        };
        if result < 0 {
            let cause = io::Error::last_os_error();
            return Err(Error::caused(Kind::Failed, "read an eBPF program's statistics", &cause));
        }
        Ok(Sum { ns: info.run_time_ns, runs: info.run_count })
    }
}

/// Length of a window: short, so that most of them are free of interrupts and of other processes.
const WINDOW: Duration = Duration::from_millis(4);
/// Fewer runs than this say nothing.
const MIN_RUNS: u64 = 25;

/// Mean ns of a run of each program, window by window.
pub fn watch<const N: usize>(programs: [&Timed; N], length: Duration) -> Result<Vec<[f64; N]>> {
    let sums = || -> Result<[Sum; N]> {
        let mut all = [Sum::default(); N];
        for (sum, program) in all.iter_mut().zip(programs) {
            *sum = program.sum()?;
        }
        Ok(all)
    };
    let end = Instant::now() + length;
    let mut before = sums()?;
    let mut windows = Vec::new();
    while Instant::now() < end {
        thread::sleep(WINDOW);
        let after = sums()?;
        let mut means = [0.0; N];
        let mut fair = true;
        for ((mean, before), after) in means.iter_mut().zip(before).zip(after) {
            let runs = after.runs - before.runs;
            fair &= runs >= MIN_RUNS;
            *mean = (after.ns - before.ns) as f64 / runs.max(1) as f64;
        }
        if fair {
            windows.push(means);
        }
        before = after;
    }
    if windows.is_empty() {
        return Err(Error::failed("measure eBPF programs: they hardly ran"));
    }
    Ok(windows)
}

/// The value that a share of the values lies below.
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// [`quantile`] in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// Seconds that all processors together have been busy.
pub fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")
        .map_err(|cause| Error::caused(Kind::Failed, "read /proc/stat", &cause))?;
    let numbers: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match numbers[..] {
        // user, nice, system, idle, iowait, irq, softirq: in ticks, of which a second has 100 everywhere.
        [user, nice, system, _, _, irq, softirq, ..] => Ok((user + nice + system + irq + softirq) / 100.0),
        _ => Err(Error::failed("/proc/stat has no times")),
    }
}
