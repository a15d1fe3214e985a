//! The prompt as Qwen3's chat template renders it, straight into a token chain.
//!
//! Enters: messages, tools and template arguments as JSON. Leaves: a [`Prompt`] with its block hashes. The template's
//! order decides what the KV cache can share: system and tools first, then messages; past reasoning is dropped, except
//! in the turn that still runs. Nothing is kept of the text beyond what the request asks back.
use serde::Serialize;
use serde_json::{Map, Value};

use super::call::Tool;
use super::tokens::{self, Chain};

/// A rendered prompt.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    /// Its tokens, hashed.
    pub(super) chain: Chain,
    /// Its token ids, if they were asked for.
    pub(super) ids: Option<Vec<u32>>,
    /// Its text, if it was asked for.
    pub(super) text: Option<String>,
}

impl Prompt {
    /// An empty prompt.
    pub(super) fn new(salt: u64, keep_ids: bool, keep_text: bool) -> Self {
        Self {
            chain: Chain::new(salt),
            ids: keep_ids.then(Vec::new),
            text: keep_text.then(String::new),
        }
    }

    /// Adds text.
    pub(super) fn text(&mut self, text: &str) {
        for piece in tokens::pieces(text) {
            self.push(tokens::id(piece));
        }
        if let Some(all) = &mut self.text {
            all.push_str(text);
        }
    }

    /// Adds token ids as they are.
    pub(super) fn ids(&mut self, ids: impl Iterator<Item = u32>) {
        for id in ids {
            self.push(id);
            if let Some(all) = &mut self.text {
                tokens::decode(id, all);
            }
        }
    }

    fn push(&mut self, id: u32) {
        self.chain.push(id);
        if let Some(ids) = &mut self.ids {
            ids.push(id);
        }
    }
}

/// What the template reads beside the messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Template<'a> {
    /// Tools as they came.
    pub(super) tools: &'a [Value],
    /// `chat_template_kwargs.enable_thinking`.
    pub(super) thinking: bool,
    /// Whether the assistant's turn is opened at the end.
    pub(super) opens_answer: bool,
}

/// Who says a message; empty if it doesn't say.
pub(super) fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// Renders a conversation.
pub(super) fn render(messages: &[Value], template: Template<'_>, prompt: &mut Prompt) {
    let mut out = String::new();
    let first_is_system = messages.first().is_some_and(|message| role(message) == "system");
    let system = messages
        .first()
        .filter(|_| first_is_system)
        .map(content)
        .unwrap_or_default();
    if !template.tools.is_empty() {
        tools(&system, template.tools, &mut out);
    } else if first_is_system {
        out.push_str(&format!("<|im_start|>system\n{system}<|im_end|>\n"));
    }
    let last_query = messages.iter().rposition(|message| role(message) == "user");
    let rest = messages.iter().enumerate().skip(usize::from(first_is_system));
    for (place, message) in rest {
        match role(message) {
            name @ ("user" | "system") => {
                out.push_str("<|im_start|>");
                out.push_str(name);
                out.push('\n');
                out.push_str(&content(message));
                out.push_str("<|im_end|>\n");
            }
            "assistant" => assistant(message, last_query.is_none_or(|last| place > last), &mut out),
            "tool" => {
                let is = |at: Option<usize>| {
                    at.and_then(|at| messages.get(at))
                        .is_some_and(|other| role(other) == "tool")
                };
                out.push_str(if is(place.checked_sub(1)) {
                    ""
                } else {
                    "<|im_start|>user"
                });
                out.push_str("\n<tool_response>\n");
                out.push_str(&content(message));
                out.push_str("\n</tool_response>");
                out.push_str(if is(Some(place + 1)) { "" } else { "<|im_end|>\n" });
            }
            // The template has no branch for other roles and renders nothing.
            _ => {}
        }
    }
    if template.opens_answer {
        out.push_str("<|im_start|>assistant\n");
        out.push_str(if template.thinking {
            ""
        } else {
            "<think>\n\n</think>\n\n"
        });
    }
    // As one text, so that it has the tokens that `/completions` finds in it.
    prompt.text(&out);
}

fn tools(system: &str, tools: &[Value], out: &mut String) {
    out.push_str("<|im_start|>system\n");
    if !system.is_empty() {
        out.push_str(system);
        out.push_str("\n\n");
    }
    out.push_str(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
         signatures within <tools></tools> XML tags:\n<tools>",
    );
    for tool in tools {
        out.push('\n');
        out.push_str(&spaced(tool));
    }
    out.push_str(
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within \
         <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": \
         <args-json-object>}\n</tool_call><|im_end|>\n",
    );
}

