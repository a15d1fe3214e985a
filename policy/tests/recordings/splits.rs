//! Texts in tokens of any cut: a stream of them gives the message that the whole text gives (B9).

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use sluice_policy::reasoning::{Opener, Thinking};
use sluice_policy::tool_call::{Bare, ToolSet};
use sluice_policy::turn::{
    AnswerPlan, OnInvalid, ReasoningNames, ReasoningPlan, Release, SeamPlan, Step, Surface, ToolPlan, Turn,
};

use crate::client::{Heard, listen, read};
use crate::tape::shared;

pub(crate) fn plan(tools: &Value, opener: Opener, names: ReasoningNames) -> AnswerPlan {
    let tools = Arc::new(ToolSet::parse(tools.to_string().as_bytes()).unwrap());
    AnswerPlan {
        surface: Surface::Chat,
        reasoning: ReasoningPlan::Qwen3 {
            thinking: Thinking::Unknown,
            opener,
        },
        tools: ToolPlan::Scan {
            tools,
            bare: Bare::Calls,
        },
        named_function: false,
        parallel_tool_calls: true,
        include_usage: false,
        show_verdicts: true,
        names,
        simulated: false,
        id_seed: 7,
        reasks: 0,
        on_invalid: OnInvalid::Text,
        release: Release::Hold,
        seam: SeamPlan::off(),
    }
}

/// vLLM's stream of `tokens`.
fn stream(tokens: &[&str], finish: &str) -> Vec<u8> {
    let deltas: Vec<_> = tokens.iter().map(|token| json!({"content": token})).collect();
    stream_of(&deltas, finish)
}

/// A stream of one choice.
pub(crate) fn stream_of(deltas: &[Value], finish: &str) -> Vec<u8> {
    let chunk = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        let chunk = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    let mut stream = chunk(json!({"role": "assistant", "content": ""}), Value::Null);
    for delta in deltas {
        stream += &chunk(delta.clone(), Value::Null);
    }
    stream += &chunk(json!({"content": ""}), json!(finish));
    stream += "data: [DONE]\n\n";
    stream.into_bytes()
}

fn streamed(plan: &AnswerPlan, tokens: &[&str], finish: &str, piece: usize) -> Heard {
    played(plan, &stream(tokens, finish), piece)
}

/// What a client hears of `stream`, fed in pieces of `piece` bytes.
pub(crate) fn played(plan: &AnswerPlan, stream: &[u8], piece: usize) -> Heard {
    let mut turn = Turn::new(plan.clone());
    let mut steps = Vec::new();
    for piece in stream.chunks(piece) {
        turn.push(Bytes::copy_from_slice(piece), &mut steps);
    }
    turn.end(&mut steps);
    assert!(matches!(steps.pop(), Some(Step::Done)));
    let bytes: Vec<u8> = steps
        .into_iter()
        .flat_map(|step| match step {
            Step::Emit(frame) => frame.bytes,
            other => panic!("{other:?}"),
        })
        .collect();
    listen(&bytes, false)
}

pub(crate) fn whole(plan: &AnswerPlan, text: &str, finish: &str) -> Heard {
    whole_message(
        plan,
        json!({"role": "assistant", "content": text, "reasoning": null}),
        finish,
    )
}

/// A whole answer of one choice.
pub(crate) fn whole_message(plan: &AnswerPlan, message: Value, finish: &str) -> Heard {
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish});
    let answer =
        json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]});
    read(&Turn::whole(plan.clone(), answer.to_string().as_bytes()).unwrap().0)
}

fn jsonl(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(shared(&format!("../vectors/{path}"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Each public text, cut in two tokens at every character and in single characters.
#[test]
fn public_texts_cut_at_every_character() {
    let tools: Value = serde_json::from_slice(&std::fs::read(shared("../vectors/tools.json")).unwrap()).unwrap();
    let mut texts = 0;
    for vector in [jsonl("corpus_hermes.jsonl"), jsonl("corpus_reasoning.jsonl")].concat() {
        let text = vector["text"].as_str().unwrap();
        for opener in [Opener::Model, Opener::Prompt] {
            let plan = plan(&tools, opener, ReasoningNames::Both);
            let want = whole(&plan, text, "stop");
            let heard = |tokens: &[&str]| streamed(&plan, tokens, "stop", usize::MAX).messages;
            for cut in (0..=text.len())
                .filter(|cut| text.is_char_boundary(*cut))
                .step_by(1 + text.len() / 60)
            {
                let (a, b) = text.split_at(cut);
                assert_eq!(heard(&[a, b]), want.messages, "{} cut at {cut}: {text:?}", vector["id"]);
            }
            let characters: Vec<_> = text
                .char_indices()
                .map(|(at, character)| &text[at..at + character.len_utf8()])
                .collect();
            assert_eq!(heard(&characters), want.messages, "{} in characters", vector["id"]);
        }
        texts += 1;
    }
    assert!(texts > 100, "{texts}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_texts_random_tokens_random_bytes(
        fragments in proptest::collection::vec(prop_oneof![
            Just("<think>"), Just("</think>"), Just("<tool_call>"), Just("</tool_call>"), Just("\n"), Just(" "), Just("a<b"),
            Just("{\"name\": \"now\", \"arguments\": {}}"), Just("{\"name\": \"now\", \"argu"), Just("```json\n"), Just("\""), Just("é👩‍👧\\"),
        ], 0..14),
        sizes in proptest::collection::vec(1usize..9, 1..12),
        piece in 1usize..400,
        length in any::<bool>(),
        opener in prop_oneof![Just(Opener::Model), Just(Opener::Prompt), Just(Opener::Unknown { hold: 20 })],
        names in prop_oneof![Just(ReasoningNames::Both), Just(ReasoningNames::ReasoningContent), Just(ReasoningNames::Inline)],
    ) {
        let tools = json!([{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]);
        let plan = plan(&tools, opener, names);
        let text = fragments.concat();
        let finish = if length { "length" } else { "stop" };
        let characters: Vec<_> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut tokens = Vec::new();
        let mut from = 0;
        for size in sizes.iter().cycle() {
            let to = (from + size).min(characters.len() - 1);
            tokens.push(&text[characters[from]..characters[to]]);
            from = to;
            if from == characters.len() - 1 {
                break;
            }
        }
        prop_assert_eq!(streamed(&plan, &tokens, finish, piece).messages, whole(&plan, &text, finish).messages, "{:?}", tokens);
    }
}

/// Behind a whole call nothing of a tag depends on what stands behind it, which may not have come yet.
#[test]
fn a_tag_behind_a_whole_call_is_the_same_in_any_split() {
    let tools =
        json!([{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]);
    let text = "<tool_call>```json\n```json\n{\"name\": \"now\", \"arguments\": {}}<think><tool_call>\"<tool_call>";
    for finish in ["length", "stop"] {
        let plan = plan(&tools, Opener::Model, ReasoningNames::Both);
        let want = whole(&plan, text, finish).messages;
        for cut in 0..=text.len() {
            let (a, b) = text.split_at(cut);
            assert_eq!(
                streamed(&plan, &[a, b], finish, usize::MAX).messages,
                want,
                "cut at {cut}"
            );
        }
        let characters: Vec<_> = text.split_inclusive(|_| true).collect();
        assert_eq!(streamed(&plan, &characters, finish, usize::MAX).messages, want);
    }
}
