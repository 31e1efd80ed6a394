//! Actors that move exactly so many bytes, and say over which ports: lines `moved PID PORT`, where the port is the
//! one in the scene's client namespace.

use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    thread,
    time::Duration,
};

use chadthrottle::kernel::netns::Namespace;
use nix::{
    cmsg_space,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            SockaddrStorage, UnixAddr, connect, recvmsg, sendmsg, socketpair,
        },
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork},
};

use crate::support::*;

pub type Played = Result<(), Box<dyn std::error::Error>>;

/// What is written at a time.
const PIECE: usize = 64 * 1024;
/// Payload of a datagram.
const DATAGRAM: usize = 1200;

/// Plays a part; `None`: there is no such.
pub fn play(words: &[&str]) -> Option<Played> {
    Some(match *words {
        ["put", how, address, count, bytes] => put(how, address, count, bytes),
        ["hammer", address] => hammer(address),
        ["old", address, bytes] => old(address, bytes),
        ["one-shot", address, count, bytes] => one_shot(address, count, bytes),
        ["prefork", address, workers, count, bytes] => prefork(address, workers, count, bytes),
        ["inherit", address, bytes] => inherit(address, bytes),
        ["pass", address, bytes] => pass(address, bytes),
        ["tunnel", address] => crate::rows::tunnel(address),
        _ => return None,
    })
}

/// The trial says when.
fn await_go() -> std::io::Result<()> {
    println!("ready");
    std::io::stdin().read_exact(&mut [0])
}

fn say(port: u16) {
    println!("moved {} {port}", std::process::id());
}

fn tcp(address: &str) -> Result<TcpStream, Box<dyn std::error::Error>> {
    Ok(TcpStream::connect(address)?)
}

fn mptcp(address: &str) -> Result<TcpStream, Box<dyn std::error::Error>> {
    // SAFETY: no pointers are passed.
    let descriptor =
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP) };
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the kernel has just made it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address.parse::<SocketAddr>()?))?;
    Ok(TcpStream::from(socket))
}

fn send(connection: &mut TcpStream, mut bytes: usize) -> Played {
    let piece = vec![7; PIECE];
    while bytes > 0 {
        bytes -= connection.write(&piece[..bytes.min(PIECE)])?;
    }
    Ok(())
}

