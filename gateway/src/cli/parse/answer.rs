//! One text through the gateway's stages: wrapped as vLLM streams it, put together again as a client does.

use std::io::{self, Write};

use bytes::Bytes;
use serde_json::{Map, Value, json, value::RawValue};
use sluice_policy::{
    protocol::sse::{DONE, Decoder, EVENT_LIMIT_BYTES, Event, frame},
    turn::{AnswerPlan, Step, Turn},
};

use super::ParseError;

/// What a client has at the end of the stream.
#[derive(Debug, Default)]
pub(super) struct Answer {
    reasoning: String,
    content: String,
    calls: Vec<Call>,
    verdicts: Vec<Value>,
    deltas: Vec<Value>,
}

#[derive(Debug, Default)]
struct Call {
    name: String,
    arguments: String,
}

impl Answer {
    /// Feeds `pieces`, an event each, and collects what comes out.
    pub(super) fn of(plan: &AnswerPlan, pieces: &[String], from: &str) -> Result<Self, ParseError> {
        let failed = |what: String| ParseError::Stages {
            from: from.to_owned(),
            what,
        };
        let mut turn = Turn::new(plan.clone());
        let mut decoder = Decoder::new(EVENT_LIMIT_BYTES);
        let (mut steps, mut events) = (Vec::new(), Vec::new());
        let mut answer = Self::default();
        for upstream in wrapped(pieces) {
            turn.push(upstream, &mut steps);
            for step in steps.drain(..) {
                match step {
                    Step::Emit(shown) => {
                        decoder
                            .push(shown.bytes, &mut events)
                            .map_err(|error| failed(error.to_string()))?;
                    }
                    Step::Fault(fault) => return Err(failed(fault.message)),
                    Step::Done | Step::AskAgain(_) | Step::GoOn(_) => {}
                }
            }
            for event in events.drain(..) {
                answer.hear(&event).map_err(|error| failed(error.to_string()))?;
            }
        }
        Ok(answer)
    }

    /// One event of the client's stream.
    fn hear(&mut self, event: &Event) -> Result<(), serde_json::Error> {
        if event.data.is_empty() || event.data == "[DONE]" {
            return Ok(());
        }
        let mut chunk: Value = serde_json::from_slice(&event.data)?;
        let Some(delta) = chunk.pointer_mut("/choices/0/delta").map(Value::take) else {
            return Ok(());
        };
        let text = |key: &str| delta.get(key).and_then(Value::as_str).unwrap_or_default();
        self.reasoning.push_str(text("reasoning"));
        self.content.push_str(text("content"));
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.hear_call(call);
        }
        self.verdicts.extend(
            delta
                .pointer("/x_sluice/verdicts")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .cloned(),
        );
        self.deltas.push(delta);
        Ok(())
    }

    fn hear_call(&mut self, delta: &Value) {
        // The stages number calls in order; a client has to make room for the number all the same.
        let index = delta
            .get("index")
            .and_then(Value::as_u64)
            .and_then(|index| usize::try_from(index).ok());
        let index = index.unwrap_or_default().min(self.calls.len());
        if index == self.calls.len() {
            self.calls.push(Call::default());
        }
        let text = |key: &str| delta.pointer(key).and_then(Value::as_str).unwrap_or_default();
        if let Some(call) = self.calls.get_mut(index) {
            call.name.push_str(text("/function/name"));
            call.arguments.push_str(text("/function/arguments"));
        }
    }

    /// Writes it as one line; `cut` names the way of cutting, where a line has several.
    pub(super) fn write(&self, id: Option<&RawValue>, cut: Option<&str>, out: &mut dyn Write) -> io::Result<()> {
        let or_null = |text: &str| {
            if text.is_empty() {
                Value::Null
            } else {
                Value::from(text)
            }
        };
        let call = |call: &Call| json!({"name": call.name, "arguments": call.arguments});
        let mut line = Map::new();
        if let Some(cut) = cut {
            line.insert("cut".to_owned(), cut.into());
        }
        line.insert("reasoning".to_owned(), or_null(&self.reasoning));
        line.insert("content".to_owned(), or_null(&self.content));
        line.insert("tool_calls".to_owned(), self.calls.iter().map(call).collect());
        line.insert("verdicts".to_owned(), self.verdicts.clone().into());
        line.insert("deltas".to_owned(), self.deltas.clone().into());
        let line = Value::Object(line).to_string();
        // The id as it came, a number of any size included.
        writeln!(
            out,
            "{{\"id\":{},{}",
            id.map_or("null", RawValue::get),
            line.trim_start_matches('{')
        )
    }
}

/// The events in which vLLM (without parsers) streams these pieces.
fn wrapped(pieces: &[String]) -> impl Iterator<Item = Bytes> {
    let first = std::iter::once(chunk(&json!({"role": "assistant", "content": ""}), Value::Null));
    let texts = pieces
        .iter()
        .map(|piece| chunk(&json!({"content": piece}), Value::Null));
    let last = std::iter::once(chunk(&json!({"content": ""}), "stop".into()));
    first
        .chain(texts)
        .chain(last)
        .chain(std::iter::once(Bytes::from_static(DONE)))
}

fn chunk(delta: &Value, finish: Value) -> Bytes {
    let chunk = json!({
        "id": "chatcmpl-parse",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "parse",
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
    });
    frame(chunk.to_string().as_bytes())
}
