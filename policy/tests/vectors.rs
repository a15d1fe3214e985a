//! Every public vector through both stages, cut in every way: the message must be the wanted one, whole or in pieces.
//!
//! The texts are `vllm/vectors/*.jsonl` of the shared fixtures (`SLUICE_SHARED`, else `../shared` beside the workspace).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    dead_code
)]

mod text;

use serde_json::{Value, json};
use sluice_policy::reasoning::{Opener, Thinking};
use sluice_policy::tool_call::{Reason, ToolSet};
use std::path::PathBuf;
use std::sync::Arc;
use text::{Setup, Shown, read, same_at_every_split};

/// What a malformed vector is that repair can't make a call of: text, whole, or a question to the model where one can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instead {
    /// Not JSON (B23).
    BadJson,
    /// The name is missing or unknown: for the re-ask, or by config the nearest (B24, B26).
    Name,
    /// The arguments are a list (B24).
    NotAnObject,
    /// Prose inside the tags is prose: text, tags and all (B27). The vector wants it gone.
    Prose,
}

/// The vectors whose calls would have to be guessed, or whose text would be lost, each with what becomes of it. Every other one must be as
/// wanted.
const NOT_REPAIRED: &[(&str, Instead)] = &[
    ("h-bad.args_list", Instead::NotAnObject),
    ("h-bad.nan", Instead::BadJson),
    ("h-bad.no_name", Instead::Name),
    ("h-bad.prose", Instead::Prose),
    ("h-bad.unknown_function", Instead::Name),
];

/// Cut inside the arguments. The vector lists a call with unknown arguments; its note says what we do: no call, `length`.
const CUT: &[&str] = &["h-bad.cut_string", "h-bad.cut_key"];

fn fixture(name: &str) -> String {
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let path = shared.join("vllm/vectors").join(name);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("fixture {} is missing ({error}); set SLUICE_SHARED", path.display()))
}