/// All has arrived, and the peer has no more to say.
fn finish(mut connection: TcpStream) -> Played {
    connection.shutdown(std::net::Shutdown::Write)?;
    connection.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Until the peer has all that was sent.
fn await_acknowledged(connection: &TcpStream) -> std::io::Result<()> {
    loop {
        let mut left: libc::c_int = 0;
        // SAFETY: an int of ours.
        if unsafe { libc::ioctl(connection.as_raw_fd(), libc::TIOCOUTQ, &raw mut left) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        if left == 0 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// `count` connections, one after the other, that upload.
fn put(how: &str, address: &str, count: &str, bytes: &str) -> Played {
    let (count, bytes): (usize, usize) = (count.parse()?, bytes.parse()?);
    await_go()?;
    for _ in 0..count {
        match how {
            "udp" | "udp-to" => datagrams(how, address, bytes)?,
            _ => {
                let mut connection = if how == "mptcp" { mptcp(address)? } else { tcp(address)? };
                say(connection.local_addr()?.port());
                if how == "sendfile" {
                    send_file(&connection, bytes)?
                } else {
                    send(&mut connection, bytes)?
                }
                finish(connection)?;
            }
        }
    }
    println!("done");
    Ok(())
}

fn send_file(connection: &TcpStream, mut bytes: usize) -> Played {
    let file = std::fs::File::open(std::env::current_exe()?)?;
    while bytes > 0 {
        let mut from = 0;
        // SAFETY: an offset of ours.
        let sent = unsafe {
            libc::sendfile(connection.as_raw_fd(), file.as_raw_fd(), &raw mut from, bytes.min(1 << 20))
        };
        bytes -= usize::try_from(sent).map_err(|_| std::io::Error::last_os_error())?;
    }
    Ok(())
}

fn datagrams(how: &str, address: &str, bytes: usize) -> Played {
    let to: SocketAddr = address.parse()?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    say(socket.local_addr()?.port());
    if how == "udp" {
        socket.connect(to)?;
    }
    for _ in 0..bytes / DATAGRAM {
        let piece = [7; DATAGRAM];
        if how == "udp" {
            socket.send(&piece)?
        } else {
            socket.send_to(&piece, to)?
        };
    }
    Ok(())
}

/// Sends datagrams from two processors at once, as fast as each can, until it is killed.
fn hammer(address: &str) -> Played {
    let to: SocketAddr = address.parse()?;
    let mine = sched_getaffinity(Pid::from_raw(0))?;
    let processors = (0..CpuSet::count()).filter(|which| mine.is_set(*which).unwrap_or(false)).take(2);
    let senders: Vec<_> = processors
        .map(|which| {
            thread::spawn(move || -> std::io::Result<()> {
                let mut one = CpuSet::new();
                one.set(which)?;
                sched_setaffinity(Pid::from_raw(0), &one)?;
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(to)?;
                loop {
                    // What the receiver has to say about it is nothing to us.
                    let _ = socket.send(&[7; DATAGRAM]);
                }
            })
        })
        .collect();
    println!("hammering {}", senders.len());
    for sender in senders {
        sender.join().map_err(|_| "a sender panicked")??;
    }
    Ok(())
}

/// A connection that has been used before it is told to go on.
fn old(address: &str, bytes: &str) -> Played {
    let bytes = bytes.parse()?;
    let mut connection = tcp(address)?;
    send(&mut connection, bytes)?;
    await_acknowledged(&connection)?;
    await_go()?;
    say(connection.local_addr()?.port());
    send(&mut connection, bytes)?;
    finish(connection)?;
    println!("done");
    Ok(())
}

/// Children, one after the other, that upload over a connection of their own and end.
fn one_shot(address: &str, count: &str, bytes: &str) -> Played {
    let (count, bytes): (usize, usize) = (count.parse()?, bytes.parse()?);
    await_go()?;
    for _ in 0..count {
        // SAFETY: this program has only one thread here.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => drop(waitpid(child, None)?),
            ForkResult::Child => {
                let mut connection = tcp(address)?;
                say(connection.local_addr()?.port());
                send(&mut connection, bytes)?;
                finish(connection)?;
                std::process::exit(0);
            }
        }
    }
    println!("done");
    Ok(())
}

/// Children that share a listener; each connection that one takes gets `bytes` from it.
fn prefork(address: &str, workers: &str, count: &str, bytes: &str) -> Played {
    let (workers, count, bytes): (usize, usize, usize) = (workers.parse()?, count.parse()?, bytes.parse()?);
    let listener = TcpListener::bind(address)?;
    let mut children = Vec::new();
    for _ in 0..workers {
        // SAFETY: this program has only one thread here.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => children.push(child),
            ForkResult::Child => {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                for _ in 0..count / workers {
                    let (mut connection, peer) = listener.accept()?;
                    // This side has one port for all; theirs tells which it is.
                    say(peer.port());
                    send(&mut connection, bytes)?;
                    finish(connection)?;
                }
                std::process::exit(0);
            }
        }
    }
    println!("ready");
    for child in children {
        waitpid(child, None)?;
    }
    println!("done");
    Ok(())
}

/// Sends over a connection, then a child of it sends three times as much over it.
fn inherit(address: &str, bytes: &str) -> Played {
    let bytes = bytes.parse()?;
    await_go()?;
    let mut connection = tcp(address)?;
    say(connection.local_addr()?.port());
    send(&mut connection, bytes)?;
    await_acknowledged(&connection)?;
    // SAFETY: this program has only one thread here.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(connection);
            waitpid(child, None)?;
            println!("done");
        }
        ForkResult::Child => {
            say(connection.local_addr()?.port());
            send(&mut connection, 3 * bytes)?;
            finish(connection)?;
            std::process::exit(0);
        }
    }
    Ok(())
}

