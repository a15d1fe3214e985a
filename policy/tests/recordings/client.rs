//! A strict client: checks each rule of B7 and B21 that a sequence of frames must keep, and puts the messages together.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

/// A tool call as a client has it in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// A choice's message as a client has it in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) content: Option<String>,
    pub(crate) reasoning: Option<String>,
    pub(crate) reasoning_content: Option<String>,
    pub(crate) calls: Vec<Call>,
    pub(crate) finish: String,
}

/// Everything that a stream said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Heard {
    pub(crate) messages: BTreeMap<u64, Message>,
    /// Text of legacy completions.
    pub(crate) texts: BTreeMap<u64, String>,
    pub(crate) usage: Option<Value>,
    /// Logprob tokens and token ids, in order, by choice.
    pub(crate) logprobs: BTreeMap<u64, Vec<Value>>,
    pub(crate) token_ids: BTreeMap<u64, Vec<Value>>,
    pub(crate) done: bool,
}

/// Reads `stream`, the bytes that a client got. Panics where a rule is broken.
pub(crate) fn listen(stream: &[u8], wants_usage: bool) -> Heard {
    let text = std::str::from_utf8(stream).expect("UTF-8");
    let mut heard = Heard::default();
    let mut identity = None;
    let mut introduced = HashSet::new();
    let mut finished = HashSet::new();
    assert!(text.is_empty() || text.ends_with("\n\n"), "a cut frame");
    for line in text.split_terminator("\n\n") {
        let data = line
            .strip_prefix("data: ")
            .unwrap_or_else(|| panic!("not one data line: {line:?}"));
        assert!(!heard.done, "something follows [DONE]: {line}");
        if data == "[DONE]" {
            heard.done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
        let choices = chunk["choices"]
            .as_array()
            .unwrap_or_else(|| panic!("no choices: {data}"));
        let this = (chunk["id"].clone(), chunk["model"].clone(), chunk["created"].clone());
        assert_eq!(identity.get_or_insert_with(|| this.clone()), &this, "identity changed");
        assert!(
            heard.usage.is_none() || !choices.is_empty(),
            "something follows the usage chunk: {data}"
        );
        if choices.is_empty() {
            assert!(wants_usage, "usage was not asked for: {data}");
            assert!(chunk["usage"].is_object(), "an empty chunk without usage: {data}");
            heard.usage = Some(chunk["usage"].clone());
        }
        if !wants_usage {
            assert!(chunk["usage"].is_null(), "usage was not asked for: {data}");
        }
        for choice in choices {
            let index = choice["index"].as_u64().unwrap();
            assert!(!finished.contains(&index), "something follows a finish: {data}");
            if let Some(tokens) = choice["logprobs"]["content"].as_array() {
                heard.logprobs.entry(index).or_default().extend(tokens.iter().cloned());
            }
            if let Some(ids) = choice["token_ids"].as_array() {
                heard.token_ids.entry(index).or_default().extend(ids.iter().cloned());
            }
            if let Some(text) = choice["text"].as_str() {
                heard.texts.entry(index).or_default().push_str(text);
            } else {
                let delta = choice["delta"]
                    .as_object()
                    .unwrap_or_else(|| panic!("no delta: {data}"));
                let has_role = delta.contains_key("role");
                assert_eq!(
                    has_role,
                    introduced.insert(index),
                    "role not exactly once, first: {data}"
                );
                hear_delta(heard.messages.entry(index).or_default(), delta, data);
            }
            if let Some(finish) = choice["finish_reason"].as_str() {
                finished.insert(index);
                heard.messages.entry(index).or_default().finish = finish.to_owned();
            }
        }
    }
    if heard.done {
        assert!(
            heard.messages.values().all(|message| !message.finish.is_empty()),
            "a choice has no finish"
        );
        assert!(!wants_usage || heard.usage.is_some(), "usage was asked for");
        let ids: Vec<_> = heard
            .messages
            .values()
            .flat_map(|message| &message.calls)
            .map(|call| &call.id)
            .collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "ids aren't unique");
    }
    heard
}

fn hear_delta(message: &mut Message, delta: &serde_json::Map<String, Value>, data: &str) {
    let add = |field: &mut Option<String>, key: &str| {
        if let Some(text) = delta.get(key).and_then(Value::as_str) {
            field.get_or_insert_default().push_str(text);
        }
    };
    add(&mut message.content, "content");
    add(&mut message.reasoning, "reasoning");
    add(&mut message.reasoning_content, "reasoning_content");
    let Some(calls) = delta.get("tool_calls") else { return };
    let calls = calls.as_array().unwrap_or_else(|| panic!("tool_calls: {data}"));
    assert!(!calls.is_empty(), "empty tool_calls: {data}");
    for call in calls {
        let index = call["index"]
            .as_u64()
            .unwrap_or_else(|| panic!("a call without index: {data}")) as usize;
        let arguments = call["function"]["arguments"]
            .as_str()
            .unwrap_or_else(|| panic!("no arguments: {data}"));
        if index == message.calls.len() {
            assert_eq!(call["type"], "function", "{data}");
            message.calls.push(Call {
                id: call["id"]
                    .as_str()
                    .unwrap_or_else(|| panic!("no id: {data}"))
                    .to_owned(),
                name: call["function"]["name"]
                    .as_str()
                    .unwrap_or_else(|| panic!("no name: {data}"))
                    .to_owned(),
                arguments: String::new(),
            });
        } else {
            let known = call
                .as_object()
                .unwrap()
                .keys()
                .all(|key| key == "index" || key == "function");
            assert!(
                known && index + 1 == message.calls.len(),
                "out of order, or said twice: {data}"
            );
            assert!(call["function"].get("name").is_none(), "name twice: {data}");
        }
        message.calls[index].arguments.push_str(arguments);
    }
}

/// The messages of a non-stream answer.
pub(crate) fn read(body: &[u8]) -> Heard {
    let answer: Value = serde_json::from_slice(body).expect("JSON");
    let mut heard = Heard {
        done: true,
        usage: Some(answer["usage"].clone()),
        ..Heard::default()
    };
    for choice in answer["choices"].as_array().unwrap() {
        let index = choice["index"].as_u64().unwrap();
        let finish = choice["finish_reason"].as_str().unwrap().to_owned();
        if let Some(text) = choice["text"].as_str() {
            heard.texts.insert(index, text.to_owned());
            heard.messages.insert(
                index,
                Message {
                    finish,
                    ..Message::default()
                },
            );
            continue;
        }
        let message = &choice["message"];
        assert_eq!(message["role"], "assistant");
        let text = |key: &str| message[key].as_str().map(str::to_owned);
        let calls = message.get("tool_calls").map(|calls| calls.as_array().unwrap());
        assert!(
            calls.is_none_or(|calls| !calls.is_empty()),
            "empty tool_calls: {message}"
        );
        let calls = calls.into_iter().flatten().map(|call| {
            assert!(call["type"] == "function" && call.get("index").is_none(), "{call}");
            Call {
                id: call["id"].as_str().unwrap().to_owned(),
                name: call["function"]["name"].as_str().unwrap().to_owned(),
                arguments: call["function"]["arguments"].as_str().unwrap().to_owned(),
            }
        });
        heard.messages.insert(
            index,
            Message {
                content: text("content"),
                reasoning: text("reasoning"),
                reasoning_content: text("reasoning_content"),
                calls: calls.collect(),
                finish,
            },
        );
    }
    heard
}
