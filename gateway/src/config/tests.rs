//! The file as a whole: its defaults, its errors. The sections' own tests stand in their files.

use std::{collections::BTreeMap, path::PathBuf};

use toml::de::{DeTable, DeValue};

use super::*;

/// The design folder: `SLUICE_SHARED`, else `shared` beside the workspace.
fn shared(file: &str) -> String {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let folder =
        std::env::var_os("SLUICE_SHARED").map_or_else(|| PathBuf::from(workspace).join("../shared"), PathBuf::from);
    let path = folder.join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error} (set SLUICE_SHARED to the folder with the design)",
            path.display()
        )
    })
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("config.toml", text, &Overrides::default())
}

/// The shipped file with one line put in place of another.
fn shipped_with(line: &str, instead: &str) -> String {
    assert!(SHIPPED.contains(line), "the shipped config.toml has no line {line:?}");
    SHIPPED.replacen(line, instead, 1)
}

#[test]
fn the_shipped_file_is_the_default_and_two_simulated_replicas() {
    let shipped = parse(SHIPPED).unwrap_or_else(|error| panic!("{error}"));
    let replicas = vec![ReplicaConfig::simulated("sim-a"), ReplicaConfig::simulated("sim-b")];
    let backend = BackendConfig {
        model: "Qwen/Qwen3-32B-AWQ".to_owned(),
        ..BackendConfig::new("qwen3", replicas)
    };
    assert_eq!(
        shipped,
        Config {
            backend: vec![backend],
            ..Config::default()
        }
    );
}

/// Every key of the structs stands in the file, with a comment above it; the file has no other (serde refuses those).
#[test]
fn the_shipped_file_states_and_explains_every_setting() {
    let shipped = parse(SHIPPED).unwrap();
    let written = toml::to_string(&shipped).unwrap();
    let wanted = keys(&written);
    let stated = keys(SHIPPED);
    // What only another launcher takes is explained in the comment above [[backend]].
    let elsewhere = ["backend.replica.url", "backend.replica.port", "backend.replica.command"];
    for key in wanted.keys().filter(|key| !elsewhere.contains(&key.as_str())) {
        assert!(stated.contains_key(key), "config.toml doesn't state {key}");
    }
    for key in elsewhere {
        let name = key.rsplit('.').next().unwrap();
        assert!(
            SHIPPED
                .lines()
                .any(|l| l.starts_with("#   ") && l.contains(&format!("{name} = "))),
            "{key}"
        );
    }
    let mut explained = std::collections::HashSet::new();
    let lines: Vec<&str> = SHIPPED.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let commented = lines[number - 1].starts_with('#');
        // The second replica needs no second explanation.
        assert!(
            commented || explained.contains(key),
            "config.toml:{}: `{key}` has no comment",
            number + 1
        );
        explained.insert(key);
    }
}

/// Key paths without indices, each with its value as written.
fn keys(text: &str) -> BTreeMap<String, String> {
    fn walk(table: &DeTable<'_>, above: &str, text: &str, into: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let path = if above.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{above}.{}", key.get_ref())
            };
            match value.get_ref() {
                DeValue::Table(table) => walk(table, &path, text, into),
                DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {
                    items
                        .iter()
                        .filter_map(|item| item.get_ref().as_table())
                        .for_each(|t| walk(t, &path, text, into));
                }
                _ => {
                    into.insert(path, text[value.span()].to_owned());
                }
            }
        }
    }
    let mut into = BTreeMap::new();
    walk(DeTable::parse(text).unwrap().get_ref(), "", text, &mut into);
    into
}

/// One limit of behaviour.md's table and what this build has for it.
enum Row {
    /// The settings, in the order of the row.
    Set(&'static [&'static str]),
    /// Comes with a later issue, or is no setting.
    Later,
}

/// The rows of "Defaults" in behaviour.md. A row that appears there and not here fails the test, and so does the reverse.
const ROWS: [(&str, Row); 18] = [
    (
        "header bytes / count",
        Row::Set(&["limits.header_bytes", "limits.header_count"]),
    ),
    (
        "body bytes / time / JSON depth",
        Row::Set(&["limits.body_bytes", "limits.body_time", "limits.json_depth"]),
    ),
    ("buffered bytes, process", Row::Set(&["limits.buffered_bytes"])),
    ("keep-alive comment", Row::Set(&["server.keep_alive"])),
    ("head_after / queue_wait", Row::Set(&["server.head_after", "later"])),
    ("queue", Row::Later),
    ("write stall", Row::Set(&["server.write_stall"])),
    ("upstream idle connection", Row::Set(&["upstream.idle"])),
    (
        "one SSE event / one held call",
        Row::Set(&["limits.sse_event_bytes", "limits.held_call_bytes"]),
    ),
    ("connect", Row::Set(&["upstream.connect"])),
    ("attempts before the first data line", Row::Set(&["upstream.attempts"])),
    ("inter-token stall", Row::Set(&["upstream.stall"])),
    ("first token", Row::Later),
    ("hung", Row::Later),
    ("hold", Row::Later),
    ("drain", Row::Set(&["server.drain"])),
    ("re-ask", Row::Later),
    ("session idle / index size", Row::Later),
];

#[test]
fn every_default_of_the_design_is_the_default() {
    let stated = keys(SHIPPED);
    let mut table = design_defaults();
    for (row, here) in &ROWS {
        let Some(wanted) = table.remove(*row) else {
            panic!("behaviour.md has no row {row:?} any more")
        };
        let Row::Set(settings) = here else { continue };
        let parts: Vec<&str> = wanted.split(" / ").collect();
        assert_eq!(parts.len(), settings.len(), "{row}: {wanted}");
        for (part, setting) in parts.iter().zip(*settings).filter(|(_, setting)| **setting != "later") {
            let value = stated
                .get(*setting)
                .unwrap_or_else(|| panic!("config.toml has no {setting}"));
            assert_eq!(
                amount(value),
                amount(part),
                "{row}: behaviour.md says {part}, config.toml {setting} = {value}"
            );
        }
    }
    assert!(
        table.is_empty(),
        "behaviour.md has rows that nothing here accounts for: {table:?}"
    );
}

/// Limit → default, from the last table of behaviour.md.
fn design_defaults() -> BTreeMap<String, String> {
    let text = shared("design/behaviour.md");
    let (_, section) = text
        .split_once("## Defaults")
        .expect("behaviour.md has a section Defaults");
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    let mut table = BTreeMap::new();
    for line in rows {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [left, left_value, _, right, right_value] = cells[..] else {
            panic!("not a row of five: {line}")
        };
        table.insert(left.to_owned(), left_value.to_owned());
        table.insert(right.to_owned(), right_value.to_owned());
    }
    table
}

#[derive(Debug, PartialEq)]
enum Amount {
    Time(std::time::Duration),
    Bytes(u64),
    Count(u64),
    QuarterOfMemory,
}

/// A default as the design or the file writes it: "60 s", "\"64 MiB\"", "5 s (0 = off)", "128".
fn amount(text: &str) -> Amount {
    let text = text.trim_matches('"').split(" (").next().unwrap();
    let number = text.replace(',', "");
    if text == "1 GiB or a quarter of memory" || text == "0" {
        // 0 is resolved at start; `limits` tests to what.
        Amount::QuarterOfMemory
    } else if let Ok(count) = number.parse() {
        Amount::Count(count)
    } else if let Ok(bytes) = size::parse(text) {
        Amount::Bytes(bytes)
    } else {
        Amount::Time(duration::parse(text).unwrap_or_else(|_| panic!("{text:?} is no amount")))
    }
}
