//! Answers that vLLM 0.32's reasoning parser has split, calls left in the text (`tool_choice: "none"`): as seen on a real one,
//! it ends the reasoning at `</think>`, which it swallows, or at a `<tool_call>` token. In a stream every `</think>` behind such a
//! call leaks; a whole answer lacks it (B9, B16, B22).

use serde_json::{Value, json};
use sluice_policy::reasoning::{OPENER_HOLD, Opener};
use sluice_policy::turn::{AnswerPlan, ReasoningNames, ToolPlan};

use crate::client::{Heard, Message};
use crate::splits::{plan, played, stream_of, whole as raw, whole_message};

const NOW: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}])
}

fn plan_of(names: ReasoningNames) -> AnswerPlan {
    plan(&tools(), Opener::Model, names)
}

/// The text in tokens: tags whole, the rest in pieces of up to three characters.
fn tokens(text: &str) -> Vec<&str> {
    const TAGS: [&str; 4] = ["<think>", "</think>", "<tool_call>", "</tool_call>"];
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let tag = TAGS.iter().find(|tag| rest.starts_with(**tag)).map(|tag| tag.len());
        let plain = || {
            let next_tag = TAGS.iter().filter_map(|tag| rest.find(tag)).min().unwrap_or(rest.len());
            rest.char_indices()
                .map(|(at, _)| at)
                .nth(3)
                .unwrap_or(rest.len())
                .min(next_tag)
        };
        let (token, after) = rest.split_at(tag.unwrap_or_else(plain));
        tokens.push(token);
        rest = after;
    }
    tokens
}

/// Deltas and message of vLLM with `--reasoning-parser qwen3` for `text`.
fn split_by_vllm(text: &str) -> (Vec<Value>, Value) {
    let (mut deltas, mut reasoning, mut content) = (Vec::new(), String::new(), String::new());
    let mut thinks = true;
    for token in tokens(text) {
        match token {
            "<think>" if thinks => {}
            "</think>" if thinks => thinks = false,
            token if thinks && token != "<tool_call>" => {
                reasoning += token;
                deltas.push(json!({"reasoning": token}));
            }
            token => {
                thinks = false;
                deltas.push(json!({"content": token}));
                if token != "</think>" {
                    content += token;
                }
            }
        }
    }
    let or_null = |text: String| if text.is_empty() { Value::Null } else { json!(text) };
    let message = json!({"role": "assistant", "content": or_null(content), "reasoning": or_null(reasoning)});
    (deltas, message)
}

fn stream_heard(plan: &AnswerPlan, text: &str, finish: &str) -> Heard {
    let stream = stream_of(&split_by_vllm(text).0, finish);
    let heard = played(plan, &stream, usize::MAX);
    for piece in [1, 7, 64] {
        assert_eq!(played(plan, &stream, piece), heard, "in pieces of {piece}: {text:?}");
    }
    heard
}

fn message(heard: &Heard) -> &Message {
    &heard.messages[&0]
}

/// What is lost to vLLM's parser is found in the stream: the message is that of the raw text.
#[test]
fn a_thought_call_is_a_thought_in_the_stream() {
    for text in [
        format!("<think>\nMaybe {NOW} would do.\n</think>\n\nNo call needed."),
        format!("<think>\n{NOW}</think>\n\nNo call needed."),
        format!("<think>\nx {NOW}\n{NOW} y\n</think>\n\nNo call needed, </think> really."),
        format!("<think>\nx {NOW} y\n</think>\n\n{NOW}"),
        // Nothing follows the block: the call was meant.
        format!("<think>\nI call it. {NOW}\n</think>"),
        format!("<think>\nI call it. {NOW}\n</think>\n\n"),
        // Nothing follows the call: it was meant.
        format!("<think>\nI call it. {NOW}"),
        format!("<think>\nI call it. {NOW}\n{NOW}\n"),
        // The tag in the string closes nothing, the one behind it does.
        "<think>\nx <tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": \"</think>\"}}\n</tool_call> y\n</think>\n\nNo.".to_owned(),
        // A block that closes before its call.
        format!("<think>\nx\n</think>\n\n{NOW}\nThen."),
    ] {
        for names in [ReasoningNames::Both, ReasoningNames::Reasoning, ReasoningNames::Inline] {
            let plan = plan_of(names);
            let heard = stream_heard(&plan, &text, "stop");
            assert_eq!(heard.messages, raw(&plan, &text, "stop").messages, "{text:?}");
        }
    }
}

