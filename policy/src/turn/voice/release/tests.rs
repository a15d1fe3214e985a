//! A call in its three modes: the same arguments, and nothing shown that isn't part of them.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::protocol::fault::FaultKind;
use crate::turn::tests::scan_for;
use crate::turn::{AnswerPlan, Release, Step, Turn};

const TOOLS: &str = r#"[{"type":"function","function":{"name":"write","parameters":{"type":"object","required":["path"],
    "additionalProperties":false,"properties":{"path":{"type":"string"},"text":{"type":"string"},"mode":{"type":"integer"},
    "tags":{"type":"array","items":{"type":"string"}}}}}}]"#;

fn plan(release: Release) -> AnswerPlan {
    AnswerPlan {
        release,
        ..scan_for(TOOLS)
    }
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    content: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    finish: String,
    fault: Option<FaultKind>,
}

/// What the client has got after each of the pieces, and at the end.
fn play(release: Release, pieces: &[&str], hurry_before: Option<usize>) -> (Vec<usize>, Seen) {
    let deltas: Vec<_> = pieces.iter().map(|piece| json!({"content": piece})).collect();
    play_deltas(release, &deltas, "stop", hurry_before)
}

/// The same, for any deltas and any finish.
fn play_deltas(release: Release, deltas: &[Value], last: &str, hurry_before: Option<usize>) -> (Vec<usize>, Seen) {
    let mut turn = Turn::new(plan(release));
    let mut seen = Seen::default();
    let mut shown = Vec::new();
    for (at, delta) in deltas.iter().chain([&json!({"content": ""})]).enumerate() {
        if hurry_before == Some(at) {
            turn.hurry();
        }
        let finish = if at == deltas.len() { json!(last) } else { Value::Null };
        let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        let mut steps = Vec::new();
        turn.push(Bytes::from(format!("data: {chunk}\n\n")), &mut steps);
        for step in steps {
            match step {
                Step::Emit(frame) => hear(&frame.bytes, &mut seen),
                Step::Fault(fault) => seen.fault = Some(fault.kind),
                other => panic!("{other:?}"),
            }
        }
        shown.push(seen.calls.iter().map(|(_, arguments)| arguments.len()).sum());
    }
    (shown, seen)
}

fn hear(frames: &[u8], seen: &mut Seen) {
    for frame in std::str::from_utf8(frames).unwrap().split_terminator("\n\n") {
        let chunk: Value = serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap();
        let choice = &chunk["choices"][0];
        seen.content += choice["delta"]["content"].as_str().unwrap_or_default();
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if let Some(name) = call["function"]["name"].as_str() {
                assert_eq!(index, seen.calls.len());
                assert!(call["id"].is_string());
                seen.calls.push((name.to_owned(), String::new()));
            }
            seen.calls[index].1 += call["function"]["arguments"].as_str().unwrap();
        }
        seen.finish += choice["finish_reason"].as_str().unwrap_or_default();
    }
}

fn call(arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"write\", \"arguments\": {arguments}}}\n</tool_call>")
}

const MODES: [Release; 4] = [
    Release::Certain,
    Release::Auto { held_bytes: 0 },
    Release::Auto { held_bytes: 70 },
    Release::Auto { held_bytes: 4096 },
];

