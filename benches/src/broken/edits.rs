//! Whether one edit makes one call of a broken text, or several.
//!
//! The text of a block that isn't strict JSON enters. Every edit of one structural character (one put in, taken out, exchanged for
//! another, or two neighbours exchanged) up to the first byte that doesn't fit is tried, and `true` leaves if two of them give
//! different calls that name a declared tool, with arguments that its schema accepts and keys that it declares. Such a text
//! can't be repaired but by guessing. None of this is the code under test.

use super::decide::accepts;
use serde_json::Value;
use sluice_policy::tool_call::ToolSet;

/// Structural characters.
const STRUCTURE: [u8; 7] = *b"{}[],:\"";

/// Two edits give two different calls.
pub(super) fn is_ambiguous(tools: &ToolSet, text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut found: Option<Value> = None;
    let mut before = Reader::new();
    let mut at = 0;
    loop {
        for edit in edits(&before, bytes, at) {
            if !edit.fits(&before, bytes) {
                continue;
            }
            match (edit.call(tools, bytes), &found) {
                (Some(call), None) => found = Some(call),
                (Some(call), Some(other)) if call != *other => return true,
                _ => {}
            }
        }
        match bytes.get(at) {
            Some(byte) if before.step(*byte) => at += 1,
            _ => return false,
        }
    }
}

/// `put` in the place of the bytes `from..to`.
struct Edit {
    from: usize,
    to: usize,
    put: Vec<u8>,
}

/// The edits at this place that can make a difference: inside a string those that end it.
fn edits(before: &Reader, bytes: &[u8], at: usize) -> Vec<Edit> {
    let (here, next) = (bytes.get(at).copied(), bytes.get(at + 1).copied());
    let structural = |byte: Option<u8>| byte.filter(|byte| STRUCTURE.contains(byte));
    let matters = |byte: u8| match before.state {
        State::Text { .. } => byte == b'"',
        State::Escape { .. } => false,
        _ => true,
    };
    let mut found = Vec::new();
    for byte in STRUCTURE.into_iter().filter(|byte| matters(*byte)) {
        found.push(Edit {
            from: at,
            to: at,
            put: vec![byte],
        });
    }
    let Some(here) = structural(here) else { return found };
    if matters(here) {
        found.push(Edit {
            from: at,
            to: at + 1,
            put: Vec::new(),
        });
    }
    for byte in STRUCTURE {
        if byte != here && (matters(byte) || matters(here)) {
            found.push(Edit {
                from: at,
                to: at + 1,
                put: vec![byte],
            });
        }
    }
    if let Some(next) = structural(next).filter(|next| *next != here && (matters(*next) || matters(here))) {
        found.push(Edit {
            from: at,
            to: at + 2,
            put: vec![next, here],
        });
    }
    found
}

impl Edit {
    /// The text is JSON after it, as far as a reader without a memory for numbers can tell.
    fn fits(&self, before: &Reader, bytes: &[u8]) -> bool {
        let mut reader = before.clone();
        let behind = bytes.get(self.to..).unwrap_or_default();
        self.put.iter().chain(behind).all(|byte| reader.step(*byte)) && reader.state == State::Done
    }

    /// The call that it makes.
    fn call(&self, tools: &ToolSet, bytes: &[u8]) -> Option<Value> {
        let text = [bytes.get(..self.from)?, &self.put, bytes.get(self.to..)?].concat();
        let call: Value = serde_json::from_slice(&text).ok()?;
        let members = call.as_object()?;
        (members.len() == 2 && declares(tools, &call) && accepts(tools, &call)).then_some(call)
    }
}

/// The tool of this call declares the keys of its arguments.
fn declares(tools: &ToolSet, call: &Value) -> bool {
    let tool = call["name"].as_str().and_then(|name| tools.exact(name));
    let schema = tool.and_then(|tool| serde_json::from_str::<Value>(tool.parameters.as_deref()?.get()).ok());
    let (Some(schema), Some(arguments)) = (schema, call["arguments"].as_object()) else {
        return false;
    };
    arguments.keys().all(|key| !schema["properties"][key].is_null())
}

/// A reader of one JSON value.
#[derive(Debug, Clone)]
struct Reader {
    /// What each open bracket is: true for an object.
    open: Vec<bool>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    /// Behind `[`.
    FirstValue,
    /// Behind `{`.
    FirstKey,
    Key,
    Colon,
    /// Behind a value.
    Next,
    Text {
        key: bool,
    },
    Escape {
        key: bool,
    },
    /// A number or a literal.
    Scalar,
    Done,
}

impl Reader {
    fn new() -> Self {
        Reader {
            open: Vec::new(),
            state: State::Value,
        }
    }

    /// Takes a byte, if it fits.
    fn step(&mut self, byte: u8) -> bool {
        let blank = matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
        let next = match (self.state, byte) {
            (State::Escape { key }, _) => State::Text { key },
            (State::Text { key }, b'\\') => State::Escape { key },
            (State::Text { key: true }, b'"') => State::Colon,
            (State::Text { key: false }, b'"') => State::Next,
            (state @ State::Text { .. }, byte) if byte >= 0x20 => state,
            (State::Text { .. }, _) => return false,
            (State::Scalar, byte) if byte.is_ascii_alphanumeric() || b".+-".contains(&byte) => State::Scalar,
            (State::Scalar, _) => {
                self.state = State::Next;
                return self.step(byte);
            }
            (state, _) if blank => state,
            (State::FirstValue, b']') | (State::FirstKey, b'}') => return self.close(byte),
            (State::FirstKey | State::Key, b'"') => State::Text { key: true },
            (State::Colon, b':') => State::Value,
            (State::Value | State::FirstValue, b'{' | b'[') => {
                self.open.push(byte == b'{');
                if byte == b'{' {
                    State::FirstKey
                } else {
                    State::FirstValue
                }
            }
            (State::Value | State::FirstValue, _) if self.open.is_empty() => return false,
            (State::Value | State::FirstValue, b'"') => State::Text { key: false },
            (State::Value | State::FirstValue, byte) if byte.is_ascii_alphanumeric() || byte == b'-' => State::Scalar,
            (State::Next, b',') if self.open.last() == Some(&true) => State::Key,
            (State::Next, b',') => State::Value,
            (State::Next, b'}' | b']') => return self.close(byte),
            _ => return false,
        };
        self.state = next;
        true
    }

    fn close(&mut self, byte: u8) -> bool {
        let fits = self.open.pop() == Some(byte == b'}');
        self.state = if self.open.is_empty() { State::Done } else { State::Next };
        fits
    }
}
