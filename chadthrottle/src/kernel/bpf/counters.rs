//! The programs that count for the monitor: loading, attaching, reading. Who reads has descriptors of its own
//! ([`Taps`]), and may do so on another thread.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{
    Btf as AyaBtf,
    maps::Map,
    programs::{Program, fentry::FEntryLink, tp_btf::BtfTracePointLink},
};
use chadthrottle_common::abi::{CountKey, CountRecord, KERNEL, OTHER, ProcessCount, SpareCount};

use super::{Btf, CgroupHook, Loaded, Plain, attach, read_plain, sys, tracepoint_of};
use crate::{
    error::{Context, Error, Kind, Result},
    model::Notice,
};

pub(super) const EGRESS: &str = "count_egress";
pub(super) const INGRESS: &str = "count_ingress";

/// Fields whose offsets only these programs want: global, struct, path.
const FIELDS: &[(&str, &str, &str)] = &[
    ("TASK_GROUP_LEADER", "task_struct", "group_leader"),
    ("TASK_START", "task_struct", "start_boottime"),
    ("TASK_PARENT", "task_struct", "real_parent"),
    ("SOCKET_FILE", "socket", "file"),
    ("SK_SOCKET", "sock", "sk_socket"),
    ("SK_LOCAL", "sock", "__sk_common.skc_rcv_saddr"),
    ("SK_REMOTE", "sock", "__sk_common.skc_daddr"),
    ("SK_LOCAL6", "sock", "__sk_common.skc_v6_rcv_saddr"),
    ("SK_REMOTE6", "sock", "__sk_common.skc_v6_daddr"),
    ("SK_LOCAL_PORT", "sock", "__sk_common.skc_num"),
    ("SK_REMOTE_PORT", "sock", "__sk_common.skc_dport"),
    ("TCP_RETRANSMITS", "tcp_sock", "total_retrans"),
];

/// Programs without which nothing is counted.
const NEEDED: &[&str] = &[
    EGRESS,
    INGRESS,
    "own_new_socket",
    "fold_released",
    "fold_tcp",
    "own_open_sockets",
    "list_counted",
    "forget_counted",
];

/// Programs that see who uses a socket, and what it costs to have no better ones.
struct Adopters {
    programs: &'static [&'static str],
    lack: Option<&'static str>,
}

/// How the names of programs at functions begin.
const AT_FUNCTION: &str = "own_at_";

/// Best set first. Functions can be watched where the kernel was built for it; `inet_sendpage` is gone since 6.5.
const ADOPTERS: &[Adopters] = &[
    Adopters { programs: &["own_on_send", "own_on_receive", "own_while_sending"], lack: None },
    Adopters {
        programs: &["own_at_send", "own_at_send6", "own_at_receive", "own_at_receive6", "own_at_sendfile"],
        lack: None,
    },
    Adopters {
        programs: &["own_at_send", "own_at_send6", "own_at_receive", "own_at_receive6", "own_on_send"],
        lack: None,
    },
    Adopters {
        programs: &["own_on_send", "own_on_receive"],
        lack: Some(
            "when a socket changes hands, the first call that sends on it is counted for who had it before",
        ),
    },
    Adopters {
        programs: &["own_on_tcp_read"],
        lack: Some("a process that sends before it reads on a socket it inherited is counted for its parent"),
    },
    Adopters {
        programs: &[],
        lack: Some("bytes of a socket that several processes use go to the one that held it first"),
    },
];

/// What the best of the programs that find who uses a socket take.
const ADOPTERS_WANT: &str = "watching functions takes CONFIG_FUNCTION_TRACER; sock_send_length came with Linux 6.3, tcp_sendmsg_locked with 6.16";

/// What is there of it.
pub(super) struct Counters {
    /// What the kernel's types lack.
    missing: Vec<String>,
    /// The first of [`ADOPTERS`] that this kernel takes, as far as has been tried.
    adopters: usize,
    at_cgroup: Vec<OwnedFd>,
    at_tracepoints: Vec<BtfTracePointLink>,
    at_functions: Vec<FEntryLink>,
    /// Why a function can't be watched.
    refused: Option<String>,
}

impl Counters {
    pub fn new(missing: Vec<String>) -> Self {
        Self {
            missing,
            // A test begins with worse ones.
            adopters: crate::kernel::fault::setting("WATCHERS").map_or(0, |first| first as usize),
            at_cgroup: Vec::new(),
            at_tracepoints: Vec::new(),
            at_functions: Vec::new(),
            refused: None,
        }
    }
}

/// Offsets by the names of their globals, and what could not be found.
pub(super) fn offsets(kernel: &Btf) -> (Vec<(&'static str, u32)>, Vec<String>) {
    let (mut known, mut missing) = (Vec::new(), Vec::new());
    for (global, name, path) in FIELDS {
        match kernel.offset(name, path) {
            Ok(offset) => known.push((*global, offset)),
            Err(error) => missing.push(error.to_string()),
        }
    }
    (known, missing)
}

/// What an iterator program goes through.
pub(super) fn iterates_over(program: &str) -> &'static str {
    match program {
        "list_counted" | "forget_counted" => "bpf_sk_storage_map",
        _ => "task_file",
    }
}

