//! Loading, attaching and asking the eBPF programs.

use std::{
    fs::File,
    io::{self, Read},
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    panic::resume_unwind,
    path::Path,
    thread::{self, ScopedJoinHandle},
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, Map, MapData, RingBuf},
    programs::{CgroupSkb, Program, ProgramError},
};
use chadthrottle_common::abi::{BucketChange, Event, ProcessEntry, SocketRecord, State, TAG_TOLD, Tag};

use self::fitter::{Fitter, Walk};
use super::{btf::Btf, caps};
use crate::error::{Context, Error, Kind, Result};

pub mod counters;
mod descriptors;
pub mod fitter;
pub mod keeper;
mod rules;
pub mod sys;
pub use sys::CgroupHook;

/// The object that `cargo xtask build-ebpf` made of chadthrottle-ebpf.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/chadthrottle.bpf.o"));

/// Fields whose offsets the programs want: global, struct, path.
const FIELDS: &[(&str, &str, &str)] = &[
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_SIGNAL", "task_struct", "signal"),
    ("SIGNAL_LIVE", "signal_struct", "live"),
    ("SOCKET_SK", "socket", "sk"),
    ("SK_FAMILY", "sock", "__sk_common.skc_family"),
    ("SK_STATE", "sock", "__sk_common.skc_state"),
    ("SK_PROTOCOL", "sock", "sk_protocol"),
    ("SK_MAX_PACING_RATE", "sock", "sk_max_pacing_rate"),
    ("TCP_BYTES_ACKED", "tcp_sock", "bytes_acked"),
    ("TCP_BYTES_RECEIVED", "tcp_sock", "bytes_received"),
    ("SK_NET", "sock", "__sk_common.skc_net"),
    ("NET_INUM", "net", "ns.inum"),
    ("TCP_RCV_WSCALE", "tcp_sock", "rx_opt.rcv_wscale"),
    ("TCP_RCV_RTT_US", "tcp_sock", "rcv_rtt_est.rtt_us"),
    ("TCP_SRTT_US", "tcp_sock", "srtt_us"),
    ("TCP_MIN_RTT", "tcp_sock", "rtt_min"),
    ("TCP_CWND_CLAMP", "tcp_sock", "snd_cwnd_clamp"),
];

/// Where a socket remembers the device of its last packets, newest kernel first; older ones have neither.
const RX_DEVICE: &[(&str, &str)] = &[("sock", "sk_rx_dst_ifindex"), ("inet_sock", "rx_dst_ifindex")];

/// Programs without which no limit can hold. The two limiters have a form for kernels before 5.12.
const NEEDED: &[&str] = &["tag_new_socket", "follow_fork", "follow_exit", "change_bucket"];

/// The kernel's own walk over open sockets; without it they are found by their descriptors.
const WALK: &str = "tag_open_sockets";

/// Programs that watch who uses a shared socket, best set first.
const ADOPTERS: &[&[&str]] = &[&["adopt_on_send", "adopt_on_receive"], &["adopt_on_tcp_read"]];

