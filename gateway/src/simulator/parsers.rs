//! What vLLM's own parsers (`qwen3`, `hermes`) make of an answer, in the `parsers` set-up.
//!
//! Enters: a [`Script`]. Leaves: one delta for each token, and the whole message. Well-formed answers come out as
//! vLLM 0.32 sends them. Of its mistakes only the two that matter most are modelled: a call that isn't JSON falls back
//! to plain content in a whole answer, and is streamed as it comes in a stream.
use serde_json::{Value, json};

use super::prompt::spaced;
use super::script::Script;
use super::tokens::mix;
use super::wire::quoted;

/// An answer as vLLM's parsers tell it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    /// For each token the JSON of its delta, if it shows anything.
    pub(super) deltas: Vec<Option<String>>,
    /// `content` of the whole message.
    pub(super) content: Option<String>,
    /// `reasoning` of the whole message.
    pub(super) reasoning: Option<String>,
    /// Calls of the whole message: name and arguments.
    pub(super) calls: Vec<(String, String)>,
    /// Tokens of thinking.
    pub(super) reasoning_tokens: u32,
    /// Calls that the stream shows.
    pub(super) streamed_calls: u32,
}

/// Where the parsers are.
enum At {
    Thinking,
    Text,
    /// In a call whose name isn't complete: its text so far.
    Name(String),
    /// In the arguments: how deep, in a string, after a backslash; None before the first byte.
    Arguments(Option<Depth>),
    /// In a call, after its arguments.
    Rest,
}

#[derive(Clone, Copy, Default)]
struct Depth {
    open: u32,
    in_string: bool,
    is_escaped: bool,
}

/// Reads an answer: `thinking` is on unless the template switched it off, `tools` if the tool parser reads along.
pub(super) fn tell(script: &Script, thinking: bool, tools: bool, seed: u64) -> Told {
    let mut told = Told {
        deltas: Vec::new(),
        content: None,
        reasoning: None,
        calls: Vec::new(),
        reasoning_tokens: 0,
        streamed_calls: 0,
    };
    let mut at = if thinking { At::Thinking } else { At::Text };
    let (mut thought, mut text) = (String::new(), String::new());
    for token in 0..script.tokens() {
        let piece = script.shown(token);
        let delta = match (&mut at, piece) {
            (_, "") => None,
            (At::Thinking, "<think>") if thought.is_empty() => None,
            (At::Thinking, "</think>") => {
                at = At::Text;
                None
            }
            (At::Thinking | At::Text, "<tool_call>") if tools => {
                at = At::Name(String::new());
                None
            }
            (At::Thinking, _) => {
                told.reasoning_tokens += 1;
                thought.push_str(piece);
                Some(format!("{{\"reasoning\":{}}}", quoted(piece)))
            }
            (At::Text, _) => {
                text.push_str(piece);
                // Line breaks between calls are dropped once a call was shown.
                let is_gap = told.streamed_calls > 0 && piece.trim().is_empty();
                (!is_gap).then(|| format!("{{\"content\":{}}}", quoted(piece)))
            }
            (At::Name(_) | At::Arguments(_) | At::Rest, "</tool_call>") => {
                at = At::Text;
                None
            }
            (At::Name(head), _) => {
                head.push_str(piece);
                named(head).map(|name| {
                    let id = mix(seed, u64::from(told.streamed_calls));
                    let index = told.streamed_calls;
                    told.streamed_calls += 1;
                    at = At::Arguments(None);
                    format!(
                        "{{\"content\":null,\"tool_calls\":[{{\"id\":\"chatcmpl-tool-{id:016x}\",\"type\":\"function\",\"index\":{index},\"function\":{{\"name\":{}}}}}]}}",
                        quoted(&name)
                    )
                })
            }
            (At::Arguments(depth), _) => {
                let (shown, is_over) = within(depth, piece);
                if is_over {
                    at = At::Rest;
                }
                (!shown.is_empty()).then(|| {
                    let index = told.streamed_calls - 1;
                    format!(
                        "{{\"content\":null,\"tool_calls\":[{{\"index\":{index},\"function\":{{\"arguments\":{}}}}}]}}",
                        quoted(shown)
                    )
                })
            }
            (At::Rest, _) => None,
        };
        told.deltas.push(delta);
    }
    whole(script, thinking, tools, thought, &mut told);
    told
}

/// The name of a call, once its text holds it whole.
fn named(head: &str) -> Option<String> {
    let (_, after) = head.split_once("\"name\"")?;
    let (_, after) = after.split_once('"')?;
    let (name, _) = after.split_once('"')?;
    Some(name.to_owned())
}

