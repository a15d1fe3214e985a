//! What a test makes the model say: a marker in the prompt, read by the logits processor that the engines run with.
//!
//! Sampling, detokeniser, parsers and HTTP stay vLLM's own. See `vllm/README.md` of the shared folder for the keys.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use std::time::Duration;

use serde_json::{Map, Value, json};

/// The id of the served model, as the engines know it and as the gateway's clients ask for it.
pub(crate) const MODEL: &str = "Qwen/Qwen3-32B-AWQ";

/// An answer to be spoken by the model, token by token.
#[derive(Clone)]
pub(crate) struct Script(Map<String, Value>);

impl Script {
    /// The model says `text` and stops.
    pub(crate) fn say(text: &str) -> Self {
        Self(Map::from_iter([("force_text".to_owned(), json!(text))]))
    }

    /// A pause before the first token. The engine is silent, and deaf: it notices nothing else meanwhile.
    pub(crate) fn first_token_after(self, pause: Duration) -> Self {
        self.with("force_first_delay_ms", json!(pause.as_millis() as u64))
    }

    /// A pause before every token: a slow model.
    pub(crate) fn each_token_after(self, pause: Duration) -> Self {
        self.with("force_delay_ms", json!(pause.as_millis() as u64))
    }

    /// Each character of the text is a token of its own.
    pub(crate) fn one_token_per_character(self) -> Self {
        self.with("force_split", json!("char"))
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.0.insert(key.to_owned(), value);
        self
    }

    /// The marker; anywhere in a prompt, the last one counts.
    pub(crate) fn marker(&self) -> String {
        format!(
            "@@FORCE:{}@@",
            BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&self.0).unwrap())
        )
    }

    /// A chat request whose answer is this script. `more` holds further fields.
    pub(crate) fn chat(&self, more: Value) -> Value {
        self.chat_about("What is the weather in Paris?", more)
    }

    /// The same with some seconds of prefill: 8,000 tokens that no cache has, because they begin with `nonce`.
    ///
    /// In prefill the engine goes on step by step, so that its figures and an abort are seen. (A scripted pause before the
    /// first token blocks it instead.)
    pub(crate) fn chat_with_long_prefill(&self, nonce: u16, more: Value) -> Value {
        self.chat_about(
            &format!("{nonce} {}", "All work and no play makes a dull engine. ".repeat(900)),
            more,
        )
    }

    fn chat_about(&self, prompt: &str, more: Value) -> Value {
        let messages = json!([{"role": "user", "content": format!("{prompt} {}", self.marker())}]);
        let mut body = json!({"model": MODEL, "messages": messages, "max_tokens": 512, "temperature": 0});
        let Value::Object(more) = more else {
            panic!("more fields are an object")
        };
        body.as_object_mut().unwrap().extend(more);
        body
    }
}

/// The tools that the tests declare.
pub(crate) fn tools() -> Value {
    json!([
        {"type": "function", "function": {
            "name": "get_weather", "description": "Current weather of a city",
            "parameters": {"type": "object", "required": ["city"], "properties": {
                "city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}}}},
        {"type": "function", "function": {
            "name": "now", "description": "Current time", "parameters": {"type": "object", "properties": {}}}}
    ])
}
