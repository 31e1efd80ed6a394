//! Which backend holds a limit: a pure decision over probes.

use super::Driver;
use crate::{
    error::{Error, Kind},
    model::Direction,
};

/// The driver of that name which can limit that direction; else an error that lists those there are.
pub fn by_name(
    drivers: &'static [Driver],
    name: &str,
    direction: Direction,
) -> Result<&'static Driver, Error> {
    let of_direction = || drivers.iter().filter(move |driver| driver.directions.contains(&direction));
    of_direction().find(|driver| driver.name == name).ok_or_else(|| {
        let known: Vec<_> = of_direction().map(|driver| driver.name).collect();
        Error::new(
            Kind::Usage,
            format!("unknown {direction} backend '{}': there are {}", name.escape_debug(), known.join(", ")),
        )
    })
}
