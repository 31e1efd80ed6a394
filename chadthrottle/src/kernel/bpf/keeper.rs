//! Keeps a map alive by a cgroup instead of a process: a program that names the map and lets everything pass is
//! attached to the cgroup, and goes with it. Unlike a pin this needs no bpffs, which many containers lack.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{maps::MapData, programs::loaded_programs};

use super::sys::{bpf, bpf_fd};
use crate::error::{Context, Error, Kind, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_QUERY: libc::c_int = 16;

/// Asked only when somebody in the cgroup uses a sysctl; the owner, alone in there, does not.
const BPF_PROG_TYPE_CGROUP_SYSCTL: u32 = 23;
const BPF_CGROUP_SYSCTL: u32 = 18;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The program's name.
const NAME: &[u8; 12] = b"chadt_keeper";

/// `union bpf_attr` for BPF_PROG_LOAD, up to the name.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    name: [u8; 16],
}

/// The same for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target_fd: u32,
    prog_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// The same for BPF_PROG_QUERY.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// Lets `map` live as long as the cgroup at `path`, in which nobody notices.
pub fn keep(path: &Path, map: BorrowedFd<'_>) -> Result<()> {
    let doing = || format!("keep an eBPF map by the cgroup {}", path.display());
    let cgroup = File::open(path).context(doing())?;
    // `r1 = map` (two slots, the first says that the value is a map's descriptor), `r0 = 1`, `exit`.
    let program = [0x1118 | (map.as_raw_fd() as u64) << 32, 0, 0xb7 | 1 << 32, 0x95];
    let mut name = [0; 16];
    name[..NAME.len()].copy_from_slice(NAME);
    let mut load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_SYSCTL,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        name,
    };
    let program = bpf_fd(BPF_PROG_LOAD, &mut load).context(doing())?;
    let mut attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        prog_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_SYSCTL,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &mut attach).context(doing()).map(drop)
}

/// The maps that are kept by the cgroup at `path`; none when there is no such cgroup. Takes CAP_SYS_ADMIN when
/// there are some.
pub fn kept(path: &Path) -> Result<Vec<OwnedFd>> {
    let doing = || format!("look for eBPF maps that the cgroup {} keeps", path.display());
    let cgroup = match File::open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        cgroup => cgroup.context(doing())?,
    };
    let mut ids = [0u32; 16];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_SYSCTL,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        pad: 0,
    };
    match bpf(BPF_PROG_QUERY, &mut query) {
        // Nothing can be kept by what is no cgroup, or where there are no such programs.
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::EBADF | libc::EINVAL)) => {
            return Ok(Vec::new());
        }
        result => result.context(doing())?,
    };
    let ids = &ids[..(query.prog_cnt as usize).min(ids.len())];
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |cause: &dyn std::error::Error| Error::caused(Kind::Failed, doing(), cause);
    let mut maps = Vec::new();
    for program in loaded_programs() {
        let program = program.map_err(|cause| failed(&cause))?;
        if !ids.contains(&program.id()) || program.name() != NAME {
            continue;
        }
        for id in program.map_ids().map_err(|cause| failed(&cause))?.unwrap_or_default() {
            let map = MapData::from_id(id).map_err(|cause| failed(&cause))?;
            maps.push(map.fd().as_fd().try_clone_to_owned().context(doing())?);
        }
    }
    Ok(maps)
}
