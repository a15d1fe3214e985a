//! The contract of the crate, held by its sources: `policy` never waits, never asks the clock, opens nothing.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// What the sources must not name, outside comments.
const FORBIDDEN: [&str; 9] = [
    "tokio",
    "hyper",
    "std::net",
    "std::fs",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "async fn",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// The code of a file up to its tests, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text
        .lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    lines.map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()))
}

#[test]
fn policy_decides_and_never_does() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 30, "the sources were not found");
    for file in found {
        if file
            .file_stem()
            .is_some_and(|name| name.to_string_lossy().contains("tests"))
            || file.components().any(|part| part.as_os_str() == "tests")
        {
            continue;
        }
        for (line, code) in code(&fs::read_to_string(&file).unwrap()) {
            for word in FORBIDDEN {
                assert!(!code.contains(word), "{}:{line} names {word}", file.display());
            }
        }
    }
}

#[test]
fn its_dependencies_do_no_io() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let section = manifest
        .split("[dependencies]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    let mut names: Vec<&str> = section
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .collect();
    names.retain(|name| !name.is_empty());
    let known = [
        "bytes",
        "foldhash",
        "jsonschema",
        "memchr",
        "serde",
        "serde_json",
        "simdutf8",
        "thiserror",
    ];
    for name in names {
        assert!(known.contains(&name), "{name} is new: does it do I/O?");
    }
}
