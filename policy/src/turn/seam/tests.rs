//! An upstream lost at every byte of its stream, in each of the ways: the client's message is the undisturbed one.

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::tests::{plan as plain, scan_for};
use super::super::*;

const TOOLS: &str = r#"[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["city"]}}}]"#;
const CALL: &str =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}\n</tool_call>";
const PROMPT_TOKENS: u64 = 100;
/// Bytes of text in one chunk.
const PIECE: usize = 5;

fn seam(choices: u32) -> SeamPlan {
    SeamPlan {
        continuable: Continuable::ByText,
        choices,
        stops: Stops::default(),
    }
}

fn chat() -> AnswerPlan {
    AnswerPlan {
        include_usage: true,
        names: ReasoningNames::Reasoning,
        seam: seam(1),
        ..scan_for(TOOLS)
    }
}

/// How an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Speaks {
    /// Chat, all in `content`.
    Raw,
    /// Chat, reasoning split off as vLLM's parser does it.
    Split,
    /// `/v1/completions`.
    Text,
}

/// How it is lost.
#[derive(Clone, Copy, Debug)]
enum Breaks {
    /// The end of the body.
    EndOfFile,
    /// A reset or a stall, which only whoever does the I/O sees.
    Outside,
    /// An error event and `[DONE]`.
    ErrorEvent,
}

/// What the model says in each choice, and in what pieces.
struct Model<'a> {
    texts: &'a [&'a str],
    speaks: Speaks,
}

fn line(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn usage(prompt: u64, completion: u64) -> Value {
    json!({"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion})
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.as_bytes()
        .chunks(PIECE)
        .map(|piece| std::str::from_utf8(piece).unwrap())
}

impl Model<'_> {
    fn chunk(&self, choices: Value) -> Value {
        let object = match self.speaks {
            Speaks::Text => "text_completion",
            _ => "chat.completion.chunk",
        };
        json!({"id": "answer-1", "object": object, "created": 17, "model": "m", "choices": choices})
    }

    fn says(&self, index: usize, field: &str, text: &str, finish: Value) -> String {
        let mut choice = json!({"index": index, "logprobs": null, "finish_reason": finish});
        match self.speaks {
            Speaks::Text => choice["text"] = json!(text),
            _ => choice["delta"] = json!({field: text}),
        }
        line(&self.chunk(json!([choice])))
    }

    /// The chunks of one choice; the tags of a block that vLLM has split off make none.
    fn choice(&self, index: usize) -> Vec<String> {
        let text = self.texts[index];
        let (reasoning, content) = match self.speaks {
            Speaks::Split => text
                .strip_prefix("<think>")
                .and_then(|rest| rest.split_once("</think>"))
                .unwrap_or(("", text)),
            _ => ("", text),
        };
        let reasoning = pieces(reasoning).map(|piece| self.says(index, "reasoning", piece, Value::Null));
        let content = pieces(content).map(|piece| self.says(index, "content", piece, Value::Null));
        let end = self.says(index, "content", "", json!("stop"));
        reasoning.chain(content).chain([end]).collect()
    }

    /// The first answer: its choices in turns.
    fn stream(&self) -> String {
        let mut stream = String::new();
        for index in 0..self.texts.len() {
            if self.speaks != Speaks::Text {
                let delta = json!({"role": "assistant", "content": ""});
                stream += &line(
                    &self.chunk(json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}])),
                );
            }
        }
        let choices: Vec<Vec<String>> = (0..self.texts.len()).map(|index| self.choice(index)).collect();
        let longest = choices.iter().map(Vec::len).max().unwrap();
        for at in 0..longest {
            stream.extend(choices.iter().filter_map(|choice| choice.get(at)).map(String::as_str));
        }
        let mut last = self.chunk(json!([]));
        last["usage"] = usage(PROMPT_TOKENS, self.texts.iter().map(|text| text.len() as u64).sum());
        stream + &line(&last) + "data: [DONE]\n\n"
    }

    /// The rest of one choice, as another replica gives it: a byte is a token.
    fn rest(&self, question: &AskAgain) -> String {
        let text = self.texts[question.choice as usize];
        let rest = text.strip_prefix(&*question.so_far);
        continuation(
            question,
            rest.unwrap_or_else(|| panic!("{:?} isn't the start of {text:?}", question.so_far)),
        )
    }
}

