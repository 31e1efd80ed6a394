//! The feed of this host: the owner's, or, where there can be none, one that counts in this very process.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    assemble::{Assembler, Limits},
    diag::Diag,
    feed::Feed,
    reading::Count,
};
use crate::{
    backend::Site,
    error::{Context, Error, Kind, Result},
    kernel::{caps, cgroup},
    model::{Notice, Snapshot},
    owner::{
        client::Client,
        protocol::{MonitorRequest, Reply, Request},
    },
};

/// For whoever looks at a screen: so long are the first rates measured.
pub const FIRST_TICK: Duration = Duration::from_millis(50);

/// How late a snapshot may be for whoever gives up then: opening a backend for somebody's first limit takes seconds
/// on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How late it may be for whoever only says so, and goes on waiting.
pub const SHORT_PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked whether an owner that could not count does now.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What is wanted of a feed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Time between two snapshots.
    pub interval: Duration,
    /// With each connection by itself, which costs more.
    pub connections: bool,
    /// The first rates after [`FIRST_TICK`], however long the interval is.
    pub eager: bool,
    /// How late a snapshot may be before [`Feed::next`] fails.
    pub patience: Duration,
    /// Where this process had to count: go over to an owner as soon as one counts. Totals begin anew then.
    pub upgrade: bool,
}

/// Opens the feed of this host; the owner whose runtime folder is `dir` counts, and is started if there is none.
/// Without the rights for that this process counts, and every snapshot has a notice that says so.
///
/// # Errors
/// [`Kind::Usage`] when the owner can't do what is asked; else only when not even the lesser count works.
pub fn open(dir: &Path, site: &Site, options: Options) -> Result<Box<dyn Feed>> {
    let client = Client::connect_or_start(dir, site);
    // One that answers and does not count would not do so later.
    let is_silent = client.is_err();
    match client.and_then(|client| Owned::new(client, dir, site, options)) {
        Ok(feed) => Ok(Box::new(feed)),
        Err(error) if error.kind == Kind::Usage => Err(error),
        Err(error) => {
            let local = Local::open(lesser(&error), options)?;
            if !(options.upgrade && is_silent) {
                return Ok(Box::new(local));
            }
            let answers = wait_for_owner(dir)?;
            let (dir, site) = (dir.to_owned(), site.clone());
            Ok(Box::new(Stopgap { local, owned: None, answers, dir, site, options }))
        }
    }
}

