//! Small buffers: under a slow upload limit a connection over a short line has little under way, and as much as it wants when
//! the limit is gone, however it went.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use chadthrottle::kernel::{
    process::{self, Process},
    sockets,
};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::{
    cleanup::{kill_both, signal},
    support::*,
};

/// What eight connections share, bytes/s.
const RATE: u64 = 1_000_000;

/// Segments that are few: 64 KB at once take twice 45 under way.
const FEW: u32 = 64;

pub fn trials() -> Vec<Trial> {
    vec![
        plain("bursts::small_until_the_end", |scene| small_until(scene, End::Limit)),
        plain("bursts::small_until_the_owner_dies", |scene| small_until(scene, End::Owner)),
        plain("bursts::small_until_somebody_clears", |scene| small_until(scene, End::Both)),
    ]
}

/// How the limit goes.
#[derive(Clone, Copy)]
enum End {
    Limit,
    /// It is killed, and the janitor gives back what it left.
    Owner,
    /// Both are killed, and `clear` does.
    Both,
}

fn small_until(scene: &Scene, end: End) -> Result<()> {
    let _server = scene.server()?;
    let transfer =
        |cc: &str| format!("connect tcp {} put cc={cc} run={}", scene.tcp(Version::V4), scene.run());
    // bbr's congestion window is taken back at once, that of others as they need less.
    let old: Vec<String> = (0..4).map(|_| transfer("bbr")).collect();
    let mut client = scene.client(&old)?;
    sleep_until(now() + 1.0)?;
    let mut limit = scene.limit(&format!("pid:{} -u {RATE}", client.pid()))?;
    for _ in 0..4 {
        client.tell(&transfer("cubic"))?;
    }
    let all = old.len() + 4;
    await_windows(client.pid(), "under the limit", |windows| {
        windows.len() == all && windows.iter().all(|window| *window <= FEW)
    })?;
    match end {
        End::Limit => drop(limit.end()?),
        End::Owner => {
            signal(scene.owner()?, Signal::SIGKILL)?;
            limit.call.finish()?;
        }
        End::Both => {
            kill_both(scene, limit.call.process().pid())?;
            limit.call.finish()?;
            let windows = windows(client.pid())?;
            ensure!(windows.iter().all(|window| *window <= FEW), "with nobody left: {windows:?} segments");
            scene.succeed("clear")?;
        }
    }
    await_windows(client.pid(), "without it", |windows| {
        windows.len() == all && windows.iter().all(|window| *window > FEW)
    })?;
    scene.succeed("clear").map(drop)
}

fn await_windows(pid: u32, when: &str, are_so: impl Fn(&[u32]) -> bool) -> Result<()> {
    const PATIENCE: f64 = 15.0;
    let since = now();
    loop {
        let windows = windows(pid)?;
        if are_so(&windows) {
            eprintln!("{when}, after {:.1} s: {windows:?} segments", now() - since);
            return Ok(());
        }
        ensure!(now() < since + PATIENCE, "{when}, after {PATIENCE} s: {windows:?} segments");
        sleep_until(now() + 0.1)?;
    }
}

/// Congestion windows of a process's connections, in segments.
fn windows(pid: u32) -> Result<Vec<u32>> {
    let process = Process::open(pid)?;
    let mut windows = Vec::new();
    for fd in process::sockets(Path::new(process::PROC), pid) {
        let socket = sockets::borrow(&process, fd)?;
        if sockets::is_tcp_flow(socket.as_fd()) {
            windows.push(window(socket.as_fd())?);
        }
    }
    Ok(windows)
}

fn window(socket: BorrowedFd<'_>) -> Result<u32> {
    /// Where `struct tcp_info` has tcpi_snd_cwnd, in words.
    const WINDOW: usize = 20;
    let mut info = [0_u32; WINDOW + 1];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the buffer is ours, and as long as is said.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(status == 0, "getsockopt(TCP_INFO): {}", std::io::Error::last_os_error());
    Ok(info[WINDOW])
}
