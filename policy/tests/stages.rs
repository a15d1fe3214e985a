//! What the two text stages promise beside the vectors: any split, nothing lost, nothing held in running text, no call by mistake.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    dead_code
)]

mod text;

use proptest::prelude::*;
use sluice_policy::reasoning::{Channel, OPENER_HOLD, Opener, Part, Splitter, Thinking};
use sluice_policy::tool_call::{Bare, CALL_LIMIT, Kind, Piece, Reason, Scanner, TAG_LIMIT, ToolSet, Verdict};
use std::sync::Arc;
use std::time::{Duration, Instant};
use text::{Setup, Shown, Stages, cut, read, same_at_every_split};

fn tools() -> Arc<ToolSet> {
    let raw = br#"[{"type":"function","function":{"name":"search","parameters":{"type":"object","properties":
        {"query":{"type":"string"},"limit":{"type":"integer"},"input":{"type":"string"},"filters":{"type":"object"}}}}},
        {"type":"function","function":{"name":"now"}}]"#;
    Arc::new(ToolSet::parse(raw).unwrap())
}

fn call(name: &str, arguments: &str, raw: &str) -> Shown {
    Shown::Call {
        name: name.into(),
        arguments: arguments.into(),
        raw: raw.into(),
    }
}

fn text(text: &str) -> Shown {
    Shown::Text(text.into())
}

fn reasoning(text: &str) -> Shown {
    Shown::Reasoning(text.into())
}

const CALL: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

fn now() -> Shown {
    call("now", "{}", CALL)
}

// --- who opens the block (B15)

#[test]
fn the_opener_decides_what_untagged_text_is() {
    let tools = tools();
    let untagged = "So be it.";
    let closed = "So be it.\n</think>\n\nYes.";
    for (thinking, opener, source, shown) in [
        (Thinking::On, Opener::Model, untagged, vec![text(untagged)]),
        (Thinking::On, Opener::Model, closed, vec![text("So be it.\nYes.")]),
        (Thinking::On, Opener::Prompt, untagged, vec![reasoning(untagged)]),
        (
            Thinking::On,
            Opener::Prompt,
            closed,
            vec![reasoning("So be it.\n"), text("Yes.")],
        ),
        (
            Thinking::On,
            Opener::Prompt,
            "<think>\nSo be it.\n</think>\n\nYes.",
            vec![reasoning("So be it.\n"), text("Yes.")],
        ),
        (Thinking::On, Opener::Prompt, CALL, vec![now()]),
        (Thinking::Unknown, Opener::default(), untagged, vec![text(untagged)]),
        (
            Thinking::Unknown,
            Opener::default(),
            closed,
            vec![reasoning("So be it.\n"), text("Yes.")],
        ),
        (
            Thinking::Unknown,
            Opener::Unknown { hold: 0 },
            closed,
            vec![text("So be it.\nYes.")],
        ),
        (
            Thinking::Unknown,
            Opener::Unknown { hold: 4 },
            closed,
            vec![text("So be it.\nYes.")],
        ),
        (Thinking::Off, Opener::Prompt, untagged, vec![text(untagged)]),
        (
            Thinking::Off,
            Opener::default(),
            "<think>\nSo.\n</think>\n\nYes.",
            vec![reasoning("So.\n"), text("Yes.")],
        ),
        (Thinking::Off, Opener::Model, "\n \n", vec![]),
    ] {
        let setup = Setup::with(&tools, thinking, opener);
        let id = format!("{thinking:?} {opener:?} {source:?}");
        assert_eq!(same_at_every_split(&setup, source, &id), shown, "{id}");
    }
}

