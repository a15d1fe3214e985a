//! The simulator's answers against those of a real vLLM 0.32: same request, same shape down to the chunk.
//!
//! Texts are compared where the recording scripted them. Numbers that come from the real tokenizer, ids and timestamps
//! are normalised, and runs of events with the same shape count as one, since tokens are cut elsewhere.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use sluice_gateway::simulator::{Setup, SimConfig};

use crate::client::{Answer, MODEL, exchange, instant, request, start_with_key};

/// The folder of recordings.
fn recordings(setup: &str) -> PathBuf {
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let folder = shared.join("vllm/recordings").join(setup);
    assert!(
        folder.is_dir(),
        "recordings are needed in {} (set SLUICE_SHARED)",
        folder.display()
    );
    folder
}

/// The recorded request as raw bytes, for the simulated model.
fn recorded_request(case: &Value) -> Vec<u8> {
    let mut body = case["body"].clone();
    if body["messages"] == "one user message: 'word ' 33000 times" {
        body["messages"] = serde_json::json!([{"role": "user", "content": "word ".repeat(33_000)}]);
    }
    if body["model"] == "Qwen/Qwen3-32B-AWQ" {
        body["model"] = MODEL.into();
    }
    let body = match body {
        Value::Null => String::new(),
        Value::String(raw) => raw,
        other => other.to_string(),
    };
    let mut headers = String::from("connection: close\r\n");
    for (name, value) in case["headers"].as_object().unwrap() {
        if !["host", "content-length"].contains(&name.to_lowercase().as_str()) {
            headers.push_str(&format!("{name}: {}\r\n", value.as_str().unwrap()));
        }
    }
    request(
        case["method"].as_str().unwrap(),
        case["path"].as_str().unwrap(),
        &headers,
        &body,
    )
}

/// Keys whose strings are compared; others only have to be strings.
const SPOKEN: &[&str] = &[
    "object",
    "role",
    "finish_reason",
    "type",
    "owned_by",
    "message",
    "param",
    "detail",
    "version",
];

/// The shape of a value: keys in order, types, and the strings that matter.
fn shape(value: &Value, key: &str) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) if key == "code" => number.to_string(),
        Value::Number(_) => "N".into(),
        Value::String(text) if SPOKEN.contains(&key) => format!("{:?}", text.replace(MODEL, "Qwen/Qwen3-32B-AWQ")),
        Value::String(_) => "S".into(),
        Value::Array(items) => {
            let mut shapes: Vec<String> = items.iter().map(|item| shape(item, key)).collect();
            shapes.dedup();
            format!("[{}]", shapes.join(","))
        }
        Value::Object(map) if key == "top_logprobs" => format!("{{{} named}}", map.len().min(1)),
        Value::Object(map) => {
            let name = |key: &str| {
                if key.parse::<u32>().is_ok() {
                    "ID".to_owned()
                } else {
                    key.to_owned()
                }
            };
            let mut fields: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{}:{}", name(key), shape(value, key)))
                .collect();
            fields.dedup();
            format!("{{{}}}", fields.join(","))
        }
    }
}

/// What is compared of an answer: lines, so that a difference is easy to see.
fn outline(answer: &Answer, is_text_compared: bool) -> Vec<String> {
    let mut lines = vec![format!("status {}", answer.status())];
    for line in answer.head.lines().skip(1) {
        let (name, value) = line.split_once(": ").unwrap();
        match name {
            "connection" => {}
            "date" => lines.push(format!("date {}", shape(&Value::String(value.into()), ""))),
            "content-length" => lines.push("content-length".into()),
            "location" => lines.push(format!("location {}", value.rsplit_once("/v1").unwrap().1)),
            _ => lines.push(format!("{name}: {value}")),
        }
    }
    lines.push(format!("complete {}", answer.is_complete));
    if answer.head.contains("text/event-stream") {
        let mut shapes: Vec<(u64, String)> = answer.chunks.iter().map(|chunk| event_shape(chunk)).collect();
        // How choices interleave depends on their tokens: each choice for itself, in its order.
        shapes.sort_by_key(|(choice, _)| *choice);
        shapes.dedup();
        lines.extend(shapes.into_iter().map(|(_, shape)| shape));
    } else if answer.head.contains("application/json") && !answer.chunks.concat().is_empty() {
        lines.push(shape(&answer.json(), ""));
    } else {
        lines.push(answer.text());
    }
    if is_text_compared {
        lines.extend(texts(answer));
    }
    lines
}

