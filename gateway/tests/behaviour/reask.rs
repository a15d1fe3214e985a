//! B26, B27: a tool call that can't be repaired is asked again from the same replica, and the client sees one answer.

use serde_json::{Value, json};

use super::harness::{Asked, Gateway, MODEL, Replica, Request, Settings, completion, delta, finish, record, usage};

const GOOD: &str = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Ulm\"}}\n</tool_call>";
/// A name that nobody declared: never guessed, never repaired.
const BROKEN: &str = "<tool_call>\n{\"name\": \"get_wether\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";
const GUIDED: &str = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bonn\"}}\n</tool_call>";

fn question(stream: bool) -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let mut body = json!({
        "model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "How is it in Ulm, and in Bonn?"}],
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}],
        "chat_template_kwargs": {"enable_thinking": false}, "temperature": 0.7, "stop": ["END"], "max_tokens": 400,
    });
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

fn request(stream: bool) -> Request {
    Request::post("/v1/chat/completions", &question(stream)).id("r")
}

async fn gateway(settings: impl FnOnce(Settings) -> Settings) -> (Gateway, Replica) {
    let replica = Replica::start().await;
    let gateway = settings(Settings::before(&[&replica])).start().await;
    (gateway, replica)
}

/// What the first answer says, as a stream that goes on, or as a message.
async fn says(mut asked: Asked, stream: bool, text: &str) -> Option<Asked> {
    if !stream {
        asked.answer("200 OK", &completion(text, "stop", 100)).await;
        return None;
    }
    asked.stream().await;
    asked.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    for piece in text.split_inclusive(' ') {
        asked.event(&delta(json!({"content": piece}))).await;
    }
    Some(asked)
}

fn ids(count: u64, from: u64) -> Value {
    json!({"count": count, "max_model_len": 1000, "tokens": (from..from + count).collect::<Vec<_>>(), "token_strs": null})
}

/// The prompt is tokenized from the client's own fields.
async fn tokenizes_prompt(replica: &mut Replica) {
    let asked = replica.next().await;
    assert_eq!(asked.line, "POST /tokenize HTTP/1.1");
    let (body, sent) = (asked.json(), question(false));
    for field in ["messages", "tools", "chat_template_kwargs"] {
        assert_eq!(body[field], sent[field], "{field}");
    }
    assert_eq!(body["model"], MODEL);
    asked.answer("200 OK", &ids(100, 1)).await;
}

async fn tokenizes_text(replica: &mut Replica, text: &str, count: u64) {
    let asked = replica.next().await;
    assert_eq!(asked.line, "POST /tokenize HTTP/1.1");
    let body = asked.json();
    assert_eq!(
        (&body["prompt"], &body["add_special_tokens"]),
        (&json!(text), &json!(false))
    );
    asked.answer("200 OK", &ids(count, 500)).await;
}

/// The request to go on behind so many tokens.
async fn goes_on(replica: &mut Replica, said: u64) -> Asked {
    let asked = replica.next().await;
    assert_eq!(asked.line, "POST /v1/completions HTTP/1.1");
    let body = asked.json();
    let ids: Vec<u64> = (1..101).chain(500..500 + said).collect();
    assert_eq!(body["prompt"], json!(ids));
    asked
}

