//! The screens at work: threads that feed the state, and the loop that draws it.

use std::{
    ffi::OsString,
    os::fd::AsFd,
    path::PathBuf,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use ratatui::{
    crossterm::{event, terminal::disable_raw_mode},
    layout::{Position, Rect, Size},
};

use super::{
    app::{App, Setup},
    draw,
    event::{Effect, Event},
    order::Order,
    terminal,
    theme::ThemeName,
    worker::Worker,
};
use crate::{
    cli::{hint, signals},
    error::{Context, Result},
    monitor::feed::Feed,
    owner::protocol::LimitRequest,
};

/// Opens a feed; called in a thread of its own.
pub type OpenFeed = Box<dyn FnOnce() -> Result<Box<dyn Feed>> + Send>;

/// Events that are taken in before the picture is drawn again.
const AT_ONCE: usize = 256;
/// How long the end waits for the owner's thread.
const LEAVE: Duration = Duration::from_secs(2);
/// How long the end may take that a signal asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// After so long a feed that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What to run.
pub struct Options {
    /// Where snapshots come from.
    pub feed: OpenFeed,
    /// The owner's folder.
    pub runtime_dir: PathBuf,
    /// What every request for a limit begins with.
    pub template: LimitRequest,
    /// Colours.
    pub theme: ThemeName,
    /// Only characters that every terminal has.
    pub ascii: bool,
    /// Why nothing can be limited.
    pub read_only: Option<String>,
    /// Our command line, for advice.
    pub words: Vec<OsString>,
}

/// Shows the screens until the user leaves, or a signal ends it. The process must have one thread.
pub fn run(options: Options) -> Result<()> {
    let optional = [Signal::SIGHUP, Signal::SIGTSTP].into_iter().filter(|signal| !signals::ignored(*signal));
    let always = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGCONT];
    let watched = signals::Signals::watch(always.into_iter().chain(optional))?;
    let (mut screen, guard) = terminal::take()?;
    let (sender, events) = mpsc::channel();
    let (orders, order_receiver) = mpsc::channel();
    let site = options.template.site.clone();
    let words = options.words;
    let advice = Box::new(move |error: &_| hint::mend(error, true, &words));
    let worker = Worker::new(options.runtime_dir, site, advice, sender.clone());
    let (done, worker_done) = mpsc::channel::<()>();
    spawn("owner", move || {
        worker.run(&order_receiver);
        drop(done);
    })?;
    let to = sender.clone();
    spawn("signals", move || wait_for_signals(&watched, &to))?;
    let to = sender.clone();
    spawn("feed", move || watch(options.feed, &to))?;
    spawn("terminal", move || read_terminal(&sender))?;

    let size = screen.size().context("ask how large the terminal is")?;
    let app = App::new(Setup {
        size: Size::new(size.width, size.height),
        theme: options.theme,
        ascii: options.ascii,
        template: options.template,
        read_only: options.read_only,
    });
    let result = show(app, &mut screen, &events, &orders);
    drop(guard);
    // The limits end now; a connection that is closed by our end would do too, but then nobody knows when.
    drop(orders);
    let _ = worker_done.recv_timeout(LEAVE);
    result
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.into()).spawn(work).context(format!("start the thread {name}")).map(drop)
}

fn show(
    mut app: App,
    screen: &mut terminal::Screen,
    events: &Receiver<Event>,
    orders: &Sender<Order>,
) -> Result<()> {
    let mut resized = false;
    loop {
        // Also when it has its old size again: it may have been smaller for a moment, and lost what was beyond.
        if std::mem::take(&mut resized) {
            let size = screen.size().context("ask how large the terminal is")?;
            // Draws everything anew; `clear` would ask the terminal where its cursor is, and the answer goes to
            // whoever reads keys.
            screen.resize(Rect::from((Position::ORIGIN, size))).context("clear the screen")?;
        }
        screen.draw(|frame| draw(&app, frame)).context("draw")?;
        // All senders are gone: nothing can happen any more.
        let Ok(first) = events.recv() else { return Ok(()) };
        for event in std::iter::once(first).chain(events.try_iter().take(AT_ONCE)) {
            match event {
                Event::Terminal(event::Event::Resize(..)) => resized = true,
                Event::Suspend => {
                    terminal::suspend()?;
                    resized = true;
                }
                Event::Continue => {
                    terminal::take_again()?;
                    resized = true;
                }
                _ => {}
            }
            for effect in app.handle(event) {
                match effect {
                    Effect::Leave => return Ok(()),
                    Effect::Order(order) => {
                        // The thread ends only after us.
                        let _ = orders.send(order);
                    }
                }
            }
        }
    }
}

/// Ends when nobody listens any more, as all these threads do.
fn read_terminal(to: &Sender<Event>) {
    loop {
        let event = match event::read() {
            Ok(event) => Event::Terminal(event),
            Err(error) => {
                tracing::error!("read the terminal: {error}");
                Event::Stop
            }
        };
        let is_last = matches!(event, Event::Stop);
        if to.send(event).is_err() || is_last {
            return;
        }
    }
}

fn watch(open: OpenFeed, to: &Sender<Event>) {
    let mut feed = match open() {
        Ok(feed) => feed,
        Err(error) => {
            let _ = to.send(Event::FeedOver(Some(error)));
            return;
        }
    };
    loop {
        let event = match feed.next() {
            Ok(Some(snapshot)) => Event::Snapshot(snapshot),
            Ok(None) => Event::FeedOver(None),
            Err(error) if feed.may_go_on() => Event::FeedSilent(error),
            Err(error) => Event::FeedOver(Some(error)),
        };
        let (is_last, is_silent) =
            (matches!(event, Event::FeedOver(_)), matches!(event, Event::FeedSilent(_)));
        if to.send(event).is_err() || is_last {
            return;
        }
        if is_silent {
            thread::sleep(AGAIN);
        }
    }
}

fn wait_for_signals(signals: &signals::Signals, to: &Sender<Event>) {
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_err_and(|error| error != nix::Error::EINTR) {
            return;
        }
        if let Ok(Some(signal)) = signals.next() {
            tracing::info!(signal = signal.ssi_signo, "a signal");
            let event = match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGTSTP) => Event::Suspend,
                Ok(Signal::SIGCONT) => Event::Continue,
                _ => Event::Stop,
            };
            let is_last = matches!(event, Event::Stop);
            if to.send(event).is_err() {
                return;
            }
            if is_last {
                end_in_any_case();
            }
        }
    }
}

/// A terminal that takes nothing (a stalled connection, Ctrl-S) holds the loop in the middle of a picture, and with it
/// the end that was asked for. The owner sees that we are gone as it does after SIGKILL.
fn end_in_any_case() -> ! {
    thread::sleep(PATIENCE);
    tracing::warn!("the terminal takes nothing: ending without leaving its second screen");
    let _ = disable_raw_mode();
    // SAFETY: nothing is left to be done, and what runs at a usual end could wait for the terminal, too.
    unsafe { libc::_exit(1) }
}
