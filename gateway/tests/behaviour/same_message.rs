//! B9: stream and non-stream give the same message for the same text of the engine, through the whole gateway.

use serde_json::{Value, json};

use super::harness::{Gateway, MODEL, Replica, Request, Settings, completion, delta, finish};

/// What a raw vLLM writes, and the message that it stands for.
fn cases() -> Vec<(&'static str, Value)> {
    let call = |name: &str, arguments: &str| json!({"name": name, "arguments": arguments});
    vec![
        (
            "Just text, with é and 😀.",
            json!({"content": "Just text, with é and 😀."}),
        ),
        (
            "<think>\nHm, é.\n</think>\n\nFour.",
            json!({"reasoning": "Hm, é.\n", "content": "Four."}),
        ),
        ("<think>\nonly thought", json!({"reasoning": "only thought"})),
        (
            "<think>\nI look it up.\n</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}\n</tool_call>",
            json!({"reasoning": "I look it up.\n", "calls": [call("get_weather", "{\"city\": \"Ulm\", \"days\": 3}")]}),
        ),
        (
            "First this.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"a </b> c\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>",
            json!({"content": "First this.\n", "calls": [call("get_weather", "{\"city\": \"a </b> c\"}"), call("get_weather", "{\"city\": \"Köln\"}")]}),
        ),
    ]
}

fn question(stream: bool) -> Request {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]});
    Request::post(
        "/v1/chat/completions",
        &json!({
            "model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "How is it in Ulm?"}],
            "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}],
        }),
    )
}

/// A stream's chunks put together as a client's SDK does, or a whole message: without ids.
fn message(answer: &[Value]) -> Value {
    let mut texts = [
        ("reasoning", String::new()),
        ("reasoning_content", String::new()),
        ("content", String::new()),
    ];
    let mut calls: Vec<(String, String)> = Vec::new();
    let mut ids = Vec::new();
    let mut end = Value::Null;
    for chunk in answer {
        let Some(choice) = chunk["choices"].get(0) else {
            continue;
        };
        let said = choice.get("delta").unwrap_or(&choice["message"]);
        for (field, text) in &mut texts {
            text.push_str(said[*field].as_str().unwrap_or_default());
        }
        for (at, call) in said["tool_calls"].as_array().into_iter().flatten().enumerate() {
            let index = call["index"].as_u64().map_or(at, |index| index as usize);
            if let Some(name) = call["function"]["name"].as_str() {
                assert_eq!((index, &call["type"]), (calls.len(), &json!("function")));
                calls.push((name.to_owned(), String::new()));
                ids.push(call["id"].as_str().unwrap().to_owned());
            }
            calls[index]
                .1
                .push_str(call["function"]["arguments"].as_str().unwrap_or_default());
        }
        if !choice["finish_reason"].is_null() {
            end = choice["finish_reason"].clone();
        }
    }
    assert!(
        ids.iter()
            .all(|id| ids.iter().filter(|other| *other == id).count() == 1),
        "call ids repeat: {ids:?}"
    );
    let [(_, reasoning), (_, reasoning_content), (_, content)] = texts;
    assert_eq!(reasoning, reasoning_content, "B14: both names carry the same");
    let mut message = json!({"finish": end});
    if !reasoning.is_empty() {
        message["reasoning"] = json!(reasoning);
    }
    if !content.is_empty() {
        message["content"] = json!(content);
    }
    if !calls.is_empty() {
        message["calls"] = calls
            .iter()
            .map(|(name, arguments)| json!({"name": name, "arguments": arguments}))
            .collect();
    }
    message
}

async fn whole(gateway: &Gateway, replica: &mut Replica, text: &str) -> Value {
    let mut client = gateway.open(question(false)).await;
    let asked = replica.next().await;
    assert_eq!(
        asked.json()["stream"],
        false,
        "a non-stream request is non-stream upstream"
    );
    assert_eq!(asked.json()["tool_choice"], "none", "B19: raw text is asked for");
    asked.answer("200 OK", &completion(text, "stop", 10)).await;
    let answer = client.message().await.json();
    let content = &answer["choices"][0]["message"]["content"];
    assert!(
        content.is_null() || content != "",
        "B21: content is null when there is none"
    );
    message(&[answer])
}

/// The bytes of the stream are cut in pieces of `size`.
async fn streamed(gateway: &Gateway, replica: &mut Replica, text: &str, chars: usize, size: usize) -> Value {
    let mut client = gateway.open(question(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    let mut body = format!("data: {}\n\n", delta(json!({"role": "assistant", "content": ""})));
    let characters: Vec<char> = text.chars().collect();
    for piece in characters.chunks(chars) {
        body += &format!(
            "data: {}\n\n",
            delta(json!({"content": piece.iter().collect::<String>()}))
        );
    }
    body += &format!("data: {}\n\ndata: [DONE]\n\n", finish("stop"));
    for piece in body.as_bytes().chunks(size) {
        asked.piece(piece).await;
    }
    asked.write(b"0\r\n\r\n").await;
    message(&client.message().await.chunks())
}

#[tokio::test]
async fn b9_stream_and_message_are_the_same_however_the_bytes_are_cut() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut replica = replica;
    for (text, mut wanted) in cases() {
        wanted["finish"] = if wanted["calls"].is_array() {
            json!("tool_calls")
        } else {
            json!("stop")
        };
        assert_eq!(whole(&gateway, &mut replica, text).await, wanted, "{text}");
        for (chars, size) in [
            (1, 1_000_000),
            (1, 1),
            (3, 7),
            (7, 100),
            (1_000, 64),
            (1_000, 1_000_000),
        ] {
            let got = streamed(&gateway, &mut replica, text, chars, size).await;
            assert_eq!(got, wanted, "{text} in deltas of {chars} and pieces of {size}");
        }
    }
}

#[tokio::test]
async fn b9_a_message_has_no_time_to_first_token() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    replica.always("hi");
    gateway.ask(Request::chat(false).id("whole")).await;
    gateway.ask(Request::chat(true).id("stream")).await;
    let row = super::harness::record(&gateway, "whole").await;
    for field in [
        "ttft_engine_ms",
        "ttft_client_ms",
        "itl_p50_ms",
        "itl_p99_ms",
        "itl_max_ms",
        "tpot_ms",
    ] {
        assert_eq!(row[field], Value::Null, "{field}");
    }
    let row = super::harness::record(&gateway, "stream").await;
    assert!(
        row["ttft_engine_ms"].is_number() && row["ttft_client_ms"].is_number(),
        "{row}"
    );
}
