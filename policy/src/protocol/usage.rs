//! Token usage: read for the record, completed for the client.

use serde::Deserialize;

use super::chat::{self, Malformed};

/// Tokens of one answer. `None` is "not known", never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that were found cached.
    pub cached_tokens: Option<u64>,
    /// Completion tokens, reasoning included.
    pub completion_tokens: Option<u64>,
    /// Completion tokens that were reasoning.
    pub reasoning_tokens: Option<u64>,
    /// Completion or reasoning tokens were counted here, because vLLM didn't say.
    pub estimated: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
}

impl Usage {
    /// Reads a `usage` object; what isn't there or isn't a count stays unknown.
    pub fn read(usage: &str) -> Self {
        let wire: Wire = serde_json::from_str(usage).unwrap_or_default();
        Self {
            prompt_tokens: wire.prompt_tokens,
            cached_tokens: wire.prompt_tokens_details.and_then(|details| details.cached_tokens),
            completion_tokens: wire.completion_tokens,
            reasoning_tokens: wire
                .completion_tokens_details
                .and_then(|details| details.reasoning_tokens),
            estimated: false,
        }
    }
}

/// Appends `usage` with `completion_tokens_details.reasoning_tokens` set; everything else stays as received.
///
/// # Errors
/// [`Malformed`] if `usage` isn't a JSON object.
pub fn with_reasoning(usage: &str, reasoning_tokens: u64, out: &mut Vec<u8>) -> Result<(), Malformed> {
    chat::with_member(usage, "completion_tokens_details", out, |details, out| {
        let details = details.filter(|details| details.starts_with('{')).unwrap_or("{}");
        chat::with_member(details, "reasoning_tokens", out, |_, out| {
            out.extend_from_slice(reasoning_tokens.to_string().as_bytes());
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_vllm_says() {
        let usage = r#"{"prompt_tokens":303,"total_tokens":347,"completion_tokens":44,"prompt_tokens_details":{"cached_tokens":256,"created_cache_tokens":0},"completion_tokens_details":{"reasoning_tokens":14}}"#;
        let want = Usage {
            prompt_tokens: Some(303),
            cached_tokens: Some(256),
            completion_tokens: Some(44),
            reasoning_tokens: Some(14),
            estimated: false,
        };
        assert_eq!(Usage::read(usage), want);
        assert_eq!(
            Usage::read(r#"{"completion_tokens":null,"completion_tokens_details":null}"#),
            Usage::default()
        );
        assert_eq!(Usage::read("[]"), Usage::default());
    }

    #[test]
    fn reasoning_tokens_are_put_in_place() {
        for (usage, want) in [
            (
                r#"{"completion_tokens":4}"#,
                r#"{"completion_tokens":4,"completion_tokens_details":{"reasoning_tokens":3}}"#,
            ),
            (
                r#"{"completion_tokens_details":null,"completion_tokens":4}"#,
                r#"{"completion_tokens_details":{"reasoning_tokens":3},"completion_tokens":4}"#,
            ),
            (
                r#"{"completion_tokens_details":{"audio_tokens":0}}"#,
                r#"{"completion_tokens_details":{"audio_tokens":0,"reasoning_tokens":3}}"#,
            ),
        ] {
            let mut out = Vec::new();
            with_reasoning(usage, 3, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }
}
