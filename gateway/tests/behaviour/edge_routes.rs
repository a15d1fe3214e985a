//! B1: the allowlist, its hints, CORS, and what is forwarded without the answer pipeline.

use serde_json::{Value, json};

use super::harness::{Gateway, MODEL, Replica, Request, Settings};

async fn gateway() -> (Gateway, Replica) {
    let replica = Replica::start().await;
    (Settings::before(&[&replica]).start().await, replica)
}

#[tokio::test]
async fn b1_an_unknown_route_is_404_in_openais_shape_and_says_what_is_wrong() {
    let (gateway, replica) = gateway().await;
    for (path, hint) in [
        ("/", ""),
        ("/v1", ""),
        ("/v2/chat/completions", ""),
        ("/v1/chat", ""),
        ("/chat/completions", "base_url must end in /v1"),
        ("/models", "base_url must end in /v1"),
        ("/v1/v1/chat/completions", "base_url must end once in /v1"),
    ] {
        let answer = gateway.ask(Request::post(path, &json!({}))).await;
        assert_eq!(
            (answer.status(), answer.code().as_str()),
            (404, "unknown_url"),
            "{path}"
        );
        assert!(answer.error().contains(hint), "{path}: {}", answer.error());
        let error = answer.json()["error"].clone();
        let mut fields: Vec<&String> = error.as_object().unwrap().keys().collect();
        fields.sort();
        assert_eq!(fields, ["code", "message", "param", "type"]);
        assert!(answer.header("x-request-id").is_some());
    }
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b1_control_routes_of_vllm_are_not_reachable() {
    let (gateway, replica) = gateway().await;
    for path in [
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/pause",
        "/resume",
        "/abort_requests",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/start_profile",
        "/stop_profile",
        "/server_info",
        "/scale_elastic_ep",
        "/metrics",
        "/load",
        "/docs",
        "/openapi.json",
        "/invocations",
        "/v1/../sleep",
        "/v1/chat/completions/../../../sleep",
        "/%73leep",
        "//sleep",
        "/tokenizer_info",
    ] {
        for method in ["GET", "POST"] {
            let answer = gateway.ask(Request::new(method, path)).await;
            assert_eq!(answer.status(), 404, "{method} {path}");
        }
    }
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b1_a_doubled_or_trailing_slash_is_accepted() {
    let (gateway, replica) = gateway().await;
    replica.always("hi");
    for path in [
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat/completions/",
        "/v1/chat//completions//",
    ] {
        let answer = gateway.ask(Request::post(path, &super::harness::ask(false))).await;
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
    }
    assert_eq!(gateway.ask(Request::get("/v1/models/")).await.status(), 200);
    assert_eq!(gateway.ask(Request::get("/health/?probe=1")).await.status(), 200);
}

#[tokio::test]
async fn b1_another_method_is_405_and_says_which() {
    let (gateway, replica) = gateway().await;
    for (method, path, allow) in [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/health", "GET"),
        ("GET", "/v1/requests/a/cancel", "POST"),
    ] {
        let answer = gateway.ask(Request::new(method, path)).await;
        assert_eq!(
            (answer.status(), answer.code().as_str()),
            (405, "method_not_supported"),
            "{method} {path}"
        );
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b1_what_the_gateway_knows_it_answers_itself() {
    let (gateway, replica) = gateway().await;
    let models = gateway.ask(Request::get("/v1/models")).await.json();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], MODEL);
    let model = gateway.ask(Request::get("/v1/models/test/model")).await;
    assert_eq!(model.json()["id"], MODEL);
    assert_eq!(
        gateway.ask(Request::get("/v1/models/test%2Fmodel")).await.json()["id"],
        MODEL
    );
    let unknown = gateway.ask(Request::get("/v1/models/other")).await;
    assert_eq!((unknown.status(), unknown.code().as_str()), (404, "model_not_found"));
    assert!(unknown.error().contains(MODEL));
    let health = gateway.ask(Request::get("/health").without_key()).await;
    assert_eq!((health.status(), &health.json()["status"]), (200, &json!("ok")));
    assert_eq!(gateway.ask(Request::get("/ping").without_key()).await.status(), 200);
    assert_eq!(gateway.ask(Request::get("/version")).await.json()["name"], "sluice");
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b1_a_head_request_has_no_body() {
    let (gateway, _replica) = gateway().await;
    let mut client = gateway.connect().await;
    client
        .write(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\nGET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    // The next bytes are the next answer's.
    client.no_body();
    assert_eq!(client.message().await.text(), "{}");
}

#[tokio::test]
async fn b1_what_has_no_pipeline_passes_as_it_is_and_says_so() {
    let (gateway, mut replica) = gateway().await;
    let answer = json!({"object": "list", "data": [{"embedding": [0.25], "index": 0}], "model": MODEL, "x": null});
    for (path, upstream) in [
        ("/v1/embeddings", "/v1/embeddings"),
        ("/rerank", "/v1/rerank"),
        ("/v1/rerank", "/v1/rerank"),
        ("/score", "/v1/score"),
        ("/v1/score", "/v1/score"),
        ("/tokenize", "/tokenize"),
        ("/detokenize", "/detokenize"),
        ("/v1/responses", "/v1/responses"),
        ("/v1/messages", "/v1/messages"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
    ] {
        let mut client = gateway
            .open(Request::post(
                path,
                &json!({"model": MODEL, "input": "x", "future": [1]}),
            ))
            .await;
        let asked = replica.next().await;
        assert_eq!(asked.line, format!("POST {upstream} HTTP/1.1"));
        assert_eq!(asked.json(), json!({"model": MODEL, "input": "x", "future": [1]}));
        asked.answer("200 OK", &answer).await;
        let got = client.message().await;
        assert_eq!(got.header("x-sluice-pipeline"), Some("engine"), "{path}");
        assert_eq!(got.header("content-type"), Some("application/json"));
        assert_eq!(got.header("x-sluice-replica"), Some("a"));
        assert_eq!(got.text(), answer.to_string());
    }
}

#[tokio::test]
async fn b1_a_stream_without_pipeline_passes_piece_by_piece() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway
        .open(Request::post(
            "/v1/responses",
            &json!({"model": MODEL, "input": "x", "stream": true}),
        ))
        .await;
    let mut asked = replica.next().await;
    asked.stream().await;
    let head = client.head().await;
    assert_eq!(head.header("x-sluice-pipeline"), Some("engine"));
    assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
    for piece in [
        "event: response.created\ndata: {\"a\":1}\n\n",
        "event: resp",
        "onse.done\ndata: {}\n\n",
    ] {
        asked.piece(piece.as_bytes()).await;
        assert_eq!(client.piece().await.unwrap().unwrap(), piece.as_bytes());
    }
    asked.write(b"0\r\n\r\n").await;
    assert_eq!(client.piece().await.unwrap(), None);
}

#[tokio::test]
async fn b1_the_end_of_a_passed_stream_is_as_broken_as_the_engines() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway
        .open(Request::post("/v1/responses", &json!({"model": MODEL, "stream": true})))
        .await;
    let mut asked = replica.next().await;
    asked.stream().await;
    asked.piece(b"data: {}\n\n").await;
    let head = client.head().await;
    assert_eq!(client.piece().await.unwrap().unwrap(), b"data: {}\n\n");
    asked.close();
    let rest = client.rest(head).await;
    assert!(!rest.is_complete, "a clean end after the engine broke");
}

#[tokio::test]
async fn b1_cors_is_by_config_and_a_preflight_needs_no_key() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("server", "cors_origins = [\"https://app.example\"]")
        .start()
        .await;
    let preflight = |origin: &str| {
        Request::new("OPTIONS", "/v1/chat/completions")
            .without_key()
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization, content-type")
    };
    let admitted = gateway.ask(preflight("https://app.example")).await;
    assert_eq!(admitted.status(), 204);
    assert_eq!(
        admitted.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    assert_eq!(
        admitted.header("access-control-allow-headers"),
        Some("authorization, content-type")
    );
    assert!(
        admitted
            .header("access-control-allow-methods")
            .unwrap()
            .contains("POST")
    );
    let other = gateway.ask(preflight("https://evil.example")).await;
    assert_ne!(other.status(), 204);
    assert_eq!(other.header("access-control-allow-origin"), None);
    // A page reads answers and errors, and still needs a key.
    let refused = gateway
        .ask(
            Request::chat(false)
                .without_key()
                .header("origin", "https://app.example"),
        )
        .await;
    assert_eq!(refused.status(), 401);
    assert_eq!(
        refused.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    replica.always("hi");
    let answered = gateway
        .ask(Request::chat(false).header("origin", "https://app.example"))
        .await;
    assert_eq!(
        answered.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    assert!(
        answered
            .header("access-control-expose-headers")
            .unwrap()
            .contains("x-request-id")
    );
    assert_eq!(answered.header("vary"), Some("origin"));
    let stranger = gateway
        .ask(Request::chat(false).header("origin", "https://evil.example"))
        .await;
    assert_eq!(
        (stranger.status(), stranger.header("access-control-allow-origin")),
        (200, None)
    );
}

#[tokio::test]
async fn b1_without_cors_origins_no_page_may_call() {
    let (gateway, _replica) = gateway().await;
    let preflight = Request::new("OPTIONS", "/v1/models")
        .without_key()
        .header("origin", "http://localhost:3000")
        .header("access-control-request-method", "GET");
    let answer = gateway.ask(preflight).await;
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_ne!(answer.status(), 204);
}

#[tokio::test]
async fn b5_an_unknown_model_is_404_with_the_ids_and_none_given_is_the_only_backends() {
    let (gateway, mut replica) = gateway().await;
    let mut body = super::harness::ask(false);
    body["model"] = json!("gpt-4o");
    let unknown = gateway.ask(Request::post("/v1/chat/completions", &body)).await;
    assert_eq!((unknown.status(), unknown.code().as_str()), (404, "model_not_found"));
    assert!(
        unknown.error().contains("gpt-4o") && unknown.error().contains(MODEL),
        "{}",
        unknown.error()
    );
    for model in [None, Some(Value::Null)] {
        match model {
            None => drop(body.as_object_mut().unwrap().remove("model")),
            Some(null) => body["model"] = null,
        }
        let mut client = gateway.open(Request::post("/v1/chat/completions", &body)).await;
        let asked = replica.next().await;
        assert_eq!(asked.json()["model"], MODEL);
        asked.tell_as_asked("hi").await;
        assert_eq!(client.message().await.status(), 200);
    }
}
