//! Netlink messages written and read byte by byte, for what no light crate knows: sock_diag, nf_tables, traffic
//! control. Layouts: include/uapi/linux/netlink.h.

use std::ops::RangeInclusive;

use netlink_sys::{Socket, SocketAddr};

use crate::error::{Context, Error, Kind, Result};

/// struct nlmsghdr.
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// What the kernel may keep for us, in bytes: a dump of many sockets comes faster than it is read.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A request under construction.
#[derive(Clone, Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// `header` is what the family puts before the attributes.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; 4]; // length, when it is sent
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend([0; 8]); // sequence number and port
        bytes.extend(header);
        Self(bytes)
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute of 32-bit words of the machine's order.
    pub fn words(&mut self, kind: u16, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.attribute(kind, &bytes);
    }

    /// Adds an attribute of text.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat());
    }

    /// Adds an attribute that holds others, 64 KiB at most.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = self.0.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "an attribute is too long");
        self.0[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
    }

    /// The same with another first byte of what the family puts before the attributes.
    pub fn with_family(mut self, family: u8) -> Self {
        if let Some(byte) = self.0.get_mut(HEADER) {
            *byte = family;
        }
        self
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// As it is sent.
    pub fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | flags;
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// The attributes of an answer.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// All, with their kinds.
    pub fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE_MASK;
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// The value of the first of that kind.
    pub fn get(&self, wanted: u16) -> Option<&'a [u8]> {
        self.all().find_map(|(kind, value)| (kind == wanted).then_some(value))
    }

    /// A text.
    pub fn text(&self, wanted: u16) -> Option<String> {
        let value = self.get(wanted)?;
        Some(String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned())
    }

    /// The attributes within the first of that kind.
    pub fn within(&self, wanted: u16) -> Option<Self> {
        self.get(wanted).map(Self)
    }
}

/// A connection to one netlink family; it speaks to the namespace in which it was opened, wherever it is used.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// For the calling thread's namespace; `protocol` is a NETLINK_*.
    pub fn open(protocol: isize) -> Result<Self> {
        let mut socket = Socket::new(protocol).context("open a netlink socket")?;
        // Less than wanted does, too.
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER);
        socket.bind_auto().context("bind a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("connect a netlink socket")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// A request that is only acknowledged.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when what it is about is not there.
    pub fn act(&mut self, message: Message) -> Result<()> {
        self.sequence += 1;
        let bytes = message.finish(libc::NLM_F_ACK as u16, self.sequence);
        self.socket.send(&bytes, 0).context("send a netlink request")?;
        self.answers(self.sequence..=self.sequence, |_| {}, |_| {})
    }

    /// A request for a list; the answers without their netlink headers.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when what it is about is not there.
    pub fn dump(&mut self, message: Message) -> Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let bytes = message.finish(libc::NLM_F_DUMP as u16, self.sequence);
        self.socket.send(&bytes, 0).context("send a netlink request")?;
        let mut answers = Vec::new();
        self.answers(self.sequence..=self.sequence, |body| answers.push(body.to_vec()), |_| {})?;
        Ok(answers)
    }

    /// Sends requests as one, between `first` and `last`, which get no answer; done when it returns.
    ///
    /// # Errors
    /// The number of the first request that was refused and why; [`Kind::NotFound`] when what it is about is not
    /// there. What one batch does, it does as a whole or not at all: that is the kernel's part.
    pub fn transact(
        &mut self,
        first: Message,
        messages: Vec<Message>,
        last: Message,
    ) -> Result<(), (usize, Error)> {
        let count = messages.len();
        if count == 0 {
            return Ok(());
        }
        let start = self.sequence + 1;
        let mut bytes = Vec::new();
        let all = [first].into_iter().chain(messages).chain([last]);
        for (number, message) in all.enumerate() {
            self.sequence += 1;
            // One acknowledgement tells that all are done; refusals come for each.
            let flags = if number == count { libc::NLM_F_ACK as u16 } else { 0 };
            bytes.extend(message.finish(flags, self.sequence));
        }
        self.socket.send(&bytes, 0).context("send netlink requests").map_err(|error| (0, error))?;
        let mut refused = start;
        self.answers(start..=self.sequence, |_| {}, |sequence| refused = sequence)
            .map_err(|error| (refused.saturating_sub(start + 1) as usize, error))
    }

    /// Reads up to the end of the list, the acknowledgement, or the refusal, of which `refused` gets the number.
    fn answers(
        &mut self,
        wanted: RangeInclusive<u32>,
        mut take: impl FnMut(&[u8]),
        mut refused: impl FnMut(u32),
    ) -> Result<()> {
        loop {
            let (datagram, _) = self.socket.recv_from_full().context("receive a netlink answer")?;
            let mut rest = datagram.as_slice();
            while let Some((kind, sequence, body)) = next_message(&mut rest) {
                // Those of an exchange that failed before.
                if !wanted.contains(&sequence) {
                    continue;
                }
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        refused(sequence);
                        return refusal(body);
                    }
                    _ => take(body),
                }
            }
        }
    }
}

/// Takes the next message: kind, sequence number, body.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, u32, &'a [u8])> {
    let whole = *rest;
    let word = |at: usize| Some(u32::from_ne_bytes(whole.get(at..at + 4)?.try_into().ok()?));
    let length = word(0)? as usize;
    let body = whole.get(HEADER..length)?;
    let kind = u16::from_ne_bytes(whole.get(4..6)?.try_into().ok()?);
    *rest = whole.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, word(8)?, body))
}

/// What struct nlmsgerr, or the end of a list, says: a negative error number, or 0.
fn refusal(body: &[u8]) -> Result<()> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if number >= 0 {
        return Ok(());
    }
    let error = std::io::Error::from_raw_os_error(-number);
    let absent = matches!(-number, libc::ENOENT | libc::ENODEV);
    Err(match Err::<(), _>(error).context("the kernel refused") {
        Err(error) if absent => Error { kind: Kind::NotFound, ..error },
        Err(error) => error,
        Ok(()) => Error::failed("the kernel refused"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back() {
        let mut message = Message::new(7, 0, &[1, 2, 3, 4]);
        message.attribute(1, &[9]);
        message.nested(2, |inner| inner.text(3, "chadt"));
        let bytes = message.finish(0, 5);
        assert_eq!(bytes.len() % 4, 0);
        let mut rest = bytes.as_slice();
        let (kind, sequence, body) = next_message(&mut rest).unwrap();
        assert_eq!((kind, sequence, rest.len()), (7, 5, 0));
        let attributes = Attributes::of(&body[4..]);
        assert_eq!(attributes.get(1), Some(&[9][..]));
        assert_eq!(attributes.within(2).unwrap().text(3).unwrap(), "chadt");
        assert_eq!(attributes.get(4), None);
        // Torn ones end the list.
        assert_eq!(Attributes::of(&body[4..10]).all().count(), 1);
        assert_eq!(Attributes::of(&[200, 0, 1, 0, 5]).all().count(), 0);
    }

    #[test]
    fn refusals_have_their_kind() {
        let body = |number: i32| number.to_ne_bytes();
        assert!(refusal(&body(0)).is_ok());
        assert_eq!(refusal(&body(-libc::ENOENT)).unwrap_err().kind, Kind::NotFound);
        assert_eq!(refusal(&body(-libc::EPERM)).unwrap_err().kind, Kind::NotPermitted);
    }
}
