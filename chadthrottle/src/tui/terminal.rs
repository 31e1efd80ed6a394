//! The terminal: taken over at the start, given back at the end, however the end comes.

use std::{
    env,
    io::{self, BufWriter, IsTerminal, Stdout, Write},
    panic,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::signal::{SigSet, Signal, raise};
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor, event, execute,
        terminal::{
            Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
        },
    },
};

use crate::error::{Context, Error, Kind, Result};

/// What is drawn on.
pub type Screen = Terminal<CrosstermBackend<BufWriter<Stdout>>>;

/// Whether it is ours right now.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Gives the terminal back when it is dropped.
pub struct Guard(());

/// Takes the terminal over. [`Kind::Usage`] when there is none.
pub fn take() -> Result<(Screen, Guard)> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let why = "the screens need a terminal; without one use `chadthrottle status`";
        return Err(Error::new(Kind::Usage, why));
    }
    if env::var_os("TERM").is_some_and(|name| name == "dumb") {
        let why = "TERM=dumb: such a terminal can't show the screens; if it is another one, set TERM to its name, \
            or use `chadthrottle monitor`";
        return Err(Error::new(Kind::Usage, why));
    }
    // From here on the guard undoes whatever was done.
    let guard = Guard(());
    restore_on_panic();
    take_over()?;
    let backend = CrosstermBackend::new(BufWriter::with_capacity(1 << 16, io::stdout()));
    let screen = Terminal::new(backend).context("take the terminal over")?;
    Ok((screen, guard))
}

fn take_over() -> Result<()> {
    TAKEN.store(true, Ordering::SeqCst);
    enable_raw_mode().context("switch the terminal to single keys")?;
    // Not every terminal has a second screen, and what was on the first would be seen between the letters.
    execute!(
        io::stdout(),
        EnterAlternateScreen,
        Clear(ClearType::All),
        event::EnableMouseCapture,
        event::EnableBracketedPaste
    )
    .context("take the terminal over")
}

/// Takes it over once more: a shell may have had it while we were stopped. Everything has to be drawn anew.
pub fn take_again() -> Result<()> {
    give_back();
    take_over()
}

/// What SIGTSTP is for: gives the terminal back and stops; when it goes on, takes it over. The signal has to be
/// blocked. It is sent once more, rather than SIGSTOP, so that the kernel can refuse where nobody would let us go on.
pub fn suspend() -> Result<()> {
    give_back();
    let signal = SigSet::from(Signal::SIGTSTP);
    signal.thread_unblock().context("let SIGTSTP through")?;
    let stopped = raise(Signal::SIGTSTP);
    signal.thread_block().context("block SIGTSTP")?;
    stopped.context("stop")?;
    take_over()
}

/// Gives it back, once. A terminal that is gone needs nothing.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let mut stdout = io::stdout();
        let _ = execute!(
            stdout,
            event::DisableBracketedPaste,
            event::DisableMouseCapture,
            Clear(ClearType::All),
            cursor::MoveTo(0, 0),
            LeaveAlternateScreen,
            cursor::Show
        );
        let _ = disable_raw_mode();
        let _ = stdout.flush();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        give_back();
    }
}

/// Whichever thread panics, the message has to be read on a terminal that works, and nothing goes on behind a
/// picture that does not change any more. The limits end with the process.
fn restore_on_panic() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // Held until the end: another thread may be drawing, and would hide the cursor again.
        let _nobody_draws = io::stdout().lock();
        give_back();
        usual(info);
        std::process::exit(101);
    }));
}
