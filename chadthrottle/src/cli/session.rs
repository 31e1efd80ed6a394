//! A limit of this client's own: asking for it, hearing about it, giving it back.

use std::{os::fd::AsFd, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signalfd::siginfo,
};

use crate::{
    cli::signals::Signals,
    error::{Context, Error, Result},
    model::LimitReport,
    output::{self, limits},
    owner::{
        client::Client,
        protocol::{EndReason, LimitRequest, Reply, Request},
    },
};

/// How long leaving may wait for the owner to have freed the limit.
const LEAVE: Duration = Duration::from_secs(1);

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
    /// The limit is over.
    Ended(EndReason),
    /// The owner is gone, and the limit with it.
    OwnerGone,
}

/// Waits for a signal or the end of the limit; shows escapes meanwhile. Without a client only for signals.
pub fn wait(signals: &Signals, mut client: Option<&mut Client>, limit: &LimitReport) -> Result<Wake> {
    loop {
        if let Some(signal) = signals.next()? {
            return Ok(Wake::Signal(signal));
        }
        let buffered = client.as_mut().is_some_and(|client| client.has_buffered());
        let readable = buffered || {
            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(client.as_ref().map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled.context("wait for a signal or the owner")?,
            };
            fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true))
        };
        let Some(client) = client.as_deref_mut().filter(|_| readable) else { continue };
        match client.next_event() {
            Ok(Some(Reply::Escaped { id, escape })) if id == limit.id => {
                output::warning(&format!("{}: {escape}", limits::subject(limit)));
            }
            Ok(Some(Reply::Ended { id, reason: EndReason::OwnerStopped, .. })) if id == limit.id => {
                return Ok(Wake::OwnerGone);
            }
            Ok(Some(Reply::Ended { id, reason, .. })) if id == limit.id => return Ok(Wake::Ended(reason)),
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
