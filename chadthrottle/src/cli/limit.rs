//! `limit`, and `--pid`: limits what runs already, until told to stop.

use nix::sys::signal::Signal;

use super::{
    args::{Duration, Global, Limit, Rates},
    resolve,
    session::{self, Pulse, Wake},
    signals::{self, Signals},
};
use crate::{
    error::{Error, Result},
    kernel::fault,
    output::{self, limits},
    owner::{client::Client, protocol::LimitRequest},
};

/// `chadthrottle --pid P …`.
pub fn short_form(global: &Global, pid: &str, rates: &Rates, duration: &Duration) -> Result<u8> {
    let mut request = resolve::request(global, rates, vec![resolve::pid(pid)?])?;
    request.duration = resolve::duration(duration)?;
    hold(global, request)
}

/// `chadthrottle limit TARGET…`.
pub fn limit(global: &Global, args: &Limit) -> Result<u8> {
    let mut request = resolve::request(global, &args.rates, resolve::targets(&args.targets)?)?;
    request.duration = resolve::duration(&args.duration)?;
    request.scope = resolve::scope(&args.scope)?;
    request.detach = args.detach;
    request.wait = args.wait;
    hold(global, request)
}

fn hold(global: &Global, request: LimitRequest) -> Result<u8> {
    let detach = request.detach;
    let mut client = Client::connect_or_start(global.runtime_dir(), &request.site)?;
    fault::point("client.connected");
    // Until the answer is there a signal just ends this process, and with it whatever was half set.
    let limit = session::limit(&mut client, request)?;
    fault::point("client.limited");
    if detach {
        output::message(&limits::limited(&limit));
        return Ok(0);
    }
    // Scripts start background jobs with SIGINT ignored and mean `kill -INT` all the same; only nohup
    // means what it says.
    let hangup = (!signals::ignored(Signal::SIGHUP)).then_some(Signal::SIGHUP);
    let signals = Signals::watch([Signal::SIGINT, Signal::SIGTERM].into_iter().chain(hangup))?;
    output::message(&limits::limited(&limit));
    fault::point("client.waiting");
    match session::wait(&signals, Some(&mut client), &limit, &mut Pulse::new())? {
        Wake::Signal(_) => session::leave(client),
        Wake::Ended(reason) => output::message(&session::ended(&limit, reason)),
        Wake::OwnerGone => return Err(Error::failed(session::owner_gone(&limit))),
    }
    Ok(0)
}
