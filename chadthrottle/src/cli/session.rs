//! A limit of this client's own: asking for it, hearing about it, giving it back.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signalfd::siginfo,
};

use crate::{
    cli::signals::Signals,
    error::{Context, Error, Result},
    model::{LimitId, LimitReport},
    output::{self, limits},
    owner::{
        client::Client,
        protocol::{EndReason, LimitRequest, Reply, Request},
    },
};

/// How long leaving may wait for the owner to have freed the limit.
const LEAVE: Duration = Duration::from_secs(1);

/// How often the owner is asked for a sign of life.
const ASK_PERIOD: Duration = Duration::from_secs(1);
/// When it is missed: the owner's lease in the kernel is as long.
const SILENCE: Duration = Duration::from_secs(3);

/// Brings a limit into force; shows the owner's notices.
pub fn limit(client: &mut Client, request: LimitRequest) -> Result<LimitReport> {
    match client.request(&Request::Limit(request))? {
        Reply::Limited { limit, notices } => {
            for notice in notices {
                output::message(&format!("notice: {}", output::escape(&notice)));
            }
            Ok(limit)
        }
        _ => Err(mismatch("limit")),
    }
}

/// The owner answered something else than what was asked.
pub fn mismatch(request: &str) -> Error {
    Error::failed(format!("the owner's answer to a `{request}` request makes no sense"))
}

/// What a client in wait is woken by.
pub enum Wake {
    /// A signal that is watched.
    Signal(siginfo),
    /// One of the limits is over.
    Ended(LimitId, EndReason),
    /// The owner is gone, and the limits with it.
    OwnerGone,
}

/// Whether the owner still gives signs of life. One that is stopped says nothing, keeps the connection,
/// and limits nothing.
pub struct Pulse {
    ask_at: Instant,
    asked_at: Option<Instant>,
    lost: bool,
}

impl Pulse {
    /// Of an owner that has just answered.
    pub fn new() -> Self {
        Self { ask_at: Instant::now() + ASK_PERIOD, asked_at: None, lost: false }
    }

    /// Until when to wait for the owner.
    fn due(&self) -> Option<Instant> {
        match self.asked_at {
            Some(_) if self.lost => None,
            Some(asked_at) => Some(asked_at + SILENCE),
            None => Some(self.ask_at),
        }
    }

    /// The owner had nothing to say up to now.
    fn silent(&mut self, client: &mut Client, held: &[LimitReport]) -> Result<()> {
        if self.due().is_none_or(|due| due > Instant::now()) {
            return Ok(());
        }
        if self.asked_at.is_some() {
            self.lost = true;
            for limit in held {
                output::warning(&format!(
                    "{}: its owner (process {}) has not answered for {} s, is it stopped? Until it goes on nothing \
                     is limited",
                    limits::subject(limit),
                    limit.owner_pid,
                    SILENCE.as_secs()
                ));
            }
            return Ok(());
        }
        self.asked_at = Some(Instant::now());
        client.ping()
    }

    fn answered(&mut self, held: &[LimitReport]) {
        self.asked_at = None;
        self.ask_at = Instant::now() + ASK_PERIOD;
        if std::mem::take(&mut self.lost) {
            for limit in held {
                output::message(&format!("{}: its owner answers again", limits::subject(limit)));
            }
        }
    }
}

/// Waits for a signal or the end of one of the limits; shows escapes meanwhile. Without a client only for signals.
pub fn wait(
    signals: &Signals,
    mut client: Option<&mut Client>,
    held: &[LimitReport],
    pulse: &mut Pulse,
) -> Result<Wake> {
    let is_ours = |id: LimitId| held.iter().any(|limit| limit.id == id);
    loop {
        if let Some(signal) = signals.next()? {
            return Ok(Wake::Signal(signal));
        }
        let buffered = client.as_mut().is_some_and(|client| client.has_buffered());
        let readable = buffered || {
            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(client.as_ref().map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN)));
            let due = client.as_ref().and_then(|_| pulse.due());
            let left =
                due.map(|due| due.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
            let timeout = left
                .map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => continue,
                polled => polled.context("wait for a signal or the owner")?,
            };
            fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true))
        };
        let Some(client) = client.as_deref_mut() else { continue };
        if !readable {
            if let Err(error) = pulse.silent(client, held) {
                tracing::info!(%error, "the owner's connection broke");
                return Ok(Wake::OwnerGone);
            }
            continue;
        }
        match client.next_event() {
            Ok(Some(Reply::Hello { .. })) => pulse.answered(held),
            Ok(Some(Reply::Escaped { id, escape })) if is_ours(id) => {
                for limit in held.iter().filter(|limit| limit.id == id) {
                    output::warning(&format!("{}: {escape}", limits::subject(limit)));
                }
            }
            Ok(Some(Reply::Ended { id, reason: EndReason::OwnerStopped, .. })) if is_ours(id) => {
                return Ok(Wake::OwnerGone);
            }
            Ok(Some(Reply::Ended { id, reason, .. })) if is_ours(id) => return Ok(Wake::Ended(id, reason)),
            Ok(Some(other)) => tracing::debug!(?other, "not about our limit"),
            Ok(None) => return Ok(Wake::OwnerGone),
            Err(error) => {
                tracing::info!(%error, "the owner's connection broke");
                return Ok(Wake::OwnerGone);
            }
        }
    }
}

/// The end of a limit, for the user.
pub fn ended(limit: &LimitReport, reason: EndReason) -> String {
    let subject = limits::subject(limit);
    match reason {
        EndReason::TargetEnded => format!("{subject} has ended, and the limit with it"),
        EndReason::Duration => format!("the limit on {subject} is over: its time is up"),
        EndReason::Cleared => format!("the limit on {subject} is over: it was cleared"),
        EndReason::OwnerStopped => owner_gone(limit),
    }
}

/// The end of a limit that nobody wanted, for the user.
pub fn owner_gone(limit: &LimitReport) -> String {
    format!(
        "the limit on {} is gone: its owner (process {}) has ended",
        limits::subject(limit),
        limit.owner_pid
    )
}

/// Gives the limits of this connection back. When it returns they no longer hold, unless the owner
/// takes more than a second; then they end as soon as it finds the connection closed.
pub fn leave(client: Client) {
    if let Err(error) = client.close_and_wait(LEAVE) {
        tracing::warn!("the end of the limit is not confirmed: {error}");
    }
}
