//! Processes that do what the traffic program does not: this test program again, in a part of its own.
//!
//! `root actor PART …`, which [`play`] finds before the arguments are taken for the test runner's.

use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use chadthrottle::selftest::process::{Place, Process, Stream};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    unistd::{ForkResult, fork, pause},
};

use crate::support::*;

const WORD: &str = "actor";

/// What is written at a time.
const PIECE: usize = 64 * 1024;

/// Moved before a connection is given away; enough to tell it from one that nobody used.
const MOVED_BEFORE: usize = 2 << 20;

/// Plays the part that the arguments ask for; `None`: they are for the test runner.
pub fn play() -> Option<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let played = match words[..] {
        [WORD, "send", address] => send(address),
        [WORD, "give", address, socket] => give(address, socket),
        [WORD, "take", socket] => take(socket),
        [WORD, "rename", address] => rename(address),
        [WORD, "crowd", sleepers, senders, address] => crowd(sleepers, senders, address),
        [WORD, ref words @ ..] => crate::exact::play(words)
            .or_else(|| crate::crowds::play(words))
            .or_else(|| crate::awkward::play(words))
            .or_else(|| crate::hidden::play(words))?,
        _ => return None,
    };
    Some(match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    })
}

pub type Played = Result<(), Box<dyn std::error::Error>>;

/// Sends as much as it can.
fn send(address: &str) -> Played {
    let mut connection = TcpStream::connect(address)?;
    println!("connected");
    pour(&mut connection)
}

pub fn pour(connection: &mut TcpStream) -> Played {
    loop {
        connection.write_all(&[0; PIECE])?;
    }
}

/// Opens a connection, uses it, and gives it away over a Unix socket.
fn give(address: &str, socket: &str) -> Played {
    let mut connection = TcpStream::connect(address)?;
    for _ in 0..MOVED_BEFORE / PIECE {
        connection.write_all(&[0; PIECE])?;
    }
    println!("connected");
    // The trial says when.
    std::io::stdin().read_exact(&mut [0])?;
    let descriptors = [connection.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(socket.parse()?, &[IoSlice::new(b"!")], &message, MsgFlags::empty(), None)?;
    drop(connection);
    println!("given");
    pause();
    Ok(())
}

/// Takes a connection from a Unix socket and sends as much as it can over it.
fn take(socket: &str) -> Played {
    let mut byte = [0];
    let mut pieces = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 1]);
    println!("waiting");
    let message = recvmsg::<()>(socket.parse()?, &mut pieces, Some(&mut space), MsgFlags::empty())?;
    let Some(ControlMessageOwned::ScmRights(descriptors)) = message.cmsgs()?.next() else {
        return Err("no descriptor came".into());
    };
    let descriptor = *descriptors.first().ok_or("no descriptor came")?;
    // SAFETY: the kernel has just made it for us.
    let mut connection = TcpStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    println!("taken");
    pour(&mut connection)
}

/// Sends as much as it can, and takes each line of stdin for its new name.
fn rename(address: &str) -> Played {
    let mut connection = TcpStream::connect(address)?;
    println!("connected");
    thread::spawn(move || pour(&mut connection).map_err(|cause| eprintln!("{cause}")));
    for line in std::io::stdin().lines() {
        nix::sys::prctl::set_name(&std::ffi::CString::new(line?)?)?;
    }
    Ok(())
}

/// Many children that sleep, and some that send when a byte comes on stdin; prints their ids.
fn crowd(sleepers: &str, senders: &str, address: &str) -> Played {
    let (sleepers, senders): (usize, usize) = (sleepers.parse()?, senders.parse()?);
    let (start, started) = nix::unistd::pipe()?;
    let mut pids = Vec::new();
    for number in 0..sleepers + senders {
        // SAFETY: this program has only one thread here.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => pids.push(child.to_string()),
            ForkResult::Child => {
                // They go with their parent, also when it is killed.
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                drop(started);
                // Where the owner may not raise its own priority (no CAP_SYS_NICE) and the kernel makes no groups
                // of sessions, it is one of equals beside all who send without a limit at the end.
                // SAFETY: it takes integers, and being nicer needs no right.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
                if number < senders {
                    nix::unistd::read(&start, &mut [0])?;
                    pour(&mut TcpStream::connect(address)?)?;
                }
                pause();
                return Ok(());
            }
        }
    }
    println!("{}", pids.join(" "));
    std::io::stdin().read_exact(&mut [0])?;
    // The end of the pipe, for everybody.
    drop(started);
    pause();
    Ok(())
}

/// Lines of an actor's stdout and stderr.
pub type Lines = Vec<String>;

/// A command that starts an actor.
pub fn command(words: &[&str]) -> Result<Command> {
    let program = std::env::current_exe();
    let mut command =
        Command::new(program.map_err(|cause| Error::failed(format!("find this very program: {cause}")))?);
    command.arg(WORD).args(words);
    Ok(command)
}

/// Starts an actor at a place.
pub fn spawn(command: Command, place: Place<'_>) -> Result<Process<Lines>> {
    Process::spawn("an actor", command, place, |lines, stream, line| {
        if stream != Stream::End {
            lines.push(line.to_owned());
        }
    })
}

/// Starts an actor in the scene, where it can be limited.
pub fn start(scene: &Scene, words: &[&str]) -> Result<Process<Lines>> {
    let place = Place { namespace: Some(&scene.lab.client), cgroup: Some(scene.cgroup()) };
    spawn(command(words)?, place)
}

/// Waits for an actor's line.
pub fn await_line(actor: &Process<Lines>, line: &str) -> Result<()> {
    actor.wait_for(line, |lines| lines.iter().any(|each| each == line).then_some(()))
}

/// Tells an actor to go on.
pub fn go_on(actor: &mut Process<Lines>) -> Result<()> {
    let stdin = actor.stdin().ok_or_else(|| Error::failed("the actor has no stdin"))?;
    stdin.write_all(b"!").map_err(|cause| Error::failed(format!("tell the actor to go on: {cause}")))
}

/// A server that takes whatever comes, on threads of this program; they end with the connections.
pub struct Sink {
    address: SocketAddr,
    received: Arc<AtomicU64>,
}

impl Sink {
    /// Listens in the scene's other namespace.
    pub fn new(scene: &Scene) -> Result<Self> {
        let address = scene.lab.server_at(Version::V4, 7000);
        let listener = scene.lab.server.run(|| {
            TcpListener::bind(address).map_err(|cause| Error::failed(format!("listen at {address}: {cause}")))
        })?;
        let received = Arc::new(AtomicU64::new(0));
        let total = Arc::clone(&received);
        thread::spawn(move || {
            for connection in listener.incoming().map_while(std::io::Result::ok) {
                let total = Arc::clone(&total);
                thread::spawn(move || drain(connection, &total));
            }
        });
        Ok(Self { address, received })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The port of that.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Bytes that have arrived.
    pub fn total(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes/s that arrive over the next `seconds`.
    pub fn rate(&self, seconds: f64) -> Result<f64> {
        let (time, before) = (now(), self.received.load(Ordering::Relaxed));
        sleep_until(time + seconds)?;
        let received = self.received.load(Ordering::Relaxed) - before;
        Ok(received as f64 / (now() - time))
    }
}

fn drain(mut connection: TcpStream, total: &AtomicU64) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = connection.read(&mut piece) {
        total.fetch_add(length as u64, Ordering::Relaxed);
    }
}
