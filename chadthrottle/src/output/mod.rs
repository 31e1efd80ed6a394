//! Tables, JSON and messages: the only code that writes to stdout and stderr.
//!
//! Results go to stdout, everything else to stderr. Text from outside passes [`escape`] before it is put
//! into either. Nobody reading any more is no error: `chadthrottle status | head -1` just ends.

use std::io::{self, Write};

use serde::Serialize;

pub mod backends;
pub mod explain;
mod json;
pub mod limits;
pub mod number;
pub mod table;

pub use crate::model::text::escape;
use crate::{
    error::{Context, Error, Result},
    model::text,
};

/// Version of all JSON; changes when a reader of the old one would misread the new.
pub const SCHEMA: &str = "chadthrottle/1";

const ERROR: anstyle::Style = anstyle::AnsiColor::Red.on_default().bold();
const WARNING: anstyle::Style = anstyle::AnsiColor::Yellow.on_default().bold();
/// Headings of tables.
pub const HEADING: anstyle::Style = anstyle::Style::new().bold();

#[derive(Serialize)]
struct Document<'a, T> {
    schema: &'static str,
    kind: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

/// Writes `{"schema": …, "kind": kind, …body}` as one line to stdout.
pub fn json<T: Serialize>(kind: &str, body: &T) -> Result<()> {
    let document = Document { schema: SCHEMA, kind, body };
    let mut line = Vec::new();
    document
        .serialize(&mut serde_json::Serializer::with_formatter(&mut line, json::Escaping))
        .map_err(|error| Error::failed(format!("write {kind} as JSON: {error}")))?;
    line.push(b'\n');
    finish(io::stdout().lock().write_all(&line))
}

/// Writes a result to stdout, without its colours where they are not wanted.
pub fn result(text: &str) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    finish(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// Text from outside for a cell of a table.
pub fn cell(text: &str) -> String {
    const LONGEST: usize = 64;
    text::cut(text, LONGEST)
}

fn finish(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to stdout"),
    }
}

/// Writes a line to stderr.
pub fn message(text: &str) {
    // There is nowhere to tell that stderr is gone.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Writes `warning: …` to stderr.
pub fn warning(text: &str) {
    message(&format!("{WARNING}warning:{WARNING:#} {}", escape(text)));
}

/// Writes `error: …` to stderr, the whole chain, then how to mend it if that is known.
pub fn error(error: &Error, hint: Option<&str>) {
    message(&format!("{ERROR}error:{ERROR:#} {}", escape_lines(&error.to_string())));
    if let Some(hint) = hint {
        message(&format!("hint: {}", escape(hint)));
    }
}

/// [`escape`] for text that may have several lines.
pub fn escape_lines(text: &str) -> String {
    text.split('\n').map(escape).collect::<Vec<_>>().join("\n")
}
