//! rtnetlink messages written and read byte by byte, for what no crate knows.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::{Context, Error, Kind, Result};

/// struct nlmsghdr.
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// A request under construction.
pub(super) struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4]; // length, when it is sent
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend([0; 8]); // sequence number and port
        Self(bytes)
    }

    /// About a device; `flags_on` are the IFF_* to be set.
    pub fn link(kind: u16, flags: u16, index: u32, flags_on: u32) -> Self {
        let mut message = Self::new(kind, flags);
        for word in [0, index, flags_on, flags_on] {
            message.0.extend(word.to_ne_bytes());
        }
        message
    }

    /// About a qdisc, class or filter.
    pub fn tc(kind: u16, flags: u16, device: u32, handle: u32, parent: u32, info: u32) -> Self {
        let mut message = Self::new(kind, flags);
        for word in [0, device, handle, parent, info] {
            message.0.extend(word.to_ne_bytes());
        }
        message
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute of 32-bit words.
    pub fn words(&mut self, kind: u16, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.attribute(kind, &bytes);
    }

    /// Adds an attribute of text.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), b"\0"].concat());
    }

    /// Adds an attribute that holds others.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// The attributes of an answer.
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The value of the first of that kind.
    pub fn get(&self, wanted: u16) -> Option<&'a [u8]> {
        let mut rest = self.0;
        loop {
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE_MASK;
            let value = rest.get(4..length)?;
            if kind == wanted {
                return Some(value);
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }

    /// A text.
    pub fn text(&self, wanted: u16) -> Option<String> {
        let value = self.get(wanted)?;
        Some(String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned())
    }
}

/// A connection to rtnetlink; it speaks to the namespace in which it was opened, wherever it is used.
pub(super) struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

impl Rtnetlink {
    /// For the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("open a netlink socket")?;
        socket.bind_auto().context("bind a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("connect a netlink socket")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// A request that is only acknowledged.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when what it is about is not there.
    pub fn act(&mut self, message: Message) -> Result<()> {
        self.exchange(message, libc::NLM_F_ACK as u16).map(drop)
    }

    /// A request for a list; the answers without their netlink headers.
    pub fn dump(&mut self, message: Message) -> Result<Vec<Vec<u8>>> {
        self.exchange(message, libc::NLM_F_DUMP as u16)
    }

    fn exchange(&mut self, message: Message, flags: u16) -> Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let mut bytes = message.0;
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(&bytes, 0).context("send a netlink request")?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().context("receive a netlink answer")?;
            let mut rest = datagram.as_slice();
            while let Some((kind, sequence, body)) = next_message(&mut rest) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_ERROR => return refusal(body).map(|()| answers),
                    NLMSG_DONE => return Ok(answers),
                    _ => answers.push(body.to_vec()),
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

/// What struct nlmsgerr says: a negative error number, or 0.
fn refusal(body: &[u8]) -> Result<()> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if number == 0 {
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
