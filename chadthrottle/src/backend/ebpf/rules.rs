//! What processes must be to come under a limit, and the maps in which the kernel side finds that.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use chadthrottle_common::{
    abi::MAX_NESTED,
    rules::{
        CGROUP, CGROUP_NAME, COMM, EVERYBODY, FILE_NAME, Limits, MAX_RULES, NameKey, NumberKey, Rules, USER,
    },
};

use crate::{
    error::{Error, Kind, Result},
    kernel::{
        bpf::Loaded,
        cgroup, facts,
        matching::{Census, LONGEST_COMM, Why},
        process,
    },
    model::Target,
};

/// How the names of a container's cgroup are made of its id, whoever made it; `@` is the id.
const CONTAINER_CGROUPS: &[&str] = &[
    "@",
    "docker-@.scope",
    "libpod-@",
    "libpod-@.scope",
    "cri-containerd-@.scope",
    "nerdctl-@.scope",
    "crio-@",
    "crio-@.scope",
];

/// One thing that a process can be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// Sort, name.
    Name(u32, Vec<u8>),
    Number(NumberKey),
}

impl Rule {
    fn number(sort: u32, number: u64) -> Self {
        Self::Number(NumberKey { sort, device: 0, number })
    }

    fn sort(&self) -> u32 {
        match self {
            Self::Name(sort, _) => *sort,
            Self::Number(key) => key.sort,
        }
    }
}

/// The rules of all limits, as they are in the kernel.
#[derive(Default)]
pub(super) struct Book {
    limits: BTreeMap<Rule, Vec<u64>>,
}

impl Book {
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Makes these the rules of a limit, besides those of others. `root`: id of the cgroup outside of which nobody is
    /// meant, or 0.
    ///
    /// # Errors
    /// [`Kind::Failed`] when a rule already leads to [`MAX_NESTED`] limits, or when there would be more than
    /// [`MAX_RULES`] of names or of numbers; then nothing has changed.
    pub fn set(&mut self, loaded: &mut Loaded, key: u64, rules: &BTreeSet<Rule>, root: u64) -> Result<()> {
        let others = |limits: &[u64]| limits.iter().filter(|id| **id != key).count();
        let full = |rule: &&Rule| self.limits.get(rule).is_some_and(|limits| others(limits) >= MAX_NESTED);
        if rules.iter().any(|rule| full(&rule)) {
            return Err(Error::failed(format!(
                "{MAX_NESTED} limits mean the very same processes already, clear one of them first"
            )));
        }
        let is_name = |rule: &&Rule| matches!(rule, Rule::Name(..));
        let new = || rules.iter().filter(|rule| !self.limits.contains_key(rule));
        let names = self.limits.keys().chain(new()).filter(is_name).count();
        let numbers = self.limits.len() + new().count() - names;
        if names.max(numbers) > MAX_RULES as usize {
            return Err(Error::failed(format!(
                "the limits on this host may name {MAX_RULES} different names, and as many files, users and cgroups, in \
                 all, and this would be more: name fewer targets, or end other limits first"
            )));
        }
        let mut changed: BTreeSet<Rule> = rules.clone();
        for (rule, limits) in &mut self.limits {
            if !rules.contains(rule) && limits.contains(&key) {
                limits.retain(|id| *id != key);
                changed.insert(rule.clone());
            }
        }
        for rule in rules {
            let limits = self.limits.entry(rule.clone()).or_default();
            if !limits.contains(&key) {
                limits.push(key);
            }
        }
        for rule in &changed {
            write(loaded, rule, self.limits.get(rule).map_or(&[], Vec::as_slice))?;
        }
        self.limits.retain(|_, limits| !limits.is_empty());
        let sorts = self.limits.keys().fold(0, |sorts, rule| sorts | 1 << rule.sort());
        let failed = |cause| Error::caused(Kind::Failed, "write the eBPF map RULES", &cause);
        loaded.array::<Rules>("RULES")?.set(0, Rules { sorts, root }, 0).map_err(failed)
    }
}

