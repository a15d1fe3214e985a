//! What every answer keeps, however broken its calls are (B9, B20–B27): the same at any split, nothing shown that is taken back, arguments
//! that parse and fit, and nothing in them that the model didn't write.
//!
//! Answers are made of thoughts, prose and calls of real shape, whose text is then damaged as models damage it: characters of
//! structure dropped, doubled, exchanged, quotes of another kind, Python's words, fences, wrong types, a cut end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use sluice_policy::reasoning::{Opener, Thinking};
use sluice_policy::tool_call::{Bare, ToolSet};
use sluice_policy::turn::{
    AnswerPlan, OnInvalid, ReasoningNames, ReasoningPlan, Release, SeamPlan, Step, Surface, ToolPlan, Turn,
};
use std::sync::{Arc, LazyLock};

const TOOLS: &str = r#"[
    {"type":"function","function":{"name":"write_file","parameters":{"type":"object","required":["path","content"],
        "additionalProperties":false,"properties":{"path":{"type":"string"},"content":{"type":"string"},"mode":{"type":"integer"},
        "force":{"type":"boolean"}}}}},
    {"type":"function","function":{"name":"search","parameters":{"type":"object","required":["query"],"properties":{
        "query":{"type":"string"},"limit":{"type":["integer","null"]},"unit":{"type":"string","enum":["celsius","fahrenheit"]},
        "tags":{"type":"array","items":{"type":"string"}},"filter":{"type":"object","properties":{"site":{"type":"string"},
        "depth":{"type":"number"}}}}}}},
    {"type":"function","function":{"name":"now","parameters":{"type":"object","properties":{}}}}]"#;

static TOOL_SET: LazyLock<Arc<ToolSet>> = LazyLock::new(|| Arc::new(ToolSet::parse(TOOLS.as_bytes()).unwrap()));

/// Each tool's schema, by another reader than the one under test.
static VALIDATORS: LazyLock<Vec<(String, jsonschema::Validator)>> = LazyLock::new(|| {
    let tools: Vec<Value> = serde_json::from_str(TOOLS).unwrap();
    let validator = |tool: Value| {
        let function = &tool["function"];
        let name = function["name"].as_str().unwrap().to_owned();
        (name, jsonschema::validator_for(&function["parameters"]).unwrap())
    };
    tools.into_iter().map(validator).collect()
});

fn plan(release: Release) -> AnswerPlan {
    AnswerPlan {
        surface: Surface::Chat,
        reasoning: ReasoningPlan::Qwen3 {
            thinking: Thinking::On,
            opener: Opener::Model,
        },
        tools: ToolPlan::Scan {
            tools: Arc::clone(&TOOL_SET),
            bare: Bare::Calls,
        },
        parallel_tool_calls: true,
        named_function: false,
        include_usage: false,
        show_verdicts: false,
        names: ReasoningNames::Reasoning,
        simulated: false,
        id_seed: 7,
        reasks: 0,
        on_invalid: OnInvalid::Text,
        release,
        seam: SeamPlan::off(),
    }
}

/// What a client got.
#[derive(Debug, Default, Clone, PartialEq)]
struct Heard {
    reasoning: String,
    content: String,
    /// Name and arguments.
    calls: Vec<(String, String)>,
    finish: String,
    failed: bool,
    /// Calls with a verdict, and those of them that were refused.
    judged: usize,
    refused: usize,
}

fn hear<'a>(release: Release, pieces: impl IntoIterator<Item = &'a str>, last: &str) -> Heard {
    hear_deltas(release, pieces.into_iter().map(|piece| json!({"content": piece})), last)
}