#[test]
fn an_answer_teaches_who_opens() {
    for (source, stopped, learned) in [
        ("<think>\na\n</think>\n\nb", true, Some(Opener::Model)),
        ("a\n</think>\n\nb", true, Some(Opener::Prompt)),
        ("</think>b", true, Some(Opener::Prompt)),
        ("b", true, Some(Opener::Model)),
        ("b", false, None), // cut: may have been reasoning
        ("b <think>c", true, Some(Opener::Model)),
    ] {
        let mut splitter = Splitter::new(Thinking::On, Opener::default(), None);
        let mut out = Vec::new();
        splitter.push(source, &mut out);
        splitter.finish(&mut out);
        assert_eq!(splitter.learn(stopped), learned, "{source:?}");
    }
    assert_eq!(Opener::of_prompt("<|im_start|>assistant\n<think>\n"), Opener::Prompt);
    assert_eq!(
        Opener::of_prompt("<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        Opener::Model
    );
    assert_eq!(Opener::of_prompt("<|im_start|>assistant\n"), Opener::Model);
}

#[test]
fn an_unknown_opener_holds_up_to_its_limit_and_then_shows() {
    let mut splitter = Splitter::new(Thinking::On, Opener::default(), None);
    let mut out = Vec::new();
    for _ in 0..OPENER_HOLD / 8 {
        splitter.push("8 bytes.", &mut out);
    }
    assert_eq!((out.len(), splitter.held()), (0, OPENER_HOLD));
    splitter.push("!", &mut out);
    assert_eq!(splitter.held(), 0);
    let Some(Part::Content(shown)) = out.first() else {
        panic!("{out:?}")
    };
    assert_eq!(shown.len(), OPENER_HOLD + 1);
}

// --- blocks (B15)

#[test]
fn blocks_in_every_form() {
    let tools = tools();
    let setup = Setup::with(&tools, Thinking::On, Opener::Model);
    for (source, shown) in [
        (
            "<think>a</think>b<think>c</think>d",
            vec![reasoning("a"), text("b"), reasoning("c"), text("d")],
        ),
        ("<think></think>", vec![]),
        ("<think>a</think>b</think>c", vec![reasoning("a"), text("b</think>c")]),
        ("<think>\"a</think>b", vec![reasoning("\"a"), text("b")]),
        ("<think>\n```\na\n</think>\n\nb", vec![reasoning("```\na\n"), text("b")]),
        ("a `<think>` b </think", vec![text("a `<think>` b </think")]),
        (
            "a:\n```xml\n<think>x</think>\n```\nb",
            vec![text("a:\n```xml\n<think>x</think>\n```\nb")],
        ),
        (
            "{\"a\": \"<think>x</think>\"}",
            vec![text("{\"a\": \"<think>x</think>\"}")],
        ),
        (
            "See {\"a\": \"b \\\" <think>\"} there",
            vec![text("See {\"a\": \"b \\\" <think>\"} there")],
        ),
        (
            "```\na\n```\n<think>b</think>c",
            vec![text("```\na\n```\n"), reasoning("b"), text("c")],
        ),
        ("<thi", vec![text("<thi")]),
        ("a <think>\nb", vec![text("a "), reasoning("b")]),
        ("a <think>b</think>c", vec![text("a "), reasoning("b"), text("c")]),
        ("a\n<think> b", vec![text("a\n"), reasoning("b")]),
        ("a <think> b", vec![text("a <think> b")]),
        ("a (<think>) b", vec![text("a (<think>) b")]),
        ("a <think>", vec![text("a <think>")]),
        ("<think>a</thin", vec![reasoning("a</thin")]),
    ] {
        assert_eq!(same_at_every_split(&setup, source, source), shown, "{source:?}");
    }
}

#[test]
fn a_call_inside_a_block_counts_only_where_nothing_follows() {
    let tools = tools();
    let setup = Setup::with(&tools, Thinking::On, Opener::Model);
    let two = format!("{CALL}\n{CALL}");
    for (source, shown) in [
        (format!("<think>a\n{CALL}"), vec![reasoning("a\n"), now()]),
        (format!("<think>a\n{CALL}\n \n"), vec![reasoning("a\n"), now()]),
        (format!("<think>a\n{CALL}\n</think>"), vec![reasoning("a\n"), now()]),
        (format!("<think>a\n{CALL}\n</think>\n\n"), vec![reasoning("a\n"), now()]),
        (
            format!("<think>a\n{CALL}\n{CALL}"),
            vec![reasoning("a\n"), now(), now()],
        ),
        (
            format!("<think>a\n{two}\n</think>\nb"),
            vec![reasoning(&format!("a\n{two}\n")), text("b")],
        ),
        (format!("<think>a {CALL} b"), vec![reasoning(&format!("a {CALL} b"))]),
        (
            format!("<think>a {CALL} b</think>"),
            vec![reasoning(&format!("a {CALL} b"))],
        ),
        (
            format!("<think>a {CALL}</think>{CALL}"),
            vec![reasoning(&format!("a {CALL}")), now()],
        ),
        (
            format!("<think>a {CALL} b\n{CALL}"),
            vec![reasoning(&format!("a {CALL} b\n")), now()],
        ),
        (format!("<think>a `{CALL}`"), vec![reasoning(&format!("a `{CALL}`"))]),
        (
            "<think>a <tool_call> is a tag</think>b".into(),
            vec![reasoning("a <tool_call> is a tag"), text("b")],
        ),
        (
            "<think>a <tool_call>{\"name\": x\n</think>\nb".into(),
            vec![reasoning("a <tool_call>{\"name\": x\n"), text("b")],
        ),
        (
            "<think>a <tool_call>{\"name\": \"x</think>\nb".into(),
            vec![reasoning("a <tool_call>{\"name\": \"x"), text("b")],
        ),
        (
            "<think>a <tool_call></think>b".into(),
            vec![reasoning("a <tool_call>"), text("b")],
        ),
        (
            "<think>a\n<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"</think>\"}}".into(),
            vec![
                reasoning("a\n"),
                call(
                    "now",
                    "{\"a\": \"</think>\"}",
                    "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"</think>\"}}",
                ),
            ],
        ),
    ] {
        assert_eq!(same_at_every_split(&setup, &source, &source), shown, "{source:?}");
    }
}

// --- calls (B22)

/// (body between the tags, arguments that the client gets)
const NOTATIONS: &[(&str, &str)] = &[
    (
        r#"{"name": "search", "arguments": {"query": "q",  "limit": 12345678901234567890.10}}"#,
        r#"{"query": "q",  "limit": 12345678901234567890.10}"#,
    ),
    (
        r#"{"arguments": {"query": "q"}, "name": "search"}"#,
        r#"{"query": "q"}"#,
    ),
    (
        r#"{"name": "search", "parameters": {"query": "q"}}"#,
        r#"{"query": "q"}"#,
    ),
    (r#"{"name": "search", "args": {"query": "q"}}"#, r#"{"query": "q"}"#),
    (r#"{"name": "search", "input": {"query": "q"}}"#, r#"{"query": "q"}"#),
    (r#"{"name": "search", "input": "q"}"#, r#"{"input": "q"}"#),
    (
        r#"{"function": "search", "arguments": {"query": "q"}}"#,
        r#"{"query": "q"}"#,
    ),
    (
        r#"{"type": "function", "function": {"name": "search", "arguments": "{\"query\": \"q\"}"}}"#,
        r#"{"query": "q"}"#,
    ),
    (r#"{"search": {"query": "q"}}"#, r#"{"query": "q"}"#),
    (
        r#"{"name": "search", "query": "q", "limit": 1e400, "id": "7"}"#,
        r#"{"query": "q", "limit": 1e400}"#,
    ),
    (r#"{"name": "search", "arguments": ""}"#, "{}"),
    (r#"{"name": "search", "arguments": null}"#, "{}"),
    (r#"{"name": "search"}"#, "{}"),
    (
        r#"{"name": "x", "arguments": {"query": "a"}, "name": "search", "arguments": {"query": "b"}}"#,
        r#"{"query": "b"}"#,
    ),
    (
        r#"{"name": "search", "arguments": {"query": "a \u00e9 \\ \" </tool_call> }"}}"#,
        r#"{"query": "a \u00e9 \\ \" </tool_call> }"}"#,
    ),
    (
        "```json\n{\"name\": \"search\", \"arguments\": {\"query\": \"q\"}}\n```",
        r#"{"query": "q"}"#,
    ),
    (
        "<function=search>\n<parameter=query>\n12\n</parameter>\n<parameter=limit>\n12\n</parameter>\n</function>",
        r#"{"query": "12", "limit": 12}"#,
    ),
    (
        "<function=search><parameter=query>a </parameter> b\n</parameter><parameter=limit> 4</parameter></function>",
        r#"{"query": "a </parameter> b", "limit": 4}"#,
    ),
    (
        "<function=search>\n<parameter=filters>\n{\"a\": [1.0]}\n</parameter>\n<parameter=x>\n<b>\n\n</parameter>\n</function>",
        r#"{"filters": {"a": [1.0]}, "x": "<b>\n"}"#,
    ),
    ("<function=search>\n</function>", "{}"),
];

#[test]
fn every_notation_is_read() {
    let tools = tools();
    let setup = Setup::with(&tools, Thinking::Off, Opener::Model);
    for (body, arguments) in NOTATIONS {
        for (open, close) in [
            ("<tool_call>\n", "\n</tool_call>"),
            ("<tool_call>", "</tool_call>"),
            ("<TOOL_CALLS>", "</Tool_Calls>"),
            ("< tool_call >\n", "\n</ tool_call >"),
            ("<tool_call>\n", ""),
            ("<tool_call>", "</tool_ca"),
        ] {
            let raw = format!("{open}{body}{close}");
            let shown = vec![text("Now: "), call("search", arguments, &raw)];
            assert_eq!(
                same_at_every_split(&setup, &format!("Now: {raw}"), &raw),
                shown,
                "{raw}"
            );
        }
    }
}

#[test]
fn calls_stand_anywhere() {
    let tools = tools();
    let setup = Setup::with(&tools, Thinking::Off, Opener::Model);
    let object = "{\"name\": \"now\", \"arguments\": {}}";
    let named = "<tool_call name=\"search\">{\"query\": \"name\"}</tool_call>";
    let bare = "<function=now>\n</function>";
    for (source, shown) in [
        (
            format!("a\n{CALL}\nb\n{CALL} c"),
            vec![text("a\n"), now(), text("b\n"), now(), text("c")],
        ),
        (format!("{CALL}{CALL}"), vec![now(), now()]),
        (format!("  \n{CALL}\n"), vec![now()]),
        (named.into(), vec![call("search", "{\"query\": \"name\"}", named)]),
        (
            format!("a {bare} b"),
            vec![text("a "), call("now", "{}", bare), text("b")],
        ),
        (
            format!("<tool_call>\n{object}\n{object},{object}\n</tool_call>"),
            vec![
                call("now", "{}", &format!("<tool_call>\n{object}")),
                call("now", "{}", &format!("\n{object}")),
                call("now", "{}", &format!(",{object}\n</tool_call>")),
            ],
        ),
        (
            format!("<tool_call>[{object}, {object}]</tool_call>"),
            vec![
                call("now", "{}", &format!("<tool_call>[{object}")),
                call("now", "{}", &format!(", {object}]</tool_call>")),
            ],
        ),
        (
            format!("<tool_call><tool_call>{object}</tool_call></tool_call>a"),
            vec![
                call("now", "{}", &format!("<tool_call><tool_call>{object}</tool_call>")),
                text("a"),
            ],
        ),
        (format!("```json\n{CALL}\n```\na"), vec![now(), text("a")]),
        (format!("```\n{CALL}\n{CALL}\n```"), vec![now(), now()]),
        (
            format!("```\n{CALL}\n```rust\nfn\n```"),
            vec![now(), text("```rust\nfn\n```")],
        ),
        (object.to_owned(), vec![call("now", "{}", object)]),
        (
            format!("```json\n{object}\n```\n"),
            vec![call("now", "{}", &format!("```json\n{object}\n```\n"))],
        ),
        (
            format!("{object}\n</tool_call>"),
            vec![call("now", "{}", &format!("{object}\n</tool_call>"))],
        ),
        (
            "{\"type\": \"function\", \"function\": {\"name\": \"now\"}}".to_owned(),
            vec![call(
                "now",
                "{}",
                "{\"type\": \"function\", \"function\": {\"name\": \"now\"}}",
            )],
        ),
        (format!("[{object}]"), vec![call("now", "{}", &format!("[{object}]"))]),
    ] {
        assert_eq!(same_at_every_split(&setup, &source, &source), shown, "{source:?}");
    }
}

#[test]
fn what_is_no_call_stays_text_byte_for_byte() {
    let tools = tools();
    let object = "{\"name\": \"now\", \"arguments\": {}}";
    for source in [
        "A tool_call is a message.",
        "Write <tool_call> and </tool_call> around it, as in <function=NAME>.",
        "The tag `<tool_call>{\"name\": \"now\"}</tool_call>` begins a call.",
        "Example:\n```\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n```\nThat is it.",
        "{\"text\": \"use <tool_call>{\\\"name\\\": \\\"now\\\"}</tool_call> here\"}",
        "{\"name\": \"Bob\", \"arguments\": {}}",
        "{\"answer\": 42}",
        "{\"id\": 42, \"name\": \"now\"}",
        "{\"type\": \"Feature\", \"name\": \"now\"}",
        "<tool_call>\nfoo(1)",
        "<tool_call> nea",
        "{\"name\": \"now\", \"arguments\": {}} is what I would send.",
        "I would send {\"name\": \"now\", \"arguments\": {}}",
        "```json\n{\"name\": \"now\", \"arguments\": {}}\n```\nDone.",
        "```python\nprint(1)\n```",
        "[1, 2, 3]",
        "[]",
        "{",
        "```",
        "<function=unknown>\n</function>",
        "if a < b then <tool> or <tool_ca ll>",
        "<tool_call></tool_call>",
        "<tool_call> is a tag, a < b.\n\nNext.",
        "1 < 2 <",
    ] {
        for thinking in [Thinking::On, Thinking::Off] {
            let setup = Setup::with(&tools, thinking, Opener::default());
            assert_eq!(
                same_at_every_split(&setup, source, source),
                vec![text(source)],
                "{source:?}"
            );
        }
    }
    // the client asked for JSON
    let setup = Setup {
        bare: Bare::Text,
        ..Setup::with(&tools, Thinking::Off, Opener::Model)
    };
    assert_eq!(same_at_every_split(&setup, object, object), vec![text(object)]);
    assert_eq!(same_at_every_split(&setup, CALL, CALL), vec![now()]);
    // no tools, no calls
    let setup = Setup {
        tools: Some(Arc::new(ToolSet::default())),
        ..setup
    };
    assert_eq!(same_at_every_split(&setup, CALL, CALL), vec![text(CALL)]);
}

#[test]
fn what_is_invalid_keeps_its_text_and_says_why() {
    let tools = tools();
    let setup = Setup::with(&tools, Thinking::Off, Opener::Model);
    let open = "<tool_call>".len();
    for (body, reason) in [
        (
            r#"{"name": "now", "arguments": {"a": }}"#,
            Reason::BadJson { at: open + 35 },
        ),
        (
            r#"{"name": "now", "arguments": {"a": 01}}"#,
            Reason::BadJson { at: open + 36 },
        ),
        (r#"{"name": "now"#, Reason::Cut),
        (r#"{"arguments": {}}"#, Reason::NoName),
        (
            r#"{"name": "nov", "arguments": {}}"#,
            Reason::UnknownTool { name: "nov".into() },
        ),
        (r#"{"name": "now", "arguments": [1]}"#, Reason::NotAnObject),
        (r#"{"name": "now", "arguments": "none"}"#, Reason::NotAnObject),
        (
            r#"{"name": "now", "arguments": "{\"a\": \ud800}"}"#,
            Reason::NotAnObject,
        ),
        ("[]", Reason::NoName),
        ("[1]", Reason::NoName),
        ("now(1)", Reason::BadJson { at: open + 3 }),
    ] {
        let close = if reason == Reason::Cut { "" } else { "</tool_call>" };
        let raw = format!("<tool_call>{body}{close}");
        let shown = vec![Shown::Invalid {
            raw: raw.clone(),
            reason,
        }];
        assert_eq!(same_at_every_split(&setup, &raw, &raw), shown, "{raw}");
    }
    // a string that never ends doesn't swallow what follows its block
    let source = format!("<tool_call>{{\"name\": \"no}}</tool_call>\n{CALL}\nb");
    let shown = same_at_every_split(&setup, &source, &source);
    assert_eq!(shown.len(), 4, "{shown:?}");
    assert_eq!(shown[1..], [text("\n"), now(), text("b")]);
}

#[test]
fn the_verdict_says_what_was_left_out() {
    for (source, verdict) in [
        (CALL.to_owned(), Verdict::Passed),
        (
            CALL.replace("now", "functions.Now"),
            Verdict::Repaired(vec![Kind::Name]),
        ),
        (CALL.replace("\n</", "}\n</"), Verdict::Repaired(vec![Kind::Surplus])),
    ] {
        let mut scanner = Scanner::new(tools(), Bare::Calls);
        let mut out = Vec::new();
        scanner.push(&source, &mut out);
        let [Piece::Call(call)] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!((&call.verdict, &call.raw), (&verdict, &source));
    }
    // behind an open block it is text, not surplus
    let source = CALL.replace("</tool_call>", "That is all.");
    let setup = Setup::with(&tools(), Thinking::Off, Opener::Model);
    let shown = same_at_every_split(&setup, &source, &source);
    assert_eq!(
        shown,
        [
            call("now", "{}", CALL.trim_end_matches("</tool_call>")),
            text("That is all.")
        ]
    );
}

// --- limits

#[test]
fn a_call_over_the_limit_becomes_text() {
    let mut stages = Stages::new(&Setup::with(&tools(), Thinking::Off, Opener::Model));
    let chunk = "x".repeat(64 << 10);
    stages.push("<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"");
    let mut most = 0;
    for _ in 0..CALL_LIMIT / chunk.len() + 2 {
        stages.push(&chunk);
        most = most.max(stages.scanner.as_ref().unwrap().held());
    }
    assert!(most <= CALL_LIMIT, "{most}");
    stages.push("\"}}</tool_call> b");
    let shown = stages.finish();
    let [
        Shown::Invalid {
            raw,
            reason: Reason::TooLong,
        },
        Shown::Text(rest),
    ] = &shown[..]
    else {
        panic!("other pieces")
    };
    assert_eq!(raw.len(), CALL_LIMIT);
    assert!(rest.ends_with("x\"}}</tool_call> b"));
}

/// Text made to be dear: thousands of parts in one call, tags that never end, brackets without end.
#[test]
fn hostile_calls_cost_little() {
    let started = Instant::now();
    let setup = Setup::with(&tools(), Thinking::On, Opener::Model);
    let parameters = "<parameter=a>b</parameter>".repeat(100_000);
    for (body, reason) in [
        (format!("[{}1]", "1,".repeat(1_000_000)), Some(Reason::TooMany)),
        (
            format!("{{{}\"a\":1}}", "\"a\":1,".repeat(500_000)),
            Some(Reason::TooMany),
        ),
        (format!("<function=now>{parameters}</function>"), None),
        ("{},".repeat(1_000_000), None),
        ("{\"function\":".repeat(200), None),
        ("[".repeat(1_000_000), None),
        ("{\"a\": \"</tool_cal".repeat(100_000), None),
    ] {
        let raw = format!("<tool_call>{body}</tool_call>");
        let shown = read(&setup, [raw.as_str()]);
        let Some(Shown::Invalid { reason: got, .. }) = shown.first() else {
            panic!("no refusal")
        };
        match reason {
            Some(reason) => assert_eq!(*got, reason),
            None => assert!(
                matches!(got, Reason::BadJson { .. } | Reason::TooCostly { .. }),
                "{got:?}"
            ),
        }
        let all: usize = shown
            .iter()
            .map(|shown| match shown {
                Shown::Invalid { raw, .. } | Shown::Call { raw, .. } => raw.len(),
                Shown::Text(text) | Shown::Reasoning(text) => text.len(),
            })
            .sum();
        assert_eq!(all, raw.len());
    }
    let open = "<tool_call><think>`<function=now>".repeat(20_000);
    assert!(!read(&setup, [open.as_str()]).is_empty());
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_long_call_costs_linear_time() {
    let started = Instant::now();
    let mut stages = Stages::new(&Setup::with(&tools(), Thinking::On, Opener::Model));
    stages.push("<think>\na\n");
    stages.push("<tool_call>{\"name\": \"search\", \"arguments\": {\"query\": \"");
    for _ in 0..(2 << 20) / 4 {
        stages.push("a<b ");
    }
    stages.push("\"}}</tool_call>");
    let shown = stages.finish();
    assert!(matches!(&shown[..], [Shown::Reasoning(_), Shown::Call { .. }]));
    // half a million pushes: a second or two; looking at the held text again in each would be half a terabyte
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn running_text_passes_at_once() {
    let tools = tools();
    for (opener, start, channel) in [
        (Opener::Model, "A", Channel::Content),
        (Opener::Prompt, "A", Channel::Reasoning),
        (Opener::Model, "<think>A", Channel::Reasoning),
    ] {
        let mut splitter = Splitter::new(Thinking::On, opener, Some(Arc::clone(&tools)));
        let mut scanner = Scanner::new(Arc::clone(&tools), Bare::Calls);
        let (mut parts, mut pieces) = (Vec::new(), Vec::new());
        splitter.push(start, &mut parts);
        scanner.push("A", &mut pieces);
        assert_eq!((parts.len(), pieces.len()), (1, 1));
        for delta in [
            " quick",
            " \"brown\"",
            "\n\n",
            "```",
            "rust\n",
            "fox",
            "{",
            "}",
            "\n```\n",
            "日本",
        ] {
            assert_eq!(splitter.pass(delta), Some(channel), "{delta:?}");
            assert!(scanner.pass(delta), "{delta:?}");
        }
        for delta in ["a < b", "<"] {
            assert_eq!(splitter.pass(delta), None, "{delta:?}");
            assert!(!scanner.pass(delta), "{delta:?}");
        }
    }
}

// --- any text

/// Pieces of text that matter to the stages.
fn fragment() -> impl Strategy<Value = String> {
    let fixed = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_calls>",
        "</ tool_call >",
        "<TOOL_CALL>",
        "<function=now>",
        "</function>",
        "<parameter=query>",
        "</parameter>",
        "<",
        "</",
        "<thi",
        "nk>",
        "<tool",
        "_call>",
        "`",
        "```",
        "```json\n",
        "~~~\n",
        "\n",
        " ",
        "\n\n",
        "\"",
        "\\",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "{\"name\": \"now\", \"arguments\": {}}",
        "{\"name\": \"now\"",
        "{\"a\": \"<tool_call>\"}",
        "{\"a\": \"</think>",
        "now(",
        "word",
        "é日",
        "'",
        "1.5e",
        "null",
        "<tool_call name=\"search\">",
        "<|im_start|>",
    ]);
    prop_oneof![8 => fixed.prop_map(str::to_owned), 1 => Just(CALL.to_owned()), 1 => "[ -~\n]{0,6}"]
}

fn any_setup() -> impl Strategy<Value = Setup> {
    let thinking = prop::sample::select(vec![Thinking::On, Thinking::Off, Thinking::Unknown]);
    let opener = prop_oneof![
        Just(Opener::Model),
        Just(Opener::Prompt),
        Just(Opener::default()),
        (0usize..40).prop_map(|hold| Opener::Unknown { hold })
    ];
    let bare = prop::sample::select(vec![Bare::Calls, Bare::Text]);
    (thinking, opener, bare, any::<bool>()).prop_map(|(thinking, opener, bare, with)| Setup {
        thinking,
        opener,
        bare,
        tools: with.then(tools),
    })
}

/// Text without what a stage may drop: white space and markup.
fn without(markup: &[&str], text: &str) -> String {
    let mut text: String = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect::<String>()
        .to_lowercase();
    loop {
        let before = text.len();
        for markup in markup {
            text = text.replace(markup, "");
        }
        if text.len() == before {
            return text;
        }
    }
}

/// Text without its fences and their languages.
fn without_fences(text: &str) -> String {
    let mut parts = text.split("```");
    let mut left = parts.next().unwrap_or_default().to_owned();
    let language = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '.');
    parts.for_each(|part| left.push_str(part.trim_start_matches(language)));
    left
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same(
        setup in any_setup(),
        fragments in prop::collection::vec(fragment(), 0..14),
        cuts in prop::collection::vec(0usize..120, 0..20),
    ) {
        let text = fragments.concat();
        let whole = read(&setup, [text.as_str()]);
        let cuts = cut(&text, &cuts);
        prop_assert_eq!(&read(&setup, cuts.iter().map(String::as_str)), &whole);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        prop_assert_eq!(&read(&setup, chars.iter().map(String::as_str)), &whole);
    }

    #[test]
    fn the_splitter_loses_nothing_and_shows_nothing_twice(
        setup in any_setup(),
        fragments in prop::collection::vec(fragment(), 0..14),
    ) {
        let source = fragments.concat();
        let mut splitter = Splitter::new(setup.thinking, setup.opener, setup.tools);
        let mut parts = Vec::new();
        fragments.iter().for_each(|fragment| splitter.push(fragment, &mut parts));
        splitter.finish(&mut parts);
        let shown: String = parts.into_iter().map(|part| match part {
            Part::Reasoning(text) | Part::Content(text) => text,
        }).collect();
        prop_assert_eq!(without(&["<think>", "</think>"], &shown), without(&["<think>", "</think>"], &source));
    }

    #[test]
    fn the_scanner_loses_nothing_and_shows_nothing_twice(fragments in prop::collection::vec(fragment(), 0..14)) {
        let source = fragments.concat();
        let mut scanner = Scanner::new(tools(), Bare::Calls);
        let mut pieces = Vec::new();
        fragments.iter().for_each(|fragment| scanner.push(fragment, &mut pieces));
        scanner.finish(&mut pieces);
        let shown: String = pieces.into_iter().map(|piece| match piece {
            Piece::Text(text) => text,
            Piece::Call(call) => call.raw,
            Piece::Invalid { raw, .. } => raw,
        }).collect();
        let markup = ["</tool_call>", "</tool_calls>", "`"];
        prop_assert_eq!(without(&markup, &without_fences(&shown)), without(&markup, &without_fences(&source)));
    }

    #[test]
    fn a_call_always_has_a_declared_name_and_an_object(fragments in prop::collection::vec(fragment(), 0..14)) {
        let tools = tools();
        for shown in read(&Setup::new(&tools), [fragments.concat().as_str()]) {
            if let Shown::Call { name, arguments, .. } = shown {
                prop_assert!(tools.exact(&name).is_some());
                prop_assert!(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&arguments).is_ok());
            }
        }
    }

    #[test]
    fn no_more_than_a_tag_is_held_in_running_text(fragments in prop::collection::vec(fragment(), 0..14)) {
        let tools = tools();
        let mut splitter = Splitter::new(Thinking::On, Opener::Model, None);
        let mut scanner = Scanner::new(Arc::clone(&tools), Bare::Text);
        let (mut parts, mut pieces) = (Vec::new(), Vec::new());
        splitter.push("x", &mut parts);
        scanner.push("x", &mut pieces);
        for fragment in fragments {
            splitter.push(&fragment, &mut parts);
            scanner.push(&fragment, &mut pieces);
            prop_assert!(splitter.held() < "</think>".len());
            prop_assert!(scanner.in_call() || scanner.held() <= TAG_LIMIT);
        }
    }

    #[test]
    fn arbitrary_text_is_harmless(text in "\\PC{0,200}", cuts in prop::collection::vec(0usize..200, 0..10)) {
        let setup = Setup::new(&tools());
        let pieces = cut(&text, &cuts);
        prop_assert_eq!(read(&setup, pieces.iter().map(String::as_str)), read(&setup, [text.as_str()]));
    }
}
