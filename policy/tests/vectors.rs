//! Every public vector through both stages, cut in every way: the message must be the wanted one, whole or in pieces.
//!
//! The texts are `vllm/vectors/*.jsonl` of the shared fixtures (`SLUICE_SHARED`, else `../shared` beside the workspace).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use serde_json::Value;
use sluice_policy::reasoning::{Opener, Part, Splitter, Thinking};
use sluice_policy::tool_call::{Bare, Piece, Reason, Scanner, ToolSet};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What needs the repair of B23/B24 or the re-ask of B26: no call yet, and the text is not lost.
const NEEDS_REPAIR: &[&str] = &[];

fn vectors(name: &str) -> Vec<Value> {
    let text = fixture(name);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn fixture(name: &str) -> String {
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let path = shared.join("vllm/vectors").join(name);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("fixture {} is missing ({error}); set SLUICE_SHARED", path.display()))
}

fn tools() -> Arc<ToolSet> {
    Arc::new(ToolSet::parse(fixture("tools.json").as_bytes()).unwrap())
}

#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Message {
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
    invalid: Vec<Reason>,
}

impl Message {
    fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.content.push_str(&text),
                Piece::Call(call) => self.calls.push((call.name, call.arguments)),
                Piece::Invalid { raw, reason } => {
                    // as an answer that ended by length: what was cut is not shown
                    if reason != Reason::Cut {
                        self.content.push_str(&raw);
                    }
                    self.invalid.push(reason);
                }
            }
        }
    }
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a str>, thinking: Thinking, tools: &Arc<ToolSet>) -> Message {
    let mut splitter = Splitter::new(thinking, Opener::default(), Some(Arc::clone(tools)));
    let mut scanner = Scanner::new(Arc::clone(tools), Bare::Calls);
    let mut message = Message::default();
    let mut parts = Vec::new();
    let mut drain = |parts: &mut Vec<Part>, scanner: &mut Scanner, last: bool| {
        let mut out = Vec::new();
        for part in parts.drain(..) {
            match part {
                Part::Reasoning(text) => message.reasoning.push_str(&text),
                Part::Content(text) => scanner.push(&text, &mut out),
            }
        }
        if last {
            scanner.finish(&mut out);
        }
        message.add(out);
    };
    for piece in pieces {
        splitter.push(piece, &mut parts);
        drain(&mut parts, &mut scanner, false);
    }
    splitter.finish(&mut parts);
    drain(&mut parts, &mut scanner, true);
    message
}

fn thinking(vector: &Value) -> Thinking {
    match vector.get("thinking").and_then(Value::as_bool) {
        Some(true) | None => Thinking::On,
        Some(false) => Thinking::Off,
    }
}

fn differences(vector: &Value, message: &Message, want: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let text = |key: &str| want.get(key).and_then(Value::as_str).unwrap_or_default().trim();
    if vector.get("thinking").is_some() && text("reasoning") != message.reasoning.trim() {
        found.push(format!("reasoning {:?} for {:?}", message.reasoning, text("reasoning")));
    }
    if text("content") != message.content.trim() {
        found.push(format!("content {:?} for {:?}", message.content, text("content")));
    }
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let calls: Vec<Value> = message
        .calls
        .iter()
        .map(|(name, arguments)| serde_json::json!({"name": name, "arguments": json(arguments)}))
        .collect();
    if want["calls"] != Value::from(calls.clone()) {
        found.push(format!("calls {calls:?} for {}", want["calls"]));
    }
    found
}

#[test]
fn public_vectors() {
    let tools = tools();
    let mut wrong = BTreeMap::new();
    for name in ["hermes_vectors.jsonl", "combined_vectors.jsonl"] {
        for vector in vectors(name) {
            let id = vector["id"].as_str().unwrap().to_owned();
            let text = vector["text"].as_str().unwrap();
            let message = read([text], thinking(&vector), &tools);
            if !vector["want"].is_null() && !NEEDS_REPAIR.contains(&id.as_str()) {
                let found = differences(&vector, &message, &vector["want"]);
                if !found.is_empty() {
                    wrong.insert(id.clone(), (found, message.invalid.clone()));
                }
            }
            let by_char: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(
                read(by_char.iter().map(String::as_str), thinking(&vector), &tools),
                message,
                "{id} by char"
            );
        }
    }
    for (id, (found, invalid)) in &wrong {
        println!("{id}: {found:?} {invalid:?}");
    }
    assert!(wrong.is_empty(), "{} vectors differ", wrong.len());
}
