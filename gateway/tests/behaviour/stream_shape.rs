//! B7, B8: what a streamed answer looks like, and that nothing is held back.

use serde_json::{Value, json};

use super::harness::{Gateway, MODEL, Replica, Request, Settings, ask, chunk, delta, finish, usage};

async fn gateway() -> (Gateway, Replica) {
    let replica = Replica::start().await;
    (Settings::before(&[&replica]).start().await, replica)
}

fn choice(chunk: &Value) -> &Value {
    &chunk["choices"][0]
}

#[tokio::test]
async fn b7_one_role_one_id_one_done_and_no_usage_that_was_not_asked_for() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true)).await;
    let asked = replica.next().await;
    // It is always asked for upstream, for the record.
    assert_eq!(asked.json()["stream_options"], json!({"include_usage": true}));
    asked.tell_text("hello there").await;
    let answer = client.message().await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    let chunks = answer.chunks();
    let roles = chunks
        .iter()
        .filter(|chunk| choice(chunk)["delta"]["role"].is_string())
        .count();
    assert_eq!(roles, 1);
    for chunk in &chunks {
        assert!(
            chunk["choices"].as_array().is_some_and(|choices| choices.len() == 1),
            "{chunk}"
        );
        assert!(chunk.get("usage").is_none_or(Value::is_null), "{chunk}");
        for field in ["id", "model", "created", "object"] {
            assert_eq!(chunk[field], chunks[0][field]);
        }
    }
    let text: String = chunks
        .iter()
        .filter_map(|chunk| choice(chunk)["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "hello there");
    let finishes: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &choice(chunk)["finish_reason"])
        .filter(|f| !f.is_null())
        .collect();
    assert_eq!(finishes, ["stop"]);
}

#[tokio::test]
async fn b7_usage_comes_last_and_once_if_asked_for() {
    let (gateway, mut replica) = gateway().await;
    let mut body = ask(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut client = gateway.open(Request::post("/v1/chat/completions", &body)).await;
    replica.next().await.tell_text("hello").await;
    let chunks = client.message().await.chunks();
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["prompt_tokens"], 10);
    assert_eq!(last["usage"]["completion_tokens"], 3);
    assert!(
        last["usage"]["completion_tokens_details"]["reasoning_tokens"].is_u64(),
        "B18: {last}"
    );
    assert!(before.iter().all(|chunk| chunk.get("usage").is_none_or(Value::is_null)));
}

#[tokio::test]
async fn b7_ids_that_change_and_roles_that_repeat_upstream_are_put_right() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    for (n, text) in ["a", "b", "c"].into_iter().enumerate() {
        let mut event = delta(json!({"role": "assistant", "content": text}));
        event["id"] = json!(format!("chatcmpl-{n}"));
        event["created"] = json!(1_700_000_000 + n);
        asked.event(&event).await;
    }
    asked.event(&finish("stop")).await;
    asked.done().await;
    let chunks = client.message().await.chunks();
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["created"] == chunks[0]["created"])
    );
    assert_eq!(
        chunks
            .iter()
            .filter(|chunk| choice(chunk)["delta"]["role"].is_string())
            .count(),
        1
    );
}

#[tokio::test]
async fn b7_what_is_neither_choices_nor_error_is_no_data_line_and_one_done_is_enough() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    asked.piece(b": a comment of the engine\n\n").await;
    asked.event(&delta(json!({"role": "assistant", "content": "hi"}))).await;
    asked.event(&finish("stop")).await;
    asked.piece(b"data: [DONE]\n\ndata: [DONE]\n\n").await;
    asked.write(b"0\r\n\r\n").await;
    let answer = client.message().await;
    assert_eq!(answer.text().matches("[DONE]").count(), 1);
    assert!(answer.chunks().iter().all(|chunk| chunk["choices"].is_array()));
}

#[tokio::test]
async fn b7_a_silent_stream_is_kept_alive_by_comments_before_and_after_the_first_token() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("server", "keep_alive = \"100ms\"")
        .start()
        .await;
    let mut replica = replica;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    for _ in 0..2 {
        assert_eq!(client.piece().await.unwrap().unwrap(), b": keep-alive\n\n");
    }
    asked.event(&delta(json!({"role": "assistant", "content": "hi"}))).await;
    assert!(client.event().await.contains("hi"));
    assert_eq!(client.piece().await.unwrap().unwrap(), b": keep-alive\n\n");
    asked.event(&finish("stop")).await;
    assert!(client.event().await.contains("stop"));
    asked.done().await;
}