fn continuation(question: &AskAgain, text: &str) -> String {
    let chunk = |choices: Value| json!({"id": "cmpl-2", "object": "text_completion", "created": 18, "model": "n", "choices": choices});
    let choice = |text: &str, finish: Value| {
        line(&chunk(
            json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]),
        ))
    };
    let mut stream: String = pieces(text).map(|piece| choice(piece, Value::Null)).collect();
    stream += &choice("", json!("stop"));
    let mut last = chunk(json!([]));
    last["usage"] = usage(PROMPT_TOKENS + question.so_far.len() as u64, text.len() as u64);
    stream + &line(&last) + "data: [DONE]\n\n"
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    roles: u32,
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
    finish: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    choices: Vec<Said>,
    usage: Value,
}

impl Told {
    /// What a client reads of these frames, and that they are of one answer.
    fn read(text: &str, object: &str) -> Self {
        let mut told = Told::default();
        for frame in text.split_terminator("\n\n") {
            let data = frame.strip_prefix("data: ").unwrap();
            if data == "[DONE]" {
                continue;
            }
            let chunk: Value = serde_json::from_str(data).unwrap();
            assert_eq!(
                (&chunk["id"], &chunk["object"], &chunk["model"], &chunk["created"]),
                (&json!("answer-1"), &json!(object), &json!("m"), &json!(17)),
                "{data}"
            );
            if chunk["usage"].is_object() {
                assert!(told.usage.is_null(), "usage once");
                told.usage = chunk["usage"].clone();
            }
            for choice in chunk["choices"].as_array().unwrap() {
                let index = choice["index"].as_u64().unwrap() as usize;
                told.choices.resize(told.choices.len().max(index + 1), Said::default());
                told.choices[index].add(choice);
            }
        }
        told
    }
}

impl Said {
    fn add(&mut self, choice: &Value) {
        let part = &choice["delta"];
        assert!(self.finish.is_empty(), "nothing follows the finish: {choice}");
        self.roles += u32::from(part["role"].is_string());
        self.reasoning += part["reasoning"].as_str().unwrap_or_default();
        self.content += part["content"].as_str().unwrap_or_default();
        self.content += choice["text"].as_str().unwrap_or_default();
        for call in part["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let function = &call["function"];
            if index == self.calls.len() {
                let name = function["name"].as_str().expect("a call begins with its name");
                self.calls.push((name.to_owned(), String::new()));
            } else {
                assert!(function["name"].is_null(), "the name comes once");
            }
            self.calls[index].1 += function["arguments"].as_str().unwrap();
        }
        self.finish += choice["finish_reason"].as_str().unwrap_or_default();
    }
}

/// One answer with its losses.
struct Play<'a> {
    model: &'a Model<'a>,
    turn: Turn,
    plan: AnswerPlan,
    out: Vec<u8>,
    anew: u32,
    questions: Vec<AskAgain>,
}

/// What comes next from upstream.
enum Next {
    Nothing,
    Stream(String),
}

