//! `monitor`: what each process moves.

use std::{
    collections::HashSet,
    io::{self, IsTerminal},
    os::fd::AsFd,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, TrySendError, sync_channel},
    },
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::Signal,
    },
};

use super::{
    args::{Global, Monitor},
    resolve,
    signals::{self, Signals},
};
use crate::{
    error::{Context, Result},
    model::Snapshot,
    monitor::{
        feed::Feed,
        live::{self, Options},
        recording::{Recorder, Replay},
    },
    output::{
        self,
        monitor::{Account, View},
        number,
    },
};

/// `chadthrottle monitor`.
pub fn monitor(global: &Global, args: &Monitor) -> Result<u8> {
    let view = View {
        filter: args.filter.as_deref().unwrap_or_default().parse()?,
        grouping: args.group.parse()?,
        sort: args.sort.parse()?,
        reverse: args.reverse,
        top: args.top.map(|top| top as usize),
        connections: args.connections,
    };
    let interval = resolve::interval(&args.interval)?;
    let site = resolve::site(global)?;
    let recorder = args.record.as_deref().map(Recorder::create).transpose()?;
    // Before any other thread, so that all of them leave the signals to us.
    let hangup = (!signals::ignored(Signal::SIGHUP)).then_some(Signal::SIGHUP);
    let signals = Signals::watch([Signal::SIGINT, Signal::SIGTERM].into_iter().chain(hangup))?;
    let lags = if args.replay.is_some() { Lags::Wait } else { Lags::Drop };
    let feed: Box<dyn Feed> = match &args.replay {
        Some(path) => Box::new(Replay::open(path, io::stdout().is_terminal())?),
        None => {
            let connections = view.connections || view.filter.needs_connections() || recorder.is_some();
            live::open(
                global.runtime_dir(),
                &site,
                Options {
                    interval,
                    connections,
                    eager: args.count.is_none(),
                    patience: live::PATIENCE,
                    upgrade: false,
                },
            )?
        }
    };
    let screen = Screen {
        view,
        json: args.json,
        recorder,
        account: args.summary.then(Account::default),
        told: HashSet::new(),
    };
    show(&signals, &Pump::start(feed, lags)?, screen, args.count)
}

/// Ticks that may wait for somebody to read what is printed; there may be thousands of connections in each.
const MOST_WAITING: usize = 16;

/// What happens to ticks while nobody reads what is printed.
#[derive(Clone, Copy)]
enum Lags {
    /// They come later.
    Wait,
    /// The owner does not wait either: they are left out. Totals are in those that come after.
    Drop,
}

/// Waits for the feed on a thread of its own, so that signals are heard meanwhile.
struct Pump {
    snapshots: Receiver<Result<Option<Arc<Snapshot>>>>,
    ready: Arc<EventFd>,
}

impl Pump {
    fn start(mut feed: Box<dyn Feed>, lags: Lags) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ready = Arc::new(EventFd::from_flags(flags).context("make an event descriptor")?);
        let (sender, snapshots) = sync_channel(MOST_WAITING);
        let bell = Arc::clone(&ready);
        let pump = move || {
            let mut left_out = 0u32;
            loop {
                let next = feed.next();
                let last = !matches!(next, Ok(Some(_)));
                let sent = match lags {
                    Lags::Drop if !last => match sender.try_send(next) {
                        Err(TrySendError::Full(_)) => {
                            left_out = left_out.saturating_add(1);
                            continue;
                        }
                        sent => sent.is_ok(),
                    },
                    _ => sender.send(next).is_ok(),
                };
                if left_out > 0 {
                    let ticks = number::count(left_out, "tick was", "ticks were");
                    output::warning(&format!("{ticks} left out: nobody read what was printed"));
                    left_out = 0;
                }
                if !sent || bell.write(1).is_err() || last {
                    return;
                }
            }
        };
        thread::Builder::new().name("feed".into()).spawn(pump).context("start a thread for the feed")?;
        Ok(Self { snapshots, ready })
    }

    /// The next snapshot, or `None` at the end of the feed and at a signal.
    fn next(&self, signals: &Signals) -> Result<Option<Arc<Snapshot>>> {
        loop {
            if let Some(signal) = signals.next()? {
                tracing::info!("signal {}", signal.ssi_signo);
                return Ok(None);
            }
            match self.snapshots.try_recv() {
                Ok(next) => return next,
                // It panicked, which has been said.
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => {}
            }
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ready.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled.context("wait for a signal or the next tick")?,
            };
            // Emptied before the channel is looked at; an empty one is no error.
            let _ = self.ready.read();
        }
    }
}

/// Where ticks go.
struct Screen {
    view: View,
    json: bool,
    recorder: Option<Recorder>,
    account: Option<Account>,
    /// Notices that have been shown.
    told: HashSet<String>,
}

fn show(signals: &Signals, pump: &Pump, mut screen: Screen, count: Option<u64>) -> Result<u8> {
    let mut ticks = 0;
    let end = loop {
        let snapshot = match pump.next(signals) {
            Ok(Some(snapshot)) => snapshot,
            end => break end,
        };
        let heard = screen.take(&snapshot)?;
        // The first only says where counting begins.
        ticks += u64::from(snapshot.interval > 0.0);
        if !heard || count.is_some_and(|count| ticks >= count) {
            break Ok(None);
        }
    };
    // What was seen until the counting failed was seen.
    let closed = screen.close();
    end?;
    closed.map(|()| 0)
}

impl Screen {
    /// False: nobody looks any more.
    fn take(&mut self, snapshot: &Snapshot) -> Result<bool> {
        if let Some(recorder) = &mut self.recorder {
            recorder.write(snapshot)?;
        }
        for notice in &snapshot.notices {
            // A number in it may change from tick to tick.
            let kind = notice.what.replace(|letter: char| letter.is_ascii_digit(), "");
            if self.told.insert(kind) {
                output::warning(&notice.to_string());
            }
        }
        if let Some(account) = &mut self.account {
            account.add(snapshot, &self.view.filter);
        }
        if snapshot.interval == 0.0 {
            return Ok(true);
        }
        if self.json {
            output::json_line("tick", &output::monitor::tick(snapshot, &self.view))
        } else {
            output::next_result(&output::monitor::table(snapshot, &self.view))
        }
    }

    fn close(self) -> Result<()> {
        match self.account {
            Some(account) if self.json => output::json("summary", &account.json(&self.view)?),
            Some(account) => output::result(&account.table(&self.view)),
            None => Ok(()),
        }
    }
}