#[test]
fn all_modes_give_the_same_calls_at_every_split() {
    for text in [
        call(r#"{"path": "a b", "text": "say \"hi\"\n\u00e9 </tool_call> ü", "mode": 12}"#),
        call(r#"{"text":"x","path":"y","tags":["a"]}"#),
        // Shape is mended behind what was shown.
        call(r#"{"path": "a", "mode": "12", "text": "b"}"#),
        call(r#"{"path": "a", "tags": "b"}"#),
        call("{}").replace("{}", r#"{"path": "a"}"#) + "\nSo.\n" + &call(r#"{"path": "b"}"#),
        format!("First.\n{}", call(r#"{"path": "a"}"#).replace("write", "Write")),
    ] {
        let (_, held) = play(Release::Hold, &[&text], None);
        assert!(!held.calls.is_empty() && held.fault.is_none(), "{text}");
        for mode in MODES {
            let mut letter = [0; 4];
            let letters: Vec<String> = text.chars().map(|c| c.encode_utf8(&mut letter).to_owned()).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(play(mode, &letters, None).1, held, "{mode:?}: {text}");
            for cut in (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                let (left, right) = text.split_at(cut);
                assert_eq!(
                    play(mode, &[left, right], None).1,
                    held,
                    "{mode:?} cut at {cut}: {text}"
                );
            }
        }
    }
}

#[test]
fn bytes_leave_as_they_become_certain() {
    let pieces = [
        "<tool_call>\n{\"name\": \"write\", ",
        "\"arguments\": {",
        "\"path\": \"a/b",
        ".rs\", ",
        "\"text\": \"fn",
        " main\"",
        "}}\n</tool_call>",
    ];
    let (shown, seen) = play(Release::Certain, &pieces, None);
    assert_eq!(shown, [0, 1, 13, 16, 30, 35, 37, 37]);
    assert_eq!(seen.calls[0].1, r#"{"path": "a/b.rs", "text": "fn main"}"#);
    assert_eq!(seen.finish, "tool_calls");
    let (shown, _) = play(Release::Hold, &pieces, None);
    assert_eq!(shown, [0, 0, 0, 0, 0, 0, 37, 37]);
    let (shown, _) = play(Release::Auto { held_bytes: 4096 }, &pieces, Some(4));
    assert_eq!(shown, [0, 0, 0, 0, 30, 35, 37, 37], "held for long");
    let (shown, _) = play(Release::Auto { held_bytes: 60 }, &pieces, None);
    assert_eq!(shown, [0, 0, 0, 16, 30, 35, 37, 37], "longer than is held");
}

/// Neither a finish nor other bytes: an error.
#[test]
fn a_shown_call_that_is_not_completed_is_an_error() {
    for text in [
        // Cut in a string; nothing is made up.
        "<tool_call>\n{\"name\": \"write\", \"arguments\": {\"path\": \"a/b".to_owned(),
        // A key that the schema doesn't have.
        call(r#"{"path": "a", "text": "b", "pth": 1}"#),
    ] {
        let pieces: Vec<&str> = text.split_inclusive('"').collect();
        let (_, seen) = play(Release::Certain, &pieces, None);
        assert_eq!(
            (seen.fault, &*seen.finish),
            (Some(FaultKind::CallInvalid), ""),
            "{text}"
        );
        assert_eq!(seen.calls.len(), 1, "what was shown stays");
        let (_, held) = play(Release::Hold, &pieces, None);
        assert_eq!(
            (held.fault, held.calls.len(), &*held.finish),
            (None, 0, "stop"),
            "{text}"
        );
    }
}

/// A call that vLLM tells (engine mode), its arguments in these pieces.
fn told(pieces: &[&str]) -> Vec<Value> {
    let head = json!({"tool_calls": [{"id": "x", "type": "function", "index": 0, "function": {"name": "write", "arguments": ""}}]});
    let more = |piece: &&str| json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]});
    std::iter::once(head).chain(pieces.iter().map(more)).collect()
}

/// B19, B20: calls that vLLM parsed are held, shown and mended like ours.
#[test]
fn calls_that_vllm_tells_have_the_modes_too() {
    for (pieces, want) in [
        (
            &[r#"{"path": "a/b", "#, r#""text": "c", "mode": 3}"#][..],
            r#"{"path": "a/b", "text": "c", "mode": 3}"#,
        ),
        (
            &[r#"{"path": "a/b", "#, r#""text": "c", "mode": "3""#],
            r#"{"path": "a/b", "text": "c", "mode": 3}"#,
        ),
        (
            &[r#"{"path": "a/b", "#, r#""tags": "x",}"#],
            r#"{"path": "a/b", "tags": ["x"]}"#,
        ),
    ] {
        for release in MODES {
            let (shown, seen) = play_deltas(release, &told(pieces), "tool_calls", None);
            assert_eq!(seen.calls, [("write".to_owned(), want.to_owned())], "{release:?}");
            assert_eq!(
                (&*seen.content, &*seen.finish, seen.fault),
                ("", "tool_calls", None),
                "{release:?}"
            );
            // Held until vLLM has told all of it, or as it becomes certain.
            let early = shown[1] > 0;
            assert_eq!(
                early,
                matches!(release, Release::Certain | Release::Auto { held_bytes: 0 }),
                "{release:?}: {shown:?}"
            );
        }
    }
}

#[test]
fn what_vllm_tells_and_is_no_call_is_text_or_a_fault_if_it_was_shown() {
    let pieces = [r#"{"path": "a/b", "#, r#""text": ["#];
    let (_, seen) = play_deltas(Release::Hold, &told(&pieces), "tool_calls", None);
    assert_eq!((seen.calls, &*seen.finish, seen.fault), (Vec::new(), "stop", None));
    assert!(
        seen.content
            .starts_with("<tool_call>\n{\"name\": \"write\", \"arguments\": {\"path\": \"a/b\", \"text\": [")
    );
    let (_, seen) = play_deltas(Release::Certain, &told(&pieces), "tool_calls", None);
    assert_eq!((seen.fault, &*seen.finish), (Some(FaultKind::CallInvalid), ""));
    // Cut off: nothing is shown of it, and the finish says so.
    let (_, seen) = play_deltas(Release::Hold, &told(&pieces), "length", None);
    assert_eq!((seen.calls, &*seen.content, &*seen.finish), (Vec::new(), "", "length"));
}

#[test]
fn text_ends_a_call_that_vllm_tells_and_a_leak_beside_it_is_found() {
    let mut deltas = told(&[r#"{"path": "a"}"#]);
    deltas.push(json!({"content": format!("\n{}", call(r#"{"path": "b"}"#))}));
    deltas.extend([json!({"tool_calls": [{"id": "y", "type": "function", "index": 1, "function": {"name": "write", "arguments": r#"{"path": "c"}"#}}]})]);
    for release in MODES {
        let (_, seen) = play_deltas(release, &deltas, "tool_calls", None);
        let paths: Vec<_> = seen.calls.iter().map(|(_, arguments)| arguments.as_str()).collect();
        assert_eq!(
            paths,
            [r#"{"path": "a"}"#, r#"{"path": "b"}"#, r#"{"path": "c"}"#],
            "{release:?}"
        );
        assert_eq!((seen.content.trim(), seen.fault), ("", None), "{release:?}");
    }
}

/// Found by a property: a call that came whole with the end of an unclosed block was begun and broken in one chunk, and the answer
/// failed though nothing had been shown.
#[test]
fn a_call_that_comes_with_the_end_is_not_begun() {
    let text = "<think>I call it.\n<tool_call>\n{\"name\": \"write\", \"arguments\": {\"path\": \"a";
    for release in MODES {
        let (_, seen) = play(release, &[text], None);
        assert_eq!(
            (seen.fault, seen.calls.len(), &*seen.finish),
            (None, 0, "stop"),
            "{release:?}"
        );
    }
}
