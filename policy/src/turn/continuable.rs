//! Which answers can go on on another replica when theirs is lost in the middle (B31).
//!
//! A continuation is a text completion behind the same prompt and what was said. So the prompt must be one that token ids can
//! say, the answer one that its text says wholly, and nothing may rule it that a completion can't take up in the middle.
//!
//! | request | continuable |
//! | --- | --- |
//! | chat, `/v1/completions` with one prompt; streamed | yes: text, reasoning, calls, each choice of `n` |
//! | images, audio, video, embeddings in the prompt | no: `Media` |
//! | `response_format`, `structured_outputs`, `guided_…`; `required`, named and strict tools | no: `Grammar` |
//! | `logprobs`, `prompt_logprobs`, `return_token_ids` | no: `PerToken` |
//! | `echo`, `suffix`, `truncate_prompt_tokens`, several prompts | no: `Prompt` |
//! | `best_of`, `use_beam_search` | no: `Search` |
//! | other endpoints | no: `PassedThrough` |
//! | one event is over the limit | no: `Oversized` |
//! | vLLM took calls or reasoning out of the text; more than 1 MiB; a chunk that broke off half read | no: `TextUnknown` |
//! | switched off | no: `Off` |
//!
//! The last two but one are known only in the course of the answer.

use crate::protocol::ask::{Ask, Endpoint};

/// Whether an answer can go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuable {
    /// From its text so far.
    ByText,
    /// For this reason not.
    Not(Obstacle),
}

/// Why an answer can't go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// By configuration.
    Off,
    /// Not an endpoint whose answers are read.
    PassedThrough,
    /// Something in the prompt isn't text.
    Media,
    /// A grammar rules the answer: nobody can say where in it a text ends.
    Grammar,
    /// The client wants something of each token.
    PerToken,
    /// The prompt isn't one that can be put before a text.
    Prompt,
    /// The answer is the best of several.
    Search,
    /// An event is longer than what is read: another replica would only send it again.
    Oversized,
    /// What the model wrote isn't known.
    TextUnknown,
}

impl Obstacle {
    /// For the client, behind "can't go on on another replica: ".
    pub fn reason(self) -> &'static str {
        match self {
            Self::Off => "continuation is switched off",
            Self::PassedThrough => "answers of this endpoint never can",
            Self::Media => "its prompt has images, audio or embeddings",
            Self::Grammar => "a grammar rules it",
            Self::PerToken => "log probabilities or token ids were asked for",
            Self::Prompt => "its prompt is repeated, cut, or one of several",
            Self::Search => "it is the best of several",
            Self::Oversized => "one of its events is too long",
            Self::TextUnknown => "what the model wrote is not known to the byte",
        }
    }
}

impl Continuable {
    /// As far as the request says it. `guided`: a grammar of ours, or vLLM's for its tools, rules the answer.
    pub fn of(ask: &Ask, guided: bool) -> Self {
        let is = |key: &str, value: &[u8]| ask.raw(key).is_some_and(|raw| raw == value);
        let given = |key: &str| ask.raw(key).is_some_and(|raw| raw != "null");
        let obstacle = match ask.endpoint {
            Endpoint::ChatCompletions | Endpoint::Completions => None,
            _ => Some(Obstacle::PassedThrough),
        };
        let several = ask.endpoint == Endpoint::Completions && !is_one_prompt(ask);
        let obstacle = obstacle
            .or((ask.images || given("prompt_embeds")).then_some(Obstacle::Media))
            .or((ask.response_format || guided).then_some(Obstacle::Grammar))
            .or((ask.logprobs || is("return_token_ids", b"true")).then_some(Obstacle::PerToken))
            .or(
                (several || is("echo", b"true") || given("suffix") || given("truncate_prompt_tokens"))
                    .then_some(Obstacle::Prompt),
            )
            .or(
                (is("use_beam_search", b"true") || (given("best_of") && !is("best_of", b"1")))
                    .then_some(Obstacle::Search),
            );
        obstacle.map_or(Self::ByText, Self::Not)
    }
}

/// The prompt of a completion is one text, or one row of token ids.
fn is_one_prompt(ask: &Ask) -> bool {
    let Some(prompt) = ask.raw("prompt") else { return false };
    let mut bytes = prompt.iter().filter(|byte| !byte.is_ascii_whitespace());
    match (bytes.next(), bytes.next()) {
        (Some(b'"'), _) => true,
        (Some(b'['), Some(first)) => first.is_ascii_digit(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::protocol::ask::{AskLimits, Grants, read};

    fn check(endpoint: &Endpoint, more: Value, guided: bool, want: Continuable) {
        let mut body = match endpoint {
            Endpoint::ChatCompletions => json!({"messages": [{"role": "user", "content": "x"}], "stream": true}),
            _ => json!({"prompt": "x", "stream": true}),
        };
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let ask = read(
            endpoint,
            Bytes::from(body.to_string()),
            &AskLimits::default(),
            &Grants::ALL,
        );
        assert_eq!(Continuable::of(&ask.unwrap(), guided), want, "{body}");
    }

    /// The table of the module head, as far as a request says it.
    #[test]
    fn what_can_go_on() {
        use Continuable::{ByText, Not};
        use Obstacle::*;
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]});
        let audio = json!({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]}]});
        for (more, guided, want) in [
            (json!({}), false, ByText),
            (
                json!({"n": 2, "stop": ["a"], "max_tokens": 9, "seed": 1, "cache_salt": "s"}),
                false,
                ByText,
            ),
            (
                json!({"echo": false, "return_token_ids": false, "logprobs": false, "best_of": 1}),
                false,
                ByText,
            ),
            (
                json!({"suffix": null, "truncate_prompt_tokens": null, "response_format": {"type": "text"}}),
                false,
                ByText,
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a"}}]}),
                false,
                ByText,
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a"}}]}),
                true,
                Not(Grammar),
            ),
            (image, false, Not(Media)),
            (audio, false, Not(Media)),
            (json!({"response_format": {"type": "json_object"}}), false, Not(Grammar)),
            (json!({"structured_outputs": {"choice": ["a"]}}), false, Not(Grammar)),
            (json!({"guided_regex": "a"}), false, Not(Grammar)),
            (json!({"logprobs": true}), false, Not(PerToken)),
            (json!({"prompt_logprobs": 1}), false, Not(PerToken)),
            (json!({"return_token_ids": true}), false, Not(PerToken)),
            (json!({"echo": true}), false, Not(Prompt)),
            (json!({"truncate_prompt_tokens": 9}), false, Not(Prompt)),
            (json!({"use_beam_search": true}), false, Not(Search)),
        ] {
            check(&Endpoint::ChatCompletions, more, guided, want);
        }
        for (more, want) in [
            (json!({}), ByText),
            (json!({"prompt": [1, 2]}), ByText),
            (json!({"prompt": ["a"]}), Not(Prompt)),
            (json!({"prompt": [[1], [2]]}), Not(Prompt)),
            (json!({"prompt": []}), Not(Prompt)),
            (json!({"suffix": "x"}), Not(Prompt)),
            (json!({"echo": true}), Not(Prompt)),
            (json!({"logprobs": 1}), Not(PerToken)),
            (json!({"best_of": 3}), Not(Search)),
            (json!({"prompt": null, "prompt_embeds": "AA=="}), Not(Media)),
        ] {
            check(&Endpoint::Completions, more, false, want);
        }
        check(&Endpoint::Embeddings, json!({"input": "x"}), false, Not(PassedThrough));
    }
}
