//! B4: every limit, its status, and that the message names it. What is refused never reaches a replica.

use serde_json::{Value, json};
use std::time::Duration;

use super::harness::{Gateway, MODEL, Message, Replica, Request, Settings, ask, until};

async fn with(limit: &str) -> (Gateway, Replica) {
    let replica = Replica::start().await;
    (Settings::before(&[&replica]).limit(limit).start().await, replica)
}

fn chat(more: Value) -> Request {
    let mut body = ask(false);
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    Request::post("/v1/chat/completions", &body)
}

fn is_refused(answer: &Message, status: u16, code: &str, named: &str) {
    assert_eq!(answer.status(), status, "{}", answer.text());
    assert_eq!(answer.code(), code);
    assert!(
        answer.error().contains(named),
        "{named} is not named: {}",
        answer.error()
    );
}

#[tokio::test]
async fn b4_header_bytes() {
    let (gateway, replica) = with("header_bytes = \"8 KiB\"").await;
    let request = |bytes: usize| Request::get("/health").header("x-long", &"x".repeat(bytes));
    assert_eq!(gateway.ask(request(7_000)).await.status(), 200);
    is_refused(
        &gateway.ask(request(9_000)).await,
        431,
        "headers_too_large",
        "header_bytes",
    );
    // Far above, hyper's own bound ends the head: still an answer, not a long read.
    let far = gateway.ask(request(200_000)).await;
    assert_eq!(far.status(), 431);
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b4_header_count() {
    let (gateway, _replica) = with("header_count = 20").await;
    let request = |count: usize| {
        (0..count).fold(Request::get("/health"), |request, n| {
            request.header(&format!("x-{n}"), "1")
        })
    };
    assert_eq!(gateway.ask(request(15)).await.status(), 200);
    is_refused(
        &gateway.ask(request(25)).await,
        431,
        "headers_too_large",
        "header_count",
    );
    assert_eq!(gateway.ask(request(200)).await.status(), 431);
}

#[tokio::test]
async fn b4_a_slow_head_is_408_and_the_connection_ends() {
    let (gateway, _replica) = with("header_time = \"300ms\"").await;
    for begun in ["G", "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let mut client = gateway.connect().await;
        client.write(begun.as_bytes()).await;
        is_refused(&client.message().await, 408, "body_timeout", "header_time");
        client.closed().await;
    }
    // Dripping bytes doesn't win time.
    let mut client = gateway.connect().await;
    client.write(b"GET /health HTTP/1.1\r\n").await;
    let dripping = async {
        loop {
            client.write(b"a: b\r\n").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Ok(message) = tokio::time::timeout(Duration::from_millis(1), client.try_message()).await {
                return message;
            }
        }
    };
    let answer = super::harness::within("the slow head is answered", dripping)
        .await
        .unwrap();
    assert_eq!(answer.status(), 408);
    // Silence after an answer ends the connection without a word.
    let mut client = gateway.connect().await;
    client.send(&Request::get("/ping")).await;
    assert_eq!(client.message().await.status(), 200);
    client.closed().await;
}

#[tokio::test]
async fn b4_a_slow_body_is_408() {
    let (gateway, replica) = with("body_time = \"300ms\"").await;
    for request in [Request::chat(false), Request::chat(false).chunked()] {
        let mut client = gateway.connect().await;
        let bytes = request.bytes();
        client.write(&bytes[..bytes.len() - 10]).await;
        is_refused(&client.message().await, 408, "body_timeout", "body_time");
    }
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b4_body_bytes_declared_and_counted() {
    let (gateway, replica) = with("body_bytes = \"10 KiB\"").await;
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "x".repeat(12_000)}]}).to_string();
    let declared = gateway.ask(Request::raw("/v1/chat/completions", body.clone())).await;
    is_refused(&declared, 413, "body_too_large", "body_bytes");
    let counted = gateway
        .ask(Request::raw("/v1/chat/completions", body.clone()).chunked())
        .await;
    is_refused(&counted, 413, "body_too_large", "body_bytes");
    // A declared length is refused before a byte of the body has come.
    let mut client = gateway.connect().await;
    client
        .write(Request::raw("/v1/chat/completions", body).head().as_bytes())
        .await;
    is_refused(&client.message().await, 413, "body_too_large", "body_bytes");
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b4_no_content_encoding() {
    let (gateway, replica) = with("n = 16").await;
    for coding in ["gzip", "br", "deflate, gzip", "aws-chunked"] {
        let answer = gateway
            .ask(Request::chat(false).header("content-encoding", coding))
            .await;
        is_refused(&answer, 415, "content_encoding_not_supported", "Content-Encoding");
    }
    assert!(replica.is_unasked());
    replica.always("hi");
    assert_eq!(
        gateway
            .ask(Request::chat(false).header("content-encoding", "identity"))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn b4_json_depth_is_counted_without_recursion() {
    let (gateway, replica) = with("json_depth = 20").await;
    let nested = |depth: usize| {
        format!(
            "{{\"model\":\"{MODEL}\",\"messages\":[],\"x\":{}{}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    let answer = gateway.ask(Request::raw("/v1/chat/completions", nested(20))).await;
    assert_eq!(answer.status(), 400);
    assert!(answer.error().contains("json_depth"), "{}", answer.error());
    let answer = gateway
        .ask(Request::raw("/v1/chat/completions", nested(2_000_000)))
        .await;
    assert!(answer.error().contains("json_depth"), "{}", answer.error());
    assert!(replica.is_unasked());
    replica.always("hi");
    assert_eq!(
        gateway
            .ask(Request::raw("/v1/chat/completions", nested(19)))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn b4_n_max_tokens_and_grammar() {
    let replica = Replica::start().await;
    let settings = Settings::before(&[&replica])
        .limit("n = 2")
        .limit("max_tokens = 100")
        .limit("grammar_bytes = \"1 KiB\"");
    let gateway = settings.start().await;
    let large = "a".repeat(2_000);
    for (more, named, param) in [
        (json!({"n": 3}), "limit n", "n"),
        (json!({"n": 1_000_000_000}), "limit n", "n"),
        (json!({"max_tokens": 101}), "max_tokens", "max_tokens"),
        (
            json!({"max_completion_tokens": 1_000}),
            "max_tokens",
            "max_completion_tokens",
        ),
        (
            json!({"structured_outputs": {"grammar": large}}),
            "grammar_bytes",
            "structured_outputs",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": large}}}}),
            "grammar_bytes",
            "response_format",
        ),
        (json!({"guided_regex": large}), "grammar_bytes", "guided_regex"),
    ] {
        let answer = gateway.ask(chat(more.clone())).await;
        assert_eq!(answer.status(), 400, "{more}");
        assert!(answer.error().contains(named), "{more}: {}", answer.error());
        assert!(
            answer.json()["error"]["param"].as_str().unwrap().starts_with(param),
            "{}",
            answer.text()
        );
    }
    assert!(replica.is_unasked());
    replica.always("hi");
    assert_eq!(
        gateway.ask(chat(json!({"n": 2, "max_tokens": 100}))).await.status(),
        200
    );
}

#[tokio::test]
async fn b4_fields_that_reach_past_the_conversation_are_refused_unless_granted() {
    let (gateway, mut replica) = with("n = 16").await;
    let image = |url: &str| json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]});
    for more in [
        image("https://example.com/cat.png"),
        image("http://169.254.169.254/latest"),
        image("file:///etc/passwd"),
        image("HTTPS://example.com/cat.png"),
        json!({"kv_transfer_params": {"do_remote_decode": true}}),
        json!({"prompt_embeds": "AAAA"}),
        json!({"chat_template": "{{ 1 }}"}),
        json!({"chat_template_kwargs": {"chat_template": "x"}}),
        json!({"vllm_xargs": {"a": 1}}),
        json!({"logits_processors": ["os.system"]}),
    ] {
        let answer = gateway.ask(chat(more.clone())).await;
        assert_eq!(
            (answer.status(), answer.code().as_str()),
            (400, "field_not_permitted"),
            "{more}: {}",
            answer.text()
        );
    }
    assert!(replica.is_unasked());
    let mut client = gateway.open(chat(image("data:image/png;base64,iVBORw0KGgo="))).await;
    let asked = replica.next().await;
    assert_eq!(
        asked.json()["messages"],
        image("data:image/png;base64,iVBORw0KGgo=")["messages"]
    );
    asked.tell_as_asked("hi").await;
    assert_eq!(client.message().await.status(), 200);
}

#[tokio::test]
async fn b4_a_judged_key_must_not_be_repeated_and_priority_is_the_gateways() {
    let (gateway, mut replica) = with("n = 16").await;
    let twice = format!("{{\"model\":\"{MODEL}\",\"messages\":[],\"n\":1,\"n\":500}}");
    let answer = gateway.ask(Request::raw("/v1/chat/completions", twice)).await;
    assert_eq!(answer.status(), 400);
    assert!(answer.error().contains("repeated"), "{}", answer.error());
    assert!(replica.is_unasked());
    let mut client = gateway.open(chat(json!({"priority": -1000}))).await;
    let asked = replica.next().await;
    assert_eq!(asked.json().get("priority"), None);
    asked.tell_as_asked("hi").await;
    assert_eq!(client.message().await.status(), 200);
}

#[tokio::test]
async fn b4_what_is_no_json_is_400() {
    let (gateway, replica) = with("n = 16").await;
    for body in ["", "{", "[]", "nonsense", "{\"model\":\"\u{1}\"}", "{\"model\": 1e}"] {
        let answer = gateway.ask(Request::raw("/v1/chat/completions", body)).await;
        assert_eq!(
            (answer.status(), &answer.json()["error"]["type"]),
            (400, &json!("invalid_request_error")),
            "{body}"
        );
    }
    let answer = gateway
        .ask(Request::raw("/v1/chat/completions", b"{\"model\":\"\xff\"}".to_vec()))
        .await;
    assert_eq!(answer.status(), 400);
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b4_buffered_bytes_of_all_requests_are_503_and_given_back_at_the_end_of_the_answer() {
    let (gateway, mut replica) = with("buffered_bytes = \"100 KiB\"\nbody_bytes = \"100 KiB\"").await;
    let large = || chat(json!({"user": "x".repeat(60_000)}));
    let mut first = gateway.open(large()).await;
    let asked = replica.next().await;
    let second = gateway.ask(large()).await;
    is_refused(&second, 503, "buffers_full", "buffered_bytes");
    assert!(second.header("retry-after").is_some());
    assert_eq!(second.header("x-should-retry"), Some("true"));
    asked.tell_as_asked("hi").await;
    assert_eq!(first.message().await.status(), 200);
    let mut third = gateway.open(large()).await;
    replica.next().await.tell_as_asked("hi").await;
    assert_eq!(third.message().await.status(), 200);
}

#[tokio::test]
async fn b4_requests_at_once_are_503_and_health_is_answered_all_the_same() {
    let (gateway, mut replica) = with("requests = 1").await;
    let mut first = gateway.open(Request::chat(true)).await;
    let asked = replica.next().await;
    let second = gateway.ask(Request::chat(true)).await;
    assert_eq!((second.status(), second.code().as_str()), (503, "capacity"));
    assert_eq!(
        (second.header("retry-after").is_some(), second.header("x-should-retry")),
        (true, Some("true"))
    );
    assert_eq!(gateway.ask(Request::get("/health")).await.status(), 200);
    asked.tell_text("hi").await;
    first.message().await.chunks();
    // The place is free once the answer has ended.
    let mut third = gateway.open(Request::chat(true)).await;
    replica.next().await.tell_text("hi").await;
    third.message().await.chunks();
}

#[tokio::test]
async fn b4_connections_at_once_are_bounded() {
    let (gateway, _replica) = with("connections = 2").await;
    // The harness's own look at /health may still have a place: a connection that got none is made anew.
    let served = async || {
        let mut client = gateway.connect().await;
        client.send(&Request::get("/ping")).await;
        client.try_head().await.map(|_| client)
    };
    let one = until("a first connection is served", served).await;
    let _two = until("a second connection is served", served).await;
    let mut third = gateway.connect().await;
    third.send(&Request::get("/ping")).await;
    assert!(third.try_head().await.is_none());
    drop(one);
    until("there is a place again", async || {
        gateway.try_ask(Request::get("/ping")).await
    })
    .await;
}

#[tokio::test]
async fn sse_event_bytes_is_the_bound_of_an_upstreams_event() {
    let (gateway, mut replica) = with("sse_event_bytes = \"64 KiB\"").await;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    asked
        .event(&super::harness::delta(
            json!({"role": "assistant", "content": "x".repeat(1_000)}),
        ))
        .await;
    client.head().await;
    client.read_to("xxx").await;
    asked
        .event(&super::harness::delta(json!({"content": "y".repeat(70_000)})))
        .await;
    let end = client.event().await;
    assert!(end.contains("upstream_garbled") && !end.contains("yyy"), "{end}");
    asked.gone().await;
}
