//! What `--json` prints is what `docs/schema` says.

use std::path::Path;

use serde_json::Value;

use crate::{
    chadthrottle,
    fake::{FakeOwner, Play},
    finish,
};

const SCHEMA: &str = include_str!("../../../docs/schema/chadthrottle-1.json");

/// Fails unless every line is of that kind, and as the schema says.
fn check(kind: &str, lines: &str) {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    // Only the part of this kind: its complaints are easier to read than those of a choice.
    let part = |part: &&Value| part["properties"]["kind"]["const"] == kind;
    let mut own =
        schema["oneOf"].as_array().unwrap().iter().find(part).expect("a kind of the schema").clone();
    own["$defs"] = schema["$defs"].clone();
    let validator = jsonschema::validator_for(&own).unwrap();
    assert!(!lines.is_empty());
    for line in lines.lines() {
        let document: Value = serde_json::from_str(line).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(&document)
            .map(|error| format!("{} at {}", error, error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{kind}: {errors:?} in {line}");
    }
}

fn printed(dir: &Path, args: &[&str]) -> String {
    let (code, stdout, stderr) = finish(chadthrottle(dir, args));
    assert_eq!(code, 0, "{stderr}");
    stdout
}

#[test]
fn the_schema_itself_is_sound() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    assert!(jsonschema::meta::is_valid(&schema));
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert!(!validator.is_valid(&serde_json::json!({"schema": "chadthrottle/1", "kind": "status"})));
    assert!(
        validator.is_valid(&serde_json::json!({"schema": "chadthrottle/1", "kind": "status", "limits": []}))
    );
}

#[test]
fn status() {
    let owner = FakeOwner::new(Play::Hold);
    let pid = std::process::id().to_string();
    printed(owner.dir(), &["limit", &pid, "-d", "1M", "-u", "none", "--duration", "1h", "--detach"]);
    check("status", &printed(owner.dir(), &["status", "--json"]));
}

#[test]
fn explain() {
    let pid = std::process::id().to_string();
    check("explain", &printed(Path::new("/nowhere"), &["explain", &pid, "name:cli", "--json"]));
}

#[test]
fn doctor() {
    check("doctor", &printed(Path::new("/nowhere"), &["doctor", "--json"]));
}

#[test]
fn monitor() {
    let owner = FakeOwner::new(Play::Hold);
    for more in [&[][..], &["--connections"], &["--group", "tree"]] {
        let mut args = vec!["monitor", "--json", "--count", "2"];
        args.extend(more);
        check("tick", &printed(owner.dir(), &args));
    }
    let whole = printed(owner.dir(), &["monitor", "--json", "--count", "2", "--summary"]);
    let (ticks, summary) = whole.trim_end().rsplit_once('\n').unwrap();
    check("tick", ticks);
    check("summary", summary);
}
