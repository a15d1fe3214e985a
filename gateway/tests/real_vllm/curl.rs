//! curl before the gateway: the bytes of a stream, the keep-alive comment, refusals, HTTP/2 by prior knowledge (B1, B2, B5–B8).

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::{KEY, SetUp, wait};
use crate::gateway::{CLIENT_KEY, Gateway};
use crate::message::{Message, payload};
use crate::script::{MODEL, Script, tools};

const BEARER: &str = "Authorization: Bearer sk-client-of-the-tests";
const CHAT: &str = "/v1/chat/completions";

#[test]
fn the_bytes_of_a_stream() {
    let gateway = Gateway::before(SetUp::Raw);
    let script =
        Script::say("<think>\nCall it.\n</think>\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>");
    let body = script.chat(json!({"stream": true, "tools": tools(), "stream_options": {"include_usage": true}}));
    let answer = curl(
        &gateway,
        CHAT,
        &["-N", "-H", BEARER, "-H", "x-request-id: curl-1"],
        Some(&body),
    );
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-request-id"), Some("curl-1"));
    assert_eq!(answer.header("x-sluice-replica"), Some("raw"));
    assert_eq!(answer.header("x-sluice-attempts"), Some("1"));
    assert!(matches!(
        answer.header("x-sluice-route"),
        Some("hit" | "miss" | "repin" | "new")
    ));
    assert!(
        answer
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/event-stream"))
    );
    assert_eq!(answer.header("x-sluice-simulated"), None);

    let events = answer.events();
    let want = Message::expect(Some("Call it."), None, &[("now", "{}")], "tool_calls");
    assert_eq!(Message::of_events(&events).trimmed(), want);
    let data: Vec<&str> = events.iter().filter_map(|event| payload(event)).collect();
    let last: Value = serde_json::from_str(data[data.len() - 2]).unwrap();
    assert_eq!(last["choices"], json!([]), "usage comes last");
    assert!(
        last["usage"]["completion_tokens"]
            .as_u64()
            .is_some_and(|tokens| tokens > 0)
    );
    let earlier = data[..data.len() - 2]
        .iter()
        .map(|data| serde_json::from_str::<Value>(data).unwrap());
    assert!(
        earlier.into_iter().all(|chunk| chunk["usage"].is_null()),
        "and nowhere else"
    );
}

#[test]
fn a_silent_stream_is_kept_alive_by_comments() {
    let gateway = Gateway::before(SetUp::Raw);
    let script = Script::say("Hello.").first_token_after(Duration::from_millis(3_500));
    let answer = curl(
        &gateway,
        CHAT,
        &["-N", "-H", BEARER],
        Some(&script.chat(json!({"stream": true}))),
    );
    let events = answer.events();
    let comments = events.iter().take_while(|event| *event == ": keep-alive\n\n").count();
    assert!(
        (1..=4).contains(&comments),
        "{comments} comments in 3.5 silent seconds, one for each"
    );
    assert_eq!(Message::of_events(&events).finish.as_deref(), Some("stop"));
}

#[test]
fn each_401_says_what_is_wrong() {
    let gateway = Gateway::before(SetUp::Raw);
    let body = Script::say("Never said.").chat(json!({}));
    let refused = |authorization: &[&str]| {
        let answer = curl(&gateway, CHAT, authorization, Some(&body));
        assert_eq!(answer.status, 401, "{authorization:?}");
        let error = answer.error();
        assert!(
            !answer.body.contains(CLIENT_KEY) && !answer.body.contains(KEY),
            "no key is told"
        );
        error["message"].as_str().expect("a message").to_owned()
    };
    let missing = refused(&[]);
    let basic = refused(&["-u", "user:sk-client-of-the-tests"]);
    let unknown = refused(&["-H", "Authorization: Bearer sk-client-of-the-test"]);
    assert!(
        missing != basic && basic != unknown && unknown != missing,
        "three causes, three messages"
    );
    let engines = refused(&["-H", "Authorization: Bearer sk-engine-of-the-tests"]);
    assert_eq!(engines, unknown, "the engine's key is none of ours");
    for path in ["/health", "/ping"] {
        assert_eq!(curl(&gateway, path, &[], None).status, 200, "{path} needs no key");
    }
}

