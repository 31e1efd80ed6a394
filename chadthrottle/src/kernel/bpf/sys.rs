//! The bpf() commands that aya does not offer: links whose state can be asked, iterators narrowed to
//! one process, who else is attached.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;

pub(super) const BPF_TRACE_ITER: u32 = 28;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// Hooks of a cgroup; the values are the kernel's `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CgroupHook {
    /// Packets that sockets of the cgroup receive.
    Ingress = 0,
    /// Packets that sockets of the cgroup send.
    Egress = 1,
    /// Sockets made by processes of the cgroup.
    SocketCreate = 2,
    /// Connections of the cgroup's sockets.
    SocketOps = 3,
    /// Sockets of the cgroup that nobody holds any more.
    SocketRelease = 34,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    pad: u32,
}

/// `union bpf_iter_link_info`, its `task` arm (6.1).
#[repr(C)]
#[derive(Default)]
struct TaskInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
    pad: u32,
}

/// The same, its `map` arm (5.9).
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    map_fd: u32,
    pad: [u32; 3],
}

#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
    prog_attach_flags: u64,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` up to the cgroup arm of its union.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    pad2: u32,
}

pub(super) fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: T is the repr(C) form of the command's arm of union bpf_attr, at its full size; what its
    // pointers point to outlives the call, being borrowed by the caller.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn bpf_fd<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: a new descriptor (close-on-exec, as all of bpf()'s) that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a program to a cgroup; it stays as long as the returned link is open. Coexists with others'.
pub fn attach_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
) -> io::Result<OwnedFd> {
    bpf_fd(
        BPF_LINK_CREATE,
        &mut LinkCreate {
            prog_fd: program.as_raw_fd() as u32,
            target_fd: cgroup.as_raw_fd() as u32,
            attach_type: hook as u32,
            ..LinkCreate::default()
        },
    )
}

/// Attaches a classifier to the egress of a device of the calling thread's network namespace (6.6). It stays
/// as long as the returned link is open and the device is there. Coexists with others'.
pub fn attach_to_egress(program: BorrowedFd<'_>, device: u32) -> io::Result<OwnedFd> {
    bpf_fd(
        BPF_LINK_CREATE,
        &mut LinkCreate {
            prog_fd: program.as_raw_fd() as u32,
            target_fd: device,
            attach_type: BPF_TCX_EGRESS,
            ..LinkCreate::default()
        },
    )
}

/// Whether a link to a cgroup still is one: the kernel, or an administrator, can detach it while it is
/// open, and then it names no cgroup any more.
pub fn cgroup_link_is_alive(link: BorrowedFd<'_>) -> io::Result<bool> {
    let mut info = LinkInfo::default();
    let mut attributes = InfoByFd {
        fd: link.as_raw_fd() as u32,
        length: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info.cgroup_id != 0)
}

/// Ids of the programs that decide at a hook of a cgroup, its ancestors' included.
pub fn effective_programs(cgroup: BorrowedFd<'_>, hook: CgroupHook) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut query = ProgQuery {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: hook as u32,
        query_flags: BPF_F_QUERY_EFFECTIVE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..ProgQuery::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    Ok(ids.iter().copied().take(query.prog_cnt as usize).collect())
}

/// Opens an iterator over tasks; with a tgid only over that process (6.1; older kernels refuse).
pub fn open_task_iterator(program: BorrowedFd<'_>, tgid: Option<u32>) -> io::Result<File> {
    // A zero tid beside a pid is what "one process" means; the rest of the union must be zero.
    let mut info = TaskInfo { pid: tgid.unwrap_or(0), ..TaskInfo::default() };
    let (iter_info, iter_info_len) =
        if tgid.is_some() { ((&raw mut info) as u64, size_of::<TaskInfo>() as u32) } else { (0, 0) };
    open_iterator(program, iter_info, iter_info_len)
}

/// Opens an iterator over the elements of a map.
pub fn open_map_iterator(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    let mut info = MapInfo { map_fd: map.as_raw_fd() as u32, pad: [0; 3] };
    open_iterator(program, (&raw mut info) as u64, size_of::<MapInfo>() as u32)
}

/// Opens an iterator over the TCP sockets of the calling thread's network namespace.
pub fn open_socket_iterator(program: BorrowedFd<'_>) -> io::Result<File> {
    open_iterator(program, 0, 0)
}

fn open_iterator(program: BorrowedFd<'_>, iter_info: u64, iter_info_len: u32) -> io::Result<File> {
    let link = bpf_fd(
        BPF_LINK_CREATE,
        &mut LinkCreate {
            prog_fd: program.as_raw_fd() as u32,
            attach_type: BPF_TRACE_ITER,
            iter_info,
            iter_info_len,
            ..LinkCreate::default()
        },
    )?;
    let iterator = bpf_fd(BPF_ITER_CREATE, &mut IterCreate { link_fd: link.as_raw_fd() as u32, flags: 0 })?;
    Ok(File::from(iterator))
}

pub(super) const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;

/// `union bpf_attr` for BPF_PROG_LOAD, up to the log.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

/// What the verifier says about a cgroup_skb program.
pub fn verifier_log(instructions: &[u64]) -> String {
    let mut log = vec![0u8; 64 * 1024];
    let mut attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_SKB,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log_buf: log.as_mut_ptr() as u64,
    };
    // A program that loads is closed again at once.
    let _ = bpf_fd(BPF_PROG_LOAD, &mut attributes);
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&log[..end]).into_owned()
}

const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// `union bpf_attr` for BPF_PROG_TEST_RUN, up to what cgroup_skb needs.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Ethernet header that the kernel takes off before a cgroup_skb program sees the packet.
const ETHERNET: usize = 14;

/// Runs a cgroup_skb program once with `packet` for the packet; returns its verdict and the ns that a run
/// took on average over `repeat` runs.
pub fn run_once(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<(u32, u32)> {
    let mut data = vec![0; ETHERNET];
    data.extend_from_slice(packet);
    let mut run = TestRun {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: data.len() as u32,
        data_in: data.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut run)?;
    Ok((run.retval, run.duration))
}

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Everything in a hash map, in a few calls, bucket by bucket: unlike a walk from key to key this neither
/// starts over nor stops when entries come and go meanwhile.
pub fn read_hash<K: aya::Pod + Default, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
) -> io::Result<Vec<(K, V)>> {
    let (mut at, mut next) = (0u32, 0u32);
    let mut room = 1_024usize;
    let mut entries = Vec::new();
    let mut begun = false;
    loop {
        let (mut keys, mut values) = (vec![K::default(); room], vec![V::default(); room]);
        let mut batch = Batch {
            in_batch: if begun { (&raw mut at) as u64 } else { 0 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Batch::default()
        };
        let done = match bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        keys.truncate(batch.count as usize);
        entries.extend(keys.into_iter().zip(values));
        if done {
            return Ok(entries);
        }
        (at, begun) = (next, true);
    }
}

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;

#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The value of a key in a map that has one for all processors; `None`: there is none.
pub fn lookup<K: aya::Pod, V: aya::Pod + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    Ok(element(BPF_MAP_LOOKUP_ELEM, map, std::ptr::from_ref(key) as u64, (&raw mut value) as u64)?
        .then_some(value))
}

/// [`lookup`], and takes it out of the hash map (5.14).
pub fn take<K: aya::Pod, V: aya::Pod + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::default();
    let key = std::ptr::from_ref(key) as u64;
    Ok(element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key, (&raw mut value) as u64)?.then_some(value))
}

/// Sum over all processors of an element of a per-processor array of u64.
pub fn lookup_sum(map: BorrowedFd<'_>, index: u32) -> io::Result<u64> {
    let mut values = vec![0u64; processors()?];
    element(BPF_MAP_LOOKUP_ELEM, map, (&raw const index) as u64, values.as_mut_ptr() as u64)?;
    Ok(values.iter().fold(0, |sum, value| sum.wrapping_add(*value)))
}

/// Processors that could ever be there: how many values an element of a per-processor map has.
fn processors() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, cause)| cause)
}

/// False: no such key.
fn element(command: libc::c_int, map: BorrowedFd<'_>, key: u64, value: u64) -> io::Result<bool> {
    let mut element = Element { map_fd: map.as_raw_fd() as u32, key, value, ..Element::default() };
    match bpf(command, &mut element) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a socket carries in a socket storage map; `None`: nothing.
pub fn socket_value<V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
) -> io::Result<Option<V>> {
    let (key, mut value) = (socket.as_raw_fd(), V::default());
    let mut element = Element {
        map_fd: map.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
        ..Element::default()
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut element) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a socket carry a value in a socket storage map.
pub fn set_socket_value<V: aya::Pod>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    value: &V,
) -> io::Result<()> {
    let key = socket.as_raw_fd();
    let mut element = Element {
        map_fd: map.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        value: std::ptr::from_ref(value) as u64,
        ..Element::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut element).map(drop)
}