/// The choice and shape of one chunk, which must be exactly one event; what belongs to no choice comes last.
fn event_shape(chunk: &[u8]) -> (u64, String) {
    let text = std::str::from_utf8(chunk).unwrap();
    let data = text
        .strip_prefix("data: ")
        .and_then(|text| text.strip_suffix("\n\n"))
        .expect("a chunk is an event");
    if data == "[DONE]" {
        return (u64::MAX, data.to_owned());
    }
    let event: Value = serde_json::from_str(data).unwrap();
    (
        event["choices"][0]["index"].as_u64().unwrap_or(u64::MAX - 1),
        shape(&event, ""),
    )
}

/// All text of each choice.
fn texts(answer: &Answer) -> Vec<String> {
    let values = if answer.head.contains("text/event-stream") {
        answer.events()
    } else {
        vec![answer.json()]
    };
    let mut texts: Map<String, Value> = Map::new();
    for choice in values
        .iter()
        .flat_map(|value| value["choices"].as_array().cloned().unwrap_or_default())
    {
        let mut say = |what: &str, text: &Value| {
            if let Some(text) = text.as_str() {
                let entry = texts
                    .entry(format!("{} {what}", choice["index"]))
                    .or_insert_with(|| "".into());
                *entry = Value::String(entry.as_str().unwrap().to_owned() + text);
            }
        };
        say("text", &choice["text"]);
        for message in [&choice["delta"], &choice["message"]] {
            say("content", &message["content"]);
            say("reasoning", &message["reasoning"]);
            for (place, call) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
                let place = call["index"].as_u64().unwrap_or(place as u64);
                say(&format!("call {place} name"), &call["function"]["name"]);
                say(&format!("call {place} arguments"), &call["function"]["arguments"]);
            }
        }
    }
    texts
        .into_iter()
        .map(|(choice, text)| format!("choice {choice} says {text}"))
        .collect()
}

