//! An engine killed with -9 (B10, first half of B31). Before the first byte another replica answers and the client never
//! knows; in mid-stream the client is told, by an error event and no `[DONE]`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::{Engine, SetUp, shared};
use crate::gateway::Gateway;
use crate::message::{Message, payload};
use crate::script::Script;
use crate::wire::Answer;

/// Sessions tried until one lands on the replica that is going to die.
const SESSIONS: usize = 64;
const TAKEN: Duration = Duration::from_secs(30);

#[test]
fn before_the_first_byte_another_replica_answers() {
    let mut victim = Engine::start(SetUp::Raw).unwrap();
    let gateway = Gateway::over(&[("victim", &victim), ("survivor", shared(SetUp::Raw))]);
    let session = session_on(&gateway, "victim");
    let text = "<think>\nStill here.\n</think>\n\nAnswered all the same.";
    // The head of a stream may be sent before; the first data line comes with the first token.
    let body = Script::say(text).chat_with_long_prefill(gateway.port, json!({"stream": true}));
    let (id, headers) = (
        "dies-before-the-first-byte",
        [
            ("x-request-id", "dies-before-the-first-byte"),
            ("x-session-id", &session),
        ],
    );
    let socket = gateway.post("/v1/chat/completions", &headers, &body).send().unwrap();
    victim.wait_running(1.0, TAKEN);
    victim.kill();
    let events = Answer::read(socket).unwrap().events().expect("the stream ends well");
    let want = Message::expect(Some("Still here."), Some("Answered all the same."), &[], "stop");
    assert_eq!(Message::of_events(&events).trimmed(), want);
    let row = gateway.record(id);
    assert_eq!(
        (&row["replica"], &row["attempts"], &row["status"]),
        (&json!("survivor"), &json!(2), &json!(200))
    );
    assert_eq!(row["cancelled"], false);

    // It is dead now: its sessions go to the other one, which answers.
    let body = Script::say(text).chat(json!({"stream": true}));
    let again = gateway.post("/v1/chat/completions", &headers, &body).open().unwrap();
    assert_eq!(
        (again.status, again.headers.get("x-sluice-replica")),
        (200, Some("survivor"))
    );
}

#[test]
fn in_mid_stream_the_client_is_told() {
    let mut victim = Engine::start(SetUp::Raw).unwrap();
    let gateway = Gateway::over(&[("victim", &victim)]);
    let script = Script::say(&format!("<think>\n{}</think>\n\nDone.", "word ".repeat(400)));
    let script = script.each_token_after(Duration::from_millis(20));
    let id = "dies-in-mid-stream";
    let mut answer = gateway.stream(id, &script.chat(json!({"stream": true})));
    for _ in 0..5 {
        answer.event().unwrap().expect("the stream is far from its end");
    }
    victim.kill();
    let events = answer.events().expect("the body ends as HTTP promises, even so");
    let data: Vec<&str> = events.iter().filter_map(|event| payload(event)).collect();
    let errors: Vec<Value> = data
        .iter()
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .filter(|data| data.get("error").is_some())
        .collect();
    assert_eq!(errors.len(), 1, "one error event");
    assert!(
        data.last().unwrap().starts_with("{\"error\""),
        "nothing follows it, no [DONE] above all"
    );
    let error = &errors[0]["error"];
    for field in ["message", "type", "param", "code"] {
        assert!(error.get(field).is_some(), "an error has {field}");
    }
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    assert_eq!(error["code"], "upstream_broke");
    let row = gateway.record(id);
    assert_eq!(row["error"], error["code"], "the record names the error");
    assert_eq!((&row["cancelled"], &row["attempts"]), (&json!(false), &json!(1)));
}

/// A session that the gateway sends to `replica`.
fn session_on(gateway: &Gateway, replica: &str) -> String {
    let body = Script::say("Here.").chat(json!({"max_tokens": 8}));
    let lands = |session: &String| {
        let answer = gateway
            .post("/v1/chat/completions", &[("x-session-id", session)], &body)
            .whole()
            .unwrap();
        assert_eq!(answer.status, 200);
        answer.headers.get("x-sluice-replica") == Some(replica)
    };
    (0..SESSIONS)
        .map(|number| format!("session-{number}"))
        .find(lands)
        .expect("a session for each replica")
}
