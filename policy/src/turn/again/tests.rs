//! One broken call, asked again: the same message from a stream in any split and from a whole answer.

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::tests::scan_for;
use super::super::*;
use crate::tool_call::Verdict;

const TOOLS: &str = r#"[
    {"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}},
    {"type":"function","function":{"name":"now","parameters":{"type":"object","properties":{}}}}]"#;
const NOW: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
const WEATHER: &str = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
/// Nobody declares it.
const UNKNOWN: &str = "<tool_call>\n{\"name\": \"get_wether\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
/// Ends in the middle of a string, which is never completed.
const CUT: &str = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par";

fn plan() -> AnswerPlan {
    AnswerPlan {
        include_usage: true,
        names: ReasoningNames::Reasoning,
        reasks: 1,
        ..scan_for(TOOLS)
    }
}

/// What the upstream answers to a question.
#[derive(Clone, Copy)]
enum Reply {
    /// This text and finish, by so many tokens.
    Says(&'static str, &'static str, u64),
    /// Nothing: it is given up.
    Fails,
    /// No token is left for it.
    NoRoom,
}

use Reply::{Fails, NoRoom, Says};

const PROMPT_TOKENS: u64 = 100;
const BUDGET: Budget = Budget {
    tokens: 2048,
    ends_answer: false,
};

#[derive(Debug, Default, PartialEq)]
struct Told {
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
    finish: String,
    usage: Value,
}

impl Told {
    fn add(&mut self, part: &Value) {
        self.reasoning += part["reasoning"].as_str().unwrap_or_default();
        self.content += part["content"].as_str().unwrap_or_default();
        for call in part["tool_calls"].as_array().into_iter().flatten() {
            let text = |key: &str| call["function"][key].as_str().unwrap().to_owned();
            self.calls.push((text("name"), text("arguments")));
        }
    }
}

/// How the first answer comes.
#[derive(Clone, Copy, Debug)]
enum Upstream {
    /// All in `content`.
    Raw,
    /// Reasoning split off, as vLLM's parser does it.
    Split,
}

/// Reasoning field and content of `text`.
fn fields(text: &str, upstream: Upstream) -> (Option<&str>, &str) {
    match upstream {
        Upstream::Raw => (None, text),
        Upstream::Split => text
            .strip_prefix("<think>")
            .and_then(|rest| rest.split_once("</think>"))
            .map_or((None, text), |(reasoning, content)| (Some(reasoning), content)),
    }
}

fn line(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn chat_stream(pieces: &[Value], finish: &str) -> String {
    let chunk = |delta: &Value, finish: Value| {
        json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 17, "model": "m",
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]})
    };
    let mut stream = line(&chunk(&json!({"role": "assistant", "content": ""}), Value::Null));
    for piece in pieces {
        stream += &line(&chunk(piece, Value::Null));
    }
    stream += &line(&chunk(&json!({"content": ""}), json!(finish)));
    let mut usage = chunk(&Value::Null, Value::Null);
    usage["choices"] = json!([]);
    usage["usage"] = json!({"prompt_tokens": PROMPT_TOKENS, "total_tokens": 150, "completion_tokens": 50});
    stream + &line(&usage) + "data: [DONE]\n\n"
}

/// Prompt tokens as the engine counts them: the prompt and the text so far, here one for each eight bytes.
fn counted(question: &AskAgain, tokens: u64) -> Value {
    let prompt = PROMPT_TOKENS + question.so_far.len() as u64 / 8;
    json!({"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens})
}

fn completion_stream(question: &AskAgain, text: &str, finish: &str, tokens: u64) -> String {
    let chunk = |choices: Value| json!({"id": "cmpl-2", "object": "text_completion", "created": 18, "model": "other", "choices": choices});
    let choice = |text: &str, finish: Value| {
        chunk(json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]))
    };
    let mut stream = String::new();
    for piece in text.split_inclusive(' ') {
        stream += &line(&choice(piece, Value::Null));
    }
    stream += &line(&choice("", json!(finish)));
    let mut usage = chunk(json!([]));
    usage["usage"] = counted(question, tokens);
    stream + &line(&usage) + "data: [DONE]\n\n"
}

struct Streamed {
    told: Told,
    questions: Vec<AskAgain>,
    facts: Facts,
    fault: Option<FaultKind>,
}