/// The programs in the kernel. Everything goes when this is dropped.
pub struct Loaded {
    ebpf: Ebpf,
    /// Name of the program, hook and link of what is attached to the cgroup.
    links: Vec<(&'static str, CgroupHook, OwnedFd)>,
    adopting: bool,
    follows_rules: bool,
    /// Open sockets are found by their descriptors, from user space.
    by_descriptor: bool,
    have_mptcp: bool,
    walk: Option<Walk>,
    fitter: Option<Fitter>,
    egress: &'static str,
    ingress: &'static str,
    /// What this kernel lacks, and what that costs.
    pub degraded: Vec<String>,
    counters: counters::Counters,
    /// Until programs have been loaded: they take some megabytes.
    types: Option<AyaBtf>,
}

/// What the programs are told of the kernel's structs.
struct Offsets {
    /// By the names of their globals.
    globals: Vec<(&'static str, u32)>,
    scale_shift: u32,
    walk: Option<Walk>,
    /// What only the monitor has to do without.
    unknown: Vec<String>,
}

impl Offsets {
    fn find() -> Result<Self> {
        let kernel = Btf::from_kernel()?;
        let mut globals = FIELDS
            .iter()
            .chain(rules::FIELDS)
            .map(|(global, name, path)| Ok((*global, kernel.offset(name, path)?)))
            .collect::<Result<Vec<_>>>()?;
        let (known, unknown) = counters::offsets(&kernel);
        globals.extend(known);
        let rx_device = RX_DEVICE.iter().find_map(|(name, path)| kernel.offset(name, path).ok()).unwrap_or(0);
        globals.push(("SK_RX_DEVICE", rx_device));
        let scale_shift = kernel.bit_offset("tcp_sock", "rx_opt.rcv_wscale")? % 8;
        Ok(Self {
            globals,
            scale_shift,
            walk: Walk::find(&kernel).filter(|walk| Walk::may_enter() && walk.may_set()),
            unknown,
        })
    }
}

/// The kernel's types in the form in which programs are loaded by them.
fn kernel_types() -> Result<AyaBtf> {
    AyaBtf::from_sys_fs().map_err(|cause| Error::caused(Kind::NoBackend, "read the kernel's BTF", &cause))
}

/// What a thread came to; its panic goes on here.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Loads the maps and the programs of limits into the kernel; attaches nothing.
///
/// # Errors
/// [`Kind::NotPermitted`] naming the capability, [`Kind::NoBackend`] naming what the kernel lacks.
pub fn load_ebpf_program() -> Result<Loaded> {
    let mut loaded = load_maps()?;
    loaded.load_programs()?;
    Ok(loaded)
}

/// [`load_ebpf_program`] without the programs.
pub fn load_maps() -> Result<Loaded> {
    caps::require("loading eBPF programs", &caps::FOR_EBPF)?;
    // Before 5.11 maps count as locked memory. Where it can't be raised, loading says so.
    let _ = nix::sys::resource::setrlimit(
        nix::sys::resource::Resource::RLIMIT_MEMLOCK,
        nix::sys::resource::RLIM_INFINITY,
        nix::sys::resource::RLIM_INFINITY,
    );
    let mut loader = None;
    // Each reads the kernel's types, some megabytes: on two processors two of them take the time of one.
    let (offsets, types) = thread::scope(|scope| {
        let offsets = scope.spawn(Offsets::find);
        let types = scope.spawn(kernel_types);
        loader = Some(EbpfLoader::new());
        (joined(offsets), joined(types))
    });
    let (Offsets { globals, scale_shift, walk, unknown }, types) = (offsets?, types?);
    let have_mptcp = has_helper(MPTCP_HELPER);
    let mut loader = loader.unwrap_or_default();
    for (name, offset) in &globals {
        loader.override_global(name, offset, true);
    }
    loader.override_global("TCP_RCV_WSCALE_SHIFT", &scale_shift, true);
    let mptcp = u32::from(have_mptcp);
    loader.override_global("HAVE_MPTCP", &mptcp, true);
    let may_hold = u32::from(walk.is_some());
    loader.override_global("MAY_HOLD_WINDOWS", &may_hold, true);
    if let Some(most) = super::fault::setting("MOST_COUNTED") {
        loader.map_max_entries("TOTALS", most);
    }
    let ebpf =
        loader.load(OBJECT).map_err(|cause| Error::caused(Kind::NoBackend, "load the eBPF maps", &cause))?;
    let loaded = Loaded {
        ebpf,
        links: Vec::new(),
        adopting: false,
        follows_rules: false,
        by_descriptor: false,
        have_mptcp,
        walk,
        fitter: None,
        egress: "limit_egress",
        ingress: "limit_ingress",
        degraded: Vec::new(),
        counters: counters::Counters::new(unknown),
        types: Some(types),
    };
    super::fault::point("ebpf.loaded");
    Ok(loaded)
}

/// Where the kernel can do multipath TCP.
const KNOWS_MPTCP: &str = "/proc/sys/net/mptcp";

/// bpf_skc_to_mptcp_sock (5.19).
const MPTCP_HELPER: u32 = 196;

/// Whether cgroup_skb programs may call a helper, found out by loading one that does.
fn has_helper(helper: u32) -> bool {
    /// `call helper`, `r0 = 1`, `exit`, as struct bpf_insn. The verifier knows the helper's number
    /// or refuses it with "unknown func"/"invalid func"; arguments are looked at after that.
    fn program(helper: u32) -> [u64; 3] {
        [0x85 | u64::from(helper) << 32, 0xb7 | 1 << 32, 0x95]
    }
    let log = sys::verifier_log(&program(helper));
    !log.contains("unknown func")
        && !log.contains("invalid func")
        && !log.contains("program of this type cannot use helper")
        && !log.is_empty()
}

/// Attaches a limiter to a cgroup; it stays as long as the returned link is open.
pub fn attach_cgroup_skb(program: &CgroupSkb, cgroup: &File, hook: CgroupHook) -> Result<OwnedFd> {
    let program =
        program.fd().map_err(|cause| Error::caused(Kind::Failed, "attach an eBPF limiter", &cause))?;
    attach(program.as_fd(), cgroup, hook)
}

fn attach(program: BorrowedFd<'_>, cgroup: &File, hook: CgroupHook) -> Result<OwnedFd> {
    let doing = format!("attach an eBPF program to the cgroup ({hook:?} hook)");
    sys::attach_to_cgroup(program, cgroup.as_fd(), hook).map_err(|cause| match cause.raw_os_error() {
        // Whoever may load programs may attach them.
        Some(libc::EPERM) => Error::new(
            Kind::NoBackend,
            format!(
                "{doing}: a program that was attached there, or further up, admits no other beside it \
                 ('bpftool cgroup tree' lists them; those without the flag 'multi')"
            ),
        ),
        _ => Error::caused(Kind::Failed, doing, &cause),
    })
}

/// A map of the loaded object, by its name.
pub fn get_bpf_map<'a, M>(ebpf: &'a mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
{
    let map =
        ebpf.map_mut(name).ok_or_else(|| Error::failed(format!("the eBPF object has no map {name}")))?;
    M::try_from(map).map_err(|cause| Error::caused(Kind::Failed, format!("open the eBPF map {name}"), &cause))
}

/// Tries what a limit takes: the rights, the kernel's types, loading every program.
pub fn check_ebpf_support() -> Result<()> {
    load_ebpf_program().map(drop)
}

impl Loaded {
    /// Loads the programs of limits, if they are not loaded yet.
    pub fn load_programs(&mut self) -> Result<()> {
        self.try_tag()?;
        let types = self.take_types()?;
        for name in NEEDED {
            self.load_one(name, &types)?;
        }
        if let Err(reason) =
            self.load_one(self.egress, &types).and_then(|()| self.load_one(self.ingress, &types))
        {
            if reason.kind == Kind::NotPermitted {
                return Err(reason);
            }
            (self.egress, self.ingress) = ("limit_egress_old", "limit_ingress_old");
            // The first reason is the one that counts: the old form asks for less.
            self.load_one(self.egress, &types)
                .and_then(|()| self.load_one(self.ingress, &types))
                .map_err(|_| reason)?;
        }
        if let Err(reason) = self.load_one(WALK, &types) {
            if reason.kind == Kind::NotPermitted {
                return Err(reason);
            }
            // Else a socket that we may not look into would stay without a limit, and nobody be told.
            caps::require("finding open sockets on this kernel (before 5.11)", &caps::FOR_DESCRIPTORS)?;
            self.by_descriptor = true;
            self.degraded.push(format!(
                "open sockets are found one by one through /proc and pidfd_getfd (kernel 5.11): {reason}"
            ));
        }
        if !self.have_mptcp && Path::new(KNOWS_MPTCP).exists() {
            self.degraded.push(
                "multipath TCP connections are not limited (helper bpf_skc_to_mptcp_sock: kernel 5.19)"
                    .into(),
            );
        }
        if let Err(reason) = self.load_one("pace_flow", &types) {
            self.degraded
                .push(format!("new connections are only paced from their second second on: {reason}"));
        }
        match self.load_fitter() {
            Ok(()) => {}
            Err(reason) if reason.kind == Kind::NotPermitted => return Err(reason),
            Err(reason) => self.degraded.push(format!(
                "under slow upload limits connections over short lines send up to 64 KB at once: {reason}"
            )),
        }
        let complete =
            ADOPTERS.iter().position(|set| set.iter().all(|name| self.load_one(name, &types).is_ok()));
        match complete {
            Some(0) => {}
            Some(_) => self.degraded.push(
                "a socket that several processes share is seen to change hands when one of them reads from it, \
                 or within a second (tracepoints sock_send_length and sock_recv_length: kernel 6.3)"
                    .into(),
            ),
            None => self.degraded.push(
                "a socket that several processes share is only seen to change hands within a second".into(),
            ),
        }
        Ok(())
    }

