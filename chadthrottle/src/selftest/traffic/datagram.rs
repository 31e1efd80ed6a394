//! UDP at a given rate.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use super::{
    command::Way,
    flow::Runs,
    now,
    wire::{self, Header},
};

/// Seconds between a client's requests for datagrams.
const ASK: f64 = 0.25;
/// Seconds after which the server stops sending to a client that asked no more.
const FORGET: f64 = 1.0;
/// Seconds that a sender which was kept from sending makes up for.
const CATCH_UP: f64 = 0.05;
/// Datagrams read at a time, so that other sockets get their turn.
const BATCH: usize = 64;

/// Sends datagrams evenly.
struct Sender {
    to: SocketAddr,
    header: Header,
    /// Time of the next datagram.
    due: f64,
    /// Time of the last request for it; infinite for a client's own.
    asked: f64,
}

/// A socket, of a client or of a server.
pub struct Datagrams {
    /// The socket, non-blocking, not connected.
    pub socket: UdpSocket,
    /// A client's request, and the time of the next one.
    asks: Option<(SocketAddr, Header, f64)>,
    senders: HashMap<(SocketAddr, u64), Sender>,
}

impl Datagrams {
    /// Serves at `address`.
    pub fn listen(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, asks: None, senders: HashMap::new() })
    }

    /// A client that sends to `address`, or asks it to send, as the header says.
    pub fn connect(address: SocketAddr, header: Header) -> io::Result<Self> {
        let any = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let mut datagrams = Self::listen(any)?;
        match header.way {
            Way::Get => datagrams.asks = Some((address, header, now())),
            Way::Put => {
                let sender = Sender { to: address, header, due: now(), asked: f64::INFINITY };
                datagrams.senders.insert((address, sender.header.run), sender);
            }
        }
        Ok(datagrams)
    }

    /// Whether it is a server's.
    pub fn serves(&self) -> bool {
        self.asks.is_none() && self.senders.values().all(|sender| sender.asked.is_finite())
    }

    /// When [`Datagrams::send`] has something to do; infinite: never.
    pub fn due(&self) -> f64 {
        let asks = self.asks.iter().map(|(_, _, due)| *due);
        asks.chain(self.senders.values().map(|sender| sender.due)).fold(f64::INFINITY, f64::min)
    }

    /// Sends what is due.
    pub fn send(&mut self, payload: &mut [u8], runs: &mut Runs) {
        let time = now();
        if let Some((to, header, due)) = &mut self.asks
            && *due <= time
        {
            *due = time + ASK;
            // A lost request is made up for by the next one.
            let _ = self.socket.send_to(&header.bytes(), *to);
        }
        self.senders.retain(|_, sender| sender.asked + FORGET > time);
        for sender in self.senders.values_mut() {
            let size = (sender.header.size as usize).clamp(wire::LENGTH, payload.len());
            payload[..wire::LENGTH].copy_from_slice(&sender.header.bytes());
            let interval = size as f64 / sender.header.rate.max(1) as f64;
            sender.due = sender.due.max(time - CATCH_UP);
            let totals = runs.entry(sender.header.run).or_default();
            while sender.due <= time {
                match self.socket.send_to(&payload[..size], sender.to) {
                    Ok(length) => {
                        totals.tx += length as u64;
                        totals.tx_datagrams += 1;
                    }
                    // The socket's own queue is full: the device is slower than that.
                    Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                        sender.due = time + interval;
                        break;
                    }
                    Err(_) => totals.errors += 1,
                }
                sender.due += interval;
            }
        }
        payload[..wire::LENGTH].fill(0);
    }

    /// Receives what is there.
    pub fn receive(&mut self, buffer: &mut [u8], runs: &mut Runs) {
        for _ in 0..BATCH {
            let (length, from) = match self.socket.recv_from(buffer) {
                Ok(received) => received,
                // A closed peer port shows as an error of this call; the next one goes on.
                Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(_) => return,
            };
            let Some(header) = Header::parse(&buffer[..length]) else { continue };
            if header.way == Way::Get && self.asks.is_none() {
                let time = now();
                let sender = self.senders.entry((from, header.run)).or_insert_with(|| Sender {
                    to: from,
                    header: header.clone(),
                    due: time,
                    asked: time,
                });
                sender.asked = time;
            } else {
                let totals = runs.entry(header.run).or_default();
                totals.rx += length as u64;
                totals.rx_datagrams += 1;
            }
        }
    }
}
