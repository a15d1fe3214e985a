//! What arrived, put together from the bytes of a stream or of a whole answer, with nothing judged yet but its form.
//!
//! It reads the wire by itself and shares no code with the gateway: an error of one must not hide in the other.

use serde_json::Value;
use std::collections::BTreeSet;

/// One call of a choice.
#[derive(Debug, Default, Clone)]
pub(super) struct HeardCall {
    /// Ids that were given; one.
    pub(super) ids: Vec<String>,
    /// Names that were given; one.
    pub(super) names: Vec<String>,
    /// The argument text so far.
    pub(super) arguments: String,
}

/// One choice.
#[derive(Debug, Default, Clone)]
pub(super) struct HeardChoice {
    /// How often it was said who speaks.
    pub(super) roles: usize,
    /// Under the name `reasoning`.
    pub(super) reasoning: String,
    /// Under the name `reasoning_content`.
    pub(super) reasoning_content: String,
    /// Text.
    pub(super) content: String,
    /// By their index.
    pub(super) calls: Vec<HeardCall>,
    /// Each `finish_reason` that was given; one.
    pub(super) finishes: Vec<String>,
    /// Something of it came after its finish.
    pub(super) after_finish: bool,
}

/// What arrived.
#[derive(Debug, Default, Clone)]
pub(super) struct Heard {
    /// All ids of the answer; one.
    pub(super) ids: BTreeSet<String>,
    /// By index.
    pub(super) choices: Vec<HeardChoice>,
    /// Figures of usage, in order.
    pub(super) usages: Vec<Value>,
    /// Error objects, in order.
    pub(super) errors: Vec<Value>,
    /// `[DONE]` lines.
    pub(super) dones: usize,
    /// A data line came behind `[DONE]` or an error.
    pub(super) after_end: bool,
    /// What can't be read: no answer has such.
    pub(super) unreadable: Option<String>,
    /// Data lines.
    pub(super) events: usize,
    rest: Vec<u8>,
}

/// More choices or calls than any request here asks for.
const INDEX_MAX: u64 = 16;

impl Heard {
    /// More bytes of a stream.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let mut read = 0;
        while let Some(length) = self
            .rest
            .get(read..)
            .and_then(|rest| rest.iter().position(|byte| *byte == b'\n'))
        {
            let line = self.rest.get(read..read + length).unwrap_or_default().to_vec();
            self.line(&line);
            read += length + 1;
        }
        self.rest.drain(..read);
    }

    /// The stream has ended.
    pub(super) fn end(&mut self) {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.cannot_read("a last line without an end", &rest);
        }
    }

    /// A whole answer.
    pub(super) fn whole(bytes: &[u8]) -> Heard {
        let mut heard = Heard::default();
        match serde_json::from_slice::<Value>(bytes) {
            Ok(value) => heard.object(&value, "message"),
            Err(_) => heard.cannot_read("a body that isn't JSON", bytes),
        }
        heard
    }

    fn line(&mut self, line: &[u8]) {
        if line.is_empty() || line.starts_with(b":") {
            return;
        }
        let Some(data) = line.strip_prefix(b"data: ") else {
            return self.cannot_read("a line that is no data", line);
        };
        self.events += 1;
        self.after_end |= self.dones > 0 || !self.errors.is_empty();
        if data == b"[DONE]" {
            self.dones += 1;
            return;
        }
        match serde_json::from_slice::<Value>(data) {
            Ok(value) => self.object(&value, "delta"),
            Err(_) => self.cannot_read("a data line that isn't JSON", data),
        }
    }

    fn object(&mut self, object: &Value, part: &str) {
        if let Some(error) = object.get("error") {
            self.errors.push(error.clone());
            return;
        }
        match object.get("id").and_then(Value::as_str) {
            Some(id) => {
                self.ids.insert(id.to_owned());
            }
            None => self.cannot_read("no id", object.to_string().as_bytes()),
        }
        if let Some(usage) = object.get("usage").filter(|usage| !usage.is_null()) {
            self.usages.push(usage.clone());
        }
        for choice in object.get("choices").and_then(Value::as_array).into_iter().flatten() {
            let index = choice.get("index").and_then(Value::as_u64).unwrap_or(INDEX_MAX);
            if index >= INDEX_MAX {
                return self.cannot_read(
                    "a choice without an index that was asked for",
                    choice.to_string().as_bytes(),
                );
            }
            let index = index as usize;
            if self.choices.len() <= index {
                self.choices.resize_with(index + 1, HeardChoice::default);
            }
            if let Some(of) = self.choices.get_mut(index) {
                of.more(choice, part);
            }
        }
    }

    fn cannot_read(&mut self, what: &str, bytes: &[u8]) {
        let shown = bytes.get(..200).unwrap_or(bytes);
        let text = format!("{what}: {}", String::from_utf8_lossy(shown));
        self.unreadable.get_or_insert(text);
    }
}

impl HeardChoice {
    fn more(&mut self, choice: &Value, part: &str) {
        let text = |of: &Value, field: &str| of.get(field).and_then(Value::as_str).map(str::to_owned);
        let before = self.shown();
        // A text completion has its text beside, and no role.
        self.content.push_str(&text(choice, "text").unwrap_or_default());
        if let Some(delta) = choice.get(part) {
            self.roles += usize::from(delta.get("role").is_some());
            self.reasoning.push_str(&text(delta, "reasoning").unwrap_or_default());
            self.reasoning_content
                .push_str(&text(delta, "reasoning_content").unwrap_or_default());
            self.content.push_str(&text(delta, "content").unwrap_or_default());
            let calls = delta.get("tool_calls").and_then(Value::as_array);
            for (place, call) in calls.into_iter().flatten().enumerate() {
                let index = call
                    .get("index")
                    .and_then(Value::as_u64)
                    .unwrap_or(place as u64)
                    .min(INDEX_MAX) as usize;
                if self.calls.len() <= index {
                    self.calls.resize_with(index + 1, HeardCall::default);
                }
                let Some(of) = self.calls.get_mut(index) else { continue };
                of.ids.extend(text(call, "id"));
                if let Some(function) = call.get("function") {
                    of.names.extend(text(function, "name"));
                    of.arguments.push_str(&text(function, "arguments").unwrap_or_default());
                }
            }
        }
        self.after_finish |= !self.finishes.is_empty() && self.shown() > before;
        self.finishes.extend(text(choice, "finish_reason"));
    }

    /// How much of it there is.
    fn shown(&self) -> usize {
        let calls: usize = self
            .calls
            .iter()
            .map(|call| call.arguments.len() + call.ids.len())
            .sum();
        self.reasoning.len() + self.content.len() + calls
    }
}
