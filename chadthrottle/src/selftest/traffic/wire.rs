//! The first bytes of a connection and of every datagram: who is it, and what is wanted.

use super::command::Way;

/// Length of the header; a datagram is at least this long.
pub const LENGTH: usize = 48;

const MAGIC: [u8; 4] = *b"chdt";
const NAME: std::ops::Range<usize> = 32..48;

/// What a client tells the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Seen from the client.
    pub way: Way,
    /// The run to count under.
    pub run: u64,
    /// Payload bytes a second that the server shall send; of a connection at most, and 0: as many as it can.
    pub rate: u64,
    /// Datagrams only: payload bytes in each that the server sends.
    pub size: u32,
    /// The congestion control that the server shall use; empty: its default.
    pub congestion: String,
}

impl Header {
    /// As bytes. A congestion control's name of more than 16 bytes, which the kernel has none of, is cut.
    pub fn bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = match self.way {
            Way::Get => 1,
            Way::Put => 2,
        };
        bytes[8..16].copy_from_slice(&self.run.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.rate.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.size.to_be_bytes());
        let name = self.congestion.as_bytes();
        let length = name.len().min(NAME.len());
        bytes[NAME][..length].copy_from_slice(&name[..length]);
        bytes
    }

    /// From the beginning of `bytes`; `None` when it is somebody else's.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.first_chunk()?;
        if bytes[..4] != MAGIC {
            return None;
        }
        let way = match bytes[4] {
            1 => Way::Get,
            2 => Way::Put,
            _ => return None,
        };
        let name = bytes[NAME].split(|&byte| byte == 0).next()?;
        Some(Self {
            way,
            run: u64::from_be_bytes(bytes[8..16].try_into().ok()?),
            rate: u64::from_be_bytes(bytes[16..24].try_into().ok()?),
            size: u32::from_be_bytes(bytes[24..28].try_into().ok()?),
            congestion: String::from_utf8(name.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header { way: Way::Get, run: 7, rate: 1 << 40, size: 1200, congestion: "cubic".into() };
        assert_eq!(Header::parse(&header.bytes()), Some(header));
    }

    #[test]
    fn other_bytes_are_no_header() {
        assert_eq!(Header::parse(b"GET / HTTP/1.1"), None);
        assert_eq!(Header::parse(&[0; LENGTH]), None);
    }
}