impl Plain for CountRecord {}

impl Loaded {
    /// Loads the programs that count and attaches them. Returns what to read by, and what is not
    /// counted right for want of something.
    pub fn start_counting(&mut self, cgroup: &Path) -> Result<(Taps, Vec<Notice>)> {
        if let Some(missing) = self.counters.missing.first() {
            return Err(Error::new(Kind::NoBackend, missing.clone()));
        }
        let types = self.take_types()?;
        for name in NEEDED {
            self.load_one(name, &types).map_err(|error| match error.kind {
                Kind::NoBackend => {
                    Error::caused(error.kind, "counting every packet takes Linux 5.12", &error)
                }
                _ => error,
            })?;
        }
        let attached = self.attach_counters(cgroup, &types).and_then(|()| self.taps());
        let lack =
            ADOPTERS.get(self.counters.adopters).and_then(|set| set.lack).map(|lack| self.notice(lack));
        match attached {
            Ok(taps) => Ok((taps, lack.into_iter().collect())),
            Err(error) => {
                self.stop_counting();
                Err(error)
            }
        }
    }

    /// Loads and attaches the best programs that see who uses a socket.
    fn watch_users(&mut self, types: &AyaBtf) {
        while let Some(set) = ADOPTERS.get(self.counters.adopters) {
            let (tracepoints, functions) =
                (self.counters.at_tracepoints.len(), self.counters.at_functions.len());
            let tried = set
                .programs
                .iter()
                .try_for_each(|name| self.load_one(name, types).and_then(|()| self.attach_counter(name)));
            let Err(reason) = tried else { return };
            tracing::info!("watch who uses sockets: {reason}");
            if set.programs.iter().any(|name| name.starts_with(AT_FUNCTION))
                && self.counters.refused.is_none()
            {
                self.counters.refused = Some(reason.causes.last().unwrap_or(&reason.message).clone());
            }
            self.counters.at_tracepoints.truncate(tracepoints);
            self.counters.at_functions.truncate(functions);
            self.counters.adopters += 1;
        }
    }

    fn notice(&self, lack: &str) -> Notice {
        let refused = self.counters.refused.as_deref().map(|reason| format!(", and functions: {reason}"));
        let why = format!("this kernel has no tracepoints for it{}", refused.unwrap_or_default());
        Notice { what: lack.into(), why, mend: Some(format!("a newer kernel: {ADOPTERS_WANT}")) }
    }

    /// Attaches a program to its tracepoint or function.
    fn attach_counter(&mut self, name: &str) -> Result<()> {
        let failed = |cause: &dyn std::error::Error| {
            Error::caused(Kind::Failed, format!("attach {name} to {}", tracepoint_of(name)), cause)
        };
        match self.ebpf.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => {
                let link = program.attach().map_err(|cause| failed(&cause))?;
                self.counters.at_tracepoints.push(program.take_link(link).map_err(|cause| failed(&cause))?);
            }
            Some(Program::FEntry(program)) => {
                let link = program.attach().map_err(|cause| failed(&cause))?;
                self.counters.at_functions.push(program.take_link(link).map_err(|cause| failed(&cause))?);
            }
            _ => return Err(Error::failed(format!("the eBPF object has no tracing program {name}"))),
        }
        Ok(())
    }

    fn attach_counters(&mut self, cgroup: &Path, types: &AyaBtf) -> Result<()> {
        let directory = File::open(cgroup).context(format!("open cgroup {}", cgroup.display()))?;
        // Whoever uses or ends a socket from now on is seen; only then packets are counted.
        self.attach_counter("fold_tcp")?;
        self.watch_users(types);
        for (name, hook) in [
            ("fold_released", CgroupHook::SocketRelease),
            ("own_new_socket", CgroupHook::SocketCreate),
            (EGRESS, CgroupHook::Egress),
            (INGRESS, CgroupHook::Ingress),
        ] {
            let link = attach(self.program_fd(name)?, &directory, hook)?;
            self.counters.at_cgroup.push(link);
        }
        Ok(())
    }

    fn map_fd(&self, name: &str) -> Result<OwnedFd> {
        let map = match self.ebpf.map(name) {
            Some(Map::HashMap(map) | Map::Array(map) | Map::PerCpuArray(map) | Map::SkStorage(map)) => map,
            _ => return Err(Error::failed(format!("the eBPF object has no map {name} of its kind"))),
        };
        map.fd()
            .as_fd()
            .try_clone_to_owned()
            .context(format!("duplicate the descriptor of the eBPF map {name}"))
    }

    /// How many processes the map TOTALS has room for.
    fn most_counted(&self) -> Result<usize> {
        let Some(Map::HashMap(map)) = self.ebpf.map("TOTALS") else {
            return Err(Error::failed("the eBPF object has no map TOTALS of its kind"));
        };
        let info = map
            .info()
            .map_err(|cause| Error::caused(Kind::Failed, "ask how large the eBPF map TOTALS is", &cause))?;
        Ok(info.max_entries() as usize)
    }

    fn taps(&self) -> Result<Taps> {
        let program = |name: &str| {
            let fd = self.program_fd(name)?.try_clone_to_owned();
            fd.context(format!("duplicate the descriptor of eBPF program {name}"))
        };
        let links = self.counters.at_cgroup.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
        Ok(Taps {
            list: program("list_counted")?,
            walk: program("own_open_sockets")?,
            owners: self.map_fd("OWNERS")?,
            totals: self.map_fd("TOTALS")?,
            spare: self.map_fd("SPARE")?,
            wired: self.map_fd("WIRED")?,
            most: self.most_counted()?,
            links: links.context("duplicate the descriptors of eBPF links")?,
        })
    }

    /// Detaches the programs that count, and takes what they noted off all sockets.
    pub fn stop_counting(&mut self) {
        self.counters.at_cgroup.clear();
        self.counters.at_tracepoints.clear();
        self.counters.at_functions.clear();
        let forgotten = self.program_fd("forget_counted").and_then(|program| {
            let owners = self.map_fd("OWNERS")?;
            run_over(program, owners.as_fd()).context("take the counts off all sockets")
        });
        if let Err(error) = forgotten {
            tracing::warn!("{error}");
        }
        let totals = self.map_fd("TOTALS").and_then(|totals| {
            let all = sys::read_hash::<CountKey, ProcessCount>(totals.as_fd())
                .context("read the eBPF map TOTALS")?;
            for (key, _) in all {
                // Gone is gone.
                let _ = sys::take::<CountKey, ProcessCount>(totals.as_fd(), &key);
            }
            Ok(())
        });
        if let Err(error) = totals {
            tracing::warn!("{error}");
        }
    }
}