/// The same for deltas of any kind.
fn hear_deltas(release: Release, deltas: impl IntoIterator<Item = Value>, last: &str) -> Heard {
    let mut turn = Turn::new(plan(release));
    let mut heard = Heard::default();
    let mut steps = Vec::new();
    let chunk = |delta: Value, finish: Value| {
        let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    for delta in deltas {
        turn.push(chunk(delta, Value::Null), &mut steps);
    }
    turn.push(chunk(json!({}), json!(last)), &mut steps);
    turn.push(Bytes::from_static(b"data: [DONE]\n\n"), &mut steps);
    for step in steps {
        match step {
            Step::Emit(frame) => heard.take(&frame.bytes),
            Step::Fault(_) => heard.failed = true,
            Step::Done => {}
            other => panic!("{other:?}"),
        }
    }
    let verdicts = &turn.facts().verdicts;
    heard.judged = verdicts.len();
    heard.refused = verdicts
        .iter()
        .filter(|judged| judged.verdict.name() == "refused")
        .count();
    heard
}

impl Heard {
    fn take(&mut self, frames: &[u8]) {
        for frame in std::str::from_utf8(frames).unwrap().split_terminator("\n\n") {
            let data = frame.strip_prefix("data: ").unwrap();
            if data == "[DONE]" {
                continue;
            }
            let chunk: Value = serde_json::from_str(data).unwrap();
            let choice = &chunk["choices"][0];
            let delta = &choice["delta"];
            self.reasoning += delta["reasoning"].as_str().unwrap_or_default();
            self.content += delta["content"].as_str().unwrap_or_default();
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let index = call["index"].as_u64().unwrap() as usize;
                if let Some(name) = call["function"]["name"].as_str() {
                    assert_eq!(index, self.calls.len(), "calls come in order");
                    self.calls.push((name.to_owned(), String::new()));
                }
                self.calls[index].1 += call["function"]["arguments"].as_str().unwrap_or_default();
            }
            self.finish += choice["finish_reason"].as_str().unwrap_or_default();
        }
    }
}

/// A string as coding agents write it.
fn text() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "a",
        "src/main.rs",
        "C:\\temp\\new",
        "say \"hi\"",
        "it's",
        "{\"x\": 1}",
        "line\nline",
        "</tool_call>",
        "<think>",
        "é日本",
        "x, y: z",
        "[1, 2]",
        "# note",
        "// note",
        "True",
        "null",
        "5",
        "\\n",
        "}",
        "`code`",
        " ",
        "\t",
        "fn main() { }",
    ]);
    prop::collection::vec(word, 0..4).prop_map(|words| words.concat())
}

/// A call of one of the tools, as a value that fits.
fn call() -> impl Strategy<Value = (&'static str, Value)> {
    let write = (
        text(),
        text(),
        prop::option::of(0..999),
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(path, content, mode, force)| {
            let mut arguments = json!({"path": path, "content": content});
            mode.into_iter().for_each(|mode| arguments["mode"] = json!(mode));
            force.into_iter().for_each(|force| arguments["force"] = json!(force));
            ("write_file", arguments)
        });
    let unit = prop::option::of(prop::sample::select(vec!["celsius", "fahrenheit", "Celsius "]));
    let tags = prop::option::of(prop::collection::vec(text(), 0..3));
    let limit = prop::option::of(prop_oneof![
        (1..99u8).prop_map(|n| json!(n)),
        (1..99u8).prop_map(|n| json!(n.to_string())),
        Just(Value::Null)
    ]);
    let search = (text(), limit, unit, tags, prop::option::of(text())).prop_map(|(query, limit, unit, tags, site)| {
        let mut arguments = json!({"query": query});
        limit.into_iter().for_each(|limit| arguments["limit"] = limit);
        unit.into_iter().for_each(|unit| arguments["unit"] = json!(unit));
        tags.into_iter().for_each(|tags| arguments["tags"] = json!(tags));
        site.into_iter()
            .for_each(|site| arguments["filter"] = json!({"site": site, "depth": 2.5}));
        ("search", arguments)
    });
    prop_oneof![3 => write, 3 => search, 1 => Just(("now", json!({})))]
}