impl Play<'_> {
    /// Carries out the steps, and says what follows a loss or a question.
    fn carry_out(&mut self, steps: &mut Vec<Step>) -> Next {
        let mut next = Next::Nothing;
        for step in steps.drain(..) {
            assert!(matches!(next, Next::Nothing), "nothing follows");
            match step {
                Step::Emit(frame) => self.out.extend_from_slice(&frame.bytes),
                Step::Done => {}
                Step::Fault(fault) => {
                    assert!(fault.kind.retryable());
                    next = Next::Stream(String::new());
                }
                Step::GoOn(question) => next = Next::Stream(self.ask(question)),
                Step::AskAgain(_) => panic!("every call is valid"),
            }
        }
        match next {
            Next::Stream(stream) if stream.is_empty() => self.lose(),
            next => next,
        }
    }

    fn ask(&mut self, question: AskAgain) -> String {
        let rest = self.model.rest(&question);
        let budget = Budget {
            tokens: 1000,
            ends_answer: true,
        };
        self.questions.push(question);
        self.turn.again(budget, PROMPT_TOKENS);
        rest
    }

    fn lose(&mut self) -> Next {
        match self.turn.lost() {
            Loss::Anew => {
                self.anew += 1;
                self.turn.anew(self.plan.clone());
                Next::Stream(self.model.stream())
            }
            Loss::GoesOn(question) => Next::Stream(self.ask(question)),
            Loss::Whole => {
                let mut steps = Vec::new();
                self.turn.end_whole(&mut steps);
                self.carry_out(&mut steps)
            }
            Loss::Ends(obstacle) => panic!("{obstacle:?}"),
        }
    }
}

struct Seen {
    told: Told,
    anew: u32,
    questions: Vec<AskAgain>,
    facts: Facts,
}

/// The answer of `model`, whose streams are cut so, one after the other; the last one is whole.
fn play(plan: &AnswerPlan, model: &Model<'_>, cuts: &[(usize, Breaks)]) -> Seen {
    let mut play = Play {
        model,
        turn: Turn::new(plan.clone()),
        plan: plan.clone(),
        out: Vec::new(),
        anew: 0,
        questions: Vec::new(),
    };
    let mut cuts = cuts.iter();
    let mut next = Next::Stream(model.stream());
    while let Next::Stream(stream) = next {
        let mut steps = Vec::new();
        let cut = cuts.next().filter(|(at, _)| *at < stream.len());
        let Some((at, breaks)) = cut else {
            play.turn.push(Bytes::from(stream), &mut steps);
            play.turn.end(&mut steps);
            next = play.carry_out(&mut steps);
            continue;
        };
        play.turn
            .push(Bytes::copy_from_slice(&stream.as_bytes()[..*at]), &mut steps);
        match breaks {
            Breaks::EndOfFile => play.turn.end(&mut steps),
            Breaks::Outside => {}
            Breaks::ErrorEvent => {
                // A server that writes one has ended its last line.
                let whole = stream[..*at].ends_with("\n\n") || *at == 0;
                if whole {
                    let error = "data: {\"error\":{\"message\":\"EngineCore encountered an issue.\",\"code\":500}}\n\ndata: [DONE]\n\n";
                    play.turn.push(Bytes::from(error), &mut steps);
                }
            }
        }
        let ended = steps.iter().any(|step| matches!(step, Step::Done | Step::GoOn(_)));
        next = play.carry_out(&mut steps);
        if matches!(next, Next::Nothing) && !ended {
            next = play.lose();
        }
    }
    let text = String::from_utf8(play.out).unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(text.matches("[DONE]").count(), 1);
    let object = match model.speaks {
        Speaks::Text => "text_completion",
        _ => "chat.completion.chunk",
    };
    Seen {
        told: Told::read(&text, object),
        anew: play.anew,
        questions: play.questions,
        facts: play.turn.facts().clone(),
    }
}

