//! What somebody else could do to our eBPF objects, with bpf(2) alone.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use chadthrottle::kernel::bpf::{CgroupHook, sys};

use crate::support::*;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;

/// `r0 = 1` and `exit`, as struct bpf_insn: lets everything pass.
const PASS: [u64; 2] = [0xb7 | 1 << 32, 0x95];

/// The beginning of union bpf_attr, of which each command reads what it knows.
fn bpf(command: libc::c_int, attributes: &[u64]) -> io::Result<i32> {
    // SAFETY: a readable block of the size that is said; what it points to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_owned();
    move |cause| Error::failed(format!("{what}: {cause}"))
}

/// Loads a program that lets every packet pass, and attaches it to a cgroup until the link is closed.
pub fn attach_foreign(cgroup: &Path, hook: CgroupHook) -> Result<OwnedFd> {
    let license = c"GPL";
    let program = [
        u64::from(BPF_PROG_TYPE_CGROUP_SKB) | (PASS.len() as u64) << 32,
        PASS.as_ptr() as u64,
        license.as_ptr() as u64,
    ];
    let program = bpf(BPF_PROG_LOAD, &program).map_err(failed("load a foreign program"))?;
    // SAFETY: a new descriptor that nobody else knows.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let cgroup = File::open(cgroup).map_err(failed("open the cgroup"))?;
    sys::attach_to_cgroup(program.as_fd(), cgroup.as_fd(), hook).map_err(failed("attach a foreign program"))
}

/// Ids of the links to cgroups that a process holds.
pub fn cgroup_links(pid: i32) -> Result<Vec<u64>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut ids = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed(&folder))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        if value("link_type:") == Some("cgroup") {
            ids.extend(value("link_id:").and_then(|id| id.parse::<u64>().ok()));
        }
    }
    Ok(ids)
}

/// Detaches somebody's link, which stays open.
pub fn detach(link: u64) -> Result<()> {
    let link = bpf(BPF_LINK_GET_FD_BY_ID, &[link]).map_err(failed("open the link"))?;
    // SAFETY: as above.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    bpf(BPF_LINK_DETACH, &[link.as_raw_fd() as u64]).map_err(failed("detach the link")).map(drop)
}