fn lines(name: &str) -> Vec<Value> {
    fixture(name)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn setup(vector: &Value) -> Setup {
    let tools = Arc::new(ToolSet::parse(fixture("tools.json").as_bytes()).unwrap());
    let thinking = match vector.get("thinking").and_then(Value::as_bool) {
        Some(true) | None => Thinking::On,
        Some(false) => Thinking::Off,
    };
    Setup::with(&tools, thinking, Opener::default())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    reasoning: String,
    content: String,
    calls: Vec<Value>,
    invalid: Vec<Reason>,
}

/// The message of an answer that ended by `length` where it was cut: what was cut is not shown.
fn message(shown: &[Shown]) -> Message {
    let mut message = Message::default();
    for shown in shown {
        match shown {
            Shown::Reasoning(text) => message.reasoning.push_str(text),
            Shown::Text(text) => message.content.push_str(text),
            Shown::Call { name, arguments, .. } => {
                let arguments: Value = serde_json::from_str(arguments).unwrap();
                assert!(arguments.is_object(), "{arguments}");
                message.calls.push(json!({"name": name, "arguments": arguments}));
            }
            Shown::Invalid { raw, reason } => {
                if *reason != Reason::Cut {
                    message.content.push_str(raw);
                }
                message.invalid.push(reason.clone());
            }
        }
    }
    message
}

/// Texts are compared without white space at their ends, as the vectors are meant.
fn assert_as_wanted(id: &str, message: &Message, want: &Value, reasons: bool) {
    let text = |key: &str| want.get(key).and_then(Value::as_str).unwrap_or_default().trim();
    match id {
        // "both blocks are reasoning (joined as the gateway likes)": the vector itself says null
        "r-tool.think_after" => {
            assert_eq!(
                message.reasoning, "The user wants data, so a tool fits.\n\nmore 0\n",
                "{id}"
            );
        }
        _ if reasons => assert_eq!(message.reasoning.trim(), text("reasoning"), "{id}: reasoning"),
        _ => assert_eq!(message.reasoning, "", "{id}: reasoning"),
    }
    assert_eq!(message.content.trim(), text("content"), "{id}: content");
    if CUT.contains(&id) {
        assert_eq!(
            (message.calls.len(), &message.invalid[..]),
            (0, &[Reason::Cut][..]),
            "{id}"
        );
        return;
    }
    let mut wanted = want["calls"].clone();
    if id == "h-bad.python_literals" {
        // The vector keeps `None` as null, where the schema says object: an optional key that may not be null is left out (B24).
        let arguments = wanted[0]["arguments"].as_object_mut().unwrap();
        assert_eq!(arguments.remove("filters"), Some(Value::Null));
    }
    assert_eq!(Value::from(message.calls.clone()), wanted, "{id}: calls");
}

fn assert_not_repaired(id: &str, how: Instead, text: &str, message: &Message) {
    let reason = match message.invalid.first() {
        Some(Reason::BadJson { .. }) => Some(Instead::BadJson),
        Some(Reason::NoName | Reason::UnknownTool { .. }) => Some(Instead::Name),
        Some(Reason::NotAnObject) => Some(Instead::NotAnObject),
        _ => None,
    };
    match how {
        Instead::Prose => assert_eq!(reason, None, "{id}"),
        _ => assert_eq!(reason, Some(how), "{id}"),
    }
    // nothing is lost: the broken call stands in the content, whole, and its good neighbour is a call
    let bad = match id {
        "h-bad.good_then_bad" => text
            .rsplit_once("\n<tool_call>")
            .map(|(_, bad)| format!("<tool_call>{bad}")),
        "h-bad.bad_then_good" => text.split_once("\n<tool_call>").map(|(bad, _)| bad.to_owned()),
        _ => Some(text.to_owned()),
    };
    assert_eq!(message.content.trim(), bad.unwrap(), "{id}");
    let good = usize::from(id.ends_with("_bad") || id.ends_with("_good"));
    assert_eq!(message.calls.len(), good, "{id}");
}

fn check(file: &str, reasons: bool) {
    for vector in lines(file) {
        let id = vector["id"].as_str().unwrap();
        let text = vector["text"].as_str().unwrap();
        let setup = setup(&vector);
        // the two long texts are cut at random only where that is what they are for
        let shown = if text.len() < 2000 {
            same_at_every_split(&setup, text, id)
        } else {
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let shown = read(&setup, [text]);
            assert_eq!(
                read(&setup, chars.iter().map(String::as_str)),
                shown,
                "{id}: by character"
            );
            shown
        };
        for (name, pieces) in vector["chunks"].as_object().unwrap() {
            let pieces: Vec<&str> = pieces
                .as_array()
                .unwrap()
                .iter()
                .map(|piece| piece.as_str().unwrap())
                .collect();
            assert_eq!(read(&setup, pieces), shown, "{id}: {name}");
        }
        let message = message(&shown);
        let want = &vector["want"];
        match NOT_REPAIRED.iter().find(|(listed, _)| *listed == id) {
            Some((_, how)) => assert_not_repaired(id, *how, text, &message),
            None if want.is_null() => {}
            None => assert_as_wanted(id, &message, want, reasons),
        }
    }
}

#[test]
fn hermes_vectors() {
    check("hermes_vectors.jsonl", false);
}

#[test]
fn hermes_vectors_with_thinking_off() {
    for vector in lines("hermes_vectors.jsonl") {
        let setup = Setup {
            thinking: Thinking::Off,
            ..setup(&vector)
        };
        let text = vector["text"].as_str().unwrap();
        let on = read(
            &Setup {
                thinking: Thinking::On,
                ..setup.clone()
            },
            [text],
        );
        assert_eq!(read(&setup, [text]), on, "{}", vector["id"]);
    }
}

#[test]
fn reasoning_vectors_with_tools() {
    check("combined_vectors.jsonl", true);
}

/// Without tools nothing is scanned: the reasoning is the same, call texts stay where they are.
#[test]
fn reasoning_vectors_without_tools() {
    for vector in lines("qwen3_reasoning_vectors.jsonl") {
        let id = vector["id"].as_str().unwrap();
        let text = vector["text"].as_str().unwrap();
        let want = &vector["want"];
        let setup = Setup {
            tools: None,
            ..setup(&vector)
        };
        let shown = same_at_every_split(&setup, text, id);
        let calls = want["calls"].as_array().is_none_or(|calls| !calls.is_empty()) || id == "r-tool.cut";
        if !calls {
            assert_as_wanted(id, &message(&shown), want, true);
        }
    }
}

/// A stray `</think>` in an answer whose opener is known: what was shown stays, the tag is not shown.
#[test]
fn texts_without_a_clear_answer_lose_nothing() {
    let mention = lines("combined_vectors.jsonl")
        .into_iter()
        .find(|vector| vector["id"] == "r-mention_close")
        .unwrap();
    let got = message(&read(&setup(&mention), [mention["text"].as_str().unwrap()]));
    assert_eq!(got.reasoning, "The tag `");
    assert_eq!(got.content, "` ends it, 0.\n</think>\n\nI will report back.");
    let off = lines("combined_vectors.jsonl")
        .into_iter()
        .find(|vector| vector["id"] == "r-off.close")
        .unwrap();
    let got = message(&read(&setup(&off), [off["text"].as_str().unwrap()]));
    assert_eq!(
        (&got.reasoning[..], &got.content[..]),
        ("", "The user wants data, so a tool fits.I will report back.")
    );
}

/// Real tools and calls of a public benchmark, well formed: all of them, the arguments byte for byte.
#[test]
fn bfcl_calls_are_found_byte_for_byte() {
    let cases = lines("bfcl.jsonl");
    assert_eq!(cases.len(), 299);
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let tools = Arc::new(ToolSet::parse(case["tools"].to_string().as_bytes()).unwrap());
        let setup = Setup::with(&tools, Thinking::Off, Opener::Model);
        let text = case["hermes"].as_str().unwrap();
        let shown = read(&setup, [text]);
        let got = message(&shown);
        if case["schema_valid"] == false {
            // one call of 299 isn't what its tool's schema asks for: it is no call, the others of the answer are
            assert!(
                matches!(&got.invalid[..], [Reason::Unfit { .. }]),
                "{id}: {:?}",
                got.invalid
            );
            continue;
        }
        assert_eq!(Value::from(got.calls), case["expected"], "{id}");
        assert!(
            got.content.is_empty() || case["expected"].as_array().is_none_or(Vec::is_empty),
            "{id}: {}",
            got.content
        );
        for shown in &shown {
            let Shown::Call { name, arguments, raw } = shown else {
                continue;
            };
            assert!(
                raw.contains(&format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}")),
                "{id}: {raw}"
            );
        }
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(
            read(&setup, bytes.iter().map(String::as_str)),
            shown,
            "{id}: by character"
        );
    }
}
