//! A line between two namespaces that has a length, a speed and a buffer: two TAP devices and a thread for each
//! way. Many kernels lack netem.
//!
//! Frames cross it as the kernel handed them over, 64 KB and more at a time, so it is good for gigabits a second.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use chadthrottle::{Error, Kind, Result, kernel::netns::Namespace};

/// What a line is like, the same both ways.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// There and back.
    pub round_trip: Duration,
    /// What it carries, bytes/s of Ethernet frames.
    pub rate: u64,
    /// What waits in front of it at most, as the time that the line needs for it. What comes beyond that is lost.
    pub buffer: Duration,
}

impl Line {
    /// With a buffer of 100 ms, as a router has it.
    pub fn new(round_trip_ms: u64, rate: u64) -> Self {
        Self { round_trip: Duration::from_millis(round_trip_ms), rate, buffer: Duration::from_millis(100) }
    }
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client's device.
    ToServer,
    /// To the client's device.
    ToClient,
}

/// Sees each frame as it sets out: `struct virtio_net_hdr`, then the Ethernet header.
pub type Watch = Box<dyn FnMut(Way, &[u8]) + Send>;

/// Makes TAP devices.
const TUN: &str = "/dev/net/tun";

/// Length of `struct virtio_net_hdr`.
pub const VNET: usize = 10;

/// The line; gone, with both devices, when dropped.
pub struct Relay {
    stop: Arc<AtomicBool>,
    /// Payload bytes of TCP in frames that found no room in the buffer.
    lost: Arc<AtomicU64>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Relay {
    /// Makes a device in each namespace, and the line between them.
    pub fn new(line: Line, client: (&Namespace, &str), server: (&Namespace, &str)) -> Result<Self> {
        Self::build(line, client, server, |_| None)
    }

    /// The same with devices that leave it to the kernel to cut data into packets and to sum them up, and with
    /// somebody who sees them.
    #[allow(dead_code, reason = "the benchmarks use this file, too, and watch nobody")]
    pub fn watched(
        line: Line,
        client: (&Namespace, &str),
        server: (&Namespace, &str),
        watch: impl Fn() -> Watch,
    ) -> Result<Self> {
        Self::build(line, client, server, |_| Some(watch()))
    }

    fn build(
        line: Line,
        client: (&Namespace, &str),
        server: (&Namespace, &str),
        watch: impl Fn(Way) -> Option<Watch>,
    ) -> Result<Self> {
        let mut relay = Self { stop: Arc::default(), lost: Arc::default(), threads: Vec::new() };
        let watches = [watch(Way::ToServer), watch(Way::ToClient)];
        let offload = watches.iter().all(Option::is_none);
        let failed = |cause: io::Error| Error::caused(Kind::Failed, "make a line between namespaces", &cause);
        let make =
            |(namespace, name): (&Namespace, &str)| namespace.run(|| tap(name, offload).map_err(failed));
        let (near, far) = (make(client)?, make(server)?);
        let [there, back] = watches;
        for (way, watch, from, to) in
            [(Way::ToServer, there, &near, &far), (Way::ToClient, back, &far, &near)]
        {
            let (from, to) = (from.try_clone().map_err(failed)?, to.try_clone().map_err(failed)?);
            let (stop, lost) = (Arc::clone(&relay.stop), Arc::clone(&relay.lost));
            let mut half =
                Half { way, line, from, to, watch, lost, free_at: Instant::now(), queue: VecDeque::new() };
            relay.threads.push(std::thread::spawn(move || half.run(&stop)));
        }
        Ok(relay)
    }

    /// Payload bytes of TCP that found no room in the buffer so far: their senders have to send them again.
    pub fn lost_payload(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if !matches!(thread.join(), Ok(Ok(()))) {
                eprintln!("a line between namespaces broke");
            }
        }
    }
}

/// One way.
struct Half {
    way: Way,
    line: Line,
    from: File,
    to: File,
    watch: Option<Watch>,
    lost: Arc<AtomicU64>,
    /// When the line has sent all that was handed to it.
    free_at: Instant,
    /// On their way, with the time of their arrival.
    queue: VecDeque<(Instant, Vec<u8>)>,
}

