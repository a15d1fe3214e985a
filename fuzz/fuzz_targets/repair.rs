//! Repair: a call that was broken by a few edits, or any text between the tags.
//!
//! Holds: no panic and no long work (the fuzzer's timeout); the same calls however the text is cut; the arguments of a call parse
//! strictly, validate by the schema as another reader of it says, and use no key that stands neither in the text nor in the
//! schema; read once more they pass as they are.
#![no_main]

use std::collections::HashMap;
use std::sync::LazyLock;

use jsonschema::Validator;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sluice_policy::tool_call::{Bare, Call, Piece, Verdict};

use scanning::{TOOLS, merged, scan};

#[path = "cuts.rs"]
mod cuts;
#[path = "scanning.rs"]
mod scanning;

/// What is broken.
const CALLS: [&str; 5] = [
    r#"{"name": "get_weather", "arguments": {"city": "Paris, France", "unit": "celsius", "days": 3}}"#,
    r#"{"name": "search", "arguments": {"query": "say \"hi\" [1]", "limit": 10, "filters": {"a": [1, {"b": null}], "c": "d"}}}"#,
    r#"{"name": "write_file", "arguments": {"path": "src/a.rs", "content": "fn a() -> &'static str {\n    \"a\\tb\"\n}\n"}}"#,
    r#"[{"name": "now", "arguments": {}}, {"name": "search", "arguments": {"query": "", "limit": -1.5e3}}]"#,
    r#"{"name": "write_file", "arguments": {"path": "a", "content": "x = {\"k\": [\"</tool_call>\", '}']}"}}"#,
];
/// Most edits of one call.
const EDITS: usize = 8;
/// What an edit puts.
const MARKS: &[u8] = b"{}[],:\"'\\\n /`#aN0-";

static VALIDATORS: LazyLock<HashMap<String, Validator>> = LazyLock::new(|| {
    let tools = TOOLS.tools().iter().map(|tool| {
        let schema = tool.parameters.as_ref().expect("each has a schema").get();
        let schema = serde_json::from_str(schema).expect("JSON");
        (tool.name.clone(), jsonschema::validator_for(&schema).expect("a schema"))
    });
    tools.collect()
});

fuzz_target!(|input: &[u8]| {
    let [mode, seed, rest @ ..] = input else { return };
    let inside = match mode & 1 {
        0 => String::from_utf8_lossy(rest).into_owned(),
        _ => edited(CALLS[usize::from(mode >> 1) % CALLS.len()], rest),
    };
    let closed = if mode & 128 == 0 { "\n</tool_call>" } else { "" };
    let text = format!("<tool_call>\n{inside}{closed}");
    let whole = scan(&TOOLS, Bare::Calls, std::iter::once(text.as_bytes()));
    let parts = scan(&TOOLS, Bare::Calls, cuts::cut(text.as_bytes(), *seed));
    assert_eq!(merged(&whole), merged(&parts), "the cut shows");
    for piece in &whole {
        if let Piece::Call(call) = piece {
            holds(call, &text);
        }
    }
});

/// The call with each four bytes of `edits` as an edit: where, what, with which character.
fn edited(call: &str, edits: &[u8]) -> String {
    let mut bytes = call.as_bytes().to_vec();
    for edit in edits.chunks_exact(4).take(EDITS) {
        let at = (usize::from(edit[0]) << 8 | usize::from(edit[1])) % bytes.len();
        let mark = MARKS[usize::from(edit[3]) % MARKS.len()];
        match edit[2] % 5 {
            0 if bytes.len() > 1 => drop(bytes.remove(at)),
            1 => bytes.insert(at, mark),
            2 if at + 1 < bytes.len() => bytes.swap(at, at + 1),
            3 => bytes.truncate(at.max(1)),
            _ => bytes[at] = mark,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn holds(call: &Call, text: &str) {
    let arguments = &call.arguments;
    serde_json::from_str::<serde::de::IgnoredAny>(arguments).expect("arguments are JSON");
    // numbers and escapes that nobody can hold aren't checked
    let Ok(value) = serde_json::from_str::<Value>(arguments) else {
        return;
    };
    assert!(value.is_object(), "arguments are an object: {arguments}");
    let schema = VALIDATORS.get(&call.name).expect("a declared name");
    assert!(schema.is_valid(&value), "arguments are valid: {arguments}");
    keys(&value, &mut |key| {
        let plain = key.chars().all(|c| c.is_alphanumeric() || c == '_');
        let declared = TOOLS.declared_type(&call.name, key).is_some();
        assert!(!plain || declared || text.contains(key), "{key:?} has no source");
    });
    let again = format!(
        "<tool_call>\n{{\"name\": \"{}\", \"arguments\": {arguments}}}\n</tool_call>",
        call.name
    );
    match scan(&TOOLS, Bare::Calls, std::iter::once(again.as_bytes())).as_slice() {
        [Piece::Call(second)] => {
            assert_eq!(&second.arguments, arguments, "what is right is left alone");
            assert!(matches!(second.verdict, Verdict::Passed | Verdict::PassedUnchecked));
        }
        other => panic!("what is right passes: {again} became {other:?}"),
    }
}

fn keys(value: &Value, each: &mut impl FnMut(&str)) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| {
            each(key);
            keys(value, each);
        }),
        Value::Array(elements) => elements.iter().for_each(|element| keys(element, each)),
        _ => {}
    }
}
