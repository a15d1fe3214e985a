//! The replays.

use bytes::Bytes;
use sluice_policy::turn::{AnswerPlan, Step, ToolPlan, Turn};

use crate::client::{Heard, Message, listen, read};
use crate::expected::{Expected, expected, spoilt};
use crate::tape::{SETS, Tape, cases, dechunk, find, shared};

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Fault(&'static str),
}

/// Plays `pieces` through a turn; gives the bytes that the client got.
fn play<'a>(plan: AnswerPlan, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, End) {
    let mut turn = Turn::new(plan);
    let mut steps = Vec::new();
    for piece in pieces {
        turn.push(Bytes::copy_from_slice(piece), &mut steps);
    }
    turn.end(&mut steps);
    let last = match steps.pop() {
        Some(Step::Done) => End::Done,
        Some(Step::Fault(fault)) => End::Fault(fault.kind.name()),
        other => panic!("the last step is {other:?}"),
    };
    let mut bytes = Vec::new();
    for step in steps {
        match step {
            Step::Emit(frame) => bytes.extend_from_slice(&frame.bytes),
            other => panic!("{other:?} isn't last"),
        }
    }
    (bytes, last)
}

pub(crate) fn hear<'a>(plan: &AnswerPlan, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Heard, End) {
    let (bytes, end) = play(plan.clone(), pieces);
    let heard = listen(&bytes, plan.include_usage && end == End::Done);
    assert_eq!(heard.done, end == End::Done);
    (heard, end)
}

fn assert_message(message: &Message, want: &Expected, what: &str) {
    assert_eq!(message.reasoning.as_deref(), want.reasoning, "{what}: reasoning");
    assert_eq!(message.reasoning_content, message.reasoning, "{what}: both names");
    assert_eq!(message.content.as_deref(), want.content, "{what}: content");
    let calls: Vec<_> = message
        .calls
        .iter()
        .map(|call| (&*call.name, &*call.arguments))
        .collect();
    assert_eq!(calls, want.calls, "{what}: calls");
}

