//! Calls of a public benchmark (BFCL) with values of the wrong type, kind by kind: what comes back equal to the expected call, what
//! is no call (for the re-ask), and what comes back wrong: valid, but not what was meant. Wrong must not happen.
//!
//! The cases are `vllm/vectors/bfcl.jsonl` of the shared fixtures. `cargo test -p sluice-policy --test shapes -- --nocapture`
//! prints the table.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    dead_code
)]

mod text;

use serde_json::{Map, Value, json};
use sluice_policy::reasoning::{Opener, Thinking};
use sluice_policy::tool_call::ToolSet;
use std::path::PathBuf;
use std::sync::Arc;
use text::{Setup, Shown, read};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NumberAsString,
    BoolAsString,
    ScalarForArray,
    ObjectForArray,
    Stringified,
    NullOptional,
    EnumCase,
    NumberForString,
    KeyTypo,
    WordForNumber,
    ObjectForString,
    MissingRequired,
}

use Kind::{
    BoolAsString, EnumCase, KeyTypo, MissingRequired, NullOptional, NumberAsString, NumberForString, ObjectForArray,
    ObjectForString, ScalarForArray, Stringified, WordForNumber,
};

/// Each kind with whether it can be mended; what can't must not become a call.
const KINDS: [(Kind, bool); 12] = [
    (NumberAsString, true),
    (BoolAsString, true),
    (ScalarForArray, true),
    (ObjectForArray, true),
    (Stringified, true),
    (NullOptional, true),
    (EnumCase, true),
    (NumberForString, true),
    (KeyTypo, false),
    (WordForNumber, false),
    (ObjectForString, false),
    (MissingRequired, false),
];

fn cases() -> Vec<Value> {
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let path = shared.join("vllm/vectors/bfcl.jsonl");
    let lines = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("fixture {} is missing ({error}); set SLUICE_SHARED", path.display()));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The value `value` of a property with this schema, broken in this way; `None` if it can't be.
fn broken(kind: Kind, value: &Value, schema: &Value) -> Option<Value> {
    let is = |name: &str| schema["type"] == name;
    match (kind, value) {
        (NumberAsString, Value::Number(_)) if is("integer") || is("number") => Some(Value::from(value.to_string())),
        (WordForNumber, Value::Number(_)) if is("integer") || is("number") => Some(Value::from("many")),
        (BoolAsString, Value::Bool(true)) if is("boolean") => Some(Value::from("True")),
        (BoolAsString, Value::Bool(false)) if is("boolean") => Some(Value::from("false")),
        (ScalarForArray, Value::Array(items)) if items.len() == 1 && !items[0].is_array() && !items[0].is_object() => {
            Some(items[0].clone())
        }
        (ObjectForArray, Value::Array(items)) if items.len() == 1 && items[0].is_object() => Some(items[0].clone()),
        (Stringified, Value::Array(_) | Value::Object(_)) => Some(Value::from(value.to_string())),
        (EnumCase, Value::String(text)) if schema["enum"].is_array() => {
            Some(Value::from(format!(" {}", text.to_uppercase())))
        }
        (NumberForString, Value::String(text)) if is("string") && schema.get("enum").is_none() => {
            let number: Value = serde_json::from_str(text).ok().filter(Value::is_number)?;
            let same = number.to_string();
            (same == *text).then_some(number)
        }
        (ObjectForString, Value::String(text)) if is("string") => Some(json!({"value": text})),
        _ => None,
    }
}

