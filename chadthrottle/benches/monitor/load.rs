//! What is watched: this program again, with `load` as its first argument.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use chadthrottle::{Error, Kind, Result, kernel::netns::Namespace, selftest::process::Place};
use nix::sys::resource::{Resource, setrlimit};

/// The first argument.
pub const WORD: &str = "load";
/// What is written at a time.
const PIECE: usize = 64 * 1024;
/// Longer than the window over which processor time is taken.
const STEADY: Duration = Duration::from_secs(12);
/// Payload of a short connection.
const SHORT: usize = 64 * 1024;
/// Time between the starts of two of them.
const SPACE: Duration = Duration::from_micros(5_500);
/// Connections of a crowd that move something.
const TALKERS: usize = 50;

/// A load at work.
pub struct Load {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Load {
    /// Starts one and waits until it is ready.
    pub fn spawn(place: Place<'_>, words: &[&str]) -> Result<Self> {
        let failed = |cause: io::Error| Error::caused(Kind::Failed, "start a load", &cause);
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        command.arg(WORD).args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = place.contain(&mut command)?.spawn().map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::failed("start a load: no pipes"));
        };
        let mut load = Self { child, stdin, stdout: BufReader::new(stdout) };
        load.finish()?;
        Ok(load)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it begin.
    pub fn go(&mut self) -> Result<()> {
        writeln!(self.stdin, "go").map_err(|cause| Error::caused(Kind::Failed, "talk to a load", &cause))
    }

    /// Waits until it has done what it was told.
    pub fn finish(&mut self) -> Result<()> {
        match self.stdout.read_line(&mut String::new()) {
            Ok(1..) => Ok(()),
            _ => Err(Error::failed("a load ended")),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server on threads of this program; they end with the connections.
pub fn sink(namespace: &Namespace, address: SocketAddr) -> Result<()> {
    let listener = namespace.run(|| {
        TcpListener::bind(address)
            .map_err(|cause| Error::caused(Kind::Failed, format!("listen at {address}"), &cause))
    })?;
    thread::spawn(move || {
        for mut connection in listener.incoming().map_while(io::Result::ok) {
            thread::spawn(move || {
                let mut piece = vec![0; PIECE];
                while matches!(connection.read(&mut piece), Ok(1..)) {}
            });
        }
    });
    Ok(())
}

/// The load's side.
pub fn play(words: &[String]) -> io::Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<usize>().map_err(io::Error::other);
    match words[..] {
        ["steady", rate, address] => steady(address, number(rate)? as u64),
        ["short", count, address] => short(address, number(count)?),
        ["crowd", count] => crowd(number(count)?),
        _ => Err(io::Error::other("no such load")),
    }
}

fn await_go() -> io::Result<()> {
    println!("ready");
    io::stdin().read_exact(&mut [0])
}

/// One connection at a rate, bytes/s.
fn steady(address: &str, rate: u64) -> io::Result<()> {
    await_go()?;
    let mut connection = TcpStream::connect(address)?;
    // SAFETY: a u64 of ours.
    let set = unsafe {
        libc::setsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of::<u64>() as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    let begun = Instant::now();
    while begun.elapsed() < STEADY {
        connection.write_all(&[7; PIECE])?;
    }
    finish(connection)?;
    println!("done");
    rest()
}

fn finish(mut connection: TcpStream) -> io::Result<()> {
    connection.shutdown(std::net::Shutdown::Write)?;
    connection.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// `count` connections, one after the other.
fn short(address: &str, count: usize) -> io::Result<()> {
    await_go()?;
    let begun = Instant::now();
    for number in 0..count {
        thread::sleep((SPACE * number as u32).saturating_sub(begun.elapsed()));
        let mut connection = TcpStream::connect(address)?;
        connection.write_all(&[7; SHORT])?;
        finish(connection)?;
    }
    println!("done");
    rest()
}

/// Connections to itself with so many ends, of which a few are used.
fn crowd(sockets: usize) -> io::Result<()> {
    let room = sockets as u64 + 64;
    setrlimit(Resource::RLIMIT_NOFILE, room, room)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut ends = Vec::with_capacity(sockets);
    while ends.len() < sockets {
        ends.push(TcpStream::connect(listener.local_addr()?)?);
        ends.push(listener.accept()?.0);
    }
    println!("ready");
    let mut piece = [0; 1000];
    loop {
        for pair in ends.chunks_mut(2).take(TALKERS) {
            if let [near, far] = pair {
                near.write_all(&[7; 1000])?;
                far.read_exact(&mut piece)?;
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Until it is ended: a row that lives is shown by every tool.
fn rest() -> io::Result<()> {
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}
