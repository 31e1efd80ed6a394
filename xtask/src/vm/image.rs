//! The initramfs of a machine.

use super::{Binaries, cpio::Archive, kernel::Kernel};
use crate::sh;
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

const INIT: &str = include_str!("init.sh");
const BUSYBOX: &str = "/usr/bin/busybox";
const FOLDERS: [&str; 13] =
    ["bin", "cg", "dev", "etc", "lib", "lib64", "modules", "proc", "root", "run", "sys", "tmp", "var"];

/// What a user of the machine sets up networks with.
const TOOLS: [&str; 2] = ["tc", "nft"];
/// Where the dynamic linker must be.
const LINKER: &str = "lib64/ld-linux-x86-64.so.2";

/// What the tests use, where the kernel has it as a module. Their dependencies come along.
const MODULES: &[&str] = &[
    "ipv6",
    "veth",
    "8021q",
    "ifb",
    "tun",
    "tcp_bbr",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "mptcp_diag",
    "sch_fq",
    "sch_fq_codel",
    "sch_htb",
    "sch_ingress",
    "sch_netem",
    "sch_tbf",
    "cls_bpf",
    "cls_u32",
    "cls_basic",
    "em_meta",
    "act_gact",
    "act_mirred",
    "act_police",
    "nf_tables",
    "nft_counter",
    "nft_fwd_netdev",
    "nft_limit",
    "nft_objref",
    "nft_socket",
];

/// Writes it to `path`; the guest runs `command` in a shell.
pub fn write(path: &Path, kernel: &Kernel, binaries: &Binaries, command: &str) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for folder in FOLDERS {
        archive.directory(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.program("etc/passwd", b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    archive.program("etc/group", b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.program("init", INIT.as_bytes())?;
    archive.program("etc/tests", command.as_bytes())?;
    archive.program("bin/busybox", &read(Path::new(BUSYBOX))?)?;
    archive.program("bin/chadthrottle", &stripped(&binaries.chadthrottle)?)?;
    archive.program("bin/root", &stripped(&binaries.root_tests)?)?;
    archive.program(LINKER, &read(&Path::new("/").join(LINKER))?)?;
    let tools = TOOLS.iter().map(|tool| sh::find(tool).with_context(|| format!("no {tool}")));
    let tools = tools.collect::<Result<Vec<_>>>()?;
    for (folder, file) in
        tools.iter().map(|tool| ("bin", tool)).chain(libraries(&tools)?.iter().map(|file| ("lib", file)))
    {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        archive.program(&format!("{folder}/{name}"), &read(file)?)?;
    }
    for (number, module) in modules(kernel)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.split('.').next().unwrap_or_default();
        // The guest loads them in the order of their names.
        archive.program(&format!("modules/{number:03}-{name}.ko"), &decompressed(module)?)?;
    }
    archive.finish()?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The libraries that programs are linked with, each once.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let lines = sh::output(Command::new("ldd").args(programs))?;
    Ok(lines.lines().filter_map(|line| line.split_whitespace().nth(2)).map(PathBuf::from).collect())
}

/// Debug information would only have to be unpacked into the guest's memory.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let copy = path.with_extension("stripped");
    sh::run(Command::new("strip").arg("-o").arg(&copy).arg(path))?;
    read(&copy)
}

/// Files of [`MODULES`] and all they need, each after what it needs.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let modprobe = sh::find("modprobe").context("no modprobe")?;
    let mut files = Vec::new();
    for module in MODULES {
        let mut command = Command::new(&modprobe);
        command.arg("-d").arg(&kernel.root).args(["-S", &kernel.release, "--show-depends", module]);
        // Not every kernel has every module, and some have it built in.
        let Ok(steps) = sh::output(&mut command) else { continue };
        for file in steps.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = PathBuf::from(file.split_whitespace().next().unwrap_or_default());
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    if files.is_empty() {
        bail!("no module found below {}", kernel.root.display());
    }
    Ok(files)
}

fn decompressed(module: &Path) -> Result<Vec<u8>> {
    let tool = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return read(module),
    };
    let output = Command::new(tool).args(["-d", "-c", "-q"]).arg(module).output();
    let output = output.with_context(|| format!("start {tool}"))?;
    if !output.status.success() {
        bail!("{tool} cannot decompress {}", module.display());
    }
    Ok(output.stdout)
}
