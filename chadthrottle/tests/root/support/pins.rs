//! eBPF objects of the user's, pinned in a bpffs that goes with its descriptor: a program that counts what a cgroup
//! sends, its map, and the link that attaches it.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use aya::{maps::MapInfo, programs::ProgramInfo};
use chadthrottle::kernel::bpf::sys::{
    CgroupHook, attach_to_cgroup, cgroup_link_is_alive, effective_programs, lookup,
};

use super::{Result, ensure};
use crate::support::Error;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;

/// `union bpf_attr` for BPF_MAP_CREATE, up to what an array needs.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The same for BPF_PROG_LOAD.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The same for BPF_OBJ_PIN and BPF_OBJ_GET.
#[repr(C)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The same for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// A program that lets everything pass, attached to a cgroup so that no other can be beside it or below; it ends with
/// this.
pub struct Exclusive {
    cgroup: File,
    program: OwnedFd,
}

impl Exclusive {
    /// Attaches it.
    pub fn new(cgroup: &Path) -> Result<Self> {
        let failed = |cause: io::Error| Error::failed(format!("attach a program alone: {cause}"));
        let program =
            load(&[instruction(0xb7, 0, 0, 0, 1), instruction(0x95, 0, 0, 0, 0)]).map_err(failed)?;
        let exclusive = Self { cgroup: File::open(cgroup).map_err(failed)?, program };
        bpf(BPF_PROG_ATTACH, &mut exclusive.attach()).map_err(failed)?;
        Ok(exclusive)
    }

    fn attach(&self) -> Attach {
        Attach {
            target_fd: self.cgroup.as_raw_fd() as u32,
            attach_bpf_fd: self.program.as_raw_fd() as u32,
            attach_type: CgroupHook::Egress as u32,
            attach_flags: 0,
        }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        if let Err(error) = bpf(BPF_PROG_DETACH, &mut self.attach()) {
            eprintln!("detach the program that was alone: {error}");
        }
    }
}

/// The pinned objects; they end with it.
pub struct Pins {
    bpffs: OwnedFd,
    cgroup: File,
}

impl Pins {
    /// Counts what sockets of the cgroup send.
    pub fn new(cgroup: &Path) -> Result<Self> {
        let failed = |cause: io::Error| Error::failed(format!("pin eBPF objects: {cause}"));
        let pins =
            Self { bpffs: mount_bpffs().map_err(failed)?, cgroup: File::open(cgroup).map_err(failed)? };
        let mut map = MapCreate { map_type: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size: 8, max_entries: 1 };
        let map = owned(bpf(BPF_MAP_CREATE, &mut map)).map_err(failed)?;
        let program = load(&counting(&map)).map_err(failed)?;
        let link =
            attach_to_cgroup(program.as_fd(), pins.cgroup.as_fd(), CgroupHook::Egress).map_err(failed)?;
        for (name, object) in [("map", map), ("program", program), ("link", link)] {
            pins.pin(name, object.as_fd()).map_err(failed)?;
        }
        Ok(pins)
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.bpffs.as_raw_fd())
    }

    fn pin(&self, name: &str, object: BorrowedFd<'_>) -> io::Result<()> {
        let path = CString::new(self.path(name))?;
        let mut pin =
            Obj { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
        bpf(BPF_OBJ_PIN, &mut pin).map(drop)
    }

    fn get(&self, name: &str) -> io::Result<OwnedFd> {
        let path = CString::new(self.path(name))?;
        let mut get = Obj { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
        owned(bpf(BPF_OBJ_GET, &mut get))
    }

    /// What must not change.
    pub fn dump(&self) -> Result<String> {
        let failed = |cause: &dyn std::fmt::Display| Error::failed(format!("the pinned objects: {cause}"));
        let map = MapInfo::from_pin(self.path("map")).map_err(|cause| failed(&cause))?;
        let program = ProgramInfo::from_pin(self.path("program")).map_err(|cause| failed(&cause))?;
        let link = self.get("link").map_err(|cause| failed(&cause))?;
        let alive = cgroup_link_is_alive(link.as_fd()).map_err(|cause| failed(&cause))?;
        let attached =
            effective_programs(self.cgroup.as_fd(), CgroupHook::Egress).map_err(|cause| failed(&cause))?;
        Ok(format!(
            "map {}, program {}, link alive: {alive}, attached: {}",
            map.id(),
            program.id(),
            attached.contains(&program.id())
        ))
    }

    /// Packets that the cgroup has sent.
    pub fn packets(&self) -> Result<u64> {
        let failed = |cause: &dyn std::fmt::Display| Error::failed(format!("the pinned map: {cause}"));
        let map = self.get("map").map_err(|cause| failed(&cause))?;
        let count = lookup(map.as_fd(), &0u32).map_err(|cause| failed(&cause))?;
        ensure!(count.is_some(), "the pinned map is empty");
        Ok(count.unwrap_or_default())
    }
}

fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut load = ProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_SKB,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    owned(bpf(BPF_PROG_LOAD, &mut load))
}

fn instruction(code: u64, target: u64, source: u64, offset: i16, value: i32) -> u64 {
    code | target << 8 | source << 12 | u64::from(offset as u16) << 16 | u64::from(value as u32) << 32
}

/// `++map[0]; return 1`.
fn counting(map: &OwnedFd) -> [u64; 11] {
    [
        instruction(0x62, 10, 0, -4, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x18, 1, 1, 0, map.as_raw_fd()),
        0,
        instruction(0x85, 0, 0, 0, 1),
        instruction(0x15, 0, 0, 2, 0),
        instruction(0xb7, 1, 0, 0, 1),
        instruction(0xdb, 0, 1, 0, 0),
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// A bpffs that nobody else sees, and that is gone with the descriptor.
fn mount_bpffs() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    // SAFETY: a string that lives until the call is over.
    let context = owned(result(unsafe { libc::syscall(libc::SYS_fsopen, c"bpf".as_ptr(), 1) }))?;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    result(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0)
    })?;
    // SAFETY: no pointers are passed.
    owned(result(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) }))
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: T is the command's arm of union bpf_attr; what it points to is borrowed by the caller meanwhile.
    result(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) })
}

fn result(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn owned(descriptor: io::Result<libc::c_long>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made it for us.
    descriptor.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}