/// B9, B14–B16, B19, B21, B22, B28.
#[test]
fn every_recording_gives_the_message_that_is_asked_for() {
    let mut checked = 0;
    for set in SETS {
        for case in [cases(set, true), cases(set, false)].concat() {
            let tape = Tape::load(set, &case);
            let plan = tape.plan(set, &case);
            let name = case.trim_end_matches(".stream");
            let Some(want) = expected(name).filter(|_| spoilt(set, name).is_none()) else {
                continue;
            };
            let what = format!("{set}/{case}");
            let heard = if case.ends_with(".stream") {
                let (heard, end) = hear(&plan, [&tape.body[..]]);
                assert_eq!(end, End::Done, "{what}");
                heard
            } else {
                read(
                    &Turn::whole(plan, &tape.body)
                        .unwrap_or_else(|fault| panic!("{what}: {fault}"))
                        .0,
                )
            };
            let n = tape.request["body"]["n"].as_u64().unwrap_or(1);
            assert_eq!(heard.messages.len() as u64, n, "{what}: choices");
            for message in heard.messages.values() {
                assert_message(message, &want, &what);
                // In `raw` the recorder wrote "none": nobody named a function.
                let named = set != "raw" && tape.request["body"]["tool_choice"].is_object();
                assert_eq!(
                    message.finish,
                    if named { "stop" } else { want.finish },
                    "{what}: finish"
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 250, "only {checked} answers were compared");
}

/// B9: a stream and the non-stream answer of the same case, ids of our own included.
#[test]
fn streams_and_whole_answers_are_the_same_message() {
    for set in SETS {
        let whole_cases = cases(set, false);
        for case in cases(set, true) {
            let name = case.trim_end_matches(".stream").to_owned();
            if !whole_cases.contains(&name)
                || spoilt(set, &name).is_some()
                || name == "tool_required_free" && set != "raw"
            {
                continue;
            }
            let (stream, whole) = (Tape::load(set, &case), Tape::load(set, &name));
            let (mut streamed, _) = hear(&stream.plan(set, &case), [&stream.body[..]]);
            let mut read = read(&Turn::whole(whole.plan(set, &name), &whole.body).unwrap().0);
            if set != "raw" {
                let ids = |heard: &mut Heard| {
                    heard
                        .messages
                        .values_mut()
                        .flat_map(|message| &mut message.calls)
                        .for_each(|call| call.id.clear())
                };
                ids(&mut streamed);
                ids(&mut read);
            }
            assert_eq!(streamed.messages, read.messages, "{set}/{name}");
            assert_eq!(streamed.texts, read.texts, "{set}/{name}");
        }
    }
}

/// What vLLM spoilt still is a valid sequence, or ends as a fault.
#[test]
fn every_stream_is_a_valid_sequence() {
    for set in SETS {
        for case in cases(set, true) {
            let tape = Tape::load(set, &case);
            let mut plan = tape.plan(set, &case);
            let (heard, end) = hear(&plan, [&tape.body[..]]);
            plan.tools = ToolPlan::Off;
            hear(&plan, [&tape.body[..]]);
            let broken = find(&tape.body, b"data: {\"error\"").is_some();
            match &end {
                End::Done => assert!(!broken, "{set}/{case}: an error event became a clean end"),
                End::Fault(kind) if broken => assert_ne!(*kind, "upstream_broke", "{set}/{case}"),
                End::Fault(kind) => assert_eq!(
                    (set, &*case, *kind),
                    ("parsers-v0.12", "tool_n2.stream", "upstream_garbled")
                ),
            }
            assert!(!heard.messages.is_empty() || broken, "{set}/{case}");
        }
    }
}

/// Any split of the bytes gives the same bytes' meaning: single bytes, and each event cut at each of its bytes.
#[test]
fn no_split_of_the_bytes_changes_the_message() {
    for set in SETS {
        for case in cases(set, true) {
            let tape = Tape::load(set, &case);
            let plan = tape.plan(set, &case);
            let want = hear(&plan, [&tape.body[..]]);
            assert_eq!(hear(&plan, tape.body.chunks(1)), want, "{set}/{case} in single bytes");
            // Few cases in full: the others differ in text only.
            let thorough = matches!(
                case.trim_end_matches(".stream"),
                "tool_three_text_between" | "tool_n2" | "completions" | "bad_qwen3_xml"
            );
            for at in (1..260).step_by(if thorough { 1 } else { 61 }) {
                let pieces = cut_events(&tape.body, at);
                assert_eq!(hear(&plan, pieces), want, "{set}/{case}: each event cut at byte {at}");
            }
        }
    }
}

/// One stream cut in two at every byte.
#[test]
fn a_stream_cut_in_two_at_every_byte() {
    let tape = Tape::load("raw", "think_twice.stream");
    let plan = tape.plan("raw", "think_twice.stream");
    let want = hear(&plan, [&tape.body[..]]);
    for cut in 0..=tape.body.len() {
        let (a, b) = tape.body.split_at(cut);
        assert_eq!(hear(&plan, [a, b]), want, "cut at {cut}");
    }
}

/// B13: what isn't ours to judge is neither lost nor repeated, whatever is held or rewritten around it.
#[test]
fn logprobs_and_token_ids_come_through() {
    for set in SETS {
        for case in ["chat_logprobs", "tool_auto_logprobs", "chat_token_ids"] {
            let case = format!("{case}.stream");
            let tape = Tape::load(set, &case);
            let upstream = raw_heard(&tape.body);
            let (heard, _) = hear(&tape.plan(set, &case), [&tape.body[..]]);
            assert_eq!(
                (&heard.logprobs, &heard.token_ids),
                (&upstream.0, &upstream.1),
                "{set}/{case}"
            );
            assert!(
                !upstream.0.is_empty() || !upstream.1.is_empty(),
                "{set}/{case} has neither"
            );
        }
    }
    let whole = Tape::load("raw", "tool_auto_logprobs");
    let (body, _) = Turn::whole(whole.plan("raw", "tool_auto_logprobs"), &whole.body).unwrap();
    let [before, after]: [serde_json::Value; 2] =
        [&whole.body[..], &body].map(|body| serde_json::from_slice(body).unwrap());
    assert_eq!(before["choices"][0]["logprobs"], after["choices"][0]["logprobs"]);
}

/// B18: usage is vLLM's, with reasoning tokens that are either vLLM's or near the truth.
#[test]
fn usage_is_completed() {
    for (set, said) in [("raw", false), ("parsers", true), ("parsers-v0.12", false)] {
        let case = "tool_auto_usage.stream";
        let tape = Tape::load(set, case);
        let mut turn = Turn::new(tape.plan(set, case));
        let mut steps = Vec::new();
        turn.push(Bytes::from(tape.body.clone()), &mut steps);
        let usage = turn.facts().usage;
        assert_eq!(usage.prompt_tokens, Some(303), "{set}");
        assert_eq!(usage.completion_tokens, Some(44), "{set}");
        assert_eq!(usage.estimated, !said, "{set}");
        // 0.32's own parser counts 14.
        let reasoning = usage.reasoning_tokens.unwrap();
        assert!((12..=16).contains(&reasoning), "{set}: {reasoning}");
        let (heard, _) = hear(&tape.plan(set, case), [&tape.body[..]]);
        assert_eq!(
            heard.usage.unwrap()["completion_tokens_details"]["reasoning_tokens"],
            reasoning,
            "{set}"
        );
        let mut silent = tape.plan(set, case);
        silent.include_usage = false;
        hear(&silent, [&tape.body[..]]); // the client panics on usage that wasn't asked for
    }
}

/// B10, on streams of servers and engines that died.
#[test]
fn broken_streams_are_faults() {
    for (case, want) in [
        ("engine_sigkill", End::Fault("upstream_failed")),
        ("api_sigterm", End::Fault("upstream_failed")),
        ("api_sigkill", End::Fault("upstream_broke")),
        ("api_sigkill_spawn", End::Fault("upstream_broke")),
        ("api_sigterm_drain30", End::Done),
        ("engine_hang", End::Done),
        ("api_hang", End::Done),
    ] {
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(shared(&format!("faults/{case}.json"))).unwrap()).unwrap();
        let tail = record["stream"]["last_bytes"].as_str().unwrap().as_bytes();
        // The recording keeps the tail of the stream: from its first whole chunk on it is one.
        let start = find(tail, b"\n\n\r\n").unwrap() + 4;
        let plan = Tape::load("parsers", "chat_plain.stream").plan("parsers", "chat_plain.stream");
        let (heard, end) = hear(&plan, [&dechunk(&tail[start..])[..]]);
        assert_eq!(end, want, "{case}");
        assert_eq!(heard.done, want == End::Done, "{case}");
    }
}

/// Every stream cut off behind any event before its finish is a fault.
#[test]
fn a_stream_without_its_finish_is_a_fault() {
    let tape = Tape::load("raw", "chat_n2.stream");
    let plan = tape.plan("raw", "chat_n2.stream");
    let finish = find(&tape.body, b"\"finish_reason\":\"stop\"").unwrap();
    for cut in 0..finish {
        assert_eq!(
            play(plan.clone(), [&tape.body[..cut]]).1,
            End::Fault("upstream_broke"),
            "cut at {cut}"
        );
    }
}

/// Each event's bytes cut at `at`.
fn cut_events(body: &[u8], at: usize) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (event, after) = rest.split_at(find(rest, b"\n\n").map_or(rest.len(), |end| end + 2));
        let (a, b) = event.split_at(at.min(event.len()));
        pieces.extend([a, b]);
        rest = after;
    }
    pieces
}

