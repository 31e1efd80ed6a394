//! A process that transfers in both directions, and its peer.

use super::{
    Error, Result, Scene, Traffic, Version, await_full_speed, ensure, ensure_held, now, received, sleep_until,
};

/// The client gets and puts over TCP as fast as it can.
pub struct Pair {
    /// Receives what is put.
    pub server: Traffic,
    /// Who is limited.
    pub client: Traffic,
    /// The run that the client receives.
    pub get: u64,
    /// The run that the client sends.
    pub put: u64,
}

impl Pair {
    /// Both transfers have begun.
    pub fn new(scene: &Scene) -> Result<Self> {
        let server = scene.server()?;
        let address = scene.tcp(Version::V4);
        let (get, put) = (scene.run(), scene.run());
        let client = scene.client(&[
            format!("connect tcp {address} get cc=cubic run={get}"),
            format!("connect tcp {address} put cc=cubic run={put}"),
        ])?;
        Ok(Self { server, client, get, put })
    }

    /// The client, as a target.
    pub fn target(&self) -> String {
        format!("pid:{}", self.client.pid())
    }

    /// Words that limit both directions to `rate` bytes/s.
    pub fn limit(&self, rate: f64) -> String {
        format!("{} -u {rate} -d {rate}", self.target())
    }

    /// Fails unless both directions are held to `rate` bytes/s.
    pub fn ensure_held(&self, since: f64, rate: f64) -> Result<()> {
        ensure_held(&self.client, self.get, since, rate)?;
        ensure_held(&self.server, self.put, since, rate)
    }

    /// A quick look whether a limit of 1 MB/s is in force in both directions; how well it holds is another theme.
    /// A receiver may still be handed what had arrived before, out of order: up to its buffer.
    pub fn ensure_limited(&self) -> Result<()> {
        const MUCH: f64 = 4e6;
        let deadline = now() + 4.0;
        loop {
            let time = now();
            sleep_until(time + 0.5)?;
            let get = received(&self.client, self.get, time, time + 0.5)?;
            let put = received(&self.server, self.put, time, time + 0.5)?;
            if get < MUCH && put < MUCH {
                return Ok(());
            }
            ensure!(now() < deadline, "not limited: {get:.0} bytes/s of download, {put:.0} of upload");
        }
    }

    /// Fails unless both directions are at full speed within so many seconds after `from`.
    pub fn ensure_free(&self, from: f64, within: f64) -> Result<()> {
        let free = |direction, receiver, run| {
            await_full_speed(receiver, run, from, within)
                .map_err(|error| Error::failed(format!("{direction}: {error}")))
        };
        free("download", &self.client, self.get)?;
        free("upload", &self.server, self.put).map(drop)
    }
}