/// The arguments broken in each place that can be, and in all of them at once.
fn all_broken(kind: Kind, arguments: &Map<String, Value>, parameters: &Value) -> Vec<Map<String, Value>> {
    let properties = parameters["properties"].as_object().cloned().unwrap_or_default();
    let required: Vec<&str> = parameters["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut all = Vec::new();
    match kind {
        NullOptional => {
            for key in properties
                .keys()
                .filter(|key| !arguments.contains_key(*key) && !required.contains(&key.as_str()))
            {
                let mut one = arguments.clone();
                one.insert(key.clone(), Value::Null);
                all.push(one);
            }
        }
        MissingRequired => {
            for key in arguments.keys().filter(|key| required.contains(&key.as_str())) {
                let mut one = arguments.clone();
                one.shift_remove(key);
                all.push(one);
            }
        }
        KeyTypo => {
            for key in arguments.keys() {
                // a letter left out, in the middle
                let middle = key.chars().count() / 2;
                let typo: String = key
                    .chars()
                    .enumerate()
                    .filter(|(at, _)| *at != middle)
                    .map(|(_, c)| c)
                    .collect();
                if !properties.contains_key(&typo) {
                    let renamed = |(name, value): (&String, &Value)| {
                        (if name == key { typo.clone() } else { name.clone() }, value.clone())
                    };
                    all.push(arguments.iter().map(renamed).collect());
                }
            }
        }
        _ => {
            let mut every = arguments.clone();
            for (key, value) in arguments {
                if let Some(bad) = broken(kind, value, properties.get(key).unwrap_or(&Value::Null)) {
                    let mut one = arguments.clone();
                    one.insert(key.clone(), bad.clone());
                    every.insert(key.clone(), bad);
                    all.push(one);
                }
            }
            if all.len() > 1 {
                all.push(every);
            }
        }
    }
    all
}

/// How the broken texts of one kind came back.
#[derive(Debug, Default)]
struct Row {
    equal: usize,
    handed_on: usize,
    wrong: Vec<String>,
}

#[test]
fn wrong_shapes_come_back_right_or_not_at_all() {
    let mut rows: Vec<(Kind, bool, Row)> = KINDS
        .into_iter()
        .map(|(kind, can)| (kind, can, Row::default()))
        .collect();
    for case in cases().iter().filter(|case| case["schema_valid"] == true) {
        let tools = Arc::new(ToolSet::parse(case["tools"].to_string().as_bytes()).unwrap());
        let setup = Setup::with(&tools, Thinking::Off, Opener::Model);
        for call in case["expected"].as_array().unwrap() {
            let name = call["name"].as_str().unwrap();
            let parameters: Value =
                serde_json::from_str(tools.exact(name).unwrap().parameters.as_ref().unwrap().get()).unwrap();
            for (kind, _, row) in &mut rows {
                for bad in all_broken(*kind, call["arguments"].as_object().unwrap(), &parameters) {
                    let bad = json!({"name": name, "arguments": bad}).to_string();
                    match &read(&setup, [format!("<tool_call>\n{bad}\n</tool_call>").as_str()])[..] {
                        [Shown::Call { arguments, .. }] => {
                            let got: Value = serde_json::from_str(arguments).unwrap();
                            if got == call["arguments"] {
                                row.equal += 1;
                            } else {
                                row.wrong.push(format!("{}: {bad} gave {got}", case["id"]));
                            }
                        }
                        [Shown::Invalid { .. }] => row.handed_on += 1,
                        other => panic!("{bad}: {other:?}"),
                    }
                }
            }
        }
    }
    println!("| kind | texts | equal | handed on | wrong |\n| --- | --- | --- | --- | --- |");
    for (kind, _, row) in &rows {
        let wrong = row.wrong.len();
        let texts = row.equal + row.handed_on + wrong;
        println!("| {kind:?} | {texts} | {} | {} | {wrong} |", row.equal, row.handed_on);
    }
    for (kind, can, row) in &rows {
        assert!(row.wrong.is_empty(), "{kind:?}: {:#?}", row.wrong);
        // an enum with two options that differ in case only: nobody knows which one is meant
        let undecided = usize::from(*kind == EnumCase);
        let unlike = if *can { row.handed_on } else { row.equal };
        assert_eq!(unlike, undecided, "{kind:?}: {row:?}");
        // BFCL has no array of one object, few arrays of one value and few numbers in strings
        let few = matches!(kind, ObjectForArray | ScalarForArray | NumberForString);
        assert!(
            few || row.equal + row.handed_on >= 20,
            "{kind:?} was hardly tried: {row:?}"
        );
    }
}