/// Cut at every byte, in each way, and a second time in the continuation: always the undisturbed message.
fn check(plan: &AnswerPlan, texts: &[&str], speaks: Speaks) {
    let model = Model { texts, speaks };
    let whole = play(plan, &model, &[]);
    assert_eq!(whole.told.choices.len(), texts.len());
    let length = model.stream().len();
    let mut went_on = 0;
    for at in 0..length {
        let ways = [Breaks::EndOfFile, Breaks::Outside, Breaks::ErrorEvent];
        let breaks = ways[at % ways.len()];
        // The second loss: none, early, late.
        let second = [length, at % 700, 2 * (length - at) / 3][at / ways.len() % 3];
        let cuts = [(at, breaks), (second, breaks)];
        let how = format!("{speaks:?}, cut at {at} and {second} by {breaks:?}");
        let got = play(plan, &model, &cuts);
        if texts.len() == 1 && second == length && !got.questions.is_empty() {
            // Else a choice had ended before the loss, and nobody has its count.
            for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
                assert_eq!(got.told.usage[count], whole.told.usage[count], "{how}");
            }
        }
        let told = Told {
            usage: whole.told.usage.clone(),
            ..got.told
        };
        assert_eq!(told, whole.told, "{how}");
        assert_eq!(got.facts.finish.len(), texts.len(), "{how}");
        assert!(got.anew + got.questions.len() as u32 <= 2 + texts.len() as u32, "{how}");
        went_on += usize::from(!got.questions.is_empty());
    }
    assert!(2 * went_on > length, "{went_on} of {length}");
}

#[test]
fn reasoning_and_text_go_on_at_every_byte() {
    let text = "<think>\nWell, is 1 < 2?\n</think>\n\nYes: <b>it</b> is.";
    for speaks in [Speaks::Raw, Speaks::Split] {
        check(&chat(), &[text], speaks);
    }
}

#[test]
fn calls_go_on_at_every_byte_held_or_shown() {
    let text = format!("<think>\nI ask.\n</think>\n\nSo.\n{CALL}");
    for release in [Release::Hold, Release::Certain, Release::Auto { held_bytes: 40 }] {
        check(&AnswerPlan { release, ..chat() }, &[&text], Speaks::Raw);
    }
    check(&chat(), &[&text], Speaks::Split);
}

#[test]
fn a_call_that_the_split_tore_off_goes_on() {
    // vLLM ends the reasoning at a call inside the block; without white space nobody knows yet where it stood.
    let text = format!("<think>\nI ask.</think>{CALL}");
    check(&chat(), &[&text], Speaks::Split);
}

#[test]
fn each_choice_goes_on_by_itself() {
    let plan = AnswerPlan {
        seam: seam(2),
        ..chat()
    };
    check(
        &plan,
        &["One is said here.", "<think>\nTwo\n</think>\n\nTwo is said."],
        Speaks::Raw,
    );
    let plan = AnswerPlan {
        seam: seam(3),
        ..chat()
    };
    check(&plan, &["a", "bb bb bb", "c"], Speaks::Raw);
}

#[test]
fn completions_go_on_as_text() {
    let plan = AnswerPlan {
        surface: Surface::Completions,
        include_usage: true,
        seam: seam(1),
        ..plain()
    };
    check(&plan, &["Once <think> upon\na time <tool_call>."], Speaks::Text);
}

#[test]
fn inline_reasoning_goes_on() {
    let plan = AnswerPlan {
        names: ReasoningNames::Inline,
        ..chat()
    };
    check(&plan, &["<think>\nWell.\n</think>\n\nYes."], Speaks::Raw);
}

/// A stream up to where `told` stands, then lost.
fn lost_behind(plan: AnswerPlan, pieces: &[&str]) -> Turn {
    let model = Model {
        texts: &[""],
        speaks: Speaks::Raw,
    };
    let mut turn = Turn::new(plan);
    let mut steps = Vec::new();
    let role = model.stream();
    let role = &role[..role.find("\n\n").unwrap() + 2];
    turn.push(Bytes::copy_from_slice(role.as_bytes()), &mut steps);
    for piece in pieces {
        turn.push(Bytes::from(model.says(0, "content", piece, Value::Null)), &mut steps);
    }
    turn
}