    fn load_fitter(&mut self) -> Result<()> {
        if self.fitter.is_none() {
            let walk = self.walk.ok_or_else(|| {
                Error::new(
                    Kind::NoBackend,
                    "to give that back takes kernel 5.15, and CAP_SYS_ADMIN to enter network namespaces",
                )
            })?;
            self.fitter = Some(Fitter::load(self.flows()?, walk)?);
        }
        Ok(())
    }

    /// What sets the congestion windows of connections that get no callbacks; `None`: this kernel can't.
    pub fn fitter(&self) -> Option<&Fitter> {
        self.fitter.as_ref()
    }

    /// What was read for loading the maps, for the first who asks.
    fn take_types(&mut self) -> Result<AyaBtf> {
        self.types.take().map_or_else(kernel_types, Ok)
    }

    fn load_one(&mut self, name: &str, types: &AyaBtf) -> Result<()> {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| Error::failed(format!("the eBPF object has no program {name}")))?;
        let loaded = match program {
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::BtfTracePoint(program) => program.load(tracepoint_of(name), types),
            Program::FEntry(program) => program.load(tracepoint_of(name), types),
            Program::Iter(program) => {
                let over = match name {
                    "review_processes" => "task",
                    other => counters::iterates_over(other),
                };
                program.load(over, types)
            }
            Program::SockOps(program) => program.load(),
            _ => return Err(Error::failed(format!("the eBPF object's program {name} has an unknown type"))),
        };
        loaded.or_else(|cause| {
            if matches!(cause, ProgramError::AlreadyLoaded) { Ok(()) } else { Err(refusal(name, &cause)) }
        })
    }

