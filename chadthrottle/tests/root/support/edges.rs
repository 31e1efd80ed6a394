//! What TCP advertises, seen on the line: right edges of windows, and checksums.

use std::collections::HashMap;

use super::relay::VNET;

const ETHERNET: usize = 14;
const TCP: u8 = 6;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// One connection, as one of its ends advertises.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edges {
    /// Window scale, from the SYN.
    pub scale: u8,
    /// Latest right edge.
    edge: Option<u32>,
    /// How often it moved back.
    pub moved_back: u32,
    /// By how many bytes at most.
    pub furthest_back: u32,
    /// Packets that advertised a window.
    pub packets: u64,
    /// The latest window, bytes.
    pub window: u32,
}

/// All connections of a line, by the port of the end that advertises.
#[derive(Debug, Default)]
pub struct Watched {
    /// Each connection.
    pub connections: HashMap<u16, Edges>,
    /// TCP packets whose checksum was looked at.
    pub checked: u64,
    /// Those of them with a wrong one.
    pub wrong: u64,
}

impl Watched {
    /// Takes in a frame that a device left to the kernel to sum up; the other end is at `port`.
    pub fn see(&mut self, frame: &[u8], port: u16) {
        // What cannot be read has no window.
        let _ = self.look(frame, port);
    }

    fn look(&mut self, frame: &[u8], port: u16) -> Option<()> {
        let packet = frame.get(VNET + ETHERNET..)?;
        let (addresses, tcp) = match packet.first()? >> 4 {
            4 if *packet.get(9)? == TCP => {
                let length = usize::from(word(packet, 2)?);
                (packet.get(12..20)?, packet.get(usize::from(packet[0] & 15) * 4..length)?)
            }
            6 if *packet.get(6)? == TCP => {
                let length = usize::from(word(packet, 4)?);
                (packet.get(8..40)?, packet.get(40..40 + length)?)
            }
            _ => return None,
        };
        if word(tcp, 2)? != port {
            return None;
        }
        self.checked += 1;
        let length = tcp.len() as u32;
        if sum([addresses, &length.to_be_bytes(), &[0, TCP], tcp]) != 0xffff {
            self.wrong += 1;
        }
        let connection = self.connections.entry(word(tcp, 0)?).or_default();
        let flags = *tcp.get(13)?;
        if flags & SYN != 0 {
            *connection = Edges { scale: scale(tcp).unwrap_or(0), ..Edges::default() };
        } else if flags & (ACK | RST | FIN) == ACK {
            let ack = u32::from_be_bytes(tcp.get(8..12)?.try_into().ok()?);
            connection.window = u32::from(word(tcp, 14)?) << connection.scale;
            let edge = ack.wrapping_add(connection.window);
            let back = connection.edge.map_or(0, |before| before.wrapping_sub(edge) as i32);
            if back > 0 {
                connection.moved_back += 1;
                connection.furthest_back = connection.furthest_back.max(back as u32);
            }
            connection.edge = Some(edge);
            connection.packets += 1;
        }
        Some(())
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The one's complement sum of all (RFC 1071); with a right checksum in it 0xffff.
fn sum<const N: usize>(parts: [&[u8]; N]) -> u32 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum
}

/// The window scale option.
fn scale(tcp: &[u8]) -> Option<u8> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const WINDOW_SCALE: u8 = 3;
    let mut options = tcp.get(20..usize::from(tcp.get(12)? >> 4) * 4)?;
    loop {
        options = match *options.first()? {
            END => return None,
            NOTHING => &options[1..],
            WINDOW_SCALE => return options.get(2).copied(),
            _ => options.get(usize::from(*options.get(1)?).max(2)..)?,
        };
    }
}