/// Lets an iterator program go through a map; what it writes.
fn run_over(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    sys::open_map_iterator(program, map)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the counts are read by.
pub struct Taps {
    list: OwnedFd,
    walk: OwnedFd,
    owners: OwnedFd,
    totals: OwnedFd,
    spare: OwnedFd,
    wired: OwnedFd,
    most: usize,
    links: Vec<OwnedFd>,
}

impl Taps {
    /// Gives sockets that nobody owns to the first process that holds them.
    pub fn find_owners(&self) -> Result<()> {
        let mut nothing = Vec::new();
        sys::open_task_iterator(self.walk.as_fd(), None)
            .and_then(|mut iterator| iterator.read_to_end(&mut nothing))
            .map(drop)
            .context("walk over the open sockets")
    }

    /// Every counted socket, each once.
    pub fn sockets(&self) -> Result<Vec<CountRecord>> {
        let bytes = run_over(self.list.as_fd(), self.owners.as_fd()).context("list the counted sockets")?;
        let mut records: Vec<CountRecord> =
            bytes.chunks_exact(size_of::<CountRecord>()).map(read_plain).collect();
        // While sockets come and go the walk may meet one twice.
        records.sort_unstable_by_key(|record| record.cookie);
        records.dedup_by_key(|record| record.cookie);
        Ok(records)
    }

    /// What processes were given of sockets that they have no more.
    pub fn totals(&self) -> Result<Vec<(CountKey, ProcessCount)>> {
        sys::read_hash(self.totals.as_fd()).context("read the eBPF map TOTALS")
    }

    /// For how many processes there is room in [`Taps::totals`].
    pub fn most(&self) -> usize {
        self.most
    }

    /// Takes a process out; what it had.
    pub fn take_total(&self, key: &CountKey) -> Result<Option<ProcessCount>> {
        sys::take(self.totals.as_fd(), key).context("take a process out of the eBPF map TOTALS")
    }

    /// Ended sockets of the kernel, and of unknown owners.
    pub fn spare(&self) -> Result<(SpareCount, SpareCount)> {
        let one = |index: u32| -> Result<SpareCount> {
            let found = sys::lookup(self.spare.as_fd(), &index).context("read the eBPF map SPARE")?;
            Ok(found.unwrap_or_default())
        };
        Ok((one(KERNEL)?, one(OTHER)?))
    }

    /// IP bytes of all packets that were not loopback's: received, sent.
    pub fn wired(&self) -> Result<(u64, u64)> {
        let one = |index| sys::lookup_sum(self.wired.as_fd(), index).context("read the eBPF map WIRED");
        Ok((one(0)?, one(1)?))
    }

    /// Whether all programs are still where they were attached.
    pub fn are_attached(&self) -> bool {
        // A link that can't be asked is not known to be gone.
        self.links.iter().all(|link| sys::cgroup_link_is_alive(link.as_fd()).unwrap_or(true))
    }
}
