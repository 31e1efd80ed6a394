//! Where it is measured: a cgroup and network namespaces of the benchmark's own, the engine as users get
//! it, and beside it the programs that it is compared with.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Instant,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap},
    programs::{CgroupSkb, Program},
};
use chadthrottle::{
    Error, Kind, Result,
    backend::{self, Applied, Backend, Site},
    kernel::{
        bpf::{self, CgroupHook, sys},
        cgroup,
        netlink::Route,
        netns::Namespace,
    },
    model::{Direction, Limit, LimitId, Rate, Target},
    selftest::{cgroup::Cgroup, interrupt, process::Place},
};

use crate::stats::Timed;

/// A rate at which nothing is refused, bytes/s.
pub const NO_REFUSAL: u64 = 125_000_000_000;

/// Cgroup and namespace.
pub struct Scene {
    /// In which the programs are attached.
    pub cgroup: Cgroup,
    namespace: Namespace,
}

impl Scene {
    /// With a loopback device.
    pub fn new() -> Result<Self> {
        let name = format!("chadt-bench-{}", std::process::id());
        let scene = Self { cgroup: Cgroup::new(&cgroup::mount()?, &name)?, namespace: Namespace::new()? };
        let mut route = Route::open_in(&scene.namespace)?;
        let loopback = route.index("lo")?;
        route.set_up(loopback)?;
        Ok(scene)
    }

    /// For processes whose packets are measured.
    pub fn place(&self) -> Place<'_> {
        Place { namespace: Some(&self.namespace), cgroup: Some(&self.cgroup) }
    }

    /// Where backends work.
    pub fn site(&self) -> Site {
        Site { cgroup_root: Some(self.cgroup.path().to_owned()) }
    }
}

/// The engine, both directions.
pub struct Engine {
    upload: Box<dyn Backend>,
    download: Box<dyn Backend>,
    next: u64,
    renewed: Instant,
}

impl Engine {
    /// Attached at the scene's cgroup, without limits.
    pub fn open(scene: &Scene) -> Result<Self> {
        let open = |direction| (backend::find("ebpf", direction)?.open)(&scene.site(), direction);
        Ok(Self {
            upload: open(Direction::Upload)?,
            download: open(Direction::Download)?,
            next: 1,
            renewed: Instant::now(),
        })
    }

    /// One direction of it.
    pub fn backend(&mut self, direction: Direction) -> &mut dyn Backend {
        match direction {
            Direction::Upload => self.upload.as_mut(),
            Direction::Download => self.download.as_mut(),
        }
    }

    /// An id that no other limit has.
    pub fn id(&mut self) -> LimitId {
        self.next += 1;
        LimitId(self.next)
    }

    /// Brings one direction of a limit into force, or changes its rate.
    pub fn apply(&mut self, id: LimitId, direction: Direction, pid: u32, rate: u64) -> Result<Applied> {
        let rate = Rate::new(rate).ok_or_else(|| Error::failed("no such rate"))?;
        let limit = Limit {
            id,
            direction,
            rate,
            targets: vec![Target::Pid(pid)],
            scope: chadthrottle::model::Scope::All,
        };
        self.backend(direction).apply(&limit)
    }

    /// Limits a process in both directions, to what it never reaches.
    pub fn limit(&mut self, pid: u32) -> Result<LimitId> {
        let id = self.id();
        for direction in Direction::ALL {
            self.apply(id, direction, pid, NO_REFUSAL)?;
        }
        self.tick()?;
        Ok(id)
    }

    /// What an owner does once a second, if a second has passed. Fails when a signal asks to end.
    pub fn tick(&mut self) -> Result<()> {
        interrupt::check()?;
        if self.renewed.elapsed().as_secs() >= 1 {
            self.renewed = Instant::now();
            self.upload.renew()?;
        }
        Ok(())
    }
}

/// What the engine is compared with.
pub struct Yardstick {
    ebpf: Ebpf,
    links: Vec<OwnedFd>,
}

/// `NaiveConfig` of the object: rate and burst.
type NaiveConfig = [u64; 2];

impl Yardstick {
    /// From the object that `cargo xtask bench` built.
    pub fn load(object: &Path) -> Result<Self> {
        let failed = |cause: &dyn std::error::Error| {
            Error::caused(Kind::Failed, format!("load {}", object.display()), cause)
        };
        let mut ebpf = EbpfLoader::new().load_file(object).map_err(|cause| failed(&cause))?;
        for (_, program) in ebpf.programs_mut() {
            if let Program::CgroupSkb(program) = program {
                program.load().map_err(|cause| failed(&cause))?;
            }
        }
        Ok(Self { ebpf, links: Vec::new() })
    }