/// One damage to a call's text.
#[derive(Debug, Clone)]
enum Damage {
    Drop(Index),
    Double(Index),
    Put(Index, char),
    SingleQuotes,
    Python,
    TrailingComma,
    RawLineBreaks,
    Fence,
    Cut(Index),
    NameCase,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => any::<Index>().prop_map(Damage::Drop),
        3 => any::<Index>().prop_map(Damage::Double),
        3 => (any::<Index>(), prop::sample::select(vec!['"', '{', '}', '[', ']', ',', ':', '\\', '\'', '<', 'x']))
            .prop_map(|(at, put)| Damage::Put(at, put)),
        1 => Just(Damage::SingleQuotes),
        1 => Just(Damage::Python),
        1 => Just(Damage::TrailingComma),
        1 => Just(Damage::RawLineBreaks),
        1 => Just(Damage::Fence),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => Just(Damage::NameCase),
    ]
}

fn damaged(mut text: String, damage: &Damage) -> String {
    let structural: Vec<usize> = text
        .match_indices(['"', '{', '}', '[', ']', ',', ':', '\\'])
        .map(|(at, _)| at)
        .collect();
    let all: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    match damage {
        // A cut may have left nothing.
        Damage::Drop(_) | Damage::Double(_) if structural.is_empty() => text,
        Damage::Put(..) | Damage::Cut(_) if text.is_empty() => text,
        Damage::Drop(at) => {
            text.remove(structural[at.index(structural.len())]);
            text
        }
        Damage::Double(at) => {
            let at = structural[at.index(structural.len())];
            let twice = text[at..].chars().next().unwrap();
            text.insert(at, twice);
            text
        }
        Damage::Put(at, put) => {
            text.insert(all[at.index(all.len())], *put);
            text
        }
        Damage::SingleQuotes => text.replace('"', "'"),
        Damage::Python => text
            .replace("true", "True")
            .replace("false", "False")
            .replace("null", "None"),
        Damage::TrailingComma => text.replace('}', ",}"),
        Damage::RawLineBreaks => text.replace("\\n", "\n"),
        Damage::Fence => text
            .replacen("\n{", "\n```json\n{", 1)
            .replacen("\n</tool_call>", "\n```\n</tool_call>", 1),
        Damage::Cut(at) => text[..all[at.index(all.len())]].to_owned(),
        Damage::NameCase => text.replacen("write_file", "Write-File", 1),
    }
}

/// The text of a call, in one of the usual notations, with its damages.
fn written() -> impl Strategy<Value = String> {
    let notation = 0..6;
    (call(), notation, prop::collection::vec(damage(), 0..3)).prop_map(|((name, arguments), notation, damages)| {
        let xml = |(key, value): (&String, &Value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("<parameter={key}>\n{value}\n</parameter>\n")
        };
        let inside = match notation {
            5 => {
                let parameters: String = arguments.as_object().unwrap().iter().map(xml).collect();
                format!("<function={name}>\n{parameters}</function>")
            }
            0 => format!("{{\"arguments\": {arguments}, \"name\": \"{name}\"}}"),
            1 => json!({"name": name, "arguments": arguments.to_string()}).to_string(),
            2 => json!({"name": name, "parameters": arguments}).to_string(),
            _ => format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}"),
        };
        let call = format!("<tool_call>\n{inside}\n</tool_call>");
        damages.iter().fold(call, damaged)
    })
}

/// A call as vLLM's parser tells it: its name, and damaged arguments in pieces.
fn told() -> impl Strategy<Value = (&'static str, Vec<String>)> {
    let cuts = prop::collection::vec(any::<Index>(), 0..5);
    (call(), prop::collection::vec(damage(), 0..3), cuts).prop_map(|((name, arguments), damages, cuts)| {
        let text = damages.iter().fold(arguments.to_string(), damaged);
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| places[cut.index(places.len())]).collect();
        cuts.push(text.len());
        cuts.sort_unstable();
        let mut from = 0;
        let pieces = cuts
            .into_iter()
            .map(|at| text[std::mem::replace(&mut from, at)..at].to_owned());
        (name, pieces.collect())
    })
}