    fn program_fd(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let program =
            self.ebpf.program(name).ok_or_else(|| Error::failed(format!("no eBPF program {name}")))?;
        let fd = program
            .fd()
            .map_err(|cause| Error::caused(Kind::Failed, format!("use eBPF program {name}"), &cause))?;
        Ok(fd.as_fd())
    }

    /// A classifier, loaded when it is first asked for.
    ///
    /// # Errors
    /// [`Kind::NoBackend`] with the verifier's word when the kernel refuses it.
    pub fn classifier(&mut self, name: &str) -> Result<BorrowedFd<'_>> {
        let Some(Program::SchedClassifier(program)) = self.ebpf.program_mut(name) else {
            return Err(Error::failed(format!("the eBPF object has no classifier {name}")));
        };
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => self.program_fd(name),
            Err(cause) => Err(refusal(name, &cause)),
        }
    }

    /// Attaches everything that a limit takes: fork and exit, sockets, packets, in this order, so that
    /// no process and no socket is missed.
    pub fn attach(&mut self, cgroup: &Path) -> Result<()> {
        let directory = File::open(cgroup).context(format!("open cgroup {}", cgroup.display()))?;
        for name in ["follow_fork", "follow_exit"] {
            self.attach_tracepoint(name)?;
        }
        for (name, hook) in [
            ("tag_new_socket", CgroupHook::SocketCreate),
            (self.egress, CgroupHook::Egress),
            (self.ingress, CgroupHook::Ingress),
            ("pace_flow", CgroupHook::SocketOps),
        ] {
            let program = match self.program_fd(name) {
                // Not there on this kernel, as was said when it was loaded.
                Err(_) if name == "pace_flow" => continue,
                program => program?,
            };
            let link = attach(program, &directory, hook)?;
            self.links.push((name, hook, link));
        }
        super::fault::point("ebpf.attached");
        Ok(())
    }

    fn attach_tracepoint(&mut self, name: &str) -> Result<()> {
        let Some(Program::BtfTracePoint(program)) = self.ebpf.program_mut(name) else {
            return Err(Error::failed(format!("the eBPF object has no tracepoint program {name}")));
        };
        program.attach().map(drop).map_err(|cause| {
            Error::caused(Kind::Failed, format!("attach {name} to {}", tracepoint_of(name)), &cause)
        })
    }

    /// Starts to watch who uses shared sockets. Costs something on every send and receive of the host, so it
    /// is only done when a limited socket is shared. Doing it again does nothing.
    pub fn watch_shared_sockets(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.adopting, true) {
            return Ok(());
        }
        let loaded = |name: &&&str| self.ebpf.program(name).is_some_and(|program| program.fd().is_ok());
        let set = ADOPTERS.iter().find(|set| set.iter().all(|name| loaded(&name)));
        for name in set.copied().unwrap_or_default() {
            self.attach_tracepoint(name)?;
        }
        Ok(())
    }

    /// Tags the open sockets of limited processes and lists them: of one process, or of all.
    pub fn walk_sockets(&self, tgid: Option<u32>) -> Result<Vec<SocketRecord>> {
        if self.by_descriptor {
            return self.walk_descriptors(tgid);
        }
        let program = self.program_fd(WALK)?;
        let mut bytes = Vec::new();
        sys::open_task_iterator(program, tgid)
            .and_then(|mut iterator| iterator.read_to_end(&mut bytes))
            .context("walk over the open sockets")?;
        Ok(bytes.chunks_exact(size_of::<SocketRecord>()).map(read_plain).collect())
    }

    fn walk_descriptors(&self, tgid: Option<u32>) -> Result<Vec<SocketRecord>> {
        let array = |name: &str| {
            let Some(Map::Array(data)) = self.ebpf.map(name) else {
                return Err(Error::failed(format!("the eBPF object has no array {name}")));
            };
            Ok(data.fd().as_fd())
        };
        let failed = "read the epoch from the eBPF maps";
        let state = sys::lookup::<u32, State>(array("STATE")?, &0).context(failed)?.unwrap_or_default();
        let moves = sys::lookup::<u32, u64>(array("MOVES")?, &0).context(failed)?.unwrap_or_default();
        let walk = descriptors::Walk {
            tags: self.storage("TAGS")?,
            flows: self.storage("FLOWS")?,
            windows: self.storage("WINDOWS")?,
            processes: self.entries::<u32, ProcessEntry>("PROCESSES")?.into_iter().collect(),
            epoch: state.epoch.wrapping_add(moves),
        };
        walk.run(tgid)
    }

    /// Tags a socket of our own. Some kernels can load and attach everything, and then have no memory for tags.
    fn try_tag(&self) -> Result<()> {
        let what = "tag a socket (without cmpxchg16b, or the like on other processors, newer kernels can't)";
        let failed = |cause| Error::caused(Kind::NoBackend, what, &cause);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("open a socket")?;
        let tag = Tag { flags: TAG_TOLD, ..Tag::default() };
        sys::set_socket_value(self.storage("TAGS")?, socket.as_fd(), &tag).map_err(failed)
    }

    fn storage(&self, name: &str) -> Result<BorrowedFd<'_>> {
        match self.ebpf.map(name) {
            Some(Map::SkStorage(data)) => Ok(data.fd().as_fd()),
            _ => Err(Error::failed(format!("the eBPF object has no socket storage map {name}"))),
        }
    }

    /// Names of the programs whose link to the cgroup is gone.
    pub fn dead_links(&self) -> Result<Vec<&'static str>> {
        let mut dead = Vec::new();
        for (name, _, link) in &self.links {
            if !sys::cgroup_link_is_alive(link.as_fd()).context(format!("ask for the link of {name}"))? {
                dead.push(*name);
            }
        }
        Ok(dead)
    }

    /// Attaches again what was detached.
    pub fn attach_again(&mut self, cgroup: &Path) -> Result<()> {
        let directory = File::open(cgroup).context(format!("open cgroup {}", cgroup.display()))?;
        for index in 0..self.links.len() {
            let (name, hook, link) = &self.links[index];
            let (name, hook) = (*name, *hook);
            if !sys::cgroup_link_is_alive(link.as_fd()).context(format!("ask for the link of {name}"))? {
                self.links[index].2 = attach(self.program_fd(name)?, &directory, hook)?;
            }
        }
        Ok(())
    }

    /// Gives a bucket in use other figures, in place.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no such bucket.
    pub fn change_bucket(&self, change: &BucketChange) -> Result<()> {
        // SAFETY: repr(C), u64 only, no padding: every byte is initialised.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(change).cast::<u8>(), size_of::<BucketChange>())
        };
        let (found, _) = sys::run_once(self.program_fd("change_bucket")?, bytes, 1)
            .context("run the eBPF program change_bucket")?;
        if found == 1 {
            Ok(())
        } else {
            Err(Error::new(Kind::NotFound, "change a bucket: the limit has none"))
        }
    }

    /// Ids of our programs at packets.
    pub fn limiter_ids(&self) -> Vec<u32> {
        [self.egress, self.ingress, counters::EGRESS, counters::INGRESS]
            .iter()
            .filter_map(|name| self.ebpf.program(name))
            .filter_map(|program| match program {
                Program::CgroupSkb(program) => program.info().ok().map(|info| info.id()),
                _ => None,
            })
            .collect()
    }

    /// A hash map of the object.
    pub fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        get_bpf_map(&mut self.ebpf, name)
    }

    /// Everything in a hash map of the object.
    pub fn entries<K: Pod + Default, V: Pod + Default>(&self, name: &str) -> Result<Vec<(K, V)>> {
        let Some(Map::HashMap(data)) = self.ebpf.map(name) else {
            return Err(Error::failed(format!("the eBPF object has no hash map {name}")));
        };
        sys::read_hash(data.fd().as_fd()).context(format!("read the eBPF map {name}"))
    }

    /// One value of a hash map of the object.
    pub fn entry<K: Pod, V: Pod>(&self, name: &str, key: &K) -> Result<V> {
        let map =
            self.ebpf.map(name).ok_or_else(|| Error::failed(format!("the eBPF object has no map {name}")))?;
        HashMap::try_from(map)
            .and_then(|map: HashMap<&MapData, K, V>| map.get(key, 0))
            .map_err(|cause| Error::caused(Kind::Failed, format!("read the eBPF map {name}"), &cause))
    }

    /// The map that knows how each connection is paced.
    pub fn flows(&self) -> Result<FlowMap<'_>> {
        self.storage("FLOWS").map(FlowMap)
    }

    /// What a socket carries for the programs.
    pub fn tag_of(&self, socket: BorrowedFd<'_>) -> Result<Option<Tag>> {
        sys::socket_value(self.storage("TAGS")?, socket).context("read a socket's tag")
    }

    /// An array of the object.
    pub fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        get_bpf_map(&mut self.ebpf, name)
    }

    /// The events, taken out once for good.
    pub fn take_events(&mut self) -> Result<Events> {
        let map =
            self.ebpf.take_map("EVENTS").ok_or_else(|| Error::failed("the eBPF events are taken already"))?;
        RingBuf::try_from(map)
            .map(Events)
            .map_err(|cause| Error::caused(Kind::Failed, "open the eBPF events", &cause))
    }
}

