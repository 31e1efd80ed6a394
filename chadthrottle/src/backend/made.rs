//! Objects that outlive their maker: written down before they are made, struck out when they are gone.

use crate::{
    error::{Error, Result},
    kernel::{
        journal::{self, Object},
        tc::Tc,
    },
};

/// Makes an object after it was written down.
pub(super) fn make<T>(object: &Object, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let journal = journal::current().ok_or_else(|| {
        Error::failed(format!("make {object}: there is no journal in which it could be written down first"))
    })?;
    journal.borrow_mut().record(object.clone())?;
    make()
}

/// Removes an object of a network namespace, if it is there, and strikes it out. What can't be removed stays in the
/// journal.
pub(super) fn unmake(object: &Object, tc: &mut Tc) {
    match object.take_from(tc) {
        Ok(_) => forget(object),
        Err(error) => tracing::error!("{error}"),
    }
}

/// Strikes an object out that is not there, or not ours.
pub(super) fn forget(object: &Object) {
    if let Some(journal) = journal::current()
        && let Err(error) = journal.borrow_mut().done(object)
    {
        tracing::error!("{error}");
    }
}