async fn tells(mut asked: Asked, text: &str, prompt: u64, tokens: u64) {
    let finish = |text: &str, reason: Value| {
        json!({"id": "cmpl-9", "object": "text_completion", "created": 9, "model": MODEL,
        "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": reason, "stop_reason": null}]})
    };
    let counts = json!({"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens});
    if asked.json()["stream"] != true {
        let mut body = finish(text, json!("stop"));
        body["usage"] = counts;
        return asked.answer("200 OK", &body).await;
    }
    asked.stream().await;
    for piece in text.split_inclusive(' ') {
        asked.event(&finish(piece, Value::Null)).await;
    }
    asked.event(&finish("", json!("stop"))).await;
    let mut last = finish("", Value::Null);
    (last["choices"], last["usage"]) = (json!([]), counts);
    asked.event(&last).await;
    asked.done().await;
}

/// Content, calls, finish, usage and the only id of an answer.
fn message(chunks: &[Value]) -> (String, Vec<(String, String)>, Value, Value) {
    let (mut content, mut calls, mut end, mut counts) = (String::new(), Vec::new(), Value::Null, Value::Null);
    for chunk in chunks {
        assert_eq!(chunk["id"], "chatcmpl-1", "one id");
        if chunk["usage"].is_object() {
            counts = chunk["usage"].clone();
        }
        let Some(choice) = chunk["choices"].get(0) else {
            continue;
        };
        assert!(end.is_null(), "nothing follows the finish");
        let said = choice.get("delta").unwrap_or(&choice["message"]);
        content += said["content"].as_str().unwrap_or_default();
        for call in said["tool_calls"].as_array().into_iter().flatten() {
            let text = |key: &str| call["function"][key].as_str().unwrap().to_owned();
            calls.push((text("name"), text("arguments")));
        }
        end = choice["finish_reason"].clone();
    }
    (content, calls, end, counts)
}

fn weather(city: &str) -> (String, String) {
    ("get_weather".to_owned(), format!("{{\"city\": \"{city}\"}}"))
}

#[tokio::test]
async fn b26_the_same_replica_goes_on_and_the_client_sees_one_answer() {
    for stream in [true, false] {
        let (gateway, mut replica) = gateway(|settings| settings).await;
        let mut client = gateway.open(request(stream)).await;
        let first = replica.next().await;
        let own_id = first.header("x-request-id").unwrap().to_owned();
        let first = says(first, stream, &format!("Both.\n{GOOD}\n{BROKEN}")).await;
        if let Some(first) = first {
            // The engine must not write on for nobody.
            first.gone().await;
        }
        tokenizes_prompt(&mut replica).await;
        let so_far = format!("Both.\n{GOOD}\n<tool_call>\n");
        tokenizes_text(&mut replica, &so_far, 30).await;
        let asked = goes_on(&mut replica, 30).await;
        let body = asked.json();
        assert_eq!(
            (&body["temperature"], &body["stream"]),
            (&json!(0), &if stream { json!(true) } else { Value::Null })
        );
        assert_eq!(body["max_tokens"], 370, "the client's, less what was said");
        assert!(asked.header("x-request-id").unwrap().starts_with(&own_id));
        let format: Value =
            serde_json::from_str(body["structured_outputs"]["structural_tag"].as_str().unwrap()).unwrap();
        let tags = &format["format"]["tags"];
        assert_eq!(tags.as_array().unwrap().len(), 1, "any of the tools");
        assert_eq!(tags[0]["begin"], "{\"name\": \"get_weather\", \"arguments\": ");
        assert_eq!(
            tags[0]["content"]["json_schema"],
            question(false)["tools"][0]["function"]["parameters"]
        );
        tells(asked, GUIDED, 130, 20).await;
        tokenizes_text(&mut replica, &format!("{so_far}{GUIDED}"), 50).await;
        let asked = goes_on(&mut replica, 50).await;
        let body = asked.json();
        assert_eq!(
            (&body["temperature"], &body["stop"], &body["max_tokens"]),
            (&json!(0.7), &json!(["END"]), &json!(350))
        );
        assert!(body["structured_outputs"].is_null(), "what follows isn't guided");
        tells(asked, "\nThat is all.", 150, 5).await;
        let answer = client.message().await;
        let chunks = if stream { answer.chunks() } else { vec![answer.json()] };
        let (content, calls, end, counts) = message(&chunks);
        assert_eq!(content, "Both.\nThat is all.");
        assert_eq!(calls, [weather("Ulm"), weather("Bonn")]);
        assert_eq!(end, "tool_calls");
        assert_eq!(
            (&counts["prompt_tokens"], &counts["completion_tokens"]),
            (&json!(100), &json!(55))
        );
        assert!(replica.is_unasked());
        let row = record(&gateway, "r").await;
        assert_eq!(
            (
                &row["finish"],
                &row["tool_calls"],
                &row["completion_tokens"],
                &row["attempts"],
                &row["error"]
            ),
            (&json!("tool_calls"), &json!(2), &json!(55), &json!(1), &json!(null)),
            "{row}"
        );
        let verdict = |verdict: &str| json!({"tool": "get_weather", "verdict": verdict, "kinds": []});
        assert_eq!(row["verdicts"], json!([verdict("passed"), verdict("reasked")]), "{row}");
        assert!(
            row["engine_tokens"].as_u64().unwrap() > 25,
            "the first attempt's too: {row}"
        );
    }
}

#[tokio::test]
async fn b27_without_an_answer_the_client_gets_what_was_said() {
    for stream in [true, false] {
        for (on_invalid, status) in [("text", 200), ("pass", 200), ("error", 502)] {
            let (gateway, mut replica) =
                gateway(|settings| settings.set("tools", &format!("on_invalid = \"{on_invalid}\""))).await;
            let mut client = gateway.open(request(stream)).await;
            let first = says(replica.next().await, stream, &format!("See: {BROKEN}")).await;
            let asked = replica.next().await;
            assert_eq!(asked.line, "POST /tokenize HTTP/1.1");
            asked.answer("404 Not Found", &json!({"detail": "Not Found"})).await;
            let answer = client.message().await;
            drop(first);
            assert!(replica.is_unasked(), "one try");
            if on_invalid == "error" {
                let text = answer.text();
                assert!(
                    text.contains("\"code\":\"invalid_tool_call\"") && !text.contains("[DONE]"),
                    "{text}"
                );
                assert!(!text.contains("\"finish_reason\":\"stop\""), "{text}");
                assert_eq!(answer.status(), if stream { 200 } else { status });
                assert_eq!(record(&gateway, "r").await["error"], "invalid_tool_call");
                continue;
            }
            let chunks = if stream { answer.chunks() } else { vec![answer.json()] };
            let (content, calls, end, _) = message(&chunks);
            if on_invalid == "text" {
                assert_eq!(
                    (content, calls.len(), end),
                    (format!("See: {BROKEN}"), 0, json!("stop"))
                );
            } else {
                let call = ("get_wether".to_owned(), "{\"city\": \"Bonn\"}".to_owned());
                assert_eq!((&*content, calls, end), ("See: ", vec![call], json!("tool_calls")));
            }
        }
    }
}

#[tokio::test]
async fn b27_a_call_that_does_not_come_in_time_is_text() {
    for stream in [true, false] {
        let (gateway, mut replica) = gateway(|settings| settings.set("tools", "reask_time = \"300ms\"")).await;
        let mut client = gateway.open(request(stream)).await;
        let _first = says(replica.next().await, stream, BROKEN).await;
        tokenizes_prompt(&mut replica).await;
        tokenizes_text(&mut replica, "<tool_call>\n", 3).await;
        let mut asked = goes_on(&mut replica, 3).await;
        if stream {
            asked.stream().await;
        }
        // It never says more.
        asked.gone().await;
        let answer = client.message().await;
        let chunks = if stream { answer.chunks() } else { vec![answer.json()] };
        let (content, calls, end, _) = message(&chunks);
        assert_eq!((&*content, calls.len(), end), (BROKEN, 0, json!("stop")));
    }
}

#[tokio::test]
async fn b26_a_client_that_leaves_ends_the_question() {
    let (gateway, mut replica) = gateway(|settings| settings).await;
    let client = gateway.open(request(true)).await;
    let _first = says(replica.next().await, true, BROKEN).await;
    tokenizes_prompt(&mut replica).await;
    tokenizes_text(&mut replica, "<tool_call>\n", 3).await;
    let mut asked = goes_on(&mut replica, 3).await;
    asked.stream().await;
    drop(client);
    asked.gone().await;
    let row = record(&gateway, "r").await;
    assert_eq!(
        (&row["cancelled"], &row["error"]),
        (&json!(true), &json!(null)),
        "{row}"
    );
}

#[tokio::test]
async fn b26_b31_a_replica_lost_behind_the_call_goes_on_when_it_is_back() {
    let (gateway, mut replica) = gateway(|settings| settings).await;
    let mut client = gateway.open(request(true)).await;
    let _first = says(replica.next().await, true, BROKEN).await;
    tokenizes_prompt(&mut replica).await;
    tokenizes_text(&mut replica, "<tool_call>\n", 3).await;
    let asked = goes_on(&mut replica, 3).await;
    tells(asked, GUIDED, 103, 20).await;
    let so_far = format!("<tool_call>\n{GUIDED}");
    tokenizes_text(&mut replica, &so_far, 23).await;
    // On a connection that was used before a reset may mean that it was idle for too long: it is sent once more.
    goes_on(&mut replica, 23).await.reset();
    goes_on(&mut replica, 23).await.reset();
    tokenizes_text(&mut replica, &so_far, 23).await;
    tells(goes_on(&mut replica, 23).await, "\nThat is all.", 123, 5).await;
    let (content, calls, end, counts) = message(&client.message().await.chunks());
    assert_eq!(
        (&*content, calls, end),
        ("That is all.", vec![weather("Bonn")], json!("tool_calls"))
    );
    assert_eq!(
        (&counts["prompt_tokens"], &counts["completion_tokens"]),
        (&json!(100), &json!(28))
    );
    let row = record(&gateway, "r").await;
    assert_eq!(
        (&row["tool_calls"], &row["continuations"], &row["error"]),
        (&json!(1), &json!(1), &json!(null)),
        "{row}"
    );
}

#[tokio::test]
async fn b26_what_can_not_go_on_is_not_asked_again() {
    let (gateway, mut replica) = gateway(|settings| settings).await;
    for (field, value) in [
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("response_format", json!({"type": "json_object"})),
    ] {
        let mut body = question(true);
        body[field] = value;
        let mut client = gateway.open(Request::post("/v1/chat/completions", &body)).await;
        let mut asked = says(replica.next().await, true, BROKEN).await.unwrap();
        asked.event(&finish("stop")).await;
        asked.event(&usage(100, 20)).await;
        asked.done().await;
        let (content, calls, ..) = message(&client.message().await.chunks());
        assert_eq!((&*content, calls.len()), (BROKEN, 0), "{field}");
        assert!(replica.is_unasked());
    }
    let (gateway, mut replica) = self::gateway(|settings| settings.set("tools", "reask = 0")).await;
    let mut client = gateway.open(request(false)).await;
    says(replica.next().await, false, BROKEN).await;
    assert_eq!(message(&[client.message().await.json()]).0, BROKEN);
    assert!(replica.is_unasked());
}

/// The simulator breaks the call, tokenizes, and goes on guided: the whole way without a script.
#[tokio::test]
async fn b26_a_simulated_replica_mends_its_own_calls() {
    let gateway = Settings::simulated(1).start().await;
    for stream in [true, false] {
        for kind in ["cut_string", "name_typo"] {
            let mut body = question(stream);
            body["messages"][0]["content"] = json!(format!("How is the weather in Ulm? [[sim call={kind}]]"));
            body["chat_template_kwargs"] = json!({"enable_thinking": true});
            let answer = gateway.ask(Request::post("/v1/chat/completions", &body)).await;
            let chunks = if stream { answer.chunks() } else { vec![answer.json()] };
            let id = chunks[0]["id"].clone();
            let mut calls = Vec::new();
            let (mut content, mut reasoning, mut end) = (String::new(), String::new(), Value::Null);
            for chunk in &chunks {
                assert_eq!(chunk["id"], id, "{kind}: one id");
                let Some(choice) = chunk["choices"].get(0) else {
                    continue;
                };
                let said = choice.get("delta").unwrap_or(&choice["message"]);
                content += said["content"].as_str().unwrap_or_default();
                reasoning += said["reasoning"].as_str().unwrap_or_default();
                calls.extend(said["tool_calls"].as_array().into_iter().flatten().cloned());
                end = choice["finish_reason"].clone();
            }
            assert_eq!(
                (&*content, calls.len(), &end),
                ("", 1, &json!("tool_calls")),
                "{kind}, stream {stream}"
            );
            assert!(reasoning.contains("[simulated]"), "{kind}: {reasoning}");
            assert_eq!(calls[0]["function"]["name"], "get_weather", "{kind}");
            let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
            assert!(arguments["city"].is_string(), "{kind}: {arguments}");
        }
    }
}
