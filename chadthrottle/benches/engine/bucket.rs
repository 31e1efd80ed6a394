//! The bucket step alone.

use std::{
    hint::black_box,
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use chadthrottle::Result;
use chadthrottle_common::bucket::{Word, token_bucket_allow};

use crate::{scene::Yardstick, stats::quantile};

/// Bucket steps in one run of the object's `step_ingress`.
const STEPS: f64 = 100.0;
/// Runs of it at a time, and times.
const REPEAT: u32 = 10_000;
const TIMES: usize = 9;

/// What one step takes, in ns and in cycles of the time stamp counter, where there is one.
pub struct Step {
    /// In the kernel, as the programs have it.
    pub kernel_ns: f64,
    /// On the host.
    pub host_ns: f64,
    /// Ticks of the time stamp counter in a ns; `None`: not this kind of machine.
    pub cycles_per_ns: Option<f64>,
}

struct Host(AtomicU64);

impl Word for Host {
    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn add(&self, ticks: u64) {
        self.0.fetch_add(ticks, Ordering::Relaxed);
    }
    fn replace(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }
}

/// Measures both.
pub fn measure(yardstick: &mut Yardstick) -> Result<Step> {
    let mut kernel = Vec::new();
    for _ in 0..TIMES {
        let idle = yardstick.run_steps("idle_ingress", 1_000_000_000, REPEAT)?;
        let step = yardstick.run_steps("step_ingress", 1_000_000_000, REPEAT)?;
        kernel.push((f64::from(step) - f64::from(idle)) / STEPS);
    }
    let host = (0..TIMES).map(|_| host(true) - host(false));
    Ok(Step {
        kernel_ns: quantile(kernel, 0.2),
        host_ns: quantile(host, 0.2),
        cycles_per_ns: cycles_per_ns(),
    })
}

/// ns of one round, with the step or without it.
fn host(step: bool) -> f64 {
    const ROUNDS: u64 = 1_000_000;
    let word = Host(AtomicU64::new(1 << 40));
    let mut now = 1 << 40;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        now = black_box(now + 6_400);
        let rate = black_box(NonZeroU64::MIN.saturating_add(1_000_000_000));
        if step {
            black_box(token_bucket_allow(&word, now, black_box(100), rate, 64_000));
        }
    }
    start.elapsed().as_nanos() as f64 / ROUNDS as f64
}

#[cfg(target_arch = "x86_64")]
fn cycles_per_ns() -> Option<f64> {
    // SAFETY: every x86-64 processor has it.
    let counter = || unsafe { core::arch::x86_64::_rdtsc() };
    let (start, from) = (Instant::now(), counter());
    std::thread::sleep(std::time::Duration::from_millis(50));
    let cycles = counter() - from;
    Some(cycles as f64 / start.elapsed().as_nanos() as f64)
}

#[cfg(not(target_arch = "x86_64"))]
fn cycles_per_ns() -> Option<f64> {
    None
}
