//! A program in a terminal of the test's own.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Write},
    num::NonZero,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr},
    },
    unistd::Pid,
};

/// How long to wait for anything that is seen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A title that no program gives; written when one has ended.
const LAST: &[u8] = b"\x1b]0;chadt-over\x07";

/// Everything that was written to the terminal.
#[derive(Default)]
struct Written {
    raw: Vec<u8>,
    parser: vt100::Parser,
}

impl Written {
    fn resize(&mut self, columns: u16, rows: u16) {
        let [rows, columns] = [rows, columns].map(|size| NonZero::new(size).expect("a size"));
        self.parser.screen_mut().set_size(rows, columns);
    }
}

/// The program, and the terminal that it thinks it has. Dropped, it is killed.
pub struct Session {
    child: Child,
    /// The user's end.
    ours: File,
    /// Kept open, so that what is written last is not lost.
    theirs: OwnedFd,
    before: Termios,
    written: Arc<Mutex<Written>>,
    reader: Option<JoinHandle<()>>,
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Session {
    /// Starts a program, in an environment that says as little as possible; `variables` are added to it.
    pub fn start(
        (columns, rows): (u16, u16),
        program: impl AsRef<OsStr>,
        arguments: &[impl AsRef<OsStr>],
        variables: &[(&str, &str)],
    ) -> Self {
        let pair = openpty(Some(&winsize(columns, rows)), None).expect("a pseudo terminal");
        // Else whatever another thread starts meanwhile keeps the terminal open.
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag");
        }
        let before = tcgetattr(&pair.slave).expect("its modes");
        let stdio = || Stdio::from(pair.slave.try_clone().expect("a descriptor"));
        let mut command = Command::new(program);
        command.args(arguments).stdin(stdio()).stdout(stdio()).stderr(stdio());
        command.env_clear().env("PATH", "/usr/bin:/bin").env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        command.envs(variables.iter().copied());
        // SAFETY: the closure only makes system calls.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                // Stdin becomes the controlling terminal, so that a change of size is told of.
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().expect("the program starts");
        drop(command);
        let ours = File::from(pair.master);
        let written = Arc::new(Mutex::new(Written::default()));
        written.lock().unwrap().resize(columns, rows);
        let (mut from, to) = (ours.try_clone().expect("a descriptor"), Arc::clone(&written));
        let reader = thread::spawn(move || {
            let mut piece = [0; 65_536];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                let mut written = to.lock().unwrap();
                written.raw.extend_from_slice(&piece[..length]);
                written.parser.process(&piece[..length]);
            }
        });
        Self { child, ours, theirs: pair.slave, before, written, reader: Some(reader) }
    }

    /// What is on the screen.
    pub fn text(&self) -> String {
        self.written.lock().unwrap().parser.screen().contents()
    }

    /// Everything that was ever written.
    pub fn raw(&self) -> Vec<u8> {
        self.written.lock().unwrap().raw.clone()
    }

    /// Waits until the screen is as wanted; how long that took.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&str) -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let text = self.text();
            if is_so(&text) {
                return begun.elapsed();
            }
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "{what}: it has ended ({ended:?}) with\n{text}");
            assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}, but\n{text}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a text is on the screen; how long that took.
    pub fn see(&mut self, text: &str) -> Duration {
        self.until(text, |seen| seen.contains(text))
    }

    /// Types.
    pub fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Gives the terminal another size.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.written.lock().unwrap().resize(columns, rows);
        // SAFETY: the descriptor is open, and the argument is a size.
        let done = unsafe { libc::ioctl(self.ours.as_raw_fd(), libc::TIOCSWINSZ, &winsize(columns, rows)) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// Sets the modes that a shell wants, as one does while the program is stopped.
    pub fn set_modes_of_a_shell(&self) {
        tcsetattr(&self.theirs, SetArg::TCSANOW, &self.before).expect("the terminal takes modes");
    }

    /// Waits until keys come one by one.
    pub fn until_raw(&mut self) {
        let theirs = self.theirs.try_clone().expect("a descriptor");
        self.until("single keys", |_| {
            let modes = tcgetattr(&theirs).expect("the terminal's modes");
            !modes.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO)
        });
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits for its end, which must leave the terminal as it was.
    pub fn end(self) -> ExitStatus {
        self.end_with_all().0
    }

    /// [`Session::end`], with everything that was ever written.
    pub fn end_with_all(mut self) -> (ExitStatus, Vec<u8>) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end:\n{}", self.text());
            thread::sleep(Duration::from_millis(5));
        };
        let after = tcgetattr(&self.theirs).expect("the terminal's modes");
        assert_eq!(after.local_flags, self.before.local_flags);
        assert!(after.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO));
        // What was written last may still be on its way; nothing comes after this.
        File::from(self.theirs.try_clone().expect("a descriptor")).write_all(LAST).expect("a terminal");
        while !self.raw().ends_with(LAST) {
            assert!(begun.elapsed() < PATIENCE, "the terminal does not come to an end");
            thread::sleep(Duration::from_millis(5));
        }
        {
            let written = self.written.lock().unwrap();
            let screen = written.parser.screen();
            assert!(!screen.alternate_screen() && !screen.hide_cursor() && !screen.bracketed_paste());
            assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
        }
        (status, self.raw())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The reader ends with this process at the latest: it may wait for a terminal that we hold open.
        drop(self.reader.take());
    }
}
