//! A row for each request, with what became of it.

use serde_json::{Value, json};

use super::harness::{
    BACKEND_KEY, KEY, MODEL, Replica, Request, Settings, ask, delta, finish, record, records, until, usage,
};

fn fields(row: &Value, names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| (*name).to_owned())
        .map(|name| (name.clone(), row[&name].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn of_an_answer() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut replica = replica;
    let mut client = gateway.open(Request::chat(true).id("r").session("s")).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    asked.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    for text in ["<think>", "hm", "</think>", "a ", "b ", "c"] {
        asked.event(&delta(json!({"content": text}))).await;
    }
    asked.event(&finish("stop")).await;
    let mut counted = usage(100, 7);
    counted["usage"]["prompt_tokens_details"] = json!({"cached_tokens": 64});
    asked.event(&counted).await;
    asked.done().await;
    let answer = client.message().await;
    answer.chunks();
    let row = record(&gateway, "r").await;
    assert_eq!(
        fields(
            &row,
            &[
                "key_name",
                "endpoint",
                "model",
                "profile",
                "replica",
                "session_source",
                "route",
                "attempts",
                "stream",
                "prompt_tokens",
                "cached_tokens",
                "completion_tokens",
                "tool_calls",
                "finish",
                "status",
                "error",
                "error_side",
                "cancelled",
                "simulated"
            ]
        ),
        json!({
            "key_name": "env", "endpoint": "chat", "model": MODEL, "profile": "chunked_only_safe", "replica": "a",
            "session_source": "x-session-id", "route": "new", "attempts": 1, "stream": true,
            "prompt_tokens": 100, "cached_tokens": 64, "completion_tokens": 7, "tool_calls": 0, "finish": "stop", "status": 200,
            "error": null, "error_side": null, "cancelled": false, "simulated": false,
        })
    );
    assert_eq!(row["bytes_in"], ask(true).to_string().len());
    assert_eq!(row["bytes_out"], answer.body.len());
    let time = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
    assert!(
        time("ttft_engine_ms") <= time("ttft_client_ms") && time("ttft_client_ms") <= time("duration_ms"),
        "{row}"
    );
    assert!(time("itl_p50_ms") <= time("itl_max_ms"), "{row}");
    assert!(
        row["reasoning_tokens"].as_u64().unwrap() >= 1 && row["reasoning_tokens"].as_u64().unwrap() < 7,
        "{row}"
    );
}

#[tokio::test]
async fn of_what_was_refused_on_the_way() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .limit("body_bytes = \"10 KiB\"")
        .start()
        .await;
    gateway.ask(Request::chat(true).without_key().id("no key")).await;
    gateway.ask(Request::chat(true).without_key().id("no-key")).await;
    gateway
        .ask(Request::raw("/v1/chat/completions", "x".repeat(20_000)).id("large"))
        .await;
    gateway
        .ask(Request::raw("/v1/chat/completions", "{").id("no-json"))
        .await;
    let names = [
        "key_name",
        "endpoint",
        "status",
        "error",
        "error_side",
        "attempts",
        "replica",
        "cancelled",
    ];
    let refused = async |id: &str| fields(&record(&gateway, id).await, &names);
    let row = |key: &str, status: u16, error: &str| {
        json!({"key_name": key, "endpoint": "chat", "status": status, "error": error, "error_side": "downstream", "attempts": 0,
            "replica": "", "cancelled": false})
    };
    assert_eq!(refused("no-key").await, row("", 401, "missing_api_key"));
    assert_eq!(refused("large").await, row("env", 413, "body_too_large"));
    assert_eq!(refused("no-json").await, row("env", 400, "bad_request"));
}