/// As [`inherit`], but the other process gets the connection over a Unix socket.
fn pass(address: &str, bytes: &str) -> Played {
    let bytes = bytes.parse()?;
    await_go()?;
    let (here, there) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: this program has only one thread here.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            let mut connection = tcp(address)?;
            say(connection.local_addr()?.port());
            send(&mut connection, bytes)?;
            await_acknowledged(&connection)?;
            let descriptors = [connection.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&descriptors)];
            sendmsg::<UnixAddr>(here.as_raw_fd(), &[IoSlice::new(b"!")], &message, MsgFlags::empty(), None)?;
            drop(connection);
            waitpid(child, None)?;
            println!("done");
        }
        ForkResult::Child => {
            let mut byte = [0];
            let mut pieces = [IoSliceMut::new(&mut byte)];
            let mut space = cmsg_space!([RawFd; 1]);
            let message =
                recvmsg::<UnixAddr>(there.as_raw_fd(), &mut pieces, Some(&mut space), MsgFlags::empty())?;
            let Some(ControlMessageOwned::ScmRights(descriptors)) = message.cmsgs()?.next() else {
                return Err("no descriptor came".into());
            };
            // SAFETY: the kernel has just made it for us.
            let mut connection = TcpStream::from(unsafe { OwnedFd::from_raw_fd(descriptors[0]) });
            say(connection.local_addr()?.port());
            send(&mut connection, 3 * bytes)?;
            finish(connection)?;
            std::process::exit(0);
        }
    }
    Ok(())
}

/// Takes whatever comes, on threads of this program, at a port in a namespace: TCP until its end, and UDP.
pub fn sink(namespace: &Namespace, address: SocketAddr) -> Result<()> {
    let failed = |cause: std::io::Error| Error::failed(format!("listen at {address}: {cause}"));
    let (listener, datagrams) = namespace.run(|| {
        Ok((TcpListener::bind(address).map_err(failed)?, UdpSocket::bind(address).map_err(failed)?))
    })?;
    thread::spawn(move || serve(listener));
    thread::spawn(move || while datagrams.recv(&mut [0; PIECE]).is_ok() {});
    Ok(())
}

/// A listener of multipath TCP.
pub fn mptcp_sink(namespace: &Namespace, address: SocketAddr) -> Result<()> {
    let failed = |cause: std::io::Error| Error::failed(format!("listen at {address}: {cause}"));
    let listener = namespace.run(|| {
        use nix::sys::socket::{Backlog, bind, listen};
        // SAFETY: no pointers are passed.
        let descriptor = unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP)
        };
        if descriptor < 0 {
            return Err(failed(std::io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just made it for us.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
            .and_then(|()| listen(&socket, Backlog::new(64)?))
            .map_err(|cause| failed(cause.into()))?;
        Ok(TcpListener::from(socket))
    })?;
    thread::spawn(move || serve(listener));
    Ok(())
}

fn serve(listener: TcpListener) {
    for mut connection in listener.incoming().map_while(std::io::Result::ok) {
        thread::spawn(move || {
            let mut piece = vec![0; PIECE];
            while matches!(connection.read(&mut piece), Ok(1..)) {}
        });
    }
}

/// `count` connections to a server, from a namespace, up to four at a time, each read to its end.
pub fn fetch(namespace: &Namespace, address: SocketAddr, count: usize) -> Result<()> {
    namespace.run(|| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..count / 4 {
                        let fetched = TcpStream::connect(address).and_then(|mut connection| {
                            let mut piece = vec![0; PIECE];
                            while connection.read(&mut piece)? > 0 {}
                            Ok(())
                        });
                        if let Err(cause) = fetched {
                            eprintln!("fetch from {address}: {cause}");
                        }
                    }
                });
            }
        });
        Ok(())
    })
}