#[tokio::test]
async fn b8_each_event_arrives_before_the_next_is_sent() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    asked.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    assert!(client.event().await.contains("assistant"));
    for n in 0..50 {
        asked.event(&delta(json!({"content": format!("word{n} ")}))).await;
        assert!(client.event().await.contains(&format!("word{n} ")));
    }
    asked.event(&finish("stop")).await;
    assert!(client.event().await.contains("\"finish_reason\":\"stop\""));
    asked.done().await;
    assert_eq!(client.event().await, "data: [DONE]\n\n");
    assert_eq!(client.piece().await.unwrap(), None);
}

#[tokio::test]
async fn b8_events_that_need_no_change_leave_as_the_bytes_they_came_in() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    asked.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    client.event().await;
    let odd = format!(
        "data: {{\"id\": \"chatcmpl-1\",\"object\":\"chat.completion.chunk\" ,\"created\":1700000000,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"\\u00e9\"}},\"future\":1.50}}]}}\n\n"
    );
    asked.piece(odd.as_bytes()).await;
    assert_eq!(client.event().await, odd);
}

#[tokio::test]
async fn b8_an_event_that_is_cut_anywhere_arrives_whole_and_events_that_come_together_go_together() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    asked.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    client.event().await;
    let event = format!("data: {}\n\n", delta(json!({"content": "é"})));
    for at in [1, 10, event.find('é').unwrap() + 1, event.len() - 1] {
        asked.piece(&event.as_bytes()[..at]).await;
        asked.piece(&event.as_bytes()[at..]).await;
        assert_eq!(client.event().await, event);
    }
    asked.piece(event.repeat(8).as_bytes()).await;
    let mut got = String::new();
    while got.len() < event.len() * 8 {
        got += &client.event().await;
    }
    assert_eq!(got, event.repeat(8));
}

/// What came with it is read when the first token has left, and then goes together.
#[tokio::test]
async fn b8_the_first_token_waits_for_nothing_that_came_with_it() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    let event = |content: &str| format!("data: {}\n\n", delta(json!({"content": content})));
    let role = format!("data: {}\n\n", delta(json!({"role": "assistant", "content": null})));
    let pieces = [role, event("one"), event("two"), event("three")];
    asked.pieces(&pieces).await;
    let mut next = async || String::from_utf8(client.piece().await.unwrap().unwrap()).unwrap();
    assert_eq!(next().await, pieces[..2].concat());
    assert_eq!(next().await, pieces[2..].concat());
}

#[tokio::test]
async fn b13_several_choices_logprobs_and_fields_of_the_future_pass_unharmed() {
    let (gateway, mut replica) = gateway().await;
    let mut body = ask(true);
    let extra = json!({
        "n": 2, "logprobs": true, "top_logprobs": 2, "stop": ["\n\n", "END"], "response_format": {"type": "json_object"},
        "structured_outputs": {"regex": "a+"}, "seed": 18_446_744_073_709_551_615u64, "temperature": 0.10, "future": {"x": [1, null]},
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    let mut client = gateway.open(Request::post("/v1/chat/completions", &body)).await;
    let mut asked = replica.next().await;
    let mut sent = asked.json();
    sent.as_object_mut().unwrap().remove("stream_options");
    assert_eq!(sent, body);
    asked.stream().await;
    let logprobs = json!({"content": [{"token": "x", "logprob": -0.25, "bytes": [120], "top_logprobs": []}]});
    for index in [0, 1] {
        asked
            .event(&chunk(
                json!([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]),
            ))
            .await;
    }
    for index in [1, 0, 1] {
        let event = json!([{"index": index, "delta": {"content": index.to_string()}, "logprobs": logprobs, "finish_reason": null, "token_ids": [7]}]);
        asked.event(&chunk(event)).await;
    }
    for index in [0, 1] {
        asked
            .event(&chunk(
                json!([{"index": index, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}]),
            ))
            .await;
    }
    asked.event(&usage(10, 5)).await;
    asked.done().await;
    let chunks = client.message().await.chunks();
    for index in [0, 1] {
        let own: Vec<&Value> = chunks
            .iter()
            .map(choice)
            .filter(|choice| choice["index"] == index)
            .collect();
        let text: String = own
            .iter()
            .filter_map(|choice| choice["delta"]["content"].as_str())
            .collect();
        assert_eq!(text, ["0", "11"][index]);
        assert_eq!(
            own.iter().filter(|choice| choice["delta"]["role"].is_string()).count(),
            1
        );
        assert!(
            own.iter()
                .any(|choice| choice["logprobs"] == logprobs && choice["token_ids"] == json!([7]))
        );
        assert_eq!(own.last().unwrap()["stop_reason"], "END");
    }
}
