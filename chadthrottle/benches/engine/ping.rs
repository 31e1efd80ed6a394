//! Pings: datagrams that come straight back. The worker's side.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use crate::stats::median;

/// Where pings are answered.
pub const ECHO_PORT: u16 = 5010;

/// Payload of a ping, in bytes.
const SIZE: usize = 64;
/// From one ping to the next.
const PAUSE: Duration = Duration::from_millis(2);
/// One that does not come back counts as one that took so long.
const LOST: Duration = Duration::from_millis(500);

/// Sends back what comes in, until its parent ends.
pub fn echo(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("ready");
    let mut buffer = [0; SIZE];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], from)?;
    }
}

/// To each line with a number: pings for so many milliseconds, and the median of their round trips in µs.
pub fn pinger(address: &str) -> io::Result<()> {
    let to: SocketAddr = address.parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LOST))?;
    println!("ready");
    let mut number = 0_u64;
    for line in io::stdin().lines() {
        let time = Duration::from_millis(line?.parse().map_err(io::Error::other)?);
        let start = Instant::now();
        let mut trips = Vec::new();
        while trips.is_empty() || start.elapsed() < time {
            number += 1;
            trips.push(ping(&socket, number)?.as_secs_f64() * 1e6);
            thread::sleep(PAUSE);
        }
        println!("{:.1}", median(trips));
    }
    Ok(())
}

fn ping(socket: &UdpSocket, number: u64) -> io::Result<Duration> {
    let mut buffer = [0; SIZE];
    buffer[..8].copy_from_slice(&number.to_le_bytes());
    let wanted = buffer;
    let start = Instant::now();
    socket.send(&buffer)?;
    // What answers an earlier one, which took too long, is passed over.
    while start.elapsed() < LOST {
        match socket.recv(&mut buffer) {
            Ok(_) if buffer == wanted => return Ok(start.elapsed()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(LOST)
}
