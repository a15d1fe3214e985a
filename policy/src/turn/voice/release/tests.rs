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
    let mut turn = Turn::new(plan(release));
    let mut seen = Seen::default();
    let mut shown = Vec::new();
    let ends = [json!({"content": ""})];
    let deltas = pieces.iter().map(|piece| json!({"content": piece})).chain(ends);
    for (at, delta) in deltas.enumerate() {
        if hurry_before == Some(at) {
            turn.hurry();
        }
        let finish = if at == pieces.len() { json!("stop") } else { Value::Null };
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