/// Tells when there is an owner that answers, and starts none: somebody else's, or one that was stopped and goes on.
fn wait_for_owner(dir: &Path) -> Result<Receiver<()>> {
    let (found, answers) = mpsc::sync_channel(1);
    let dir = dir.to_owned();
    let look = move || {
        loop {
            thread::sleep(LOOK_AGAIN);
            // Waits while the last has not been taken.
            if matches!(Client::connect(&dir), Ok(Some(_))) && found.send(()).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("look for owner".into()).spawn(look).context("start a thread")?;
    Ok(answers)
}

/// Why only TCP's own figures are shown.
pub fn lesser(cause: &Error) -> Notice {
    let missing = caps::missing(&caps::FOR_EBPF);
    let mut why = cause.to_string();
    let mend = (!missing.is_empty() && !why.contains("sudo ")).then(|| caps::mend(&caps::FOR_EBPF));
    // Said once is enough.
    if let Some(short) = mend.as_ref().and_then(|mend| why.strip_suffix(mend)?.strip_suffix(": ")) {
        why = short.to_owned();
    }
    Notice {
        what: "bytes are those that open TCP connections report, not what is on the wire".into(),
        why,
        mend,
    }
}

/// The owner counts.
struct Owned {
    /// `None`: it is gone.
    client: Option<Client>,
    dir: PathBuf,
    site: Site,
    options: Options,
}

impl Owned {
    fn new(client: Client, dir: &Path, site: &Site, options: Options) -> Result<Self> {
        let client = Some(Self::subscribe(client, site, options)?);
        Ok(Self { client, dir: dir.to_owned(), site: site.clone(), options })
    }

    /// Asks the owner for its counts.
    fn subscribe(mut client: Client, site: &Site, options: Options) -> Result<Client> {
        let request = MonitorRequest {
            interval: options.interval.as_secs_f64(),
            connections: options.connections,
            eager: options.eager,
            site: site.clone(),
        };
        match client.request(&Request::Monitor(request))? {
            Reply::Monitoring => Ok(client),
            _ => Err(Error::failed("the owner's answer to a `monitor` request makes no sense")),
        }
    }
}

impl Feed for Owned {
    fn next(&mut self) -> Result<Option<Arc<Snapshot>>> {
        let patience = self.options.interval + self.options.patience;
        let client = match &mut self.client {
            Some(client) => client,
            none => {
                let client = Client::connect_or_start(&self.dir, &self.site)?;
                none.insert(Self::subscribe(client, &self.site, self.options)?)
            }
        };
        loop {
            match client.next_event_within(patience)? {
                Some(Reply::Snapshot(snapshot)) => return Ok(Some(snapshot)),
                Some(_) => {}
                None => {
                    let pid = client.owner_pid();
                    self.client = None;
                    return Err(Error::failed(format!(
                        "the owner (process {pid}), which counted, is gone, or has let go of this program, \
                         which did not read for 5 s"
                    )));
                }
            }
        }
    }

    /// A silent owner may speak again, and in place of one that is gone another is started.
    fn may_go_on(&self) -> bool {
        true
    }
}

/// This process counts, until an owner does.
struct Stopgap {
    local: Local,
    owned: Option<Owned>,
    answers: Receiver<()>,
    dir: PathBuf,
    site: Site,
    options: Options,
}

impl Feed for Stopgap {
    fn next(&mut self) -> Result<Option<Arc<Snapshot>>> {
        if self.owned.is_none() && self.answers.try_recv().is_ok() {
            let client = Client::connect_or_start(&self.dir, &self.site);
            self.owned =
                client.and_then(|client| Owned::new(client, &self.dir, &self.site, self.options)).ok();
        }
        match &mut self.owned {
            Some(owned) => owned.next(),
            None => self.local.next(),
        }
    }

    fn may_go_on(&self) -> bool {
        self.owned.is_some()
    }
}

/// This process counts.
struct Local {
    count: Diag,
    assembler: Assembler,
    options: Options,
    next_at: Instant,
}

impl Local {
    fn open(why: Notice, options: Options) -> Result<Self> {
        Ok(Self {
            count: Diag::open(why)?,
            assembler: Assembler::new(cgroup::mount().ok()),
            options,
            next_at: Instant::now(),
        })
    }
}

impl Feed for Local {
    fn next(&mut self) -> Result<Option<Arc<Snapshot>>> {
        thread::sleep(self.next_at.saturating_duration_since(Instant::now()));
        let first = std::mem::take(&mut self.options.eager);
        let interval = self.options.interval;
        let interval = if first { interval.min(FIRST_TICK) } else { interval };
        self.next_at = (self.next_at + interval).max(Instant::now());
        let reading = self.count.read(self.options.connections)?;
        let snapshot = self.assembler.snapshot(&reading, Limits::default(), self.options.connections);
        Ok(Some(Arc::new(snapshot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_mend_it_is_said_once() {
        let mend = caps::mend(&caps::FOR_EBPF);
        let cause = Error::new(Kind::NotPermitted, format!("loading needs CAP_BPF: {mend}"));
        let told = lesser(&cause).to_string();
        assert_eq!(told.matches(&mend).count(), 1, "{told}");
        let told = lesser(&Error::failed("the folder is no folder")).to_string();
        assert!(told.contains("the folder is no folder"), "{told}");
    }
}