/// A whole answer.
fn answer() -> impl Strategy<Value = String> {
    let prose = prop::sample::select(vec!["", "Let me see.\n", "Then: ", "\n\n", "`x` is \"y\".\n", "Done."]);
    let thought = prop::sample::select(vec!["", "<think>\nHm.\n</think>\n\n", "<think>I call it.\n"]);
    (thought, prop::collection::vec((prose, written()), 1..3), "[a-z .]{0,8}").prop_map(|(thought, parts, end)| {
        let parts: String = parts
            .into_iter()
            .map(|(prose, call)| format!("{prose}{call}"))
            .collect();
        format!("{thought}{parts}{end}")
    })
}

/// Letters and digits of a text, whatever way it is escaped, in lower case: what a value must be made of.
fn letters(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            // An escape: what it stands for is white space, or the character itself. Both sides drop the same.
            '\\' => match rest.peek() {
                Some('n' | 't' | 'r' | 'b' | 'f') => drop(rest.next()),
                Some('u') => {
                    let hex: String = rest.clone().skip(1).take(4).collect();
                    if let Some(c) = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32) {
                        out.extend(c.to_lowercase().filter(|c| c.is_alphanumeric()));
                        rest.nth(4);
                    }
                }
                _ => {}
            },
            c => out.extend(c.to_lowercase().filter(|c| c.is_alphanumeric())),
        }
    }
    out
}

/// Keys and scalars of a value.
fn leaves(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| {
            out.push(key.clone());
            leaves(value, out);
        }),
        Value::Array(items) => items.iter().for_each(|item| leaves(item, out)),
        Value::String(text) => out.push(text.clone()),
        Value::Null => {}
        other => out.push(other.to_string()),
    }
}

const MODES: [Release; 4] = [
    Release::Hold,
    Release::Certain,
    Release::Auto { held_bytes: 60 },
    Release::Auto { held_bytes: 4096 },
];

