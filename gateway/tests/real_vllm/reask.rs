//! Calls that are asked again (B26): the engine is made to write a broken call, and goes on by itself, guided by the schema.
//!
//! The script comes by `vllm_xargs`, which the first attempt alone carries: the continuation is the random model's own, at
//! temperature 0. Its arguments are nonsense that fits the schema, so they are judged by the schema and not by a text.

use serde_json::{Value, json};

use crate::engine::SetUp;
use crate::gateway::Gateway;
use crate::message::Message;
use crate::script::MODEL;

const GOOD: &str = "<tool_call>\n{\"name\": \"pick_colour\", \"arguments\": {\"colour\": \"red\"}}\n</tool_call>";
/// Ends in the middle of a string: never completed by repair.
const CUT: &str = "<tool_call>\n{\"name\": \"pick_colour\", \"arguments\": {\"colour\": \"gre";
const UNKNOWN: &str = "<tool_call>\n{\"name\": \"pick_color\", \"arguments\": {\"colour\": \"green\"}}\n</tool_call>";
const UNKNOWN_BARE: &str = "<tool_call>\n{\"name\": \"no\", \"arguments\": {}}\n</tool_call>";
const THINK: &str = "<think>\nI pick one.\n</think>\n\n";

fn colour() -> Value {
    json!({"type": "function", "function": {"name": "pick_colour", "description": "Pick one", "parameters": {
        "type": "object", "required": ["colour"], "additionalProperties": false,
        "properties": {"colour": {"type": "string", "enum": ["red", "green"]}}}}})
}

fn now() -> Value {
    json!({"type": "function", "function": {"name": "now", "description": "Current time", "parameters": {
        "type": "object", "properties": {}, "additionalProperties": false}}})
}

/// Both ways of both set-ups: stream and whole message, the gateway's record of each.
fn everywhere(said: &str, tools: &Value, more: &Value, check: impl Fn(&Message, &str)) {
    for set_up in SetUp::BOTH {
        let gateway = Gateway::before(set_up);
        let key = gateway.key_with("vllm_xargs");
        for stream in [true, false] {
            let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Pick."}], "max_tokens": 120,
                "temperature": 0, "tools": tools, "vllm_xargs": {"force_text": said}, "stream": stream});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let how = format!("{set_up:?}, stream {stream}");
            let id = format!("reask-{stream}");
            let headers = [("x-request-id", id.as_str())];
            let mut call = gateway.post("/v1/chat/completions", &headers, &body);
            call.key = Some(&key);
            let message = if stream {
                let mut answer = call.open().expect("a head");
                assert_eq!(answer.status, 200, "{how}: {}", gateway.log());
                Message::of_events(&answer.events().unwrap())
            } else {
                let answer = call.whole().expect("an answer");
                assert_eq!(answer.status, 200, "{how}: {}", gateway.log());
                Message::of_body(&answer.json())
            };
            check(&message, &how);
            let row = gateway.record(&id);
            assert_eq!(row["attempts"], 1, "{how}: {row}");
            assert_eq!(row["error"], Value::Null, "{how}: {row}");
        }
    }
}

fn fits(call: &(String, String), how: &str) {
    let arguments: Value = serde_json::from_str(&call.1).unwrap_or_else(|_| panic!("{how}: arguments are JSON"));
    let picked = |colour: &str| arguments == json!({"colour": colour});
    assert!(
        call.0 == "pick_colour" && (picked("red") || picked("green")),
        "{how}: {call:?}"
    );
}

#[test]
fn a_cut_call_becomes_a_valid_one() {
    let off = json!({"chat_template_kwargs": {"enable_thinking": false}});
    everywhere(CUT, &json!([colour()]), &off, |message, how| {
        assert_eq!(message.calls.len(), 1, "{how}: {:?}", message.content);
        fits(&message.calls[0], how);
    });
}

#[test]
fn behind_thinking_text_and_a_good_call() {
    let said = format!("{THINK}Two of them.\n{GOOD}\n{CUT}");
    everywhere(&said, &json!([colour(), now()]), &json!({}), |message, how| {
        assert_eq!(
            message.reasoning.as_deref().map(str::trim),
            Some("I pick one."),
            "{how}"
        );
        assert!(message.content.as_deref().unwrap().starts_with("Two of them."), "{how}");
        assert!(message.calls.len() >= 2, "{how}: {} calls", message.calls.len());
        assert_eq!(message.calls[0].1, r#"{"colour": "red"}"#, "{how}: good calls stay");
        fits(&message.calls[1], how);
    });
}

#[test]
fn an_unknown_name_with_text_behind_it() {
    let said = format!("{THINK}{UNKNOWN}\nThat was all.");
    everywhere(&said, &json!([colour()]), &json!({}), |message, how| {
        assert!(!message.calls.is_empty(), "{how}");
        fits(&message.calls[0], how);
        let content = message.content.as_deref().unwrap_or_default();
        assert!(
            !content.contains("pick_color\"") && !content.contains("That was all."),
            "{how}: the broken call is gone"
        );
    });
}

/// A model at a loss writes white space where a grammar lets it: it is bounded.
#[test]
fn a_tool_without_arguments_ends() {
    let off = json!({"chat_template_kwargs": {"enable_thinking": false}});
    everywhere(UNKNOWN_BARE, &json!([now()]), &off, |message, how| {
        assert_eq!(message.calls.first().map(|call| &*call.0), Some("now"), "{how}");
        let arguments: Value = serde_json::from_str(&message.calls[0].1).unwrap();
        assert_eq!(arguments, json!({}), "{how}");
    });
}

/// An answer without a think block: before vLLM's reasoning parser a grammar counts only behind one.
#[test]
fn a_model_that_did_not_think() {
    everywhere(CUT, &json!([colour()]), &json!({}), |message, how| {
        assert_eq!(message.calls.len(), 1, "{how}: {:?}", message.content);
        fits(&message.calls[0], how);
    });
}