/// Endpoints that the simulator doesn't have, and answers that only a real model or a real grammar gives.
fn is_out_of_scope(name: &str, path: &str) -> bool {
    let endpoints = [
        "/v1/responses",
        "/v1/messages",
        "/kv_event_sources",
        "/v1/chat/completions/render",
        "/metrics",
    ];
    // response_format*: the scripted text breaks vLLM's grammar (500). err_bad_regex: words of its regex engine.
    // structured_choice*: a random model ends a grammar with another end token. tool_required_free*: the random model
    // goes on until max_tokens, in tokens of the real tokenizer.
    let names = [
        "response_format",
        "err_bad_regex",
        "structured_choice",
        "tool_required_free",
    ];
    let is = |all: &[&str], text: &str| all.iter().any(|start| text.starts_with(start));
    is(&endpoints, path) || is(&names, name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recorded_answer_has_its_twin() {
    let folder = recordings("raw");
    let config = SimConfig {
        max_model_len: 32_768,
        ..instant()
    };
    let (_simulator, address) = start_with_key(config, Some("sk-test")).await;
    let (compared, wrong) = compare(address, &folder, |_| true).await;
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
    assert!(compared > 200, "only {compared} recordings were found");
}

/// Replays the recorded requests that `is_wanted` names: how many, and how those that differ do.
async fn compare(address: SocketAddr, folder: &Path, is_wanted: impl Fn(&str) -> bool) -> (usize, Vec<String>) {
    let index: Value = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let (mut compared, mut wrong) = (0, Vec::new());
    for name in index.as_object().unwrap().keys().filter(|name| is_wanted(name)) {
        let case: Value =
            serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.request.json"))).unwrap()).unwrap();
        if is_out_of_scope(name, case["path"].as_str().unwrap()) {
            continue;
        }
        let is_head = case["method"] == "HEAD";
        let recorded = std::fs::read(folder.join(format!("{name}.response.http"))).unwrap();
        // Where max_tokens cuts, the text depends on the real tokenizer.
        let is_cut = memchr::memmem::find(&recorded, b"\"finish_reason\":\"length\"").is_some();
        let is_scripted =
            case["body"]["vllm_xargs"]["force_text"].is_string() && index[name]["status"] == 200 && !is_cut;
        let wanted = outline(&Answer::parse(&recorded, false, is_head), is_scripted);
        let answer = exchange(address, &recorded_request(&case), Duration::from_secs(10)).await;
        let got = outline(&answer, is_scripted);
        compared += 1;
        if wanted != got {
            let lines: Vec<String> = diff(&wanted, &got);
            wrong.push(format!("{name}\n{}", lines.join("\n")));
        }
    }
    (compared, wrong)
}

fn diff(wanted: &[String], got: &[String]) -> Vec<String> {
    let missing = wanted
        .iter()
        .filter(|line| !got.contains(line))
        .map(|line| format!("  vLLM      {line}"));
    let surplus = got
        .iter()
        .filter(|line| !wanted.contains(line))
        .map(|line| format!("  simulator {line}"));
    let lines: Vec<String> = missing.chain(surplus).collect();
    if lines.is_empty() {
        vec!["  the same lines in another order".to_owned()]
    } else {
        lines
    }
}

/// Well-formed answers that vLLM's parsers read, and that the `parsers` set-up tells as vLLM does.
const PARSED: &[&str] = &[
    "chat_plain",
    "chat_plain.stream",
    "chat_usage.stream",
    "chat_n2",
    "chat_n2.stream",
    "chat_length_in_think.stream",
    "nothink_plain",
    "nothink_plain.stream",
    "nothink_tool",
    "nothink_tool.stream",
    "think_none",
    "think_none.stream",
    "tool_auto",
    "tool_auto.stream",
    "tool_auto_usage.stream",
    "tool_choice_none",
    "tool_choice_none.stream",
    "tool_two",
    "tool_two.stream",
    "tool_text_before",
    "tool_text_before.stream",
    "tool_named",
    "tool_named.stream",
    "tool_required",
    "tool_required.stream",
];

#[tokio::test]
async fn the_parsers_set_up_tells_well_formed_answers_as_vllm_does() {
    let config = SimConfig {
        max_model_len: 32_768,
        setup: Setup::Parsers,
        ..instant()
    };
    let (_simulator, address) = start_with_key(config, Some("sk-test")).await;
    let wrong = compare(address, &recordings("parsers"), |name| PARSED.contains(&name)).await;
    assert!(
        wrong.1.is_empty(),
        "{} of {} differ:\n{}",
        wrong.1.len(),
        wrong.0,
        wrong.1.join("\n\n")
    );
    assert_eq!(wrong.0, PARSED.len());
}

/// Families of an exposition: name, type, help, and each sample's name with its label names and fixed label values.
fn families(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines().filter(|line| line.contains("vllm:")) {
        if line.starts_with('#') {
            lines.push(line.to_owned());
            continue;
        }
        let (sample, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap();
        let labels = labels
            .trim_end_matches('}')
            .replace(MODEL, "MODEL")
            .replace("Qwen/Qwen3-32B-AWQ", "MODEL");
        // What is in effect differs; that every label is there doesn't.
        let labels = if name == "vllm:cache_config_info" {
            labels
                .split("\",")
                .map(|label| label.split('=').next().unwrap())
                .collect::<Vec<_>>()
                .join(",")
        } else {
            labels
        };
        lines.push(format!("{name}{{{labels}}}"));
    }
    lines
}

#[tokio::test]
async fn metrics_have_every_vllm_family_label_and_bucket() {
    let recorded = std::fs::read(recordings("raw").join("get_metrics.response.http")).unwrap();
    let config = SimConfig {
        max_model_len: 32_768,
        ..instant()
    };
    let (_simulator, address) = start_with_key(config, None).await;
    let answer = exchange(
        address,
        &request("GET", "/metrics", "connection: close\r\n", ""),
        Duration::from_secs(5),
    )
    .await;
    let wanted = families(&Answer::parse(&recorded, false, false).text());
    let got = families(&answer.text());
    assert!(wanted.len() > 500);
    assert_eq!(diff_or_nothing(&wanted, &got), Vec::<String>::new());
    assert!(
        answer
            .head
            .contains("content-type: text/plain; version=1.0.0; charset=utf-8")
    );
}

fn diff_or_nothing(wanted: &[String], got: &[String]) -> Vec<String> {
    if wanted == got { Vec::new() } else { diff(wanted, got) }
}