/// How many answers each property is tried on; `PROPTEST_CASES` says more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_answer(
        answer in answer(),
        cuts in prop::collection::vec(any::<Index>(), 0..8),
        mode in prop::sample::select(MODES.to_vec()),
        last in prop::sample::select(vec!["stop", "length"]),
    ) {
        let whole = hear(mode, [answer.as_str()], last);
        let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| places[cut.index(places.len())]).collect();
        cuts.sort_unstable();
        let mut from = 0;
        let mut pieces: Vec<&str> = cuts.iter().map(|&at| &answer[std::mem::replace(&mut from, at)..at]).collect();
        pieces.push(&answer[from..]);
        let split = hear(mode, pieces, last);
        // How much of a call is shown before it fails depends on when its text comes; whether it fails must not.
        if mode == Release::Hold {
            prop_assert_eq!(&split, &whole);
        } else {
            let held = hear(Release::Hold, [answer.as_str()], last);
            for heard in [&whole, &split] {
                prop_assert!(heard.failed || heard.calls == held.calls && heard.content == held.content, "{:?} / {:?}", heard, held);
            }
        }
    }

    /// B20: a byte that was shown is never taken back.
    #[test]
    fn what_is_shown_early_is_what_is_shown_in_the_end_or_an_error(
        answer in answer(),
        mode in prop::sample::select(MODES[1..].to_vec()),
        last in prop::sample::select(vec!["stop", "length"]),
    ) {
        let held = hear(Release::Hold, [answer.as_str()], last);
        let mut letter = [0; 4];
        let letters: Vec<String> = answer.chars().map(|c| c.encode_utf8(&mut letter).to_owned()).collect();
        let early = hear(mode, letters.iter().map(String::as_str), last);
        prop_assert!(!held.failed);
        if early.failed {
            // Of the calls before the one that failed, nothing differs.
            let whole = early.calls.len() - 1;
            prop_assert_eq!(&early.calls[..whole], &held.calls[..whole]);
            prop_assert_eq!(early.finish, "");
        } else {
            prop_assert_eq!(early, held);
        }
    }

    #[test]
    fn arguments_parse_and_fit_and_have_a_source(answer in answer()) {
        let heard = hear(Release::Hold, [answer.as_str()], "stop");
        let source = letters(&answer);
        for (name, arguments) in &heard.calls {
            let value: Map<String, Value> = serde_json::from_str(arguments).expect("an object");
            let value = Value::Object(value);
            let (_, validator) = VALIDATORS.iter().find(|(tool, _)| tool == name).expect("a declared tool");
            prop_assert!(validator.is_valid(&value), "{name}({arguments})");
            let mut parts = Vec::new();
            leaves(&value, &mut parts);
            for part in parts {
                prop_assert!(source.contains(&letters(&part)), "{part:?} of {arguments} in {answer}");
            }
        }
        prop_assert_eq!(heard.calls.len() + heard.refused, heard.judged);
        prop_assert_eq!(heard.finish, if heard.calls.is_empty() { "stop" } else { "tool_calls" });
    }

    /// B19: what vLLM parsed is held to the same.
    #[test]
    fn calls_that_vllm_tells_are_held_to_the_same(
        calls in prop::collection::vec(told(), 1..3),
        mode in prop::sample::select(MODES[1..].to_vec()),
        last in prop::sample::select(vec!["tool_calls", "length"]),
    ) {
        let mut deltas = Vec::new();
        for (index, (name, pieces)) in calls.iter().enumerate() {
            let head = json!({"index": index, "id": "x", "type": "function", "function": {"name": name, "arguments": ""}});
            let more = pieces.iter().map(|piece| json!({"index": index, "function": {"arguments": piece}}));
            deltas.extend(std::iter::once(head).chain(more).map(|call| json!({"tool_calls": [call]})));
        }
        let held = hear_deltas(Release::Hold, deltas.clone(), last);
        prop_assert!(!held.failed);
        let source = letters(&calls.iter().map(|(name, pieces)| format!("{name} {} ", pieces.concat())).collect::<String>());
        for (name, arguments) in &held.calls {
            let value: Value = serde_json::from_str(arguments).expect("JSON");
            let (_, validator) = VALIDATORS.iter().find(|(tool, _)| tool == name).expect("a declared tool");
            prop_assert!(validator.is_valid(&value), "{name}({arguments})");
            let mut parts = Vec::new();
            leaves(&value, &mut parts);
            for part in parts {
                prop_assert!(source.contains(&letters(&part)), "{part:?} of {arguments}");
            }
        }
        let finish = match last {
            "length" => "length",
            _ if held.calls.is_empty() => "stop",
            _ => "tool_calls",
        };
        prop_assert_eq!(&held.finish, finish);
        let early = hear_deltas(mode, deltas, last);
        if early.failed {
            let whole = early.calls.len() - 1;
            prop_assert_eq!(&early.calls[..whole], &held.calls[..whole]);
        } else {
            prop_assert_eq!(early, held);
        }
    }

    /// Every letter of the answer is thought, said, in a call, or was left out by a repair that its verdict names.
    #[test]
    fn no_letter_is_lost_or_shown_twice(answer in answer()) {
        let heard = hear(Release::Hold, [answer.as_str()], "stop");
        if heard.calls.is_empty() {
            // Tags are markup or text, wherever they stand.
            let of = |text: &str| letters(&text.replace("<think>", " ").replace("</think>", " "));
            let (shown, wanted) = (of(&format!("{} {}", heard.reasoning, heard.content)), of(&answer));
            let (mut shown, mut wanted): (Vec<char>, Vec<char>) = (shown.chars().collect(), wanted.chars().collect());
            shown.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(shown, wanted, "{:?}", heard);
        }
    }
}
