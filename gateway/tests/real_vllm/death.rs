//! An engine killed with -9 (B10, B31). Before the first byte another replica answers, in mid-stream another one goes on, and the
//! client never knows. If there is none, the client is told, by an error event and no `[DONE]`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::{Engine, SetUp, shared};
use crate::gateway::Gateway;
use crate::message::{Message, payload};
use crate::script::{MODEL, Script};
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
fn in_mid_stream_the_client_is_told_if_nobody_can_go_on() {
    let mut victim = Engine::start(SetUp::Raw).unwrap();
    let gateway = Gateway::over_with(&[("victim", &victim)], "[hold]\ntime = \"1s\"\n");
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
    // It was tried once more, in case it had been restarted.
    assert_eq!((&row["cancelled"], &row["continuations"]), (&json!(false), &json!(0)));
}

/// Conversations that are under way on the engine that dies.
const STREAMS: usize = 6;
/// Some seconds of the engine's time: it is killed in their first tenth.
const TOKENS: u64 = 600;

/// The random model's own words, greedy: no script, which would begin anew in a continuation. Streams, killed at different places,
/// must end as the undisturbed ones do. The engine isn't bound to say the same in another batch, and the text is tokenized
/// again: how many are equal to the byte is printed, and what was shown before stays.
#[test]
fn in_mid_stream_another_engine_goes_on() {
    for set_up in SetUp::BOTH {
        let mut victim = Engine::start(set_up).unwrap();
        // All in one session, so that its engine has read the prompts before: it must not move before that engine dies.
        let gateway = Gateway::over_with(
            &[("victim", &victim), ("survivor", shared(set_up))],
            "[routing]\nstay_margin = \"10m\"\n",
        );
        let session = session_on(&gateway, "victim");
        let body = |number: usize| {
            json!({"model": MODEL, "messages": [{"role": "user", "content": format!("Tell me story {number}.")}],
                "max_tokens": TOKENS, "temperature": 0, "stream": true, "stream_options": {"include_usage": true}})
        };
        let whole: Vec<Answer> = (0..STREAMS)
            .map(|number| gateway.stream_in(&session, &format!("whole-{number}"), &body(number)))
            .collect();
        let undisturbed: Vec<Message> = whole
            .into_iter()
            .map(|mut answer| Message::of_events(&answer.events().unwrap()))
            .collect();
        let mut streams: Vec<(Answer, Vec<String>)> = (0..STREAMS)
            .map(|number| {
                let answer = gateway.stream_in(&session, &format!("cut-{number}"), &body(number));
                assert_eq!(answer.headers.get("x-sluice-replica"), Some("victim"));
                (answer, Vec::new())
            })
            .collect();
        for (number, (answer, events)) in streams.iter_mut().enumerate() {
            for _ in 0..3 + 2 * number {
                events.push(answer.event().unwrap().expect("the stream is far from its end"));
            }
        }
        victim.kill();
        let mut equal = 0;
        for (number, (mut answer, mut events)) in streams.into_iter().enumerate() {
            events.extend(answer.events().expect("the stream ends well"));
            let message = Message::of_events(&events);
            assert_eq!(
                message.finish, undisturbed[number].finish,
                "{set_up:?}, stream {number}"
            );
            equal += usize::from(message == undisturbed[number]);
            let row = gateway.record(&format!("cut-{number}"));
            assert_eq!(
                (&row["replica"], &row["error"], &row["status"]),
                (&json!("survivor"), &Value::Null, &json!(200)),
                "{row}"
            );
            assert_eq!(
                (&row["continuations"], &row["seam"]),
                (&json!(1), &json!("text")),
                "{row}"
            );
            eprintln!(
                "{set_up:?}, stream {number}: {} tokens, longest gap {} ms",
                row["completion_tokens"], row["itl_max_ms"]
            );
        }
        eprintln!("{set_up:?}: {equal} of {STREAMS} are equal to the undisturbed answer");
    }
}

/// A session that the gateway sends to `replica`.
pub(crate) fn session_on(gateway: &Gateway, replica: &str) -> String {
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
