//! What a client got, put together as a client would, with the rules of the stream checked on the way (B7, B14, B21).

use std::collections::HashSet;

use serde_json::Value;

/// One choice of an answer, without what differs from request to request (ids, times).
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Message {
    pub(crate) reasoning: Option<String>,
    pub(crate) content: Option<String>,
    /// Name and arguments of each tool call, in order.
    pub(crate) calls: Vec<(String, String)>,
    pub(crate) finish: Option<String>,
}

impl Message {
    /// Puts a message together.
    pub(crate) fn expect(reasoning: Option<&str>, content: Option<&str>, calls: &[(&str, &str)], finish: &str) -> Self {
        Self {
            reasoning: reasoning.map(str::to_owned),
            content: content.map(str::to_owned),
            calls: calls
                .iter()
                .map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned()))
                .collect(),
            finish: Some(finish.to_owned()),
        }
    }

    /// Without white space around reasoning and text; nothing but white space is nothing.
    pub(crate) fn trimmed(mut self) -> Self {
        for text in [&mut self.reasoning, &mut self.content] {
            *text = text
                .take()
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty());
        }
        self
    }

    /// The message of a whole answer with one choice.
    pub(crate) fn of_body(body: &Value) -> Self {
        let choice = &body["choices"][0];
        let message = &choice["message"];
        assert_eq!(message["role"], "assistant");
        assert_eq!(
            message["reasoning"], message["reasoning_content"],
            "one reasoning under both names"
        );
        let calls = message["tool_calls"].as_array();
        assert!(calls.is_none_or(|calls| !calls.is_empty()), "no empty tool_calls");
        assert_ne!(message["content"], "", "content is null when there is none");
        let calls = calls.into_iter().flatten().map(|call| {
            assert_eq!(call["type"], "function");
            let function = &call["function"];
            (
                function["name"].as_str().unwrap().to_owned(),
                function["arguments"].as_str().unwrap().to_owned(),
            )
        });
        Self {
            reasoning: text(&message["reasoning"]),
            content: text(&message["content"]),
            calls: calls.collect(),
            finish: text(&choice["finish_reason"]),
        }
    }

    /// The message of a stream with one choice: events as they came, `[DONE]` included.
    pub(crate) fn of_events(events: &[String]) -> Self {
        let chunks = chunks(events);
        let mut message = Self::default();
        let mut ids = HashSet::new();
        let mut roles = 0;
        for chunk in &chunks {
            for constant in ["id", "model", "created", "object"] {
                assert_eq!(chunk[constant], chunks[0][constant], "{constant} stays constant");
            }
            let Some(choice) = chunk["choices"].get(0) else {
                continue;
            };
            assert_eq!(choice["index"], 0);
            assert_eq!(message.finish, None, "nothing follows the finish");
            let delta = &choice["delta"];
            roles += usize::from(delta.get("role").is_some());
            assert_eq!(
                delta["reasoning"], delta["reasoning_content"],
                "one reasoning under both names"
            );
            append(&mut message.reasoning, &delta["reasoning"]);
            append(&mut message.content, &delta["content"]);
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                message.add(call, &mut ids);
            }
            message.finish = text(&choice["finish_reason"]);
        }
        assert_eq!(roles, 1, "the role is said once");
        message
    }

    fn add(&mut self, call: &Value, ids: &mut HashSet<String>) {
        let index = usize::try_from(call["index"].as_u64().expect("a call has an index")).unwrap();
        let function = &call["function"];
        if index == self.calls.len() {
            assert_eq!(call["type"], "function");
            assert!(
                ids.insert(call["id"].as_str().expect("a call has an id").to_owned()),
                "ids are unique"
            );
            self.calls.push((
                function["name"].as_str().expect("a call has a name").to_owned(),
                String::new(),
            ));
        } else {
            assert_eq!(index + 1, self.calls.len(), "calls come in order");
            assert!(
                call.get("id").is_none() && function.get("name").is_none(),
                "id and name are said once"
            );
        }
        self.calls[index].1 += function["arguments"].as_str().unwrap_or_default();
    }
}

/// The chunks of a stream that ended well. Comments are left out, `[DONE]` stands once, at the end.
pub(crate) fn chunks(events: &[String]) -> Vec<Value> {
    let mut data: Vec<&str> = events.iter().filter_map(|event| payload(event)).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "the stream ends with [DONE]");
    let chunks: Vec<Value> = data
        .iter()
        .map(|data| serde_json::from_str(data).expect("a chunk is JSON"))
        .collect();
    assert!(
        chunks.iter().all(|chunk| chunk.get("choices").is_some()),
        "data lines carry choices"
    );
    assert!(!chunks.is_empty(), "a stream has chunks");
    chunks
}

/// What an event says, or `None` for a comment.
pub(crate) fn payload(event: &str) -> Option<&str> {
    if event.starts_with(':') {
        return None;
    }
    let data = event.strip_prefix("data: ").and_then(|data| data.strip_suffix("\n\n"));
    Some(data.expect("an event is one `data: ` line and a blank line"))
}

fn append(whole: &mut Option<String>, delta: &Value) {
    if let Some(delta) = delta.as_str().filter(|delta| !delta.is_empty()) {
        whole.get_or_insert_default().push_str(delta);
    }
}

/// Empty text and no text are one: what a stream doesn't say, a whole answer may call "" or null.
fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}
