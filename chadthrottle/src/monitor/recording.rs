//! Snapshots in a file: one JSON object a line, `{"schema": …, "kind": "snapshot", "snapshot": {…}}`.
//!
//! A recording holds everything that the screens show, so that they, tests and bug reports can run on real
//! data, on another machine and without rights.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::feed::Feed;
use crate::{
    error::{Context, Error, Result},
    model::{Snapshot, text::quote},
    output::SCHEMA,
};

/// `kind` of the lines.
const KIND: &str = "snapshot";

/// No line is longer, in bytes: some 100,000 connections. What is no recording may have no end of a line at all.
const LONGEST: u64 = 64 << 20;

#[derive(Deserialize)]
struct Head {
    schema: String,
    kind: String,
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    schema: String,
    kind: String,
    snapshot: T,
}

/// A snapshot as a line, without its end.
pub fn to_line(snapshot: &Snapshot) -> Result<String> {
    let line = Line { schema: SCHEMA.into(), kind: KIND.into(), snapshot };
    serde_json::to_string(&line).map_err(|cause| Error::failed(format!("write a snapshot as JSON: {cause}")))
}

/// What [`to_line`] wrote; or why it is none: no JSON, something else, another version.
pub fn from_line(line: &str) -> Result<Snapshot> {
    let refuse = |why: String| Error::failed(format!("this is no recorded snapshot: {why}"));
    // Lines are long: they are looked through once, and only what is none is asked what it is instead. Another version
    // may look quite different.
    let whole = serde_json::from_str::<Line<Snapshot>>(line);
    let head = match &whole {
        Ok(line) => Head { schema: line.schema.clone(), kind: line.kind.clone() },
        Err(_) => serde_json::from_str(line).map_err(|cause| refuse(cause.to_string()))?,
    };
    if (head.schema.as_str(), head.kind.as_str()) != (SCHEMA, KIND) {
        return Err(refuse(format!("it is a {} of {}", quote(&head.kind), quote(&head.schema))));
    }
    whole.map(|line| line.snapshot).map_err(|cause| refuse(cause.to_string()))
}

/// Writes a recording.
pub struct Recorder {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Recorder {
    /// Makes the file, or empties it.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).context(format!("make the recording {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// Adds a snapshot; it is in the file when this returns.
    pub fn write(&mut self, snapshot: &Snapshot) -> Result<()> {
        let line = to_line(snapshot)?;
        writeln!(self.file, "{line}")
            .and_then(|()| self.file.flush())
            .context(format!("write the recording {}", self.path.display()))
    }
}

/// Plays a recording.
pub struct Replay {
    path: PathBuf,
    lines: BufReader<File>,
    number: usize,
    /// When the snapshot before was given; `None`: as fast as they are asked for.
    pace: Option<Instant>,
}

impl Replay {
    /// Opens it. `paced`: each snapshot comes as long after the one before as it was recorded; else at once.
    pub fn open(path: &Path, paced: bool) -> Result<Self> {
        let file = File::open(path).context(format!("open the recording {}", path.display()))?;
        let pace = paced.then(Instant::now);
        Ok(Self { path: path.to_owned(), lines: BufReader::new(file), number: 0, pace })
    }

    fn read(&mut self) -> Result<Option<Snapshot>> {
        let mut line = String::new();
        self.number += 1;
        let path = self.path.display();
        let length = (&mut self.lines)
            .take(LONGEST)
            .read_line(&mut line)
            .context(format!("read the recording {path}"))?;
        let refuse = |why: &str| Error::failed(format!("line {} of {path}: {why}", self.number));
        if length == 0 && self.number == 1 {
            return Err(Error::failed(format!("the recording {path} is empty")));
        }
        if length == 0 {
            return Ok(None);
        }
        if length as u64 == LONGEST {
            return Err(refuse("this is no recorded snapshot: it has no end"));
        }
        let is_cut = !line.ends_with('\n');
        from_line(&line).map(Some).map_err(|cause| match is_cut {
            true => refuse("the recording ends in the middle of a snapshot"),
            false => Error::caused(cause.kind, format!("line {} of {path}", self.number), &cause),
        })
    }
}

impl Feed for Replay {
    /// `None` after the last one.
    fn next(&mut self) -> Result<Option<Arc<Snapshot>>> {
        let Some(snapshot) = self.read()? else { return Ok(None) };
        if let Some(before) = &mut self.pace {
            // A file may hold any number.
            let pause = Duration::try_from_secs_f64(snapshot.interval).unwrap_or_default();
            if self.number > 1 {
                thread::sleep(pause.min(Duration::from_secs(60)).saturating_sub(before.elapsed()));
            }
            *before = Instant::now();
        }
        Ok(Some(Arc::new(snapshot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::full;

    #[test]
    fn what_is_recorded_is_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let mut recorder = Recorder::create(&path).unwrap();
        for interval in [0.0, 0.05, 0.05] {
            recorder.write(&Snapshot { interval, ..full() }).unwrap();
        }
        for paced in [false, true] {
            let begun = Instant::now();
            let mut replay = Replay::open(&path, paced).unwrap();
            let mut intervals = Vec::new();
            while let Some(snapshot) = replay.next().unwrap() {
                assert_eq!(snapshot.processes, full().processes);
                intervals.push(snapshot.interval);
            }
            assert_eq!(intervals, [0.0, 0.05, 0.05]);
            assert!(!paced || begun.elapsed() >= Duration::from_millis(100));
        }
    }

    #[test]
    fn what_has_no_snapshots_or_no_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let line = to_line(&full()).unwrap();
        for (contents, good, why) in [
            (String::new(), 0, "recording is empty"),
            (format!("{line}\n{}", &line[..line.len() / 2]), 1, "line 2 of"),
            (format!("{line}\n{}", &line[..line.len() / 2]), 1, "ends in the middle"),
        ] {
            std::fs::write(&path, contents).unwrap();
            let mut replay = Replay::open(&path, false).unwrap();
            for _ in 0..good {
                assert!(replay.next().unwrap().is_some());
            }
            let error = replay.next().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        // A whole one is enough.
        std::fs::write(&path, &line).unwrap();
        let mut replay = Replay::open(&path, false).unwrap();
        assert!(replay.next().unwrap().is_some() && replay.next().unwrap().is_none());
        let error = Replay::open(Path::new("/dev/zero"), false).unwrap().next().unwrap_err().to_string();
        assert!(error.contains("line 1 of /dev/zero: ") && error.contains("no end"), "{error}");
    }

    #[test]
    fn what_is_no_recording_is_refused_with_its_line() {
        for (bad, why) in [
            ("", "EOF"),
            ("{}", "schema"),
            (r#"{"schema":"chadthrottle/9","kind":"snapshot","snapshot":1}"#, "'chadthrottle/9'"),
            (r#"{"schema":"chadthrottle/1","kind":"tick","processes":[]}"#, "'tick'"),
            (r#"{"schema":"chadthrottle/1","kind":"snapshot","snapshot":1}"#, "Snapshot"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("recording");
            std::fs::write(&path, format!("{}\n{bad}\n", to_line(&full()).unwrap())).unwrap();
            let mut replay = Replay::open(&path, false).unwrap();
            assert!(replay.next().unwrap().is_some());
            let error = replay.next().unwrap_err().to_string();
            assert!(error.contains("line 2 of") && error.contains(why), "{bad}: {error}");
        }
    }
}