/// The stream of `deltas`, pushed in pieces of `size` bytes, with these replies to its questions.
fn stream(plan: AnswerPlan, deltas: &[Value], finish: &str, replies: &[Reply], size: usize) -> Streamed {
    let mut turn = Turn::new(plan);
    let mut replies = replies.iter();
    let mut steps = Vec::new();
    let mut upstream = chat_stream(deltas, finish);
    let mut out = Vec::new();
    let mut questions: Vec<AskAgain> = Vec::new();
    let mut fault = None;
    let mut done = false;
    'asking: loop {
        for piece in upstream.as_bytes().chunks(size) {
            turn.push(Bytes::copy_from_slice(piece), &mut steps);
        }
        loop {
            let mut asks = false;
            for step in steps.drain(..) {
                assert!(!done && fault.is_none(), "nothing follows the end");
                match step {
                    Step::Emit(frame) => out.extend_from_slice(&frame.bytes),
                    Step::Done => done = true,
                    Step::Fault(what) => fault = Some(what.kind),
                    Step::GoOn(_) => panic!("no upstream was lost"),
                    Step::AskAgain(question) => {
                        questions.push(question);
                        asks = true;
                    }
                }
            }
            if !asks {
                break 'asking;
            }
            let question = questions.last().unwrap();
            match replies.next().expect("no more questions") {
                Says(text, finish, tokens) => {
                    turn.again(BUDGET, PROMPT_TOKENS);
                    upstream = completion_stream(question, text, finish, *tokens);
                    continue 'asking;
                }
                Fails => {
                    assert!(turn.can_give_up());
                    turn.give_up(&mut steps);
                }
                NoRoom => turn.cut_short(None, &mut steps),
            }
        }
    }
    assert!(replies.next().is_none(), "every reply was asked for");
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.ends_with("data: [DONE]\n\n"), fault.is_none(), "{text}");
    let mut told = Told::default();
    for frame in text.split_terminator("\n\n") {
        let data = frame.strip_prefix("data: ").unwrap();
        if data == "[DONE]" {
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            (&chunk["id"], &chunk["object"], &chunk["model"]),
            (&json!("chatcmpl-1"), &json!("chat.completion.chunk"), &json!("m"))
        );
        if chunk["usage"].is_object() {
            told.usage = chunk["usage"].clone();
        }
        let Some(choice) = chunk["choices"].get(0) else {
            continue;
        };
        assert!(told.finish.is_empty(), "nothing follows the finish: {data}");
        told.add(&choice["delta"]);
        told.finish += choice["finish_reason"].as_str().unwrap_or_default();
    }
    Streamed {
        told,
        questions,
        facts: turn.facts().clone(),
        fault,
    }
}

/// The same as a whole answer.
fn whole(plan: AnswerPlan, text: &str, upstream: Upstream, finish: &str, replies: &[Reply]) -> (Told, Facts) {
    let (reasoning, content) = fields(text, upstream);
    let body = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 17, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content, "reasoning": reasoning, "tool_calls": []},
            "logprobs": null, "finish_reason": finish}],
        "usage": {"prompt_tokens": PROMPT_TOKENS, "total_tokens": 150, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 64}}});
    let mut replies = replies.iter();
    let mut now = Turn::whole_or_ask(plan, &Bytes::from(body.to_string())).unwrap();
    loop {
        now = match now {
            Whole::Answer(answer, facts) => {
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                let choice = &answer["choices"][0];
                let mut told = Told {
                    finish: choice["finish_reason"].as_str().unwrap().to_owned(),
                    usage: answer["usage"].clone(),
                    ..Told::default()
                };
                told.add(&choice["message"]);
                return (told, facts);
            }
            Whole::AskAgain(question, retold) => match replies.next().expect("no more questions") {
                Says(text, finish, tokens) => {
                    let body = json!({"id": "cmpl-2", "choices": [{"index": 0, "text": text, "finish_reason": finish}],
                        "usage": counted(&question, *tokens)});
                    retold
                        .heard(body.to_string().as_bytes(), BUDGET, PROMPT_TOKENS)
                        .unwrap()
                }
                Fails => retold.give_up().unwrap(),
                NoRoom => retold.cut_short().unwrap(),
            },
        };
    }
}

struct Want<'a> {
    reasoning: &'a str,
    content: &'a str,
    calls: &'a [(&'a str, &'a str)],
    finish: &'a str,
    verdicts: &'a [Verdict],
}

/// Every split of `text` into two deltas, both kinds of upstream, whole and as a stream, gives `want`.
fn check(text: &str, replies: &[Reply], want: &Want<'_>) -> Vec<AskAgain> {
    check_with(plan(), text, "stop", replies, want)
}