/// The map `FLOWS`: a [`chadthrottle_common::abi::Flow`] for each connection that is or was paced.
#[derive(Clone, Copy)]
pub struct FlowMap<'a>(pub BorrowedFd<'a>);

/// What the programs tell the owner.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Those since the last call.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.0.next() {
            if item.len() >= size_of::<Event>() {
                events.push(read_plain(&item));
            }
        }
        events
    }

    /// Readable when there is one.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Records of the iterator and of the ring buffer: repr(C), integers only.
trait Plain: Copy {}
impl Plain for SocketRecord {}
impl Plain for Event {}

fn read_plain<T: Plain>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>());
    // SAFETY: long enough, any bytes are a value of a Plain type, and the read need not be aligned.
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

/// The tracepoint or function that a program watches.
fn tracepoint_of(program: &str) -> &'static str {
    match program {
        "follow_fork" => "sched_process_fork",
        "follow_exit" => "sched_process_exit",
        "adopt_on_send" | "own_on_send" => "sock_send_length",
        "adopt_on_receive" | "own_on_receive" => "sock_recv_length",
        "adopt_on_tcp_read" | "own_on_tcp_read" => "tcp_rcv_space_adjust",
        "own_while_sending" => "tcp_sendmsg_locked",
        "fold_tcp" => "tcp_destroy_sock",
        "own_at_send" => "inet_sendmsg",
        "own_at_send6" => "inet6_sendmsg",
        "own_at_sendfile" => "inet_sendpage",
        "own_at_receive" => "inet_recvmsg",
        "own_at_receive6" => "inet6_recvmsg",
        other => rules::tracepoint_of(other).unwrap_or("no such tracepoint"),
    }
}