/// The part of a piece that belongs to the arguments' object, and whether it ends there.
fn within<'a>(depth: &mut Option<Depth>, piece: &'a str) -> (&'a str, bool) {
    let start = match depth {
        Some(_) => 0,
        None => match piece.find('{') {
            Some(start) => start,
            None => return ("", false),
        },
    };
    let state = depth.get_or_insert_default();
    for (place, byte) in piece.bytes().enumerate().skip(start) {
        match byte {
            _ if state.is_escaped => state.is_escaped = false,
            b'\\' if state.in_string => state.is_escaped = true,
            b'"' => state.in_string = !state.in_string,
            b'{' if !state.in_string => state.open += 1,
            b'}' if !state.in_string => {
                state.open = state.open.saturating_sub(1);
                if state.open == 0 {
                    return (&piece[start..=place], true);
                }
            }
            _ => {}
        }
    }
    (&piece[start..], false)
}

/// The whole message: thinking apart, calls taken out of the text if every one of them is JSON.
fn whole(script: &Script, thinking: bool, tools: bool, thought: String, told: &mut Told) {
    let text = script.text.as_str();
    let opened = text.strip_prefix("<think>").unwrap_or(text);
    let rest = match opened.split_once("</think>") {
        _ if !thinking => text,
        Some((_, rest)) => rest,
        None => opened
            .find("<tool_call>")
            .filter(|_| tools)
            .map_or("", |at| &opened[at..]),
    };
    told.reasoning = (thinking && !thought.is_empty()).then_some(thought);
    let content = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    told.content = content(rest);
    let Some((before, calls)) = rest.split_once("<tool_call>").filter(|_| tools) else {
        return;
    };
    let parsed: Option<Vec<(String, String)>> = calls
        .split("<tool_call>")
        .map(|call| {
            let call: Value = serde_json::from_str(call.split("</tool_call>").next()?).ok()?;
            let arguments = call.get("arguments").unwrap_or(&json!({})).clone();
            Some((call.get("name")?.as_str()?.to_owned(), spaced(&arguments)))
        })
        .collect();
    if let Some(calls) = parsed {
        told.calls = calls;
        told.content = content(before).filter(|text| !text.trim().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::Limits;
    use super::*;

    fn told(text: &str, thinking: bool, tools: bool) -> Told {
        let script = Script::new(
            text.into(),
            &Limits {
                max_tokens: 1_000,
                ..Limits::default()
            },
        );
        tell(&script, thinking, tools, 7)
    }

    /// What a client puts together of the deltas: reasoning, content, and each call's name and arguments.
    fn joined(told: &Told) -> (String, String, Vec<(String, String)>) {
        let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::<(String, String)>::new());
        for delta in told.deltas.iter().flatten() {
            let delta: Value = serde_json::from_str(delta).unwrap();
            reasoning.push_str(delta["reasoning"].as_str().unwrap_or_default());
            content.push_str(delta["content"].as_str().unwrap_or_default());
            let function = &delta["tool_calls"][0]["function"];
            if let Some(name) = function["name"].as_str() {
                calls.push((name.to_owned(), String::new()));
            }
            if let Some(arguments) = function["arguments"].as_str() {
                calls.last_mut().unwrap().1.push_str(arguments);
            }
        }
        (reasoning, content, calls)
    }

    const CALLS: &str = "<think>\nx y\n</think>\n\nLook.\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": {\"b\": \"}\\\"{\"}}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";

    #[test]
    fn stream_and_whole_agree_on_a_well_formed_answer() {
        let told = told(CALLS, true, true);
        let (reasoning, content, calls) = joined(&told);
        let wanted = vec![
            ("f".to_owned(), "{\"a\": {\"b\": \"}\\\"{\"}}".to_owned()),
            ("g".to_owned(), "{}".to_owned()),
        ];
        assert_eq!((reasoning.as_str(), content.as_str()), ("\nx y\n", "\n\nLook.\n\n"));
        assert_eq!((&calls, &told.calls), (&wanted, &wanted));
        assert_eq!(
            (told.reasoning.as_deref(), told.content.as_deref()),
            (Some("\nx y\n"), Some("\n\nLook.\n\n"))
        );
        assert_eq!(told.streamed_calls, 2);
    }

    #[test]
    fn without_the_tool_parser_calls_are_text_and_without_thinking_tags_leak() {
        let text = told(CALLS, true, false);
        assert!(text.calls.is_empty() && text.content.unwrap().contains("<tool_call>"));
        assert_eq!(
            told("<think>a</think>b", false, false).content.as_deref(),
            Some("<think>a</think>b")
        );
        let all = told("no tags at all", true, false);
        assert_eq!((all.reasoning.as_deref(), all.content), (Some("no tags at all"), None));
    }

    #[test]
    fn a_call_that_is_not_json_is_content_in_a_whole_answer() {
        let broken = told(
            "<think>a</think><tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": }}\n</tool_call>",
            true,
            true,
        );
        assert!(broken.calls.is_empty() && broken.content.as_deref().unwrap().starts_with("<tool_call>"));
        assert_eq!(joined(&broken).2, [("f".to_owned(), "{\"a\": }".to_owned())]);
    }
}
