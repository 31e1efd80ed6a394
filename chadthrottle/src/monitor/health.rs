//! Which count there would be here, for `doctor`: found out by trying.

use serde::Serialize;

use super::{diag::Diag, live::lesser, reading::Count};
use crate::{
    backend::{Probe, Requirement, Site, ebpf},
    error::{Kind, Result},
    kernel::netlink::Route,
    model::{Notice, Source},
};

/// What `doctor` says about the monitor.
#[derive(Debug, Serialize)]
pub struct Health {
    /// Who would count; `None`: nobody can.
    pub source: Option<Source>,
    /// What was tried.
    pub requirements: Vec<Requirement>,
}

/// Tries the counts, best first; what is attached for that is gone afterwards.
pub fn look(site: &Site) -> Health {
    let mut health = Health { source: None, requirements: Vec::new() };
    match ebpf::count(site) {
        Ok(counted) => {
            health.source = Some(Source::Ebpf);
            health.add("every packet, by eBPF", Probe::Ready);
            for lack in counted.lacks {
                health.add("in full", missing(format!("{}: {}", lack.what, lack.why), lack.mend));
            }
            if !counted.sees_all {
                let reason =
                    "--cgroup-root: processes outside it are not counted, and the row `kernel` is left out";
                health.add("of all processes", missing(reason.into(), None));
            }
            health.add("interfaces", answer(Route::open().and_then(|mut route| route.devices()).map(drop)));
        }
        Err(error) => {
            let Notice { why, mend, .. } = lesser(&error);
            let probe = match error.kind {
                Kind::NotPermitted if mend.is_none() => Probe::Unknown { reason: error.to_string() },
                _ => missing(why, mend),
            };
            health.add("every packet, by eBPF", probe);
            let tried = Diag::open(lesser(&error)).and_then(|mut diag| diag.read(false));
            if tried.is_ok() {
                health.source = Some(Source::SockDiag);
            }
            health.add("what open TCP connections report, by sock_diag", answer(tried.map(drop)));
        }
    }
    health
}

impl Health {
    fn add(&mut self, name: &str, state: Probe) {
        self.requirements.push(Requirement { name: name.into(), found: String::new(), state });
    }
}

fn missing(reason: String, mend: Option<String>) -> Probe {
    Probe::Unavailable { reason, mend }
}

fn answer(tried: Result<()>) -> Probe {
    match tried {
        Ok(()) => Probe::Ready,
        Err(error) => missing(error.to_string(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_counts_everywhere() {
        let health = look(&Site { cgroup_root: Some("/nowhere/at/all".into()) });
        assert_eq!(health.source, Some(Source::SockDiag));
        assert!(matches!(health.requirements[0].state, Probe::Unavailable { .. }), "{health:?}");
        assert_eq!(health.requirements[1].state, Probe::Ready);
    }
}