    fn program(&self, name: &str) -> Result<&CgroupSkb> {
        match self.ebpf.program(name) {
            Some(Program::CgroupSkb(program)) => Ok(program),
            _ => Err(Error::failed(format!("the benchmark's object has no program {name}"))),
        }
    }

    /// Attaches the empty and the naive programs, the latter with a limit of the scene's cgroup.
    pub fn attach(&mut self, scene: &Scene) -> Result<()> {
        self.attach_program(scene.cgroup.path(), "empty", Direction::Upload)?;
        self.attach_program(scene.cgroup.path(), "empty", Direction::Download)?;
        self.attach_naive(scene.cgroup.path(), Direction::Upload, NO_REFUSAL)?;
        self.attach_naive(scene.cgroup.path(), Direction::Download, NO_REFUSAL)
    }

    /// Limits what is born in a cgroup to a rate in bytes/s, with a second of it as burst.
    pub fn attach_naive(&mut self, cgroup: &Path, direction: Direction, rate: u64) -> Result<()> {
        let mut configs: HashMap<_, u64, NaiveConfig> = bpf::get_bpf_map(&mut self.ebpf, "NAIVE_CONFIGS")?;
        configs
            .insert(cgroup::get_cgroup_id(cgroup)?, [rate, rate], 0)
            .map_err(|cause| Error::caused(Kind::Failed, "write the map NAIVE_CONFIGS", &cause))?;
        self.attach_program(cgroup, "naive", direction)
    }

    fn attach_program(&mut self, cgroup: &Path, kind: &str, direction: Direction) -> Result<()> {
        let (hook, suffix) = hook(direction);
        let program = self.program(&format!("{kind}_{suffix}"))?;
        let link = bpf::attach_cgroup_skb(program, &open(cgroup)?, hook)?;
        self.links.push(link);
        Ok(())
    }

    /// Runs `step_ingress` or `idle_ingress` `repeat` times at a rate in bytes/s; the ns that one took.
    pub fn run_steps(&mut self, name: &str, rate: u64, repeat: u32) -> Result<u32> {
        let mut word: Array<_, [u64; 2]> = bpf::get_bpf_map(&mut self.ebpf, "WORD")?;
        word.set(0, [1 << 40, rate], 0)
            .map_err(|cause| Error::caused(Kind::Failed, "write the map WORD", &cause))?;
        let fd = self.program(name)?.fd().map_err(|cause| Error::caused(Kind::Failed, name, &cause))?;
        sys::run_once(fd.as_fd(), &[0; 64], repeat)
            .map(|(_, ns)| ns)
            .map_err(|cause| Error::caused(Kind::Failed, format!("run {name}"), &cause))
    }
}

fn open(cgroup: &Path) -> Result<File> {
    File::open(cgroup)
        .map_err(|cause| Error::caused(Kind::Failed, format!("open cgroup {}", cgroup.display()), &cause))
}

/// Where a direction's programs are attached, and how their names end.
fn hook(direction: Direction) -> (CgroupHook, &'static str) {
    match direction {
        Direction::Upload => (CgroupHook::Egress, "egress"),
        Direction::Download => (CgroupHook::Ingress, "ingress"),
    }
}

/// The programs that run for a packet in one direction.
pub struct Programs {
    /// Does nothing.
    pub empty: Timed,
    /// The engine's.
    pub engine: Timed,
    /// Three lookups, copied and inserted.
    pub naive: Timed,
}

impl Programs {
    /// Those attached at the scene's cgroup.
    pub fn find(scene: &Scene, direction: Direction) -> Result<Self> {
        let (hook, suffix) = hook(direction);
        let directory = open(scene.cgroup.path())?;
        let attached = sys::effective_programs(directory.as_fd(), hook)
            .map_err(|cause| Error::caused(Kind::Failed, "list the cgroup's programs", &cause))?;
        // The last of that name: those of the cgroups above come first.
        let find = |kind: &str| -> Result<Timed> {
            let name = format!("{kind}_{suffix}");
            let mut found = None;
            for info in aya::programs::loaded_programs().flatten() {
                if attached.contains(&info.id()) && info.name_as_str() == Some(&name) {
                    found = Some(Timed::new(&info)?);
                }
            }
            found.ok_or_else(|| Error::failed(format!("no program {name} is attached")))
        };
        Ok(Self { empty: find("empty")?, engine: find("limit")?, naive: find("naive")? })
    }
}
