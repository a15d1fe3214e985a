//! The endpoints beside chat: what Sluice answers itself, and what it forwards as it is (B1, B2).

use serde_json::{Value, json};

use crate::engine::{KEY, SetUp, shared};
use crate::gateway::{CLIENT_KEY, Gateway};
use crate::message::chunks;
use crate::script::{MODEL, Script};
use crate::wire::Call;

#[test]
fn models() {
    let gateway = Gateway::before(SetUp::Raw);
    let list = gateway.get("/v1/models").whole().unwrap();
    assert_eq!(list.status, 200);
    let list = list.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert!(ids.contains(&&json!(MODEL)), "the served model is listed");
    let one = gateway.get("/v1/models/Qwen/Qwen3-32B-AWQ").whole().unwrap();
    assert_eq!((one.status, &one.json()["id"]), (200, &json!(MODEL)));
    assert_eq!(gateway.get("/v1/models/gpt-4").whole().unwrap().status, 404);
    let by_alias = Script::say("Hello.").chat(json!({"model": "qwen3-alias"}));
    assert_eq!(gateway.chat(&by_alias).status, 200, "an alias is a name for it");
    let by_default = Script::say("Hello.").chat(json!({"model": null}));
    assert_eq!(
        gateway
            .post("/v1/chat/completions", &[], &without(by_default, "model"))
            .whole()
            .unwrap()
            .status,
        200
    );
}

#[test]
fn health_and_version() {
    let gateway = Gateway::before(SetUp::Raw);
    for path in ["/health", "/ping"] {
        assert_eq!(gateway.get(path).whole().unwrap().status, 200, "{path}");
    }
    let version = gateway.get("/version").whole().unwrap();
    assert_eq!(version.status, 200);
    assert!(
        version.json()["version"]
            .as_str()
            .is_some_and(|version| !version.is_empty())
    );
}

#[test]
fn tokenize_and_detokenize_are_the_engines() {
    let gateway = Gateway::before(SetUp::Raw);
    let ask = |call: Call<'_>| {
        let answer = call.whole().unwrap();
        assert_eq!(answer.status, 200);
        answer.json()
    };
    let body = json!({"model": MODEL, "prompt": "<think>hello</think> 日本語"});
    let port = shared(SetUp::Raw).port;
    let direct = Call {
        port,
        method: "POST",
        path: "/tokenize",
        key: Some(KEY),
        headers: &[],
        body: Some(&body),
    };
    let tokens = ask(gateway.post("/tokenize", &[], &body));
    assert_eq!(tokens, ask(direct), "as if asked directly");
    assert!(tokens["count"].as_u64().is_some_and(|count| count > 3));
    let back = json!({"model": MODEL, "tokens": tokens["tokens"]});
    assert_eq!(ask(gateway.post("/detokenize", &[], &back))["prompt"], body["prompt"]);
}

#[test]
fn completions_keep_their_text() {
    let text = "<think>\na\n</think>\n\n there was <tool_call>{\"name\": \"now\"}</tool_call> to see";
    for set_up in SetUp::BOTH {
        let gateway = Gateway::before(set_up);
        let prompt = format!("Once upon a time {}", Script::say(text).marker());
        let mut body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 128, "temperature": 0});
        let whole = gateway.post("/v1/completions", &[], &body).whole().unwrap();
        assert_eq!(whole.status, 200);
        let whole = whole.json();
        assert_eq!(whole["object"], "text_completion");
        assert_eq!(whole["choices"][0]["text"], text, "{set_up:?}: text is not judged here");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let used = &whole["usage"]["completion_tokens"];

        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let events = gateway
            .post("/v1/completions", &[], &body)
            .open()
            .unwrap()
            .events()
            .unwrap();
        let chunks = chunks(&events);
        let streamed: String = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(streamed, text, "{set_up:?}: streamed");
        let last = chunks.last().unwrap();
        assert_eq!(
            (&last["choices"], &last["usage"]["completion_tokens"]),
            (&json!([]), used)
        );
        assert!(
            chunks[..chunks.len() - 1]
                .iter()
                .all(|chunk| chunk["choices"].get(0).is_some())
        );
    }
}

#[test]
fn responses_and_messages_are_forwarded() {
    let gateway = Gateway::before(SetUp::Parsers);
    let marker = Script::say("<think>\nGreet.\n</think>\n\nHello there.").marker();
    let response = json!({"model": MODEL, "input": format!("Hi {marker}"), "max_output_tokens": 64});
    let message =
        json!({"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": format!("Hi {marker}")}]});
    for (path, body, last_event) in [
        ("/v1/responses", response, "response.completed"),
        ("/v1/messages", message, "message_stop"),
    ] {
        let whole = gateway.post(path, &[], &body).whole().unwrap();
        assert_eq!(
            (whole.status, whole.headers.get("x-sluice-pipeline")),
            (200, Some("engine")),
            "{path}"
        );
        assert!(whole.text().contains("Hello there."), "{path}: the engine's answer");
        let mut body = body;
        body["stream"] = json!(true);
        let mut stream = gateway.post(path, &[], &body).open().unwrap();
        assert_eq!(
            (stream.status, stream.headers.get("x-sluice-pipeline")),
            (200, Some("engine")),
            "{path}"
        );
        let events = stream.events().unwrap();
        assert!(
            events.iter().any(|event| event.contains(last_event)),
            "{path}: streamed to its end"
        );
    }
}

#[test]
fn anthropics_header_carries_the_key_on_messages() {
    let gateway = Gateway::before(SetUp::Parsers);
    let prompt = format!(
        "Hi {}",
        Script::say("<think>\nGreet.\n</think>\n\nHello there.").marker()
    );
    let body = json!({"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": prompt}]});
    for (key, status) in [(CLIENT_KEY, 200), ("sk-somebody-elses", 401)] {
        let headers = [("x-api-key", key)];
        let mut call = gateway.post("/v1/messages", &headers, &body);
        call.key = None;
        let answer = call.whole().unwrap();
        assert_eq!(answer.status, status);
        assert!(
            status == 200 || answer.json()["type"] == "error",
            "an error has Anthropic's shape here"
        );
    }
}

fn without(mut body: Value, key: &str) -> Value {
    body.as_object_mut().unwrap().remove(key);
    body
}
