//! Any schema and any arguments, with a line feed of its own between them: what a hostile client and a confused model may send.
//!
//! Holds: no panic, no long work and no deep recursion; arguments of a call that was checked parse strictly and validate under a
//! draft that the schema may mean; mended ones pass as they are when they are read once more.
#![no_main]

use std::sync::Arc;

use jsonschema::{Draft, PatternOptions};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;
use sluice_policy::tool_call::{Bare, Piece, ToolSet, Verdict};

use scanning::scan;

#[path = "scanning.rs"]
#[allow(dead_code, reason = "this target brings its own tools")]
mod scanning;

const DRAFTS: [Draft; 5] = [
    Draft::Draft202012,
    Draft::Draft201909,
    Draft::Draft7,
    Draft::Draft6,
    Draft::Draft4,
];

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some((schema, arguments)) = text.split_once('\n') else {
        return;
    };
    // both as JSON: repair of syntax is another target's
    if serde_json::from_str::<&RawValue>(schema).is_err() || serde_json::from_str::<&RawValue>(arguments).is_err() {
        return;
    }
    let tools = format!(r#"[{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}]"#);
    let Ok(tools) = ToolSet::parse(tools.as_bytes()) else {
        return;
    };
    let tools = Arc::new(tools);
    let Some(first) = call(&tools, arguments) else { return };
    let checked =
        first.1 != Verdict::PassedUnchecked && tools.exact("f").is_some_and(|tool| tool.unchecked().is_none());
    if !checked {
        return;
    }
    let (Ok(value), Ok(schema)) = (
        serde_json::from_str::<Value>(&first.0),
        serde_json::from_str::<Value>(schema),
    ) else {
        return;
    };
    let valid = DRAFTS.iter().any(|draft| {
        let patterns = PatternOptions::regex().size_limit(1 << 20).dfa_size_limit(1 << 20);
        let options = jsonschema::options().with_draft(*draft).with_pattern_options(patterns);
        let built = options.should_validate_formats(false).offline().build(&schema);
        built.is_ok_and(|schema| schema.is_valid(&value))
    });
    assert!(valid, "what is passed on is valid: {}", first.0);
    let second = call(&tools, &first.0).expect("what is right passes");
    assert_eq!(second.0, first.0, "what is right is left alone");
    assert!(matches!(second.1, Verdict::Passed | Verdict::PassedUnchecked));
});

fn call(tools: &Arc<ToolSet>, arguments: &str) -> Option<(String, Verdict)> {
    let text = format!("<tool_call>{{\"name\": \"f\", \"arguments\": {arguments}}}</tool_call>");
    match scan(tools, Bare::Calls, std::iter::once(text.as_bytes())).as_slice() {
        [Piece::Call(call)] => Some((call.arguments.clone(), call.verdict.clone())),
        _ => None,
    }
}
