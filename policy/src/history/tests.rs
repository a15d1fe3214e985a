//! Histories and what becomes of them; the rule that a turn stays the same bytes in every later request.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::protocol::ask::{Ask, AskLimits, Endpoint, Grants, read};

const TOOLS: &str = r#"[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":
    {"city":{"type":"string"},"days":{"type":"integer"}},"required":["city"]}}}]"#;

fn ask(messages: &str) -> Ask {
    let body = Bytes::from(format!(r#"{{"model":"m","messages":{messages},"tools":{TOOLS}}}"#));
    read(
        &Endpoint::ChatCompletions,
        body,
        &AskLimits::default(),
        &Grants::default(),
    )
    .unwrap()
}

/// The messages that are sent, and the kinds of the changes.
fn sent(messages: &str, rules: Rules) -> (String, Vec<&'static str>) {
    let ask = ask(messages);
    let tools = ToolSet::parse(TOOLS.as_bytes()).unwrap();
    let changes = Changes::of(&ask.past, &ask.body, Some(&tools));
    let edits: Vec<_> = changes.edit(rules).into_iter().collect();
    let body = String::from_utf8(ask.upstream_body(&edits).concat()).unwrap();
    let (head, tail) = (r#"{"model":"m","messages":"#, format!(r#","tools":{TOOLS}}}"#));
    let messages = body.strip_prefix(head).unwrap().strip_suffix(tail.as_str()).unwrap();
    let kinds = changes.in_force(rules).map(|change| change.kind.name()).collect();
    (messages.to_owned(), kinds)
}

/// A turn with one call of these raw `arguments`.
fn with_arguments(raw: &str) -> String {
    format!(
        r#"[{{"role":"user","content":"hi"}},{{"role":"assistant","content":null,"tool_calls":[{{"id":"c","type":"function","function":{{"name":"weather","arguments":{raw}}}}}]}}]"#
    )
}

#[test]
fn past_arguments_become_an_object_in_a_string() {
    let text = |text: &str| Value::from(text).to_string();
    for (said, wanted, kind) in [
        // What vLLM takes stays as it is, to the byte.
        (text(r#"{"city": "Paris"}"#), None, ""),
        (text(" {}\n"), None, ""),
        (text(""), None, ""),
        (text(r#"{"any": [1, {"x": null}]}"#), None, ""),
        (text(r#"{"days": NaN, "a": [-Infinity, "NaN, \" Infinity"]}"#), None, ""),
        (
            text(&format!("{{\"a\": {}{}}}", "[".repeat(600), "]".repeat(600))),
            None,
            "",
        ),
        (r#""{\"city\": \"\\ud83d\\ude00 \ud83d\ude00\"}""#.to_owned(), None, ""),
        // Broken, and mended.
        (
            text(r#"{"city": "Paris""#),
            Some(r#"{"city": "Paris"}"#),
            "arguments_repaired",
        ),
        (
            text(r#"{'city': 'Paris'}"#),
            Some(r#"{"city": "Paris"}"#),
            "arguments_repaired",
        ),
        (
            text("{\"city\": \"a\nb\"}"),
            Some(r#"{"city": "a\nb"}"#),
            "arguments_repaired",
        ),
        (
            text(r#"{"city": "Paris",}"#),
            Some(r#"{"city": "Paris"}"#),
            "arguments_repaired",
        ),
        // Of no use to the tool, yet that is what happened.
        (
            text(r#"{"days": "many", }"#),
            Some(r#"{"days": "many"}"#),
            "arguments_repaired",
        ),
        (
            text(r#""{\"city\": \"Paris\"}""#),
            Some(r#"{"city": "Paris"}"#),
            "arguments_repaired",
        ),
        (
            r#""{\"city\": \"a\\ud83d\"}""#.to_owned(),
            Some(r#"{"city": "a\ufffd"}"#),
            "arguments_repaired",
        ),
        (
            r#""{\"city\": \"a\ud83d\"}""#.to_owned(),
            Some("{\"city\": \"a\u{FFFD}\"}"),
            "arguments_repaired",
        ),
        (
            text(r#"{"city": "\ude00\ud83d\ude00 \\ud83d"}"#),
            Some(r#"{"city": "\ufffd\ud83d\ude00 \\ud83d"}"#),
            "arguments_repaired",
        ),
        // Nobody can tell.
        (text(r#"{"city": "Par"#), Some("{}"), "arguments_stubbed"),
        (text(r#"{"a": "#), Some("{}"), "arguments_stubbed"),
        (text("[1]"), Some("{}"), "arguments_stubbed"),
        (text("5"), Some("{}"), "arguments_stubbed"),
        (text("Paris, please"), Some("{}"), "arguments_stubbed"),
        ("null".to_owned(), Some("{}"), "arguments_stubbed"),
        ("[1, 2]".to_owned(), Some("{}"), "arguments_stubbed"),
        (
            r#"{"city": "Paris"}"#.to_owned(),
            Some(r#"{"city": "Paris"}"#),
            "arguments_quoted",
        ),
    ] {
        let history = with_arguments(&said);
        let (got, kinds) = sent(&history, Rules::NONE);
        let wanted = wanted.map_or_else(|| history.clone(), |wanted| with_arguments(&text(wanted)));
        assert_eq!(got, wanted, "{said}");
        assert_eq!(kinds.join(" "), kind, "{said}");
        assert_eq!(
            sent(&got, Rules::NONE),
            (got.clone(), Vec::new()),
            "once is enough: {said}"
        );
    }
}

#[test]
fn a_history_of_broken_calls_costs_a_bounded_number_of_mends() {
    let call = r#"{"id":"c","type":"function","function":{"name":"weather","arguments":"{'city': 'Paris'}"}}"#;
    let history = format!(r#"[{{"role":"assistant","tool_calls":[{}]}}]"#, [call; 40].join(","));
    let (_, kinds) = sent(&history, Rules::NONE);
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!((count("arguments_repaired"), count("arguments_stubbed")), (16, 24));
}

fn call(id: &str, name: &str) -> Value {
    let mut call = json!({"type": "function", "function": {"name": name, "arguments": "{}"}});
    if !id.is_empty() {
        call["id"] = json!(id);
    }
    call
}

/// The ids of calls (by turn) and results that are sent.
fn ids(messages: Value) -> String {
    let (got, _) = sent(&messages.to_string(), Rules::NONE);
    let got: Value = serde_json::from_str(&got).unwrap();
    let mut ids = Vec::new();
    for message in got.as_array().unwrap() {
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            assert_eq!(call["type"], "function");
            ids.push(format!("+{}", call["id"].as_str().unwrap_or("-")));
        }
        if message["role"] == "tool" {
            ids.push(message["tool_call_id"].as_str().unwrap_or("-").to_owned());
        }
    }
    ids.join(" ")
}

#[test]
fn results_are_matched_to_the_calls_before_them() {
    let calls = |calls: &[Value]| json!({"role": "assistant", "tool_calls": calls});
    let result = |id: Value| json!({"role": "tool", "content": "x", "tool_call_id": id});
    let bare = || json!({"role": "tool", "content": "x"});
    let named = |name: &str| json!({"role": "tool", "content": "x", "name": name});
    let (a, b, two) = (call("a", "f"), call("b", "g"), [call("a", "f"), call("b", "g")]);
    for (messages, wanted) in [
        (json!([calls(std::slice::from_ref(&a)), bare()]), "+a a"),
        (json!([calls(std::slice::from_ref(&a)), result(Value::Null)]), "+a a"),
        (json!([calls(std::slice::from_ref(&a)), result(json!(""))]), "+a a"),
        (json!([calls(std::slice::from_ref(&a)), result(json!("z"))]), "+a z"),
        (json!([calls(&two), bare(), bare()]), "+a +b a b"),
        (json!([calls(&two), result(json!("a")), bare()]), "+a +b a b"),
        (json!([calls(&two), result(json!("b")), bare()]), "+a +b b a"),
        (json!([calls(&two), named("g"), named("f")]), "+a +b b a"),
        (json!([calls(&two), named("h"), bare()]), "+a +b a b"),
        // No call is left, or none was made: nothing is guessed.
        (json!([calls(std::slice::from_ref(&a)), bare(), bare()]), "+a a -"),
        (json!([bare(), calls(std::slice::from_ref(&a))]), "- +a"),
        (json!([calls(&[a]), calls(&[b]), bare(), bare()]), "+a +b b -"),
        // Calls without ids get them by their places.
        (
            json!([{"role": "user", "content": "x"}, calls(&[call("", "f"), call("", "g")]), bare(), bare()]),
            "+call_1_0 +call_1_1 call_1_0 call_1_1",
        ),
        (
            json!([
                calls(&[json!({"id": null, "function": {"name": "f", "arguments": "{}"}})]),
                bare()
            ]),
            "+call_0_0 call_0_0",
        ),
    ] {
        assert_eq!(ids(messages.clone()), wanted, "{messages}");
    }
}

#[test]
fn what_a_template_may_take_is_changed_only_under_its_rules() {
    let history = r#"[ {"role":"system","content":""} , {"role":"user","content":"a"},{"role":"system","content":"b"}, {"role":"assistant","content":[]},{"role":"developer","content":null},{"role":"assistant","content":"c"},{"role":"tool","tool_call_id":"x","content":""},{"role":"user","content":" "} ]"#;
    for (rules, wanted) in [
        (Rules::NONE, history.to_owned()),
        (
            Rules::SYSTEM_FIRST,
            history.replace(r#""role":"system","content":"b""#, r#""role":"user","content":"b""#)
                .replace(r#""role":"developer""#, r#""role":"user""#),
        ),
        (
            Rules::NO_EMPTY_TURNS,
            r#"[ {"role":"user","content":"a"},{"role":"system","content":"b"},{"role":"assistant","content":"c"},{"role":"tool","tool_call_id":"x","content":""} ]"#.to_owned(),
        ),
        (
            Rules::SYSTEM_FIRST.and(Rules::NO_EMPTY_TURNS),
            r#"[ {"role":"user","content":"a"},{"role":"user","content":"b"},{"role":"assistant","content":"c"},{"role":"tool","tool_call_id":"x","content":""} ]"#.to_owned(),
        ),
    ] {
        assert_eq!(sent(history, rules).0, wanted, "{rules:?}");
    }
    let of = |history: &str| {
        let ask = ask(history);
        Changes::of(&ask.past, &ask.body, None)
    };
    let plain = of(r#"[{"role":"system","content":"a"},{"role":"user","content":"b"}]"#);
    assert!(!plain.gains(Rules::NONE, Rules::SYSTEM_FIRST.and(Rules::NO_EMPTY_TURNS)));
    assert!(of(history).gains(Rules::NONE, Rules::SYSTEM_FIRST));
    assert!(!of(history).gains(Rules::SYSTEM_FIRST, Rules::SYSTEM_FIRST));
    assert_eq!(of(history).counts(Rules::from_bits(255)), [0, 0, 0, 0, 0, 1, 4]);
}

#[test]
fn a_refusal_is_known_by_its_words() {
    let both = Rules::SYSTEM_FIRST.and(Rules::NO_EMPTY_TURNS);
    for (message, rules) in [
        ("System message must be at the beginning.", Some(Rules::SYSTEM_FIRST)),
        (
            "After the optional system message, conversation roles must alternate user/assistant/user/assistant/...",
            Some(Rules::SYSTEM_FIRST),
        ),
        (
            "Only the first message can have role 'system'",
            Some(Rules::SYSTEM_FIRST),
        ),
        (
            "Assistant message must have either content or tool_calls, but not both.",
            Some(Rules::NO_EMPTY_TURNS),
        ),
        (
            "messages: text content blocks must be non-empty",
            Some(Rules::NO_EMPTY_TURNS),
        ),
        ("The first turn is empty and the system prompt comes late", Some(both)),
        (
            "Conversation roles must alternate user/assistant/user/assistant/...",
            None,
        ),
        ("This model's maximum context length is 32768 tokens.", None),
        ("temperature must be non-negative, got -1.0.", None),
    ] {
        assert_eq!(refused(message), rules, "{message}");
    }
}

/// Any message, also what no client should send.
fn message() -> impl Strategy<Value = String> {
    let arguments = prop_oneof![
        Just(r#""{\"city\": \"Paris\"}""#),
        Just(r#""{\"city\": ""#),
        Just(r#""{'city': 'Paris'}""#),
        Just(r#""{\"a\": 1""#),
        Just(r#"{"a":1}"#),
        Just("null"),
        Just("\"\""),
    ];
    let id = || prop::sample::select(vec!["", r#""id":"a","#, r#""id":"b","#, r#""id":null,"#]);
    let call = (id(), arguments).prop_map(|(id, arguments)| {
        format!(r#"{{{id}"type":"function","function":{{"name":"weather","arguments":{arguments}}}}}"#)
    });
    let content = prop::sample::select(vec![
        r#""content":"x""#,
        r#""content":"""#,
        r#""content":null"#,
        r#""z":1"#,
    ]);
    let result_id = prop::sample::select(vec!["", r#","tool_call_id":"a""#, r#","tool_call_id":"""#]);
    let role = prop::sample::select(vec!["system", "user", "assistant", "developer", "robot"]);
    prop_oneof![
        (role, content.clone()).prop_map(|(role, content)| format!(r#"{{"role":"{role}",{content}}}"#)),
        (content.clone(), prop::collection::vec(call, 1..3)).prop_map(|(content, calls)| {
            format!(r#"{{"role":"assistant",{content},"tool_calls":[{}]}}"#, calls.join(","))
        }),
        (content, result_id).prop_map(|(content, id)| format!(r#"{{"role":"tool",{content}{id}}}"#)),
    ]
}

proptest! {
    /// The KV prefix of a conversation stays only if its turns are the same bytes in every later request.
    #[test]
    fn a_shorter_history_is_a_prefix_of_a_longer_one(
        messages in prop::collection::vec(message(), 1..9),
        bits in 0_u8..4,
        white in "[ \n]{0,1}",
    ) {
        let rules = Rules::from_bits(bits);
        let list = |messages: &[String]| format!("[{}{white}]", messages.join(&format!("{white},{white}")));
        let (whole, _) = sent(&list(&messages), rules);
        prop_assert!(serde_json::from_str::<Value>(&whole).is_ok(), "{}", whole);
        let (again, kinds) = sent(&whole, rules);
        // A front that was left out makes another message the first one, which nobody sends.
        if bits < 2 {
            prop_assert_eq!((again, kinds.len()), (whole.clone(), 0));
        }
        for some in 1..messages.len() {
            let (part, _) = sent(&list(&messages[..some]), rules);
            let part = part.strip_suffix(']').unwrap().trim_end();
            prop_assert!(whole.starts_with(part), "{} -> {}", part, whole);
        }
    }
}