/// Why the kernel refused a program, without the pages of the verifier's log.
fn refusal(name: &str, cause: &ProgramError) -> Error {
    let ProgramError::LoadError { io_error, verifier_log } = cause else {
        return Error::caused(Kind::NoBackend, format!("load eBPF program {name}"), cause);
    };
    refusal_of(name, io_error, &verifier_log.to_string())
}

fn refusal_of(name: &str, io_error: &io::Error, log: &str) -> Error {
    if io_error.kind() == io::ErrorKind::PermissionDenied && io_error.raw_os_error() == Some(libc::EPERM) {
        return Error::caused(
            Kind::NotPermitted,
            format!(
                "load eBPF program {name}: the kernel does not permit it, lockdown or a missing capability ({})",
                caps::mend(&caps::FOR_EBPF)
            ),
            io_error,
        );
    }
    let lines: Vec<_> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = lines
        .iter()
        .find(|line| line.contains("unknown func") || line.contains("invalid func"))
        .or_else(|| {
            let statistics = ["processed ", "stack depth ", "verification time "];
            lines.iter().rev().find(|line| !statistics.iter().any(|start| line.starts_with(start)))
        })
        .copied()
        .unwrap_or("nothing");
    Error::caused(Kind::NoBackend, format!("load eBPF program {name}: the verifier says '{said}'"), io_error)
}