type Rows = std::collections::BTreeMap<u64, Vec<serde_json::Value>>;

/// Logprobs and token ids as vLLM sent them.
fn raw_heard(body: &[u8]) -> (Rows, Rows) {
    let (mut logprobs, mut token_ids) = (Rows::new(), Rows::new());
    for line in std::str::from_utf8(body)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("data: {"))
    {
        let chunk: serde_json::Value = serde_json::from_str(&format!("{{{line}")).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap();
            if let Some(tokens) = choice["logprobs"]["content"].as_array() {
                logprobs.entry(index).or_default().extend(tokens.clone());
            }
            if let Some(ids) = choice["token_ids"].as_array() {
                token_ids.entry(index).or_default().extend(ids.clone());
            }
        }
    }
    (logprobs, token_ids)
}

/// The list of what vLLM's parsers spoil holds nothing that the pipeline gets right after all.
#[test]
fn what_counts_as_spoilt_is() {
    for set in SETS {
        for case in cases(set, true) {
            let name = case.trim_end_matches(".stream");
            let Some(want) = expected(name).filter(|_| spoilt(set, name).is_some() && !name.starts_with("bad_")) else {
                continue;
            };
            let right = |heard: &Heard| {
                heard.messages.values().all(|message| {
                    let calls: Vec<_> = message
                        .calls
                        .iter()
                        .map(|call| (&*call.name, &*call.arguments))
                        .collect();
                    (message.reasoning.as_deref(), message.content.as_deref(), calls)
                        == (want.reasoning, want.content, want.calls.clone())
                })
            };
            let tape = Tape::load(set, &case);
            let (heard, end) = hear(&tape.plan(set, &case), [&tape.body[..]]);
            let whole = Tape::load(set, name);
            let whole = Turn::whole(whole.plan(set, name), &whole.body).map(|(body, _)| read(&body));
            let fine = end == End::Done && right(&heard) && whole.is_ok_and(|whole| right(&whole));
            assert!(!fine, "{set}/{name} is right: take it off the list");
        }
    }
}
