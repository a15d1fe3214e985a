//! One row for each request: what it took, never what was said.

use std::fs;

use serde_json::{Value, json};

use crate::engine::{KEY, SetUp};
use crate::gateway::{CLIENT_KEY, Gateway};
use crate::message::chunks;
use crate::script::{MODEL, Script, tools};

#[test]
fn a_row_for_a_stream() {
    let gateway = Gateway::before(SetUp::Raw);
    let text = "<think>\nThe user asks for the time.\n</think>\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    // Twice the same: the second finds the prompt in the engine's cache, block by block.
    let more = json!({"stream": true, "tools": tools(), "stream_options": {"include_usage": true}});
    let body = Script::say(text).chat(more);
    let usage = ["row-cold", "row-warm"].map(|id| {
        let headers = [("x-request-id", id), ("x-session-id", "a-session")];
        let events = gateway
            .post("/v1/chat/completions", &headers, &body)
            .open()
            .unwrap()
            .events()
            .unwrap();
        chunks(&events).last().unwrap()["usage"].clone()
    });
    for (id, usage) in ["row-cold", "row-warm"].into_iter().zip(&usage) {
        let row = gateway.record(id);
        for (field, value) in [
            ("endpoint", json!("chat")),
            ("model", json!(MODEL)),
            ("replica", json!("raw")),
            ("session_source", json!("x-session-id")),
            ("attempts", json!(1)),
            ("stream", json!(true)),
            ("prompt_tokens", usage["prompt_tokens"].clone()),
            ("completion_tokens", usage["completion_tokens"].clone()),
            ("cached_tokens", usage["prompt_tokens_details"]["cached_tokens"].clone()),
            ("tool_calls", json!(1)),
            ("finish", json!("tool_calls")),
            ("status", json!(200)),
            ("error", Value::Null),
            ("cancelled", json!(false)),
            ("simulated", json!(false)),
        ] {
            assert_eq!(row[field], value, "{id}: {field}");
        }
        assert!(
            row["reasoning_tokens"].as_u64().is_some_and(|tokens| tokens > 0),
            "{id}"
        );
        let [engine, client, duration] =
            ["ttft_engine", "ttft_client", "duration"].map(|name| milliseconds(&row, name));
        assert!(
            0.0 < engine && engine <= client && client <= duration,
            "{id}: {engine} ≤ {client} ≤ {duration}"
        );
        assert!(milliseconds(&row, "itl_p50") <= milliseconds(&row, "itl_p99"), "{id}");
        assert!(milliseconds(&row, "itl_p99") <= milliseconds(&row, "itl_max"), "{id}");
        assert!(row["tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{id}");
        assert!(row["bytes_in"].as_u64().is_some_and(|bytes| bytes > 500), "{id}");
        assert!(row["bytes_out"].as_u64().is_some_and(|bytes| bytes > 500), "{id}");
        assert!(row["key_name"].as_str().is_some_and(|name| !name.is_empty()), "{id}");
    }
    let cached = usage.map(|usage| usage["prompt_tokens_details"]["cached_tokens"].as_u64());
    assert!(
        cached[1] >= Some(128),
        "the second prompt was cached, and the row says so"
    );
}

#[test]
fn a_row_for_a_whole_answer_has_no_ttft() {
    let gateway = Gateway::before(SetUp::Raw);
    let body = Script::say("<think>\nx\n</think>\n\nHello.").chat(json!({}));
    let answer = gateway
        .post("/v1/chat/completions", &[("x-request-id", "row-whole")], &body)
        .whole()
        .unwrap();
    let usage = answer.json()["usage"].clone();
    let row = gateway.record("row-whole");
    assert_eq!((&row["stream"], &row["status"]), (&json!(false), &json!(200)));
    assert_eq!(row["completion_tokens"], usage["completion_tokens"]);
    for time in ["ttft_engine", "ttft_client", "itl_p50", "itl_p99", "itl_max", "tpot"] {
        assert!(time_of(&row, time).is_null(), "{time} is unknown, never the total");
    }
    assert!(milliseconds(&row, "duration") > 0.0);
}

#[test]
fn a_row_for_what_was_refused() {
    let gateway = Gateway::before(SetUp::Raw);
    let body = Script::say("Never said.").chat(json!({"model": "gpt-4"}));
    let refused = gateway
        .post("/v1/chat/completions", &[("x-request-id", "row-404")], &body)
        .whole()
        .unwrap();
    assert_eq!(refused.status, 404);
    let row = gateway.record("row-404");
    assert_eq!(
        (&row["status"], &row["attempts"], &row["error"]),
        (&json!(404), &json!(0), &json!("model_not_found"))
    );
}

#[test]
fn nothing_that_was_said_is_kept() {
    let gateway = Gateway::before(SetUp::Raw);
    let script = Script::say("<think>\nxylophone\n</think>\n\nzeppelin");
    let answer = gateway
        .post(
            "/v1/chat/completions",
            &[("x-request-id", "row-secret")],
            &script.chat(json!({})),
        )
        .whole()
        .unwrap();
    assert!(answer.text().contains("zeppelin"), "it was said");
    let wrong = [
        ("x-request-id", "row-unknown-key"),
        ("Authorization", "Bearer sk-somebody-elses"),
    ];
    let mut call = gateway.get("/v1/models");
    (call.key, call.headers) = (None, &wrong);
    assert_eq!(call.whole().unwrap().status, 401);
    gateway.record("row-secret");
    let files = gateway.files();
    assert!(files.len() >= 2, "a log and a database");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        for secret in [
            "xylophone",
            "zeppelin",
            "@@FORCE",
            "weather in Paris",
            CLIENT_KEY,
            KEY,
            "sk-somebody-elses",
        ] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret:?} is in {}", file.display());
        }
    }
}

fn time_of<'a>(row: &'a Value, name: &str) -> &'a Value {
    row.get(format!("{name}_ms"))
        .unwrap_or_else(|| panic!("a row has {name}_ms"))
}

fn milliseconds(row: &Value, name: &str) -> f64 {
    time_of(row, name)
        .as_f64()
        .unwrap_or_else(|| panic!("{name} is a number"))
}