fn assistant(message: &Value, is_running_turn: bool, out: &mut String) {
    let text = content(message);
    let named = ["reasoning_content", "reasoning"]
        .iter()
        .find_map(|key| message.get(*key)?.as_str());
    let (inside, after) = match text.split_once("</think>") {
        Some((inside, after)) => (
            Some(inside.trim_start().trim_start_matches("<think>")),
            after.trim_start_matches('\n'),
        ),
        None => (None, text.as_str()),
    };
    out.push_str("<|im_start|>assistant\n");
    if let Some(reasoning) = named.or(inside).filter(|_| is_running_turn) {
        out.push_str("<think>\n");
        out.push_str(reasoning.trim_matches('\n'));
        out.push_str("\n</think>\n\n");
    }
    out.push_str(after);
    for (place, call) in message
        .get("tool_calls")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let function = call.get("function").unwrap_or(call);
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        let arguments = match function.get("arguments") {
            // vLLM 0.32 takes an empty object for what isn't one.
            Some(Value::String(text)) => serde_json::from_str::<Map<String, Value>>(text)
                .map_or_else(|_| "{}".to_owned(), |arguments| spaced(&Value::Object(arguments))),
            _ => "{}".to_owned(),
        };
        let gap = if place == 0 && after.is_empty() { "" } else { "\n" };
        out.push_str(&format!(
            "{gap}<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>"
        ));
    }
    out.push_str("<|im_end|>\n");
}

/// A message's text; parts are joined with newlines, other parts have no text.
pub(super) fn content(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| part.as_str().or_else(|| part.get("text")?.as_str()))
                .collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// The declared tools; what has no function name isn't one.
pub(super) fn declared(tools: &[Value]) -> Vec<Tool> {
    let text =
        |from: &Map<String, Value>, key: &str| from.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    tools
        .iter()
        .filter_map(|tool| tool.get("function")?.as_object())
        .map(|function| Tool {
            name: text(function, "name"),
            description: text(function, "description"),
            parameters: function.get("parameters").filter(|schema| schema.is_object()).cloned(),
        })
        .filter(|tool| !tool.name.is_empty())
        .collect()
}

/// JSON with Python's spacing, as templates and models write it.
pub(super) fn spaced(value: &Value) -> String {
    let mut out = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    // Writing a Value into memory can't fail.
    let _ = value.serialize(&mut writer);
    String::from_utf8(out).unwrap_or_default()
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(messages: Value, tools: Value, thinking: bool) -> String {
        let mut prompt = Prompt::new(0, true, true);
        let template = Template {
            tools: tools.as_array().unwrap(),
            thinking,
            opens_answer: true,
        };
        render(messages.as_array().unwrap(), template, &mut prompt);
        assert_eq!(prompt.ids.as_ref().unwrap().len(), prompt.chain.tokens() as usize);
        prompt.text.unwrap()
    }

    #[test]
    fn a_plain_question() {
        let text = rendered(json!([{"role": "user", "content": "Hi"}]), json!([]), true);
        assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
        let text = rendered(
            json!([{"role": "system", "content": "S"}, {"role": "robot"}]),
            json!([]),
            false,
        );
        assert_eq!(
            text,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        );
    }

    #[test]
    fn tools_stand_in_the_system_message_with_pythons_spacing() {
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        let text = rendered(json!([{"role": "system", "content": "S"}]), tools, true);
        assert!(text.starts_with("<|im_start|>system\nS\n\n# Tools\n"));
        assert!(text.contains(
            "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {}}}\n</tools>"
        ));
    }

    #[test]
    fn reasoning_stays_only_in_the_running_turn_and_results_share_one_turn() {
        let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]);
        let messages = json!([
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "<think>\nold\n</think>\n\nanswer"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": null, "reasoning_content": "new", "tool_calls": call},
            {"role": "tool", "tool_call_id": "1", "content": "r1"},
            {"role": "tool", "tool_call_id": "2", "content": "r2"},
        ]);
        let text = rendered(messages, json!([]), true);
        assert!(!text.contains("old") && text.contains("assistant\nanswer<|im_end|>"));
        assert!(text.contains("<think>\nnew\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call><|im_end|>"));
        assert!(text.contains(
            "<|im_start|>user\n<tool_response>\nr1\n</tool_response>\n<tool_response>\nr2\n</tool_response><|im_end|>\n"
        ));
    }

    #[test]
    fn parts_are_joined() {
        assert_eq!(
            content(&json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})),
            "a\nb"
        );
        assert_eq!(content(&json!({"content": null})), "");
    }
}
