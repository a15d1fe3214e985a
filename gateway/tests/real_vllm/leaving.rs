//! A client that leaves: the engine stops working for it (B11). What is asserted has room for a busy machine; the measured
//! time is printed. (With the engine asked directly, the same takes 70 to 130 ms.)

use std::net::Shutdown;
use std::time::Duration;

use serde_json::json;

use crate::engine::{Engine, SetUp, shared};
use crate::gateway::Gateway;
use crate::script::Script;

/// Until the engine has the request in its batch.
const TAKEN: Duration = Duration::from_secs(30);
/// Until the engine has dropped it. Sluice's own share is below 50 ms; one engine step and the figures' round are the rest.
const DROPPED: Duration = Duration::from_secs(1);

#[test]
fn in_prefill() {
    let (gateway, engine) = (Gateway::before(SetUp::Raw), shared(SetUp::Raw));
    let body = long_answer().chat_with_long_prefill(gateway.port, json!({"stream": true}));
    let id = "leaves-in-prefill";
    let socket = gateway
        .post("/v1/chat/completions", &[("x-request-id", id)], &body)
        .send()
        .unwrap();
    engine.wait_running(1.0, TAKEN);
    socket.shutdown(Shutdown::Both).unwrap();
    expect_dropped(engine, "in prefill");
    let row = gateway.record(id);
    assert_eq!(row["cancelled"], true);
    assert!(row["ttft_client_ms"].is_null(), "no token was sent");
}

#[test]
fn in_mid_stream() {
    let (gateway, engine) = (Gateway::before(SetUp::Raw), shared(SetUp::Raw));
    let id = "leaves-in-mid-stream";
    let mut answer = gateway.stream(id, &long_answer().chat(json!({"stream": true})));
    for _ in 0..5 {
        answer.event().unwrap().expect("the stream is far from its end");
    }
    answer.leave();
    expect_dropped(engine, "in mid-stream");
    let row = gateway.record(id);
    assert_eq!(row["cancelled"], true);
    assert!(!row["ttft_client_ms"].is_null(), "tokens were sent");
    assert_eq!(row["tokens_estimated"], true, "the engine never said how many");
    assert!(
        row["completion_tokens"].as_u64().is_some_and(|tokens| tokens >= 3),
        "what was used is in the record"
    );
}

#[test]
fn without_a_stream() {
    let (gateway, engine) = (Gateway::before(SetUp::Raw), shared(SetUp::Raw));
    let (id, body) = ("leaves-without-a-stream", long_answer().chat(json!({})));
    let socket = gateway
        .post("/v1/chat/completions", &[("x-request-id", id)], &body)
        .send()
        .unwrap();
    engine.wait_running(1.0, TAKEN);
    socket.shutdown(Shutdown::Both).unwrap();
    expect_dropped(engine, "without a stream");
    assert_eq!(gateway.record(id)["cancelled"], true);
}

/// An answer that would take eight seconds more: what runs no longer was dropped, and not done.
fn long_answer() -> Script {
    Script::say(&format!("<think>\n{}</think>\n\nDone.", "word ".repeat(400)))
        .each_token_after(Duration::from_millis(20))
}

fn expect_dropped(engine: &Engine, phase: &str) {
    let dropped = engine.wait_running(0.0, DROPPED);
    eprintln!(
        "client leaves {phase}: vLLM runs nothing after {} ms",
        dropped.as_millis()
    );
}