/// No `</think>` behind the call, so the block was closed before it: the call counts, text behind it is content.
#[test]
fn a_call_right_behind_the_block_is_a_call() {
    let plan = plan_of(ReasoningNames::Both);
    for (behind, content) in [("", None), ("\nThen text.", Some("Then text.")), ("\n", None)] {
        let text = format!("<think>\nx</think>{NOW}{behind}");
        let heard = stream_heard(&plan, &text, "stop");
        assert_eq!(heard.messages, raw(&plan, &text, "stop").messages, "{text:?}");
        let message = message(&heard);
        assert_eq!(
            (message.reasoning.as_deref(), message.content.as_deref()),
            (Some("x"), content)
        );
        assert_eq!((message.calls.len(), &*message.finish), (1, "tool_calls"));
    }
}

/// Whatever the text: no `</think>` reaches the client that isn't text in a raw answer too (in a string of a broken call), and where vLLM's stream and whole answer say the same, ours
/// do too.
#[test]
fn no_tag_leaks_and_stream_and_whole_agree_where_vllm_s_do() {
    let fragments = ["a", "</think>", NOW, "\n\n", "<tool_call>\n{\"na", "b."];
    let (mut agreed, mut checked) = (0, 0);
    for number in 0..fragments.len().pow(4) {
        let picked = (0..4).map(|place| fragments[number / fragments.len().pow(place) % fragments.len()]);
        let text = format!("<think>\nx {}", picked.collect::<String>());
        if text.matches("</think>").count() > 1 {
            continue; // A second one is text in raw answers too.
        }
        for (scans, finish) in [(true, "stop"), (true, "length"), (false, "stop")] {
            let mut plan = plan_of(ReasoningNames::Both);
            if !scans {
                plan.tools = ToolPlan::Off;
            }
            let (deltas, body) = split_by_vllm(&text);
            let streamed = played(&plan, &stream_of(&deltas, finish), usize::MAX);
            let whole = whole_message(&plan, body, finish);
            let leaks = |heard: &Heard| {
                let message = message(heard);
                let fields = [&message.content, &message.reasoning];
                fields.into_iter().flatten().any(|field| field.contains("</think>"))
            };
            if !leaks(&raw(&plan, &text, finish)) {
                assert!(!leaks(&streamed) && !leaks(&whole), "{text:?}: {streamed:?}");
                checked += 1;
            }
            if !deltas.iter().any(|delta| delta["content"] == "</think>") {
                assert_eq!(streamed.messages, whole.messages, "{text:?}");
                agreed += 1;
            }
        }
    }
    assert!(agreed > 1000 && checked > 1000, "{agreed}, {checked}");
}

/// What is held has a bound; behind it vLLM's split stands, and a tag that comes even later still doesn't leak.
#[test]
fn the_hold_is_bounded() {
    let plan = plan_of(ReasoningNames::Both);
    let long = "word ".repeat(OPENER_HOLD / 5 + 10);
    let text = format!("<think>\nx {NOW} {long}\n</think>\n\nDone.");
    let (deltas, _) = split_by_vllm(&text);
    let mut turn = sluice_policy::turn::Turn::new(plan.clone());
    let (mut held, mut most) = (0, 0);
    for delta in &deltas {
        let mut steps = Vec::new();
        let event = format!(
            "data: {}\n\n",
            json!({"id": "1", "model": "m", "created": 1, "choices": [{"index": 0, "delta": delta}]})
        );
        turn.push(event.into(), &mut steps);
        let says = delta["content"].as_str().unwrap_or_default().len();
        held = if steps.is_empty() { held + says } else { 0 };
        most = most.max(held);
    }
    assert!((OPENER_HOLD - 16..OPENER_HOLD + 16).contains(&most), "{most}");
    let heard = played(&plan, &stream_of(&deltas, "stop"), usize::MAX);
    let message = message(&heard);
    assert_eq!((message.reasoning.as_deref(), message.calls.len()), (Some("x "), 1));
    let content = message.content.as_deref().unwrap_or_default();
    assert!(content.ends_with("Done.") && !content.contains("</think>"));
}
