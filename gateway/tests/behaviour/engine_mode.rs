//! B19: where vLLM parses, its calls are judged like ours, and what it leaks into the content is found.

use serde_json::{Value, json};

use super::harness::{Asked, Gateway, MODEL, Message, Replica, Request, Settings, delta, finish, record, usage};

fn request(stream: bool) -> Request {
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["city"],
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}});
    let body = json!({"model": MODEL, "stream": stream, "tools": [tool],
        "messages": [{"role": "user", "content": "What is the weather?"}]});
    Request::post("/v1/chat/completions", &body).id("r")
}

/// vLLM tells one call, and this text.
async fn tell(mut asked: Asked, stream: bool, arguments: &str, content: &str) {
    let mut call =
        json!({"id": "chatcmpl-tool-1", "type": "function", "function": {"name": "weather", "arguments": arguments}});
    if !stream {
        let message = json!({"role": "assistant", "content": content, "tool_calls": [call]});
        let body = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 10, "total_tokens": 20, "completion_tokens": 10}});
        return asked.answer("200 OK", &body).await;
    }
    asked.stream().await;
    asked.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    call["index"] = json!(0);
    call["function"]["arguments"] = json!("");
    asked.event(&delta(json!({"tool_calls": [call]}))).await;
    let (head, tail) = arguments.split_at(arguments.len() / 2);
    for part in [head, tail] {
        asked
            .event(&delta(
                json!({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}),
            ))
            .await;
    }
    asked.event(&delta(json!({"content": content}))).await;
    asked.event(&finish("tool_calls")).await;
    asked.event(&usage(10, 10)).await;
    asked.done().await;
}

/// Arguments of the calls, content and finish, from a stream or a body.
fn got(answer: &Message, stream: bool) -> (Vec<String>, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let bodies: Vec<Value> = if stream {
        let events = answer.text();
        let data = events.lines().filter_map(|line| line.strip_prefix("data: {"));
        data.map(|data| serde_json::from_str(&format!("{{{data}")).unwrap())
            .collect()
    } else {
        vec![answer.json()]
    };
    let (mut calls, mut content, mut finish) = (Vec::new(), String::new(), String::new());
    for body in bodies {
        let choice = &body["choices"][0];
        let said = &choice[if stream { "delta" } else { "message" }];
        content += &text(&said["content"]);
        finish += &text(&choice["finish_reason"]);
        for call in said["tool_calls"].as_array().into_iter().flatten() {
            if call["function"]["name"].is_string() {
                calls.push(String::new());
            }
            *calls.last_mut().unwrap() += &text(&call["function"]["arguments"]);
        }
    }
    (calls, content, finish)
}

/// A gateway that leaves parsing to its replica.
async fn engine_mode() -> (Gateway, Replica) {
    let replica = Replica::start().await;
    let settings = Settings::before(&[&replica]).set("tools", "parsing = \"engine\"");
    (settings.start().await, replica)
}

#[tokio::test]
async fn b19_calls_that_vllm_parsed_are_mended_and_leaks_are_found() {
    let leak = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    for stream in [true, false] {
        let (gateway, mut replica) = engine_mode().await;
        let (answer, ()) = tokio::join!(gateway.ask(request(stream)), async {
            let asked = replica.next().await;
            assert_eq!(asked.json().get("tool_choice"), None, "vLLM is left to parse");
            tell(asked, stream, r#"{"city": "Paris", "days": "3"}"#, leak).await;
        });
        let wanted = [r#"{"city": "Paris", "days": 3}"#, r#"{"city": "Rome"}"#].map(str::to_owned);
        let (mut calls, content, finish) = got(&answer, stream);
        // In a body nobody can tell which came first.
        calls.sort();
        assert_eq!(
            (calls, content, finish),
            (wanted.to_vec(), String::new(), "tool_calls".to_owned()),
            "stream {stream}: {}",
            answer.text()
        );
        let verdict = |verdict: &str, kinds: &[&str]| json!({"tool": "weather", "verdict": verdict, "kinds": kinds});
        let mut verdicts = record(&gateway, "r").await["verdicts"].as_array().unwrap().clone();
        verdicts.sort_by_key(|verdict| verdict["verdict"].to_string());
        assert_eq!(verdicts, [verdict("passed", &[]), verdict("repaired", &["number"])]);
    }
}

#[tokio::test]
async fn b27_a_call_that_vllm_parsed_and_is_none_is_text_without_a_finish_of_calls() {
    for stream in [true, false] {
        let (gateway, mut replica) = engine_mode().await;
        let (answer, ()) = tokio::join!(gateway.ask(request(stream)), async {
            tell(replica.next().await, stream, r#"{"days": 3}"#, "").await;
        });
        let text = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"days\": 3}}\n</tool_call>";
        assert_eq!(
            got(&answer, stream),
            (Vec::new(), text.to_owned(), "stop".to_owned()),
            "stream {stream}"
        );
        assert!(replica.is_unasked(), "what vLLM has taken apart isn't asked again");
        let row = record(&gateway, "r").await;
        assert_eq!(
            row["verdicts"],
            json!([{"tool": "weather", "verdict": "refused", "kinds": ["unfit"]}])
        );
    }
}
