//! Legacy completions (`/v1/completions`): a chunk is framed as in chat, with `text` in the choice where chat has a delta.
//!
//! So `chat::Chunk` reads it, and nothing of it is rewritten but identity and usage: the text is the
//! model's own, tags included. What is judged is said here.

use super::chat::Choice;

/// Whether `choice`, of the chunk `text`, brings text.
pub fn has_text(text: &str, choice: &Choice) -> bool {
    choice.text.is_some_and(|place| place.of(text) != "\"\"")
}

#[cfg(test)]
mod tests {
    use super::super::chat::Chunk;
    use super::*;

    #[test]
    fn text_is_seen() {
        let mut chunk = Chunk::default();
        for (text, want) in [
            (
                r#"{"id":"cmpl-1","choices":[{"index":0,"text":"<think>","logprobs":null,"finish_reason":null}]}"#,
                true,
            ),
            (
                r#"{"id":"cmpl-1","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}]}"#,
                false,
            ),
            (
                r#"{"id":"cmpl-1","choices":[{"index":0,"text":null,"finish_reason":"stop"}]}"#,
                false,
            ),
        ] {
            chunk.read(text, "").unwrap();
            assert_eq!(has_text(text, &chunk.choices[0]), want, "{text}");
        }
    }
}
