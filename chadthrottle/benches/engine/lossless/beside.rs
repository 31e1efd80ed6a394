//! What a limit costs those who have none: their throughput beside it, as a share of that without it.

use chadthrottle::{
    Result,
    model::Direction,
    selftest::{
        lab::Version,
        process::{Traffic, sleep_until},
        traffic::now,
    },
};

use crate::{stats::median, support::Scene};

/// Each is a while without the limit and one with it, in turn.
const PAIRS: usize = 9;
/// How long each is measured, after half a second for TCP to settle, in seconds.
const WINDOW: f64 = 1.5;
const SETTLE: f64 = 0.5;
/// What the limited process moves without its limit, and with it, bytes/s.
const MOVES: u64 = 1_000_000;
const LIMIT: u64 = 500_000;

/// Traffic without a limit, one connection as fast as it goes, beside a download that gets one.
pub struct Beside {
    /// Which way that traffic goes.
    pub direction: Direction,
    /// Without the limit, bytes/s, median.
    pub free: f64,
    /// With it, as a share: median of the pairs, and without the lowest and the highest.
    pub share: f64,
    pub spread: (f64, f64),
}

/// Both directions.
pub fn measure() -> Result<Vec<Beside>> {
    Direction::ALL.into_iter().map(run).collect()
}

fn run(direction: Direction) -> Result<Beside> {
    let scene = Scene::new()?;
    let server = scene.server()?;
    let address = scene.tcp(Version::V4);
    let limited = scene.client(&[format!("connect tcp {address} get run={} rate={MOVES}", scene.run())])?;
    let way = if direction == Direction::Upload { "put" } else { "get" };
    let transfer = scene.run();
    let other = scene.client(&[format!("connect tcp {address} {way} cc=cubic run={transfer}")])?;
    let receiver = if direction == Direction::Upload { &server } else { &other };
    sleep_until(now() + 2.0)?;
    let (mut free, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let without = speed(receiver, transfer)?;
        let limit = scene.limit(&format!("pid:{} -d {LIMIT}", limited.pid()))?;
        let with = speed(receiver, transfer)?;
        limit.end()?;
        free.push(without);
        shares.push(with / without);
    }
    shares.sort_by(f64::total_cmp);
    let spread = (shares[1], shares[PAIRS - 2]);
    Ok(Beside { direction, free: median(free), share: median(shares), spread })
}

fn speed(receiver: &Traffic, run: u64) -> Result<f64> {
    let start = now() + SETTLE;
    let end = start + WINDOW;
    Ok(receiver.meter_at(end)?.rate(run, start, end, |totals| totals.rx))
}
