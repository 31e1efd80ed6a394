//! Sockets of other processes: a descriptor of one's own for one of theirs, and its pacing cap.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
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

fn option<T: Default>(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value and length are ours, and length is the value's size.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Whether it is a TCP connection, and no listener.
pub fn is_tcp_flow(socket: BorrowedFd<'_>) -> bool {
    option::<libc::c_int>(socket, libc::SO_PROTOCOL).is_ok_and(|protocol| protocol == libc::IPPROTO_TCP)
        && option::<libc::c_int>(socket, libc::SO_ACCEPTCONN).is_ok_and(|listens| listens == 0)
}

/// The address that it is connected to; `None`: it is not, or to none of IP.
pub fn peer(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    let address = getpeername::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::from(*address));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::from(*address)))
}

/// Whether it is an IPv6 socket.
pub fn is_ipv6(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(option::<libc::c_int>(socket, libc::SO_DOMAIN)? == libc::AF_INET6)
}

/// The cap on its pacing rate, payload bytes/s; `u64::MAX`: none.
pub fn max_pacing_rate(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SO_MAX_PACING_RATE)
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
