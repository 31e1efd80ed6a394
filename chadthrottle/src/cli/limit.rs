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
    model::{LimitReport, Target},
    output::{self, limits::limited},
    owner::{
        client::Client,
        protocol::{LimitRequest, Request},
    },
};

/// `chadthrottle --pid P …`.
pub fn short_form(global: &Global, pid: &str, rates: &Rates, duration: &Duration) -> Result<u8> {
    let mut request = resolve::request(global, rates, vec![resolve::pid(pid)?])?;
    request.duration = resolve::duration(duration)?;
    hold(global, vec![request])
}

/// `chadthrottle limit TARGET…`.
pub fn limit(global: &Global, args: &Limit) -> Result<u8> {
    let mut request = resolve::request(global, &args.rates, resolve::targets(&args.targets)?)?;
    request.duration = resolve::duration(&args.duration)?;
    request.scope = resolve::scope(&args.scope)?;
    request.detach = args.detach;
    request.wait = args.wait;
    hold(global, if args.each { each(request) } else { vec![request] })
}

/// A request for each target that names processes, with all that narrow them.
fn each(request: LimitRequest) -> Vec<LimitRequest> {
    let all = request.targets.iter().cloned();
    let (named, narrowing): (Vec<_>, Vec<_>) = all.partition(Target::names_processes);
    if named.is_empty() {
        return vec![request];
    }
    let with = |target| [target].into_iter().chain(narrowing.iter().cloned()).collect();
    named.into_iter().map(|target| LimitRequest { targets: with(target), ..request.clone() }).collect()
}

/// Sets them all or none.
fn set(client: &mut Client, requests: Vec<LimitRequest>) -> Result<Vec<LimitReport>> {
    let mut limits = Vec::<LimitReport>::new();
    for request in requests {
        match session::limit(client, request) {
            Ok(limit) => limits.push(limit),
            Err(error) => {
                // The others end with this connection.
                for limit in limits.iter().filter(|limit| limit.detached) {
                    client.request(&Request::Remove { id: limit.id })?;
                }
                return Err(error);
            }
        }
    }
    Ok(limits)
}

fn hold(global: &Global, requests: Vec<LimitRequest>) -> Result<u8> {
    let Some(first) = requests.first() else { return Ok(0) };
    let detach = first.detach;
    let mut client = Client::connect_or_start(global.runtime_dir(), &first.site)?;
    fault::point("client.connected");
    // Until the answer is there a signal just ends this process, and with it whatever was half set.
    let mut limits = set(&mut client, requests)?;
    fault::point("client.limited");
    let tell = |limits: &[LimitReport]| limits.iter().for_each(|limit| output::message(&limited(limit)));
    if detach {
        tell(&limits);
        return Ok(0);
    }
    // Scripts start background jobs with SIGINT ignored and mean `kill -INT` all the same; only nohup
    // means what it says.
    let hangup = (!signals::ignored(Signal::SIGHUP)).then_some(Signal::SIGHUP);
    let signals = Signals::watch([Signal::SIGINT, Signal::SIGTERM].into_iter().chain(hangup))?;
    tell(&limits);
    fault::point("client.waiting");
    let mut pulse = Pulse::new();
    while !limits.is_empty() {
        match session::wait(&signals, Some(&mut client), &limits, &mut pulse)? {
            Wake::Signal(_) => {
                session::leave(client);
                break;
            }
            Wake::Ended(id, reason) => {
                for limit in limits.extract_if(.., |limit| limit.id == id) {
                    output::message(&session::ended(&limit, reason));
                }
            }
            Wake::OwnerGone => {
                let gone: Vec<_> = limits.iter().map(session::owner_gone).collect();
                return Err(Error::failed(gone.join("; ")));
            }
        }
    }
    Ok(0)
}
