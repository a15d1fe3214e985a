//! Requests of an agent: a history of code, tool calls and their results, or an image.

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_policy::protocol::ask::{self, Ask, AskLimits, Edit, Endpoint, Grants};
use std::borrow::Cow;

use crate::Case;
use crate::seed::{Seed, base64, code, prose};

/// Tools of a coding agent, as JSON text.
pub const TOOLS: &str = include_str!("tools.json");

/// A request whose body has about `bytes` bytes: a system prompt, then turns of question, reasoning, call, result and answer.
pub fn agent(bytes: usize) -> Bytes {
    let mut seed = Seed::new(17);
    let mut messages = vec![json!({"role": "system", "content": "You are a coding agent. Use the tools; be brief."})];
    let (mut written, mut turn) = (TOOLS.len() + 200, 0);
    while written < bytes {
        // A short history has short texts, so that it is a history at all.
        let size = (bytes / 12).clamp(200, 6000);
        let id = format!("call_{turn:08}");
        let arguments =
            json!({"path": format!("src/part_{turn}.rs"), "content": code(&mut seed, size / 2)}).to_string();
        let more = [
            json!({"role": "user", "content": words(&mut seed, size / 8)}),
            json!({"role": "assistant", "content": null, "reasoning_content": words(&mut seed, size / 8), "tool_calls": [
                {"id": id, "type": "function", "function": {"name": "write_file", "arguments": arguments}}]}),
            json!({"role": "tool", "tool_call_id": id, "content": code(&mut seed, size)}),
            json!({"role": "assistant", "content": words(&mut seed, size / 8)}),
        ];
        written += more.iter().map(|message| message.to_string().len() + 1).sum::<usize>();
        messages.extend(more);
        turn += 1;
    }
    messages.push(json!({"role": "user", "content": "Go on."}));
    body(&messages)
}

/// A request with one image of `bytes` bytes of base64.
pub fn image(bytes: usize) -> Bytes {
    let url = format!("data:image/png;base64,{}", base64(&mut Seed::new(19), bytes));
    body(&[json!({"role": "user", "content": [
        {"type": "text", "text": "What is on this?"}, {"type": "image_url", "image_url": {"url": url}}]})])
}

fn words(seed: &mut Seed, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        text.push_str(prose(seed));
    }
    text
}

fn body(messages: &[Value]) -> Bytes {
    let messages = Value::from(messages);
    Bytes::from(format!(
        "{{\"model\":\"Qwen/Qwen3-32B-AWQ\",\"messages\":{messages},\"tools\":{TOOLS},\"temperature\":0.7,\"max_tokens\":4096,\"stream\":true}}"
    ))
}

/// One request to be read and written for a replica.
pub struct Reading {
    body: Bytes,
    limits: AskLimits,
    grants: Grants,
    made: Option<(Ask, Vec<Bytes>)>,
}

/// Reading `body`.
pub fn reading(body: Bytes) -> Reading {
    Reading {
        body,
        limits: AskLimits::default(),
        grants: Grants::default(),
        made: None,
    }
}

impl Case for Reading {
    /// `ask::read`, then the body with the edits that the gateway makes for a replica without parsers: usage is asked for, raw
    /// text is asked for, `priority` would be removed.
    fn run(&mut self) {
        let edits = [
            Edit::SetIn("stream_options", "include_usage", Cow::Borrowed(b"true")),
            Edit::Set("tool_choice", Cow::Borrowed(b"\"none\"")),
        ];
        let ask = ask::read(
            &Endpoint::ChatCompletions,
            self.body.clone(),
            &self.limits,
            &self.grants,
        )
        .ok();
        self.made = ask.map(|ask| {
            let segments = ask.upstream_body(&edits);
            (ask, segments)
        });
    }

    fn units(&self) -> u64 {
        1
    }

    fn rest(&mut self) {
        self.made = None;
    }
}

impl Reading {
    /// What was read and what is sent, if [`Case::run`] came last.
    pub fn made(&self) -> Option<&(Ask, Vec<Bytes>)> {
        self.made.as_ref()
    }

    /// Bytes of the body.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_have_their_size_and_are_read() {
        for (bytes, messages) in [(4 << 10, 5), (400 << 10, 80), (10 << 20, 2000)] {
            let mut case = reading(agent(bytes));
            assert!(
                (bytes..bytes + bytes / 2).contains(&case.bytes()),
                "{bytes}: {}",
                case.bytes()
            );
            case.run();
            let (ask, segments) = case.made().unwrap();
            assert!(ask.messages >= messages, "{bytes}: {} messages", ask.messages);
            assert_eq!(ask.tool_count, 4);
            let sent: Value = serde_json::from_slice(&segments.concat()).unwrap();
            assert_eq!(
                (&sent["stream_options"]["include_usage"], &sent["tool_choice"]),
                (&json!(true), &json!("none"))
            );
            assert!(
                segments.iter().any(|part| part.len() > case.bytes() / 2),
                "the history is a slice"
            );
        }
    }

    #[test]
    fn an_image_is_read() {
        let mut case = reading(image(5 << 20));
        case.run();
        let (ask, segments) = case.made().unwrap();
        assert!(ask.images && ask.prompt_bytes < 1 << 20);
        assert!(segments.iter().any(|part| part.len() > 5 << 20));
    }

    #[test]
    fn code_is_moderately_dense_in_escapes() {
        let body = agent(400 << 10);
        let escapes = body
            .windows(2)
            .filter(|pair| pair[0] == b'\\' && pair[1] != b'\\')
            .count();
        let share = escapes as f64 / body.len() as f64;
        assert!((0.01..0.08).contains(&share), "{share}");
    }
}
