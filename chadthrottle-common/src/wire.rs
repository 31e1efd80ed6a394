//! IP bytes as they are on the wire. The kernel hands around buffers of up to 64 KB and more (GSO,
//! GRO) that carry their headers once; on the wire every segment has its own.

/// A packet, or a buffer that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Packets on the wire.
    pub packets: u64,
    /// Their IP bytes, headers of the IP layer and up.
    pub bytes: u64,
}

/// `length`: IP bytes of the buffer. `headers`: bytes of IP and transport header in it.
/// `segments`, `segment_size`: the buffer's gso_segs, which may be 0, and gso_size, payload bytes of
/// a segment, 0 when it is one packet.
#[inline(always)]
pub fn on_wire(length: u64, headers: u64, segments: u32, segment_size: u32) -> Wire {
    if segment_size == 0 {
        return Wire { packets: 1, bytes: length };
    }
    let packets = if segments != 0 {
        u64::from(segments)
    } else {
        // TAP and virtio devices leave the count out.
        let payload = length.saturating_sub(headers) as u32;
        u64::from(payload.div_ceil(segment_size)).max(1)
    };
    Wire { packets, bytes: length + (packets - 1) * headers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_packet_counts_as_it_is() {
        assert_eq!(on_wire(1500, 52, 0, 0), Wire { packets: 1, bytes: 1500 });
        assert_eq!(on_wire(52, 52, 1, 1448), Wire { packets: 1, bytes: 52 });
    }

    #[test]
    fn every_segment_has_its_headers() {
        // Three full segments of 1448 and one of 100.
        let payload = 3 * 1448 + 100;
        let wire = Wire { packets: 4, bytes: payload + 4 * 52 };
        assert_eq!(on_wire(payload + 52, 52, 4, 1448), wire);
        assert_eq!(on_wire(payload + 52, 52, 0, 1448), wire);
    }

    #[test]
    fn nonsense_does_not_wrap() {
        assert_eq!(on_wire(10, 52, 0, 1448), Wire { packets: 1, bytes: 10 });
    }
}