#[test]
fn what_is_not_served_is_404() {
    let gateway = Gateway::before(SetUp::Raw);
    let get = |path: &str| curl(&gateway, path, &["-H", BEARER], None);
    for path in [
        "/v1/nothing",
        "/",
        "/metrics",
        "/load",
        "/openapi.json",
        "/sleep",
        "/reset_prefix_cache",
        "/pause",
    ] {
        let answer = get(path);
        assert_eq!(answer.status, 404, "{path}");
        answer.error();
    }
    for path in ["/sleep", "/reset_prefix_cache", "/v1/load_lora_adapter"] {
        assert_eq!(
            curl(&gateway, path, &["-H", BEARER], Some(&json!({}))).status,
            404,
            "POST {path}"
        );
    }
    let body = Script::say("Never said.").chat(json!({}));
    let hint = curl(&gateway, "/chat/completions", &["-H", BEARER], Some(&body));
    assert_eq!(hint.status, 404);
    assert!(
        hint.error()["message"].as_str().unwrap().contains("/v1"),
        "it says what base_url must end in"
    );
    let wrong = Script::say("Never said.").chat(json!({"model": "gpt-4"}));
    let wrong = curl(&gateway, CHAT, &["-H", BEARER], Some(&wrong));
    assert_eq!(wrong.status, 404);
    let error = wrong.error();
    assert_eq!(error["code"], "model_not_found");
    assert!(error["message"].as_str().unwrap().contains(MODEL), "it lists the ids");
}

#[test]
fn doubled_and_trailing_slashes_are_accepted() {
    let gateway = Gateway::before(SetUp::Raw);
    let body = Script::say("Hello.").chat(json!({}));
    for path in [
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat/completions/",
    ] {
        assert_eq!(
            curl(&gateway, path, &["--path-as-is", "-H", BEARER], Some(&body)).status,
            200,
            "{path}"
        );
    }
}

#[test]
fn http2_by_prior_knowledge() {
    let gateway = Gateway::before(SetUp::Raw);
    let body = Script::say("<think>\nOver h2.\n</think>\n\nHello.").chat(json!({"stream": true}));
    let answer = curl(
        &gateway,
        CHAT,
        &["-N", "--http2-prior-knowledge", "-H", BEARER],
        Some(&body),
    );
    assert_eq!((answer.status, answer.version.as_str()), (200, "HTTP/2"));
    let want = Message::expect(Some("Over h2."), Some("Hello."), &[], "stop");
    assert_eq!(Message::of_events(&answer.events()).trimmed(), want);
}

/// What curl printed with `--include`.
struct Printed {
    version: String,
    status: u16,
    head: String,
    body: String,
}

impl Printed {
    fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|field| field.split_once(": "));
        fields
            .into_iter()
            .find(|(have, _)| have.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn events(&self) -> Vec<String> {
        assert!(!self.body.contains('\r'), "lines end in a line feed");
        self.body.split_inclusive("\n\n").map(str::to_owned).collect()
    }

    /// The error in OpenAI's shape.
    fn error(&self) -> Value {
        let body: Value = serde_json::from_str(&self.body).expect("an error is JSON");
        let error = &body["error"];
        for field in ["message", "type", "param", "code"] {
            assert!(error.get(field).is_some(), "an error has {field}");
        }
        error.clone()
    }
}

/// Runs curl; with a body it posts JSON.
fn curl(gateway: &Gateway, path: &str, options: &[&str], body: Option<&Value>) -> Printed {
    let limit = Duration::from_secs(60);
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--include",
        "--max-time",
        "60",
        "--noproxy",
        "*",
        "--output",
    ]);
    command.arg(output.path()).args(options);
    if body.is_some() {
        command.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]);
    }
    command
        .arg(format!("http://127.0.0.1:{}{path}", gateway.port))
        .stdin(Stdio::piped());
    let mut child = command.spawn().expect("curl starts");
    let mut input = child.stdin.take().unwrap();
    if let Some(body) = body {
        input.write_all(body.to_string().as_bytes()).unwrap();
    }
    drop(input);
    assert_eq!(
        wait(child, limit + Duration::from_secs(5), "curl"),
        Ok(true),
        "{path}: curl is content"
    );
    let printed = std::fs::read_to_string(output.path()).expect("text");
    let (head, body) = printed.split_once("\r\n\r\n").expect("a head and a body");
    let mut words = head.split_whitespace();
    let (version, status) = (words.next().unwrap().to_owned(), words.next().unwrap().parse().unwrap());
    Printed {
        version,
        status,
        head: head.replace('\r', ""),
        body: body.to_owned(),
    }
}
