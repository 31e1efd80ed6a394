//! Sockets of other processes: a descriptor of one's own for one of theirs, what it is, and its pacing cap.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use nix::sys::socket::{SockaddrStorage, getpeername};

use super::process::Process;
use crate::error::{Context, Result};

/// A second descriptor for descriptor `fd` of `process`. Close it soon: until then the socket stays open.
/// Takes the right to trace the process (CAP_SYS_PTRACE for another user's).
pub fn borrow(process: &Process, fd: u32) -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor (close-on-exec) or an error.
    let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_fd().as_raw_fd(), fd, 0) };
    if got < 0 {
        return Err(io::Error::last_os_error())
            .context(format!("get descriptor {fd} of process {}", process.pid()));
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(got as i32) })
}

fn option<T: Default>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value and length are ours, and length is the value's size.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Whether it is a TCP connection, and no listener.
pub fn is_tcp_flow(socket: BorrowedFd<'_>) -> bool {
    protocol(socket).is_ok_and(|protocol| protocol == libc::IPPROTO_TCP as u32) && !listens(socket)
}

/// IP protocol number.
pub fn protocol(socket: BorrowedFd<'_>) -> io::Result<u32> {
    option::<libc::c_int>(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL).map(|protocol| protocol as u32)
}

/// Whether it waits for connections.
pub fn listens(socket: BorrowedFd<'_>) -> bool {
    option::<libc::c_int>(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).is_ok_and(|listens| listens != 0)
}

/// A number that no other socket of the host has had since the boot.
pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// Payload bytes that the peer acknowledged and that were received in order, since the socket was made; `None`: it
/// is not TCP, or no connection.
pub fn tcp_bytes(socket: BorrowedFd<'_>) -> Option<(u64, u64)> {
    /// `struct tcp_info` up to tcpi_bytes_received (4.1), in words; tcpi_bytes_acked stands before that.
    const WORDS: usize = 17;
    if !is_tcp_flow(socket) {
        return None;
    }
    let info: [u64; WORDS] = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO).ok()?;
    Some((info[WORDS - 2], info[WORDS - 1]))
}

/// The shortest round trip of a TCP connection lately, and a usual one, in µs; `None`: it is none, or the kernel does not say.
pub fn round_trips(socket: BorrowedFd<'_>) -> Option<(u32, u32)> {
    /// `struct tcp_info` up to tcpi_min_rtt (4.6), in words; tcpi_rtt stands before that.
    const WORDS: usize = 38;
    const RTT: usize = 17;
    let info: [[u32; WORDS / 2]; 2] = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO).ok()?;
    let info = info.as_flattened();
    Some((info[WORDS - 1], info[RTT]))
}

/// Inode number of its network namespace.
pub fn network_namespace(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(File::from(namespace(socket)?).metadata()?.ino() as u32)
}

/// Its network namespace.
pub fn namespace(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// Gives a descriptor for the namespace of a socket (4.9).
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: no pointers; the result is a new descriptor (close-on-exec) or an error.
    let got = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// Whether it is an IPv4 or IPv6 socket.
pub fn is_inet(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok([libc::AF_INET, libc::AF_INET6].contains(&option(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)?))
}

/// The address that it is connected to; `None`: it is not, or to none of IP.
pub fn peer(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    let address = getpeername::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::from(*address));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::from(*address)))
}

/// Whether it is an IPv6 socket.
pub fn is_ipv6(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(option::<libc::c_int>(socket, libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_INET6)
}

/// The cap on its pacing rate, payload bytes/s; `u64::MAX`: none.
pub fn max_pacing_rate(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE)
}

/// Sets the cap on its pacing rate.
pub fn set_max_pacing_rate(socket: BorrowedFd<'_>, rate: u64) -> io::Result<()> {
    // SAFETY: eight bytes of ours.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of::<u64>() as libc::socklen_t,
        )
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
