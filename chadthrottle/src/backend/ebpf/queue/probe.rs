//! What the queue and the windows need, tried where nobody is.

use chadthrottle_common::abi::CLASS_MAJOR;

use super::{
    LEAST_BYTES, LOOPBACK,
    place::{Means, own_name},
};
use crate::{
    error::{Error, Kind, Result},
    kernel::{
        bpf::Loaded,
        fault,
        netns::Namespace,
        tc::{Does, Hook, Tc},
    },
};

/// Tries what a queue needs, in a network namespace of its own that goes with all that is in it.
pub(in crate::backend::ebpf) fn try_queue(loaded: &mut Loaded, timed: bool) -> Result<()> {
    if timed {
        try_times(loaded)?;
    }
    let mut tc = Tc::open_in(&Namespace::new()?)?;
    let (name, class) = (own_name(), CLASS_MAJOR << 16 | 1);
    let ifb = tc.add_ifb(&name)?;
    if let Means::Classes(tree) = Means::plant(&mut tc, ifb, timed)? {
        tree.set_leaf(&mut tc, class, LEAST_BYTES, LEAST_BYTES as u32)?;
    }
    tc.add_clsact(LOOPBACK)?;
    let program = loaded.classifier(Means::classifier(timed))?;
    tc.add_filter(LOOPBACK, Hook::Ingress, program, &name, Does::RedirectTo(ifb))
}

/// Whether packets can carry the time at which they leave: on this kernel all queues are the same.
pub(super) fn try_times(loaded: &mut Loaded) -> Result<()> {
    if fault::setting("NO_FQ").is_some() {
        return Err(Error::new(Kind::NoBackend, "a test asks for HTB"));
    }
    loaded.classifier(Means::classifier(true)).map_err(|cause| {
        Error::caused(cause.kind, "packets can't carry a time (bpf_skb_set_tstamp: kernel 5.18)", &cause)
    })?;
    let planted = Means::plant(&mut Tc::open_in(&Namespace::new()?)?, LOOPBACK, true);
    planted.map(drop).map_err(|cause| match cause.kind {
        Kind::NotFound => Error::new(
            Kind::NoBackend,
            "the kernel has no sch_fq, in which limits that overlap, or span network namespaces, would wait together",
        ),
        _ => cause,
    })
}

/// The same for the windows.
pub(in crate::backend::ebpf) fn try_window(loaded: &mut Loaded) -> Result<()> {
    let mut tc = Tc::open_in(&Namespace::new()?)?;
    tc.add_clsact(LOOPBACK)?;
    let program = loaded.classifier("lower_window")?;
    tc.add_filter(LOOPBACK, Hook::Egress, program, &own_name(), Does::AsTheProgramSays)
}
