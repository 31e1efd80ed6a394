//! An own small sender and receiver, for the self-test and the tests: real transfers over real sockets,
//! in a process of their own that a limit can be set on.
//!
//! One event loop in one thread (so that forking is harmless) does what its commands say. The arguments
//! are commands, one each; further ones come as lines on stdin, and the end of stdin is `stop`. It
//! answers with JSON lines on stdout (see [`super::meter`] for their reader):
//!
//! - `{"event":"ready", "pid", "time"}` once, after the arguments' commands, and again after `exec`;
//! - `{"event":"tick", "pid", "time", "runs": {"RUN": TOTALS}}` every 20 ms: payload bytes so far;
//! - `{"event":"done", "command", …}` or `{"event":"failed", "command", "error"}` to each line of stdin;
//! - `{"event":"forked", "pid", "parent"}` from a child.
//!
//! Times are seconds of CLOCK_MONOTONIC. A *run* is a number that the client chooses; its connections
//! carry it to the server, so that both ends count under the same name.
//!
//! | command | does |
//! |---|---|
//! | `listen tcp\|mptcp\|udp ADDR [accept=N]` | serves, whatever the clients ask for; at most N connections |
//! | `connect tcp\|mptcp ADDR get\|put [flows=N] [cc=NAME] [rate=BYTES] [run=R]` | opens N connections that transfer until closed, each at most at the rate |
//! | `udp ADDR get\|put rate=BYTES [size=N] [run=R]` | datagrams of N payload bytes at a rate |
//! | `close` | closes everything that transfers |
//! | `time-connect ADDR [count=N]` | opens and closes N connections; answers `ms`, the time each took |
//! | `fork take` | a child goes on with all connections; the parent gives them up |
//! | `fork COMMAND…` | a child without the parent's connections does the command |
//! | `prefork N` | N children serve the listeners; the parent gives them up |
//! | `burst ADDR count=N every=MS bytes=B [run=R]` | N children, one each MS, upload B bytes over a connection and end |
//! | `exec` | runs its own program anew, with the open connections |
//! | `adopt FD send\|receive run=R`, `totals R TOTALS` | what `exec` hands over |
//! | `stop` | ends |

mod command;
mod datagram;
mod engine;
mod flow;
mod offspring;
mod wire;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// What one process moved for one run so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Payload bytes received.
    pub rx: u64,
    /// Payload bytes that TCP received (`tcpi_bytes_received`), read by now or not: up to megabytes a
    /// connection wait for a reader that is slower than the sender.
    pub arrived: u64,
    /// Payload bytes handed to the kernel.
    pub tx: u64,
    /// Datagrams received.
    pub rx_datagrams: u64,
    /// Datagrams handed to the kernel.
    pub tx_datagrams: u64,
    /// Datagrams that the kernel refused with an error.
    pub errors: u64,
    /// Payload bytes that TCP put on the wire (`tcpi_bytes_sent`), retransmissions included.
    pub sent: u64,
    /// Those of them that were retransmissions (`tcpi_bytes_retrans`).
    pub retransmitted: u64,
    /// Connections now open.
    pub flows: u64,
}

/// Runs the commands in `arguments` and then those from stdin; see the module's description.
pub fn main(arguments: &[String]) -> Result<()> {
    engine::Engine::new()?.run(arguments)
}

/// Seconds of CLOCK_MONOTONIC: the clock of every time in this module's output.
pub fn now() -> f64 {
    // The clock exists on every Linux; a zero would show as nonsense in the first measurement.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0.0, |time| time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}
