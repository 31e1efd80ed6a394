//! The self-test's result, as a table or as JSON.

use std::{
    fmt,
    io::{self, Write},
    time::Duration,
};

use serde::Serialize;

use super::row::Row;
use crate::{
    error::{Context, Error, Kind, Result},
    model::Direction,
};

/// A backend that can't be tried here.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// Its name.
    pub backend: &'static str,
    /// Which way.
    pub direction: Direction,
    /// What is missing.
    pub reason: String,
    /// What would mend it.
    pub mend: Option<String>,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} is unavailable: {}", self.backend, self.direction, self.reason)?;
        match &self.mend {
            Some(mend) => write!(f, " ({mend})"),
            None => Ok(()),
        }
    }
}

/// All measurements.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: &'static str,
    kind: &'static str,
    /// Release of the running kernel.
    pub kernel: String,
    /// One for each backend, direction and kind of traffic.
    pub rows: Vec<Row>,
    /// Backends that can't be tried here.
    #[serde(rename = "unavailable")]
    pub skipped: Vec<Skipped>,
    /// Whether every row holds, and there is one.
    pub held: bool,
    /// Duration of the whole, in seconds.
    pub seconds: f64,
}

impl Report {
    /// Nothing measured yet.
    pub fn new() -> Self {
        let kernel = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
        Self {
            schema: "chadthrottle/1",
            kind: "selftest",
            // The kernel answers uname always; the field is for the reader's information only.
            kernel: kernel.unwrap_or_default(),
            rows: Vec::new(),
            skipped: Vec::new(),
            held: false,
            seconds: 0.0,
        }
    }

    /// Everything is measured.
    pub fn finish(&mut self, duration: Duration) {
        self.held = !self.rows.is_empty() && self.rows.iter().all(|row| row.holds);
        self.seconds = duration.as_secs_f64();
    }

    /// Writes it to stdout.
    pub fn print(&self, json: bool) -> Result<()> {
        let text = if json {
            let json = serde_json::to_string(self);
            json.map_err(|cause| Error::caused(Kind::Failed, "write the report", &cause))? + "\n"
        } else {
            self.to_string()
        };
        io::stdout().lock().write_all(text.as_bytes()).context("write the report")
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.rows.is_empty() {
            writeln!(
                f,
                "{:8} {:9} {:20} {:>10} {:>10} {:>6} {:>12} {:>13}  verdict",
                "backend", "direction", "traffic", "limit", "measured", "", "first second", "retransmitted"
            )?;
        }
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "{skipped}")?;
        }
        if self.rows.is_empty() {
            return Ok(());
        }
        let holding = self.rows.iter().filter(|row| row.holds).count();
        writeln!(
            f,
            "{holding} of {} limits hold on Linux {} ({:.0} s)",
            self.rows.len(),
            self.kernel,
            self.seconds
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit as f64;
        write!(
            f,
            "{:8} {:9} {:20} {:>10} {:>10} {:>5.1}% {:>11.1}% {:>13}  ",
            self.backend,
            self.direction,
            self.traffic,
            megabytes(limit),
            megabytes(self.measured),
            100.0 * self.measured / limit,
            100.0 * self.first_second / limit,
            // UDP sends nothing again.
            if self.traffic == super::row::Scenario::Udp {
                "-".to_owned()
            } else {
                kilobytes(self.retransmitted)
            },
        )?;
        match &self.reason {
            None => f.write_str("holds"),
            Some(reason) => write!(f, "fails: {reason}"),
        }
    }
}

fn megabytes(bytes_per_second: f64) -> String {
    format!("{:.2} MB/s", bytes_per_second / 1e6)
}

fn kilobytes(bytes: u64) -> String {
    format!("{:.1} KB", bytes as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::row::Scenario;

    #[test]
    fn json_is_as_the_schema_says() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../../../docs/schema/chadthrottle-1.json")).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let row = Row {
            backend: "ebpf",
            direction: Direction::Upload,
            traffic: Scenario::TcpEight,
            limit: 5_000_000,
            before: 1e9,
            first_second: 4.9e6,
            measured: 4.8e6,
            retransmitted: 0,
            after: 1e9,
            holds: false,
            reason: Some("for once".into()),
        };
        let skipped = Skipped {
            backend: "nftables",
            direction: Direction::Download,
            reason: "no nf_tables".into(),
            mend: None,
        };
        let report = Report { rows: vec![row], skipped: vec![skipped], ..Report::new() };
        let document = serde_json::to_value(&report).unwrap();
        let errors: Vec<_> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}