impl Half {
    fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        prefer_this_thread();
        let mut buffer = vec![0; 1 << 18];
        while !stop.load(Ordering::Relaxed) {
            self.deliver()?;
            self.wait()?;
            // Not more than that at a time: what is due must not wait.
            for _ in 0..64 {
                match self.from.read(&mut buffer) {
                    Ok(length) => self.take(&buffer[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Before the device is up, and between two namespaces that end.
                    Err(error) if is_down(&error) => {
                        std::thread::sleep(Duration::from_millis(1));
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// For a frame, or until one is due.
    fn wait(&self) -> io::Result<()> {
        let longest = Duration::from_millis(50);
        let due =
            self.queue.front().map_or(longest, |(due, _)| due.saturating_duration_since(Instant::now()));
        let due = due.min(longest);
        let time = libc::timespec { tv_sec: 0, tv_nsec: due.subsec_nanos().into() };
        let mut poll = libc::pollfd { fd: self.from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd and a time, both ours.
        let ready = unsafe { libc::ppoll(&raw mut poll, 1, &raw const time, std::ptr::null()) };
        match ready {
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            },
            _ => Ok(()),
        }
    }

    fn take(&mut self, frame: &[u8]) {
        if let Some(watch) = &mut self.watch {
            watch(self.way, frame);
        }
        let now = Instant::now();
        let free_at = self.free_at.max(now);
        if free_at - now > self.line.buffer {
            self.lose(frame);
            return;
        }
        let length = frame.len().saturating_sub(VNET) as f64;
        self.free_at = free_at + Duration::from_secs_f64(length / self.line.rate as f64);
        self.queue.push_back((self.free_at + self.line.round_trip / 2, frame.to_vec()));
    }

    fn lose(&self, frame: &[u8]) {
        self.lost.fetch_add(tcp_payload(frame).unwrap_or(0), Ordering::Relaxed);
    }

    fn deliver(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while self.queue.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, frame)) = self.queue.pop_front() else { break };
            match self.to.write(&frame) {
                Ok(_) => {}
                Err(error) if is_down(&error) => {}
                // What the kernel does not take as a frame: as on a line, it is lost.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.lose(&frame);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Bytes that a frame of TCP over IPv4, or over IPv6 without extensions, carries; `None` for others.
fn tcp_payload(frame: &[u8]) -> Option<u64> {
    const TCP: u8 = 6;
    let packet = frame.get(VNET + 14..)?;
    let (header, protocol) = match packet.first()? >> 4 {
        4 => (usize::from(packet[0] & 15) * 4, *packet.get(9)?),
        6 => (40, *packet.get(6)?),
        _ => return None,
    };
    let options = usize::from(packet.get(header + 12)? >> 4) * 4;
    (protocol == TCP).then(|| packet.len().saturating_sub(header + options) as u64)
}

/// Why there can be no line here.
pub fn missing() -> Option<String> {
    (!Path::new(TUN).exists()).then(|| format!("there is no {TUN}: load the kernel's module tun"))
}

/// The device is not in use (yet).
fn is_down(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADFD | libc::ENETDOWN | libc::EAGAIN))
}

/// A line is no process that waits for its turn. Where this is not allowed, it is as good as it is.
fn prefer_this_thread() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: parameters of ours; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameters) };
}

/// A new TAP device in the calling thread's namespace, not up yet.
fn tap(name: &str, offload: bool) -> io::Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
    const TUN_F_CSUM: libc::c_ulong = 1;
    const TUN_F_TSO: libc::c_ulong = 2 | 4;
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN)?;
    // SAFETY: integers only; zeros are a name of no length.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: a request of ours, as this command takes it.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) })?;
    let features = if offload { TUN_F_CSUM | TUN_F_TSO } else { 0 };
    // SAFETY: takes a number.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, features) })?;
    Ok(file)
}

fn checked(result: RawFd) -> io::Result<RawFd> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
