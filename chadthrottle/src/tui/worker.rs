//! The thread that talks to the owner: it carries out orders one after the other, so that no key ever waits
//! for the kernel, and passes on what happens to the limits.

use std::{
    os::fd::AsFd,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    event::Event,
    order::{Answer, News, Order, Outcome, Step},
};
use crate::{
    backend::Site,
    cli::backends,
    error::{Error, Kind, Result},
    kernel::process,
    owner::{
        client::Client,
        protocol::{LimitRequest, Reply, Request},
    },
};

/// How often it is looked whether the owner has something to tell, while nothing is ordered.
const LOOK: Duration = Duration::from_millis(200);
/// How long the end may wait for the owner to have freed the limits.
const LEAVE: Duration = Duration::from_secs(1);

/// Says what to do about an error, if that is known.
pub type Hint = Box<dyn Fn(&Error) -> Option<String> + Send>;

/// The owner's client.
pub struct Worker {
    /// The owner's folder.
    pub runtime_dir: PathBuf,
    /// Where limits work.
    pub site: Site,
    /// What to do about errors.
    pub hint: Hint,
    /// Where answers go.
    pub events: Sender<Event>,
    client: Option<Client>,
}

impl Worker {
    /// Without a connection: there is none before the first order.
    pub fn new(runtime_dir: PathBuf, site: Site, hint: Hint, events: Sender<Event>) -> Self {
        Self { runtime_dir, site, hint, events, client: None }
    }

    /// Carries out orders until there can be no more; then the limits of this connection are given back.
    pub fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let order = match &self.client {
                Some(_) => match orders.recv_timeout(LOOK) {
                    Ok(order) => Some(order),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                },
                None => match orders.recv() {
                    Ok(order) => Some(order),
                    Err(_) => break,
                },
            };
            if let Some(order) = order {
                self.carry_out(order);
            }
            self.listen();
        }
        if let Some(client) = self.client.take()
            && let Err(error) = client.close_and_wait(LEAVE)
        {
            tracing::warn!("the end of the limits is not confirmed: {error}");
        }
    }

    /// Nobody listening any more means that we are about to end.
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn carry_out(&mut self, Order { number, owner, step }: Order) {
        if step == Step::Probe {
            let (site, events) = (self.site.clone(), self.events.clone());
            // It takes its time, and the limits must not wait for it.
            thread::spawn(move || {
                let result = Ok(Outcome::Backends(backends::look_at_all(&site, true)));
                let _ = events.send(Event::Answer(Answer { number, result }));
            });
            return;
        }
        tracing::info!(?step, "order");
        let result = self.ensure_owner(owner).and_then(|()| self.step(step)).map_err(|error| {
            let message = match (self.hint)(&error) {
                Some(hint) => format!("{} ({hint})", error.message),
                None => error.message,
            };
            // It has been asked all the same.
            let stopped = self.client.as_ref().is_some_and(|client| process::is_stopped(client.owner_pid()));
            let message = if stopped { format!("{message}; it does then what was asked") } else { message };
            Error { message, ..error }
        });
        if let Err(error) = &result {
            tracing::warn!("order {number}: {error}");
        }
        self.tell(Event::Answer(Answer { number, result }));
    }

    fn step(&mut self, step: Step) -> Result<Outcome> {
        match step {
            Step::Set(request) => self.set(request),
            Step::Change { id, rates } => self.limited(&Request::Change { id, rates }),
            Step::Replace { old, request } => {
                let outcome = self.set(request)?;
                self.ask(&Request::Remove { id: old })?;
                Ok(outcome)
            }
            Step::Move { id, direction, backend } => self.limited(&Request::Move { id, direction, backend }),
            Step::Remove { id } => self.ask(&Request::Remove { id }).map(|_| Outcome::Done),
            Step::Keep(requests) => {
                for request in requests {
                    self.set(request)?;
                }
                Ok(Outcome::Done)
            }
            Step::Probe => Ok(Outcome::Done),
        }
    }

    fn set(&mut self, request: LimitRequest) -> Result<Outcome> {
        self.limited(&Request::Limit(request))
    }

    fn limited(&mut self, request: &Request) -> Result<Outcome> {
        match self.ask(request)? {
            Reply::Limited { limit, notices } => Ok(Outcome::Limited(Box::new(limit), notices)),
            _ => Err(Error::failed("the owner's answer makes no sense")),
        }
    }

    /// Fails when the limits of that owner are over.
    fn ensure_owner(&mut self, owner: Option<u32>) -> Result<()> {
        match owner {
            Some(owner) if self.client()?.owner_pid() != owner => Err(Error::new(
                Kind::NotFound,
                format!("the process that held this limit ({owner}) is gone, and the limit with it"),
            )),
            _ => Ok(()),
        }
    }

    fn client(&mut self) -> Result<&mut Client> {
        Ok(match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::connect_or_start(&self.runtime_dir, &self.site)?),
        })
    }

    fn ask(&mut self, request: &Request) -> Result<Reply> {
        self.client()?.request(request)
    }

    /// Passes on what the owner has to tell right now.
    fn listen(&mut self) {
        while let Some(client) = &mut self.client {
            if !client.has_buffered() && !is_readable(client) {
                return;
            }
            let news = match client.next_event() {
                Ok(Some(Reply::Escaped { id, escape })) => News::Escaped(id, escape),
                Ok(Some(Reply::Ended { reason, last, .. })) => News::Ended(reason, Box::new(last)),
                Ok(Some(_)) => continue,
                Ok(None) => self.lost(),
                Err(error) => {
                    tracing::info!(%error, "the owner's connection broke");
                    self.lost()
                }
            };
            self.tell(Event::News(news));
        }
    }

    fn lost(&mut self) -> News {
        self.client = None;
        News::OwnerGone
    }
}

fn is_readable(client: &Client) -> bool {
    let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    // An interrupted look is made up for by the next.
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any().unwrap_or(true)
}
