//! What a turn promises beside the recordings: bytes that aren't touched, rules one by one.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::protocol::sse;
use crate::reasoning::{Opener, Thinking};
use crate::tool_call::{Bare, ToolSet};

/// A chat answer through the reasoning splitter.
pub(super) fn plan() -> AnswerPlan {
    AnswerPlan {
        surface: Surface::Chat,
        reasoning: ReasoningPlan::Qwen3 {
            thinking: Thinking::Unknown,
            opener: Opener::Model,
        },
        tools: ToolPlan::Off,
        named_function: false,
        parallel_tool_calls: true,
        include_usage: false,
        show_verdicts: false,
        names: ReasoningNames::Both,
        simulated: false,
        id_seed: 1,
        reasks: 0,
        on_invalid: OnInvalid::Text,
        release: Release::Hold,
        seam: SeamPlan::off(),
    }
}

fn scan() -> AnswerPlan {
    scan_for(r#"[{"type":"function","function":{"name":"now","parameters":{"type":"object","properties":{}}}}]"#)
}

/// The same, with calls of these tools.
pub(super) fn scan_for(tools: &str) -> AnswerPlan {
    AnswerPlan {
        tools: ToolPlan::Scan {
            tools: Arc::new(ToolSet::parse(tools.as_bytes()).unwrap()),
            bare: Bare::Calls,
        },
        ..plan()
    }
}

const ROLE: &str = r#"{"role":"assistant","content":""}"#;
const CALL: &str = "<tool_call>\\n{\\\"name\\\": \\\"now\\\", \\\"arguments\\\": {}}\\n</tool_call>";

/// A chunk as vLLM writes it. `rest` follows the delta within the choice.
fn chunk(delta: &str, rest: &str) -> String {
    format!(
        r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":17,"model":"m","choices":[{{"index":0,"delta":{delta},{rest}}}]}}"#
    ) + "\n\n"
}

fn delta(delta: &str) -> String {
    chunk(delta, r#""logprobs":null,"finish_reason":null,"token_ids":null"#)
}

fn content(text: &str) -> String {
    delta(&format!(r#"{{"content":"{text}"}}"#))
}

fn finish(reason: &str) -> String {
    chunk(
        r#"{"content":""}"#,
        &format!(r#""logprobs":null,"finish_reason":"{reason}","stop_reason":null,"token_ids":null"#),
    )
}

const DONE_FRAME: &str = "data: [DONE]\n\n";

/// The bytes emitted for `stream` in one push, and the last step if it isn't a frame.
fn run(plan: AnswerPlan, stream: &str) -> (String, Option<Step>, Facts) {
    let mut turn = Turn::new(plan);
    let mut steps = Vec::new();
    turn.push(Bytes::copy_from_slice(stream.as_bytes()), &mut steps);
    let last = if matches!(steps.last(), Some(Step::Emit(_)) | None) {
        None
    } else {
        steps.pop()
    };
    let mut text = String::new();
    for step in steps {
        let Step::Emit(frame) = step else {
            panic!("{step:?} isn't last")
        };
        text += std::str::from_utf8(&frame.bytes).unwrap();
    }
    (text, last, turn.facts().clone())
}

/// The frames that come out for `stream`, without those for the role and `[DONE]`.
fn check(plan: AnswerPlan, stream: &[String], want: &[String]) {
    let stream = delta(ROLE) + &stream.concat();
    let (text, _, _) = run(plan, &stream);
    let frames: Vec<_> = text
        .split_inclusive("\n\n")
        .skip(1)
        .filter(|frame| *frame != DONE_FRAME)
        .collect();
    assert_eq!(frames, want);
}

fn fault(plan: AnswerPlan, stream: &str) -> FaultKind {
    match run(plan, stream).1 {
        Some(Step::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_needs_no_change_leaves_as_one_slice_of_the_input() {
    let mut turn = Turn::new(scan());
    let mut steps = Vec::new();
    turn.push(Bytes::from(delta(ROLE) + &content("Sure, ")), &mut steps);
    steps.clear();
    let stream = content("a") + &content("b \\n\\u00e9") + &delta(r#"{"content":"c","future":{"x":[1]}}"#);
    let end = chunk("{}", r#""finish_reason":"stop","stop_reason":null"#) + DONE_FRAME;
    let input = Bytes::from(stream + &end);
    turn.push(input.clone(), &mut steps);
    let [Step::Emit(frame), Step::Done] = &steps[..] else {
        panic!("{steps:?}")
    };
    assert_eq!((frame.bytes.as_ptr(), frame.bytes.len()), (input.as_ptr(), input.len()));
    assert_eq!(frame.shows, Shows::Token);
}

#[test]
fn an_event_cut_by_reads_leaves_as_it_came() {
    let mut turn = Turn::new(scan());
    let stream = delta(ROLE).replace("\"\"", "null") + &content("Sure, ") + &content("a");
    let mut text = Vec::new();
    for byte in stream.as_bytes().chunks(7) {
        let mut steps = Vec::new();
        turn.push(Bytes::copy_from_slice(byte), &mut steps);
        for step in steps {
            let Step::Emit(frame) = step else { panic!("{step:?}") };
            text.extend_from_slice(&frame.bytes);
        }
    }
    assert_eq!(String::from_utf8(text).unwrap(), stream);
}

#[test]
fn reasoning_gets_its_names_and_keeps_its_bytes() {
    let think = [content("<think>"), content("caf\\u00e9")];
    let named = |names: &str| [delta(names)];
    let r = r#"{"reasoning":"caf\u00e9"}"#;
    let rc = r#"{"reasoning_content":"caf\u00e9"}"#;
    check(
        plan(),
        &think,
        &named(r#"{"reasoning":"caf\u00e9","reasoning_content":"caf\u00e9"}"#),
    );
    check(
        AnswerPlan {
            names: ReasoningNames::Reasoning,
            ..plan()
        },
        &think,
        &named(r),
    );
    check(
        AnswerPlan {
            names: ReasoningNames::ReasoningContent,
            ..plan()
        },
        &think,
        &named(rc),
    );
    check(
        AnswerPlan {
            names: ReasoningNames::Inline,
            ..plan()
        },
        &think,
        &think,
    );
    check(
        AnswerPlan {
            names: ReasoningNames::Inline,
            ..scan()
        },
        &think,
        &[content("<think>\\ncafé")],
    );
    // vLLM has split (B16).
    check(
        plan(),
        &named(r),
        &named(r#"{"reasoning":"caf\u00e9","reasoning_content":"caf\u00e9"}"#),
    );
    let both = named(r#"{"reasoning":"a","reasoning_content":"a"}"#);
    check(plan(), &both, &both);
    check(
        AnswerPlan {
            names: ReasoningNames::Reasoning,
            ..plan()
        },
        &named(rc),
        &named(r),
    );
    check(
        AnswerPlan {
            names: ReasoningNames::Inline,
            ..plan()
        },
        &named(r),
        &[content("<think>\\ncafé")],
    );
}

#[test]
fn a_closing_tag_that_leaked_is_repaired() {
    let leaked = [
        delta(r#"{"reasoning":"why</thi"}"#),
        delta(r#"{"reasoning":"nk>\n\nHel"}"#),
        delta(r#"{"reasoning":"lo"}"#),
    ];
    let want = [
        delta(r#"{"reasoning":"why","reasoning_content":"why"}"#),
        delta(r#"{"content":"Hel"}"#),
        delta(r#"{"content":"lo"}"#),
    ];
    check(plan(), &leaked, &want);
    let split = [delta(r#"{"reasoning":"why\n"}"#), content("\\n\\n"), content("Hello")];
    check(
        plan(),
        &split,
        &[
            delta(r#"{"reasoning":"why\n","reasoning_content":"why\n"}"#),
            content("Hello"),
        ],
    );
}

#[test]
fn identity_stays() {
    let other = content("b")
        .replace("chatcmpl-1", "chatcmpl-2")
        .replace("\"m\"", "\"n\"")
        .replace("17", "18");
    check(plan(), &[content("a"), other], &[content("a"), content("b")]);
}

#[test]
fn the_role_comes_once_and_always() {
    let (text, _, _) = run(
        plan(),
        &(content("a") + &delta(r#"{"role":"assistant","content":"b"}"#)),
    );
    assert_eq!(text, delta(r#"{"content":"a","role":"assistant"}"#) + &content("b"));
}

#[test]
fn usage_comes_if_asked_for() {
    let usage = r#""usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}"#;
    let full = r#""usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2,"completion_tokens_details":{"reasoning_tokens":0}}"#;
    let last = |usage: &str| {
        format!("data: {{\"id\":\"chatcmpl-1\",\"created\":17,\"model\":\"m\",\"choices\":[],{usage}}}\n\n")
    };
    let running = |usage: &str| content("a").replace("]}\n", &format!("],{usage}}}\n"));
    let stream = [running(usage), finish("stop"), last(usage), DONE_FRAME.to_owned()];
    let asked = AnswerPlan {
        include_usage: true,
        ..plan()
    };
    check(asked.clone(), &stream, &[running(full), finish("stop"), last(full)]);
    check(plan(), &stream, &[running("\"usage\":null"), finish("stop")]);
    // A chunk of which all is held leaves for its running usage.
    check(
        asked,
        &[running(usage).replace("\"a\"", "\"<think>\"")],
        &[running(full).replace(r#"{"content":"a"}"#, "{}")],
    );
    let (_, _, facts) = run(plan(), &(delta(ROLE) + &stream.concat()));
    assert_eq!(
        (facts.usage.prompt_tokens, facts.usage.completion_tokens),
        (Some(3), Some(2))
    );
}

#[test]
fn what_is_held_lets_the_rest_of_its_chunk_go() {
    let with = |text: &str| {
        chunk(
            &format!(r#"{{"content":"{text}"}}"#),
            r#""logprobs":{"content":[{"token":"x"}]},"finish_reason":null"#,
        )
    };
    let bare = with("").replace(r#"{"content":""}"#, "{}");
    check(
        plan(),
        &[with("<think>"), with("<"), with("/thi"), with("nk>"), with("a")],
        &[bare.clone(), bare.clone(), bare.clone(), bare, with("a")],
    );
    check(
        plan(),
        &[content("<think>"), content("</thi"), content("nk>"), content("a")],
        &[content("a")],
    );
}

#[test]
fn calls_are_shown_whole_with_their_finish() {
    let want = |finish: &str| {
        let (text, last, facts) = run(
            AnswerPlan {
                show_verdicts: true,
                ..scan()
            },
            &(delta(ROLE) + &content(CALL) + &self::finish(finish) + DONE_FRAME),
        );
        assert!(matches!(last, Some(Step::Done)));
        assert_eq!((facts.tool_calls, facts.verdicts.len()), (1, 1));
        text.split_inclusive("\n\n")
            .map(|frame| serde_json::from_str::<Value>(frame[6..].trim_end()).unwrap_or_default())
            .collect::<Vec<_>>()
    };
    let frames = want("stop");
    let call = &frames[1]["choices"][0]["delta"]["tool_calls"][0];
    assert_eq!(call["function"], serde_json::json!({"name": "now", "arguments": "{}"}));
    assert_eq!(frames[2]["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(
        frames[2]["choices"][0]["delta"]["x_sluice"]["verdicts"][0],
        serde_json::json!({"tool": "now", "verdict": "passed"})
    );
    assert_eq!(want("length")[2]["choices"][0]["finish_reason"], "length");
    assert_eq!(
        want("content_filter")[2]["choices"][0]["finish_reason"],
        "content_filter"
    );
    let named = AnswerPlan {
        named_function: true,
        ..scan()
    };
    let (text, ..) = run(named, &(delta(ROLE) + &content(CALL) + &finish("stop")));
    assert!(text.contains("\"finish_reason\":\"stop\""), "{text}");
}

#[test]
fn only_the_first_call_if_not_parallel() {
    let single = AnswerPlan {
        parallel_tool_calls: false,
        ..scan()
    };
    let (text, _, facts) = run(
        single,
        &(delta(ROLE) + &content(CALL) + &content(CALL) + &finish("stop")),
    );
    assert_eq!((text.matches("\"name\"").count(), facts.tool_calls), (1, 1), "{text}");
}

#[test]
fn a_broken_upstream_is_a_fault_and_nothing_follows() {
    let start = delta(ROLE) + &content("a");
    let error = "data: {\"error\": {\"message\": \"died\", \"type\": \"InternalServerError\", \"code\": 500}}\n\n";
    assert_eq!(
        fault(plan(), &(start.clone() + error + DONE_FRAME)),
        FaultKind::UpstreamFailed(500)
    );
    assert_eq!(fault(plan(), &(start.clone() + DONE_FRAME)), FaultKind::UpstreamBroke);
    assert_eq!(fault(plan(), DONE_FRAME), FaultKind::UpstreamBroke);
    assert_eq!(
        fault(plan(), &(start.clone() + "data: {\"choices\":[}\n\n")),
        FaultKind::UpstreamGarbled
    );
    let mut turn = Turn::new(plan());
    let mut steps = Vec::new();
    turn.push(Bytes::from(start.clone() + "data: "), &mut steps);
    turn.push(Bytes::from(vec![b'x'; EVENT_LIMIT_BYTES]), &mut steps);
    assert!(matches!(steps.last(), Some(Step::Fault(fault)) if fault.kind == FaultKind::UpstreamGarbled));
    steps.clear();
    turn.push(Bytes::from(content("b") + &finish("stop") + DONE_FRAME), &mut steps);
    turn.end(&mut steps);
    assert!(steps.is_empty(), "{steps:?}");
    turn = Turn::new(plan());
    turn.push(Bytes::from_static(b"data: \xff\n\n"), &mut steps);
    assert!(matches!(&steps[..], [Step::Fault(_)]), "{steps:?}");
}

#[test]
fn the_end_of_file_needs_a_finish() {
    let end = |stream: String| {
        let mut turn = Turn::new(plan());
        let mut steps = Vec::new();
        turn.push(Bytes::from(stream), &mut steps);
        turn.end(&mut steps);
        turn.end(&mut steps);
        steps
    };
    let steps = end(delta(ROLE) + &content("a") + &finish("stop"));
    assert!(
        matches!(&steps[..], [.., Step::Emit(done), Step::Done] if done.bytes == sse::DONE),
        "{steps:?}"
    );
    let steps = end(delta(ROLE) + &content("a"));
    assert!(
        matches!(steps.last(), Some(Step::Fault(fault)) if fault.kind == FaultKind::UpstreamBroke),
        "{steps:?}"
    );
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::Fault(_))).count(), 1);
}

#[test]
fn facts_tell_when_tokens_came() {
    let mut turn = Turn::new(plan());
    let mut steps = Vec::new();
    turn.push(Bytes::from(delta(ROLE)), &mut steps);
    assert!(!turn.facts().first_token_in_last_push && turn.facts().saw_role && turn.facts().shown);
    turn.push(Bytes::from(content("<think>") + &content("a")), &mut steps);
    assert!(turn.facts().first_token_in_last_push);
    assert_eq!((turn.facts().tokens_in_last_push, turn.facts().upstream_chunks), (2, 2));
    turn.push(Bytes::from(content("b")), &mut steps);
    assert!(!turn.facts().first_token_in_last_push);
    let usage = turn.facts().usage;
    assert_eq!(
        (usage.completion_tokens, usage.reasoning_tokens, usage.estimated),
        (Some(3), Some(2), true)
    );
    turn.push(Bytes::from(finish("stop")), &mut steps);
    assert_eq!(turn.facts().finish, [Finish::Stop]);
    assert_eq!(turn.facts().opener, Some(Opener::Model));
}

#[test]
fn unusual_framing_is_made_usual() {
    let line = content("a");
    let data = line.trim_end().strip_prefix("data: ").unwrap();
    let (text, ..) = run(
        plan(),
        &(delta(ROLE) + &format!(": hello\n\nid: 4\nevent: message\ndata: {data}\n\n")),
    );
    assert!(text.ends_with(&line) && !text.contains("hello"), "{text}");
}

#[test]
fn nothing_is_said_behind_a_finish() {
    let late = |delta: &str, finish: &str| {
        chunk(
            delta,
            &format!(r#""logprobs":{{"content":[1]}},"finish_reason":{finish}"#),
        )
    };
    let stream = [
        content("a"),
        finish("stop"),
        content("b"),
        late(r#"{"content":"c"}"#, "\"length\""),
    ];
    check(plan(), &stream, &[content("a"), finish("stop"), late("{}", "null")]);
}

#[test]
fn completions_pass() {
    let line = |text: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"cmpl-1\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"text\":\"{text}\",\"finish_reason\":{finish}}}]}}\n\n"
        )
    };
    let plan = AnswerPlan {
        surface: Surface::Completions,
        ..plan()
    };
    let stream = line("<think>", "null") + &line("<tool_call>", "null") + &line("", "\"stop\"");
    let usage = "data: {\"id\":\"cmpl-1\",\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\n";
    let (text, last, facts) = run(plan.clone(), &(stream.clone() + usage + DONE_FRAME));
    assert_eq!(text, stream.clone() + DONE_FRAME);
    assert!(matches!(last, Some(Step::Done)));
    assert_eq!((facts.upstream_chunks, facts.usage.completion_tokens), (2, Some(2)));
    assert_eq!(fault(plan, &(line("a", "null") + DONE_FRAME)), FaultKind::UpstreamBroke);
}

#[test]
fn a_whole_answer_keeps_what_is_not_judged() {
    let body = format!(
        r#"{{"id":"chatcmpl-1","choices":[{{"index":0,"message":{{"role":"assistant","content":"<think>\nwhy\n</think>\n\n{CALL}","refusal":null,"tool_calls":[],"reasoning":null,"new":[1.0]}},"logprobs":{{"content":[1]}},"finish_reason":"stop","token_ids":[1,2]}}],"usage":{{"prompt_tokens":1,"completion_tokens":9,"completion_tokens_details":null}},"later":{{}}}}"#
    );
    let (answer, facts) = Turn::whole(scan(), body.as_bytes()).unwrap();
    let answer = std::str::from_utf8(&answer).unwrap();
    let id = said::call_id(1, 0, 0);
    let want = format!(
        r#"{{"id":"chatcmpl-1","choices":[{{"index":0,"message":{{"role":"assistant","content":null,"refusal":null,"tool_calls":[{{"id":"{id}","type":"function","function":{{"name":"now","arguments":"{{}}"}}}}],"reasoning":"why\n","new":[1.0],"reasoning_content":"why\n"}},"logprobs":{{"content":[1]}},"finish_reason":"tool_calls","token_ids":[1,2]}}],"usage":{{"prompt_tokens":1,"completion_tokens":9,"completion_tokens_details":{{"reasoning_tokens":{}}}}},"later":{{}}}}"#,
        facts.usage.reasoning_tokens.unwrap()
    );
    assert_eq!(answer, want);
}

#[test]
fn a_whole_answer_that_needs_no_change_is_the_same_bytes() {
    let body = br#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":" Hi. ","reasoning":null},"finish_reason":"stop"}]}"#;
    assert_eq!(&Turn::whole(plan(), body).unwrap().0[..], body);
}

#[test]
fn a_broken_whole_answer_is_a_fault() {
    let kind = |body: &str| Turn::whole(plan(), body.as_bytes()).unwrap_err().kind;
    assert_eq!(kind(""), FaultKind::UpstreamGarbled);
    assert_eq!(kind(r#"{"choices":["#), FaultKind::UpstreamGarbled);
    assert_eq!(kind(r#"{"choices":[]}"#), FaultKind::UpstreamBroke);
    assert_eq!(
        kind(r#"{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":null}]}"#),
        FaultKind::UpstreamBroke
    );
    assert_eq!(
        kind(r#"{"error":{"message":"died","code":500}}"#),
        FaultKind::UpstreamFailed(500)
    );
}