fn check_with(plan: AnswerPlan, text: &str, finish: &str, replies: &[Reply], want: &Want<'_>) -> Vec<AskAgain> {
    let same = |told: &Told, facts: &Facts, how: &str| {
        let calls: Vec<_> = told
            .calls
            .iter()
            .map(|(name, arguments)| (&**name, &**arguments))
            .collect();
        assert_eq!(
            (&*told.reasoning, &*told.content, &calls[..], &*told.finish),
            (want.reasoning, want.content, want.calls, want.finish),
            "{how}"
        );
        let verdicts: Vec<_> = facts.verdicts.iter().map(|judged| judged.verdict.clone()).collect();
        assert_eq!(verdicts, want.verdicts, "{how}");
    };
    let mut first = None;
    for upstream in [Upstream::Raw, Upstream::Split] {
        let (told, facts) = whole(plan.clone(), text, upstream, finish, replies);
        same(&told, &facts, &format!("whole, {upstream:?}"));
        let (reasoning, content) = fields(text, upstream);
        for cut in (0..=content.len()).filter(|cut| content.is_char_boundary(*cut)) {
            let (left, right) = content.split_at(cut);
            let mut deltas: Vec<Value> = reasoning
                .iter()
                .map(|reasoning| json!({"reasoning": reasoning}))
                .collect();
            deltas.extend([json!({"content": left}), json!({"content": right})]);
            for size in [1 << 20, 61] {
                let how = format!("{upstream:?}, cut at {cut}, reads of {size}");
                let got = stream(plan.clone(), &deltas, finish, replies, size);
                assert_eq!(got.fault, None, "{how}");
                same(&got.told, &got.facts, &how);
                let questions = first.get_or_insert_with(|| got.questions.clone());
                assert_eq!(got.questions, *questions, "{how}: the same questions at every split");
            }
        }
    }
    first.unwrap()
}

