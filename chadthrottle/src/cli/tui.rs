//! The screens.

use std::env;

use ::caps::Capability;

use super::{
    args::{Global, Screens},
    resolve,
};
use crate::{
    error::Result,
    kernel::caps,
    model::{PerDirection, Scope},
    monitor::{live, recording::Replay},
    owner::protocol::LimitRequest,
    tui::{self, OpenFeed, glyphs, theme::ThemeName},
};

/// `chadthrottle`, and `chadthrottle --replay FILE`.
pub fn tui(global: &Global, screens: &Screens) -> Result<u8> {
    let template = template(global)?;
    // Before the terminal is taken over: what is wrong is told of as with any command.
    let interval = resolve::refresh(&screens.refresh)?;
    let feed: OpenFeed = match &screens.replay {
        Some(path) => {
            let replay = Replay::open(path, true)?;
            Box::new(move || Ok(Box::new(replay)))
        }
        None => {
            let (dir, site) = (global.runtime_dir().to_owned(), template.site.clone());
            Box::new(move || {
                let patience = live::SHORT_PATIENCE;
                live::open(
                    &dir,
                    &site,
                    live::Options { interval, connections: true, eager: true, patience, upgrade: true },
                )
            })
        }
    };
    let recording = screens.replay.is_some();
    let variable = |name: &str| env::var(name).ok();
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colors = anstream::ColorChoice::global() != anstream::ColorChoice::Never && !no_color;
    tui::run(tui::Options {
        feed,
        runtime_dir: global.runtime_dir().to_owned(),
        template,
        theme: if colors { screens.theme } else { ThemeName::Mono },
        ascii: glyphs::only_ascii(variable),
        read_only: match recording {
            true => Some("this is a recording: nothing here can be limited".into()),
            false => no_rights(),
        },
        words: env::args_os().collect(),
    })
    .map(|()| 0)
}

/// Why nothing can be limited, when not even the right is there that every backend takes.
fn no_rights() -> Option<String> {
    if caps::missing(&[Capability::CAP_NET_ADMIN]).is_empty() {
        return None;
    }
    caps::require("limiting", &caps::FOR_EBPF).err().map(|error| error.message)
}

/// A request that has everything but whose traffic and how much.
fn template(global: &Global) -> Result<LimitRequest> {
    Ok(LimitRequest {
        targets: Vec::new(),
        scope: Scope::default(),
        wait: false,
        rates: PerDirection::default(),
        backends: resolve::backends(global)?,
        no_fallback: global.no_fallback,
        partial: global.partial,
        duration: None,
        detach: false,
        site: resolve::site(global)?,
    })
}
