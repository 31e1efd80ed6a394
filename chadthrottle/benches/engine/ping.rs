//! Pings: datagrams that come straight back. The worker's side.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
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

/// To each line with a number: pings for so many milliseconds, one after the other whether they are answered or not, and
/// the median of their round trips in µs.
pub fn pinger(address: &str) -> io::Result<()> {
    let to: SocketAddr = address.parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    println!("ready");
    let mut first = 0;
    for line in io::stdin().lines() {
        let time = Duration::from_millis(line?.parse().map_err(io::Error::other)?);
        let trips = pings(&socket, first, time)?;
        first += trips.len() as u64;
        println!("{:.1}", median(trips.iter().map(|trip| trip.as_secs_f64() * 1e6)));
    }
    Ok(())
}

/// Round trips of pings that are sent for some time, numbered from `first` on.
fn pings(socket: &UdpSocket, first: u64, time: Duration) -> io::Result<Vec<Duration>> {
    let start = Instant::now();
    let (mut sent, mut trips): (Vec<Instant>, Vec<Option<Duration>>) = (Vec::new(), Vec::new());
    loop {
        let now = Instant::now();
        let sending = sent.is_empty() || now - start < time;
        let due = if sending { start + PAUSE * sent.len() as u32 } else { now + PAUSE };
        if sending && now >= due {
            let mut buffer = [0; SIZE];
            buffer[..8].copy_from_slice(&(first + sent.len() as u64).to_le_bytes());
            sent.push(now);
            trips.push(None);
            socket.send(&buffer)?;
            continue;
        }
        let waits = sent.iter().zip(&trips).any(|(sent, trip)| trip.is_none() && now - *sent < LOST);
        if !sending && !waits {
            return Ok(trips.into_iter().map(|trip| trip.unwrap_or(LOST)).collect());
        }
        socket.set_read_timeout(Some((due - now).max(Duration::from_micros(100))))?;
        let mut buffer = [0; SIZE];
        match socket.recv(&mut buffer) {
            Ok(_) => {
                let number = buffer[..8].try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
                // What answers an earlier call's is passed over.
                let at = number.wrapping_sub(first) as usize;
                if let (Some(sent), Some(trip)) = (sent.get(at), trips.get_mut(at)) {
                    trip.get_or_insert_with(|| sent.elapsed());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
