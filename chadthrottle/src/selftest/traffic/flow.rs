//! A connection that transfers as fast as it can, or as it is told to.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Read, Write},
    mem,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{Backlog, SockaddrStorage, bind, connect, listen, setsockopt, sockopt};

use super::{
    Totals,
    command::{Stream, Way},
    wire::{self, Header},
};
use crate::kernel::sockets;

/// Longest that a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// Totals of each run.
pub type Runs = BTreeMap<u64, Totals>;

/// A listening socket.
pub struct Listener {
    /// The socket, non-blocking.
    pub socket: TcpListener,
    /// Connections it will still accept.
    pub accept: u64,
}

impl Listener {
    /// Serves at `address` until `accept` connections were taken.
    pub fn new(stream: Stream, address: SocketAddr, accept: u64) -> io::Result<Self> {
        let socket = socket(stream, address)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        listen(&socket, Backlog::new(256)?)?;
        let socket = TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self { socket, accept })
    }

    /// The next waiting connection.
    pub fn next(&mut self) -> Option<Flow> {
        let (socket, _) = self.socket.accept().ok()?;
        socket.set_nonblocking(true).ok()?;
        self.accept -= 1;
        Some(Flow { socket, run: 0, role: Role::Greeted { header: [0; wire::LENGTH], filled: 0 } })
    }
}

/// What a connection is at.
enum Role {
    /// The client's header is not complete.
    Greeted {
        header: [u8; wire::LENGTH],
        filled: usize,
    },
    Sends,
    Receives,
}

/// A connection.
pub struct Flow {
    /// The socket, non-blocking.
    pub socket: TcpStream,
    /// The run it belongs to.
    pub run: u64,
    role: Role,
}

impl Flow {
    /// Opens a connection and says what is wanted.
    pub fn connect(stream: Stream, address: SocketAddr, header: &Header) -> io::Result<Self> {
        let mut socket = open(stream, address)?;
        let sends = header.way == Way::Put;
        if sends {
            prepare_to_send(&socket, header)?;
        }
        socket.write_all(&header.bytes())?;
        Self::new(socket, sends, header.run)
    }

    /// Goes on with a connection that another program opened.
    pub fn adopt(descriptor: i32, sends: bool, run: u64) -> io::Result<Self> {
        // SAFETY: the program that executed this one left the descriptor open for it, and names it once.
        let socket = TcpStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
        Self::new(socket, sends, run)
    }

    fn new(socket: TcpStream, sends: bool, run: u64) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, run, role: if sends { Role::Sends } else { Role::Receives } })
    }

    /// Whether this end sends payload.
    pub fn sends(&self) -> bool {
        matches!(self.role, Role::Sends)
    }

    /// Moves what can be moved without waiting, once. `false`: the connection is over.
    pub fn serve(&mut self, buffer: &mut [u8], runs: &mut Runs) -> bool {
        let moved = match &mut self.role {
            Role::Greeted { header, filled } => {
                let read = self.socket.read(&mut header[*filled..]);
                *filled += read.as_ref().copied().unwrap_or(0);
                read
            }
            Role::Sends => self.socket.write(buffer),
            Role::Receives => self.socket.read(buffer),
        };
        let moved = match moved {
            Ok(0) => return false,
            Ok(length) => length as u64,
            Err(cause) => {
                return matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        };
        match &self.role {
            Role::Greeted { header, filled } if *filled == wire::LENGTH => {
                let Some(header) = Header::parse(header) else { return false };
                self.run = header.run;
                let sends = header.way == Way::Get;
                self.role = if sends { Role::Sends } else { Role::Receives };
                return !sends || prepare_to_send(&self.socket, &header).is_ok();
            }
            Role::Greeted { .. } => {}
            Role::Sends => runs.entry(self.run).or_default().tx += moved,
            Role::Receives => runs.entry(self.run).or_default().rx += moved,
        }
        true
    }

    /// Adds what TCP says about this connection to its run.
    pub fn add_to(&self, runs: &mut Runs) {
        let totals = runs.entry(self.run).or_default();
        totals.flows += 1;
        if let Some(info) = tcp_info(&self.socket) {
            totals.arrived += info.tcpi_bytes_received;
            totals.sent += info.tcpi_bytes_sent;
            totals.retransmitted += info.tcpi_bytes_retrans;
        }
    }

    /// Ends it: what TCP says about it stays in its run.
    pub fn finish(self, runs: &mut Runs) {
        self.add_to(runs);
        runs.entry(self.run).and_modify(|totals| totals.flows -= 1);
    }
}

/// A connected, blocking socket.
pub fn open(stream: Stream, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::from(socket(stream, address)?);
    // Bounds connect, too (socket(7)).
    socket.set_write_timeout(Some(CONNECT))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

fn socket(stream: Stream, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let protocol = match stream {
        Stream::Tcp => libc::IPPROTO_TCP,
        Stream::Mptcp => libc::IPPROTO_MPTCP,
    };
    // SAFETY: no pointers are passed.
    let descriptor = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn prepare_to_send(socket: &TcpStream, header: &Header) -> io::Result<()> {
    if !header.congestion.is_empty() {
        setsockopt(socket, sockopt::TcpCongestion, &OsString::from(&header.congestion))?;
    }
    if header.rate != 0 {
        sockets::set_max_pacing_rate(socket.as_fd(), header.rate)?;
    }
    Ok(())
}

/// `None` where the kernel has no such thing for the socket (multipath TCP before Linux 5.16).
fn tcp_info(socket: &TcpStream) -> Option<libc::tcp_info> {
    // SAFETY: integers only, zeroes are a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is writable for `length` bytes; an older kernel writes fewer and leaves zeroes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(info)
}