#[test]
fn what_can_not_go_on_is_asked_anew_while_nothing_was_told() {
    let plan = |obstacle| AnswerPlan {
        seam: SeamPlan {
            continuable: Continuable::Not(obstacle),
            ..seam(1)
        },
        ..chat()
    };
    for obstacle in [Obstacle::Off, Obstacle::Grammar, Obstacle::Media, Obstacle::PerToken] {
        assert_eq!(lost_behind(plan(obstacle), &[]).lost(), Loss::Anew);
        assert_eq!(lost_behind(plan(obstacle), &["<think>", "\n"]).lost(), Loss::Anew);
        assert_eq!(lost_behind(plan(obstacle), &["<tool_call>\n{\"na"]).lost(), Loss::Anew);
        assert_eq!(lost_behind(plan(obstacle), &["Hi"]).lost(), Loss::Ends(obstacle));
    }
}

#[test]
fn calls_that_vllm_took_out_of_the_text_do_not_go_on() {
    let mut turn = lost_behind(chat(), &["Hi"]);
    let delta = r#"data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"get_weather","arguments":""}}]}}]}"#;
    turn.push(Bytes::from(format!("{delta}\n\n")), &mut Vec::new());
    assert_eq!(turn.lost(), Loss::Ends(Obstacle::TextUnknown));
}

#[test]
fn a_chunk_that_can_not_be_read_is_as_if_it_had_not_come() {
    let mut turn = lost_behind(chat(), &["Hi"]);
    let mut steps = Vec::new();
    turn.push(Bytes::from("data: <html>502</html>\n\n"), &mut steps);
    assert!(matches!(&steps[..], [Step::Fault(fault)] if fault.kind == FaultKind::UpstreamGarbled));
    assert!(matches!(turn.lost(), Loss::GoesOn(question) if question.so_far == "Hi"));
}

#[test]
fn a_stop_word_across_the_seam_ends_the_choice() {
    for (included, want) in [(false, "so far E"), (true, "so far END")] {
        let mut plan = chat();
        plan.seam.stops = Stops {
            words: vec!["END".to_owned()],
            included,
        };
        let mut turn = lost_behind(plan, &["so far ", "E"]);
        let Loss::GoesOn(question) = turn.lost() else {
            panic!("it can go on")
        };
        let budget = Budget {
            tokens: 9,
            ends_answer: true,
        };
        turn.again(budget, PROMPT_TOKENS);
        let mut steps = Vec::new();
        for frame in continuation(&question, "ND and much more").split_inclusive("\n\n") {
            turn.push(Bytes::copy_from_slice(frame.as_bytes()), &mut steps);
        }
        assert!(matches!(steps.last(), Some(Step::Done)));
        let mut text = String::from("so far E");
        for step in &steps {
            if let Step::Emit(frame) = step {
                for line in std::str::from_utf8(&frame.bytes).unwrap().split_terminator("\n\n") {
                    let chunk: Value = serde_json::from_str(line.trim_start_matches("data: ")).unwrap_or_default();
                    text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                }
            }
        }
        assert_eq!(text, want);
        assert_eq!(turn.facts().finish, [Finish::Stop]);
        assert!(turn.facts().usage.estimated, "the engine never counted it");
    }
}

#[test]
fn without_a_token_left_the_choice_ends_as_length_and_the_next_goes_on() {
    let mut plan = chat();
    plan.seam = seam(2);
    let mut turn = lost_behind(plan, &["Hi"]);
    assert!(matches!(turn.lost(), Loss::GoesOn(question) if question.choice == 0));
    let mut steps = Vec::new();
    turn.cut_short(Some(PROMPT_TOKENS), &mut steps);
    let Some(Step::GoOn(question)) = steps.pop() else {
        panic!("{steps:?}")
    };
    assert_eq!((question.choice, &*question.so_far, question.number), (1, "", 2));
    turn.cut_short(Some(PROMPT_TOKENS), &mut steps);
    assert!(matches!(steps.last(), Some(Step::Done)));
    assert_eq!(turn.facts().finish, [Finish::Length, Finish::Length]);
    assert_eq!(turn.facts().usage.prompt_tokens, Some(PROMPT_TOKENS));
}