/// Neither a route nor a key is needed to leave a trace.
#[tokio::test]
async fn of_what_no_endpoint_takes() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .limit("header_bytes = \"8 KiB\"")
        .limit("header_time = \"300ms\"")
        .start()
        .await;
    let long = |bytes: usize| Request::chat(true).header("x-long", &"x".repeat(bytes));
    for (request, status) in [
        (Request::get("/wp-admin").without_key().id("no-route"), 404),
        (Request::new("DELETE", "/v1/models").id("no-method"), 405),
        (long(9_000).id("long"), 431),
    ] {
        assert_eq!(gateway.ask(request).await.status(), status);
    }
    let names = [
        "key_name",
        "endpoint",
        "status",
        "error",
        "error_side",
        "attempts",
        "cancelled",
    ];
    let row = |endpoint: &str, status: u16, error: &str| {
        json!({"key_name": "", "endpoint": endpoint, "status": status, "error": error, "error_side": "downstream",
            "attempts": 0, "cancelled": false})
    };
    for (id, expected) in [
        ("no-route", row("none", 404, "unknown_url")),
        ("no-method", row("models", 405, "method_not_supported")),
        ("long", row("chat", 431, "headers_too_large")),
    ] {
        assert_eq!(fields(&record(&gateway, id).await, &names), expected);
    }
    // Heads that are no request have an id of ours: a slow one, one beyond hyper's own bound, one that is not HTTP.
    let mut slow = gateway.connect().await;
    slow.write(b"POST /v1/chat").await;
    assert_eq!(slow.message().await.status(), 408);
    assert_eq!(gateway.ask(long(200_000)).await.status(), 431);
    let mut garbage = gateway.connect().await;
    garbage.write(b"\x16\x03\x01 hello\r\n\r\n").await;
    assert_eq!(garbage.message().await.status(), 400);
    let rows = until("the rows of all six", async || {
        let rows = records(&gateway);
        (rows.len() == 6).then_some(rows)
    })
    .await;
    let of = |error: &str| {
        let mut found = rows
            .iter()
            .filter(|row| row["endpoint"] == "none" && row["error"] == error);
        let row = found.next().unwrap_or_else(|| panic!("no row of {error}: {rows:?}"));
        assert!(
            found.next().is_none() && row["id"].as_str().unwrap().starts_with("sl-"),
            "{rows:?}"
        );
        fields(row, &names)
    };
    for (status, error) in [(408, "body_timeout"), (431, "headers_too_large"), (400, "bad_request")] {
        assert_eq!(of(error), row("none", status, error));
    }
}

/// A scan without a key must not push the rows of real requests out of the file.
#[tokio::test]
async fn of_a_scan_only_so_many_are_kept_and_the_rest_is_counted() {
    const SENT: usize = 1_200;
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut client = gateway.connect().await;
    for n in 0..SENT {
        client.send(&Request::get(&format!("/scan/{n}")).without_key()).await;
        assert_eq!(client.message().await.status(), 404);
    }
    // A key of ours: its rows are not bounded by the scan.
    gateway.ask(Request::raw("/v1/chat/completions", "{").id("real")).await;
    assert_eq!(record(&gateway, "real").await["status"], 400);
    let kept = records(&gateway).len() - 1;
    // A minute may have ended in between, which opens another window.
    assert!((1_000..=SENT).contains(&kept), "{kept} rows");
    let metrics = gateway.metrics().await;
    let value = |name: &str| -> usize {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name}:\n{metrics}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    assert_eq!(value("sluice_records_shed_total"), SENT - kept);
}

#[tokio::test]
async fn of_an_upstream_error_before_and_after_the_head() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("continuation", "enabled = false")
        .set("hold", "count = 0")
        .start()
        .await;
    let mut replica = replica;
    let error = json!({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}});
    let mut client = gateway.open(Request::chat(false).id("before")).await;
    replica.next().await.answer("500 Internal Server Error", &error).await;
    assert_eq!(client.message().await.status(), 500);
    let mut client = gateway.open(Request::chat(true).id("after")).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    asked
        .event(&delta(json!({"role": "assistant", "content": "so far"})))
        .await;
    client.head().await;
    client.read_to("so far").await;
    asked.event(&error).await;
    asked.done().await;
    assert!(client.event().await.contains("EngineCore died"));
    let names = ["replica", "attempts", "status", "error", "error_side", "cancelled"];
    let row = |status: u16| json!({"replica": "a", "attempts": 1, "status": status, "error": "upstream_failed", "error_side": "upstream", "cancelled": false});
    assert_eq!(fields(&record(&gateway, "before").await, &names), row(500));
    assert_eq!(fields(&record(&gateway, "after").await, &names), row(200));
}

#[tokio::test]
async fn neither_keys_nor_prompts_nor_answers_are_kept_or_logged() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("log", "level = \"trace\"")
        .start()
        .await;
    replica.always("a-secret-answer");
    let mut body = ask(true);
    body["messages"][0]["content"] = json!("a-secret-question");
    let answer = gateway.ask(Request::post("/v1/chat/completions", &body).id("r")).await;
    assert!(answer.text().contains("a-secret-answer"));
    let row = record(&gateway, "r").await.to_string();
    let log = gateway.log();
    assert!(!log.is_empty());
    for secret in ["a-secret-question", "a-secret-answer", KEY, BACKEND_KEY] {
        assert!(!row.contains(secret), "{secret} in {row}");
        assert!(
            !log.contains(secret),
            "{secret} in the log: {}",
            log.lines().find(|line| line.contains(secret)).unwrap()
        );
    }
}