/// Writes a rule, or takes it away when it leads nowhere.
fn write(loaded: &mut Loaded, rule: &Rule, limits: &[u64]) -> Result<()> {
    let mut value: Limits = [0; MAX_NESTED];
    value.iter_mut().zip(limits).for_each(|(slot, id)| *slot = *id);
    let failed = |what: &str| {
        let what = what.to_owned();
        move |cause| Error::caused(Kind::Failed, format!("write the eBPF map {what}"), &cause)
    };
    match rule {
        Rule::Name(sort, name) => {
            let Some(key) = NameKey::new(*sort, name) else { return Ok(()) };
            let mut map = loaded.hash::<NameKey, Limits>("NAME_RULES")?;
            if limits.is_empty() {
                // Not there: as it should be.
                let _ = map.remove(&key);
                return Ok(());
            }
            map.insert(key, value, 0).map_err(failed("NAME_RULES"))
        }
        Rule::Number(key) => {
            let mut map = loaded.hash::<NumberKey, Limits>("NUMBER_RULES")?;
            if limits.is_empty() {
                let _ = map.remove(key);
                return Ok(());
            }
            map.insert(key, value, 0).map_err(failed("NUMBER_RULES"))
        }
    }
}

/// What the targets of a limit say about processes, as rules. None for `pid:` and `tree:`, whose processes are
/// entered one by one.
///
/// # Errors
/// [`Kind::NotFound`] when a file can't be looked at.
pub(super) fn of_targets(loaded: &Loaded, mount: &Path, targets: &[Target]) -> Result<BTreeSet<Rule>> {
    let mut rules = BTreeSet::new();
    let mut census = None;
    for target in targets {
        let cgroup_id = |path: &str| {
            // One that is not there yet has no id; the next look may find it.
            let id = cgroup::get_cgroup_id(&mount.join(path.trim_start_matches('/'))).ok();
            id.map(|id| Rule::number(CGROUP, id))
        };
        match target {
            Target::Name(name) => {
                if name.len() <= LONGEST_COMM {
                    rules.insert(Rule::Name(COMM, name.clone().into_bytes()));
                }
                rules.insert(Rule::Name(FILE_NAME, name.clone().into_bytes()));
            }
            Target::Exe(path) => {
                for file in files(path, &mut census)? {
                    match loaded.file_key(&file) {
                        Ok(key) => {
                            rules.insert(Rule::Number(key));
                        }
                        Err(error) if error.kind == Kind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Target::Cgroup(path) => rules.extend(cgroup_id(path)),
            Target::Unit(unit) => {
                rules.insert(Rule::Name(CGROUP_NAME, unit.clone().into_bytes()));
                // As systemd writes some, see `model::cgroups::unit_name`.
                rules.insert(Rule::Name(CGROUP_NAME, format!("_{unit}").into_bytes()));
            }
            Target::Container(id) => {
                let census = taken(&mut census)?;
                for container in census.containers(id) {
                    let rule = if container.distinctive {
                        Some(Rule::Name(CGROUP_NAME, container.cgroup_name().as_bytes().to_vec()))
                    } else {
                        cgroup_id(&container.path)
                    };
                    rules.extend(rule);
                }
                if crate::model::cgroups::is_container_id(id) {
                    // It may be stopped now, and start again.
                    let named = |form: &str| Rule::Name(CGROUP_NAME, form.replace('@', id).into_bytes());
                    rules.extend(CONTAINER_CGROUPS.iter().map(|form| named(form)));
                }
            }
            Target::User(id) => rules.extend(id.parse().ok().map(|id| Rule::number(USER, id))),
            Target::Pid(_) | Target::Tree(_) | Target::Remote(_) | Target::Port(_) => {}
        }
    }
    if !targets.iter().any(Target::names_processes) {
        rules.insert(Rule::number(EVERYBODY, 0));
    }
    Ok(rules)
}

fn taken(census: &mut Option<Census>) -> Result<&mut Census> {
    if census.is_none() {
        *census = Some(Census::take(Path::new(process::PROC))?);
    }
    census.as_mut().ok_or_else(|| Error::failed("look at the processes"))
}

/// The files that processes run who run `path`: what is there now, and what was there before while it still runs.
fn files(path: &str, census: &mut Option<Census>) -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from(path)];
    let target = Target::Exe(path.to_owned());
    let file = facts::identity(Path::new(path));
    for facts in taken(census)?.processes.values() {
        if crate::kernel::matching::why(&target, facts, file) == Some(Why::RanBefore) {
            files.push(Path::new(process::PROC).join(facts.pid.to_string()).join("exe"));
        }
    }
    Ok(files)
}