#[test]
fn an_unknown_name_is_asked_again_among_all_tools() {
    let text = format!("Let me <see>.\n{NOW}\nAnd:\n{UNKNOWN}\nnever said");
    let questions = check(
        &text,
        &[Says(WEATHER, "stop", 20), Says("\nDone.", "stop", 3)],
        &Want {
            reasoning: "",
            content: "Let me <see>.\nAnd:\nDone.",
            calls: &[("now", "{}"), ("get_weather", r#"{"city": "Paris"}"#)],
            finish: "tool_calls",
            verdicts: &[Verdict::Passed, Verdict::Reasked(1)],
        },
    );
    let so_far = format!("Let me <see>.\n{NOW}\nAnd:\n<tool_call>\n");
    assert_eq!(
        questions,
        [
            AskAgain {
                so_far: so_far.clone(),
                guide: Guide::Call { tool: None },
                number: 1,
                choice: 0,
            },
            AskAgain {
                so_far: so_far + WEATHER,
                guide: Guide::Free,
                number: 1,
                choice: 0,
            }
        ]
    );
}

#[test]
fn a_call_that_ends_in_a_string_is_asked_again_behind_its_thinking() {
    let text = format!("<think>\nI call.\n</think>\n\n{CUT}");
    let questions = check(
        &text,
        &[Says(WEATHER, "stop", 20), Says("", "stop", 1)],
        &Want {
            reasoning: "I call.\n",
            content: "",
            calls: &[("get_weather", r#"{"city": "Paris"}"#)],
            finish: "tool_calls",
            verdicts: &[Verdict::Reasked(1)],
        },
    );
    assert_eq!(questions[0].so_far, "<think>\nI call.\n</think>\n\n<tool_call>\n");
    assert_eq!(
        questions[0].guide,
        Guide::Call {
            tool: Some("get_weather".to_owned())
        }
    );
}

#[test]
fn what_no_answer_mends_is_text_as_if_nothing_had_been_asked() {
    let text = format!("See:\n{UNKNOWN}\nThat was it. {NOW}");
    for replies in [
        &[Fails][..],
        &[Says("{\"name\": \"now\", \"arguments\": {\"a", "length", 2048)],
        &[Says(
            "{\"name\": \"get_wether\", \"arguments\": {}}\n</tool_call>",
            "stop",
            9,
        )],
        &[Says("", "stop", 1)],
    ] {
        let got = stream(plan(), &[json!({"content": text})], "stop", replies, 1 << 20);
        assert_eq!(got.told.content, format!("See:\n{UNKNOWN}\nThat was it. "));
        assert_eq!(got.told.calls, [("now".to_owned(), "{}".to_owned())]);
        assert_eq!(got.told.finish, "tool_calls");
        let (told, _) = whole(plan(), &text, Upstream::Raw, "stop", replies);
        assert_eq!((told.content, told.calls), (got.told.content, got.told.calls));
    }
    // The text behind the call hadn't come: it was never asked for.
    check(
        UNKNOWN,
        &[Fails],
        &Want {
            reasoning: "",
            content: UNKNOWN,
            calls: &[],
            finish: "stop",
            verdicts: &[Verdict::Refused(crate::tool_call::Reason::UnknownTool {
                name: "get_wether".to_owned(),
            })],
        },
    );
}

#[test]
fn an_answer_cut_by_length_is_not_asked_again() {
    check_with(
        plan(),
        CUT,
        "length",
        &[],
        &Want {
            reasoning: "",
            content: "",
            calls: &[],
            finish: "length",
            verdicts: &[Verdict::Refused(crate::tool_call::Reason::Cut)],
        },
    );
}

#[test]
fn without_room_it_ends_as_length() {
    let text = format!("A {UNKNOWN}");
    let got = stream(plan(), &[json!({"content": text})], "stop", &[NoRoom], 1 << 20);
    assert_eq!((&*got.told.content, &*got.told.finish), ("A ", "length"));
    let (told, _) = whole(plan(), &text, Upstream::Raw, "stop", &[NoRoom]);
    assert_eq!((&*told.content, &*told.finish), ("A ", "length"));
    let replies = [Says(WEATHER, "stop", 20), NoRoom];
    let got = stream(plan(), &[json!({"content": text})], "stop", &replies, 1 << 20);
    assert_eq!((got.told.calls.len(), &*got.told.finish), (1, "length"));
    let (told, _) = whole(plan(), &text, Upstream::Raw, "stop", &replies);
    assert_eq!((told.calls.len(), &*told.finish), (1, "length"));
}

#[test]
fn usage_is_the_first_prompt_and_what_the_client_got() {
    let replies = [Says(WEATHER, "stop", 20), Says("Done.", "stop", 3)];
    let got = stream(plan(), &[json!({"content": UNKNOWN})], "stop", &replies, 1 << 20);
    let said = (got.questions[1].so_far.len() / 8) as u64 + 3;
    let (told, facts) = whole(plan(), UNKNOWN, Upstream::Raw, "stop", &replies);
    for usage in [&got.told.usage, &told.usage] {
        assert_eq!(usage["prompt_tokens"], PROMPT_TOKENS);
        assert_eq!(usage["completion_tokens"], said);
        assert_eq!(usage["total_tokens"], PROMPT_TOKENS + said);
    }
    assert_eq!(
        told.usage["prompt_tokens_details"]["cached_tokens"], 64,
        "of the first attempt"
    );
    assert_eq!(got.facts.usage.completion_tokens, Some(said));
    assert_eq!(facts.usage.completion_tokens, Some(said));
    // The first attempt of the stream was one chunk.
    assert_eq!(got.facts.engine_tokens, Some(1 + 20 + 3));
    assert_eq!(facts.engine_tokens, Some(50 + 20 + 3));
}

#[test]
fn the_engine_is_charged_for_what_was_left() {
    let plan = AnswerPlan { reasks: 2, ..plan() };
    let replies = [
        Says(WEATHER, "stop", 20),
        // Left at its broken call, a piece for each word: four of them have come by then.
        Says(
            "\n<tool_call>\n{\"name\": \"nov\", \"arguments\": {}}\n</tool_call>",
            "stop",
            9,
        ),
        Says("{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", "stop", 7),
        Says("Done.", "stop", 3),
    ];
    let got = stream(plan, &[json!({"content": UNKNOWN})], "stop", &replies, 1 << 20);
    assert_eq!(got.told.calls.len(), 2);
    assert_eq!(got.facts.engine_tokens, Some(1 + 20 + 4 + 7 + 3));
}

#[test]
fn tries_are_bounded_over_the_answer() {
    let plan = AnswerPlan { reasks: 2, ..plan() };
    let replies = [
        Says(WEATHER, "stop", 20),
        Says(
            "\n<tool_call>\n{\"name\": \"nov\", \"arguments\": {}}\n</tool_call>",
            "stop",
            9,
        ),
        Says("{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", "stop", 9),
        Says(
            "\n<tool_call>\n{\"name\": \"non\", \"arguments\": {}}\n</tool_call>",
            "stop",
            9,
        ),
    ];
    check_with(
        plan,
        UNKNOWN,
        "stop",
        &replies,
        &Want {
            reasoning: "",
            content: "<tool_call>\n{\"name\": \"non\", \"arguments\": {}}\n</tool_call>",
            calls: &[("get_weather", r#"{"city": "Paris"}"#), ("now", "{}")],
            finish: "tool_calls",
            verdicts: &[
                Verdict::Reasked(1),
                Verdict::Reasked(1),
                Verdict::Refused(crate::tool_call::Reason::UnknownTool { name: "non".to_owned() }),
            ],
        },
    );
}

#[test]
fn on_invalid_passes_or_fails() {
    let pass = AnswerPlan {
        reasks: 0,
        on_invalid: OnInvalid::Pass,
        ..plan()
    };
    let unknown = Verdict::Refused(crate::tool_call::Reason::UnknownTool {
        name: "get_wether".to_owned(),
    });
    check_with(
        pass,
        UNKNOWN,
        "stop",
        &[],
        &Want {
            reasoning: "",
            content: "",
            calls: &[("get_wether", r#"{"city": "Paris"}"#)],
            finish: "tool_calls",
            verdicts: &[unknown],
        },
    );
    let error = AnswerPlan {
        on_invalid: OnInvalid::Error,
        ..plan()
    };
    let got = stream(error.clone(), &[json!({"content": UNKNOWN})], "stop", &[Fails], 1 << 20);
    assert_eq!((got.fault, &*got.told.finish), (Some(FaultKind::CallInvalid), ""));
    let body = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": UNKNOWN}, "finish_reason": "stop"}]});
    let Ok(Whole::AskAgain(_, retold)) = Turn::whole_or_ask(error, &Bytes::from(body.to_string())) else {
        panic!("it is asked again first")
    };
    assert_eq!(retold.give_up().unwrap_err().kind, FaultKind::CallInvalid);
}

#[test]
fn what_follows_the_call_is_not_given_up() {
    let mut turn = Turn::new(plan());
    let mut steps = Vec::new();
    let upstream = chat_stream(&[json!({"content": UNKNOWN})], "stop");
    turn.push(Bytes::from(upstream), &mut steps);
    let Some(Step::AskAgain(question)) = steps.pop() else {
        panic!("a question")
    };
    turn.again(BUDGET, PROMPT_TOKENS);
    turn.push(
        Bytes::from(completion_stream(&question, WEATHER, "stop", 20)),
        &mut steps,
    );
    assert!(matches!(steps.pop(), Some(Step::AskAgain(_))));
    assert!(!turn.can_give_up(), "a call was shown");
    turn.again(BUDGET, PROMPT_TOKENS);
    turn.end(&mut steps);
    assert!(matches!(steps.pop(), Some(Step::Fault(fault)) if fault.kind == FaultKind::UpstreamBroke));
}

#[test]
fn a_quoted_call_is_not_asked_again() {
    for text in [
        format!("Like this:\n```\n{UNKNOWN}\n```"),
        format!("As in `{UNKNOWN}`."),
    ] {
        let got = stream(plan(), &[json!({"content": text})], "stop", &[], 1 << 20);
        assert_eq!((got.told.content, &*got.told.finish), (text, "stop"));
    }
}

#[test]
fn a_budget_is_what_is_left_or_the_limit() {
    let room = |wanted_tokens, said_tokens| Room {
        wanted_tokens,
        context_tokens: 5000,
        said_tokens,
        call_tokens: 2048,
    };
    let ask = |guide| AskAgain {
        so_far: String::new(),
        guide,
        number: 1,
        choice: 0,
    };
    let call = ask(Guide::Call { tool: None });
    let rest = ask(Guide::Free);
    let budget = |tokens, ends_answer| Some(Budget { tokens, ends_answer });
    assert_eq!(call.budget(&room(None, 9)), budget(2048, false));
    assert_eq!(call.budget(&room(Some(100), 9)), budget(91, true));
    assert_eq!(call.budget(&room(Some(100), 100)), None);
    assert_eq!(rest.budget(&room(None, 9)), budget(5000, true));
    assert_eq!(rest.budget(&room(Some(100), 99)), budget(1, true));
}
