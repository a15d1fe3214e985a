use super::*;
use crate::protocol::ask::{AskLimits, Endpoint, Grants, read};
use serde_json::{Value, json};

fn chain(body: &Value) -> Chain {
    chain_of_text(&body.to_string())
}

fn chain_of_text(body: &str) -> Chain {
    let body = body.to_owned().into_bytes().into();
    Chain::of(
        &read(
            &Endpoint::ChatCompletions,
            body,
            &AskLimits::default(),
            &Grants::default(),
        )
        .unwrap(),
    )
}

/// How many links two chains share at their beginning.
fn shared(a: &Chain, b: &Chain) -> usize {
    let pairs = a.links().iter().zip(b.links());
    pairs.take_while(|(a, b)| a == b).count()
}

fn with(messages: &[Value]) -> Value {
    json!({"model": "m", "messages": messages})
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

#[test]
fn the_next_turn_begins_with_the_whole_of_the_last() {
    let system = json!({"role": "system", "content": "be brief"});
    let first = chain(&with(&[system.clone(), user("hi")]));
    let next = chain(&with(&[system, user("hi"), assistant("hello"), user("more")]));
    assert_eq!((first.links().len(), next.links().len()), (2, 4));
    assert_eq!(shared(&first, &next), 2);
    assert_eq!(first.bytes(), 10);
}

#[test]
fn what_the_template_does_not_render_does_not_count() {
    let plain = chain(&with(&[
        user("a"),
        json!({"role": "assistant", "content": "b", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":\"1 \\\" 2\"}"}}]}),
        json!({"role": "tool", "tool_call_id": "1", "content": "r"}),
        user("c"),
    ]));
    let noisy = chain(&with(&[
        json!({"content": "a", "role": "user", "name": "n", "cache_control": {"type": "ephemeral"}}),
        json!({"role": "assistant", "reasoning_content": "hm", "content": "<think>hm</think>b", "tool_calls": [
            {"id": "other", "type": "function",
             "function": {"arguments": "{ \"x\" :\n \"1 \\\" 2\" }", "name": "f"}}]}),
        json!({"role": "tool", "tool_call_id": "other", "content": "r"}),
        user("c"),
    ]));
    assert_eq!(shared(&plain, &noisy), 4);
}

#[test]
fn white_space_inside_the_strings_of_a_call_counts() {
    let call = |arguments: &str| {
        chain(&with(&[json!({"role": "assistant", "content": null, "tool_calls": [
            {"function": {"name": "f", "arguments": arguments}}]})]))
    };
    assert_eq!(call(r#"{"x": 1}"#), call(r#"{"x":1}"#));
    assert_ne!(call(r#"{"x":"a b"}"#).links(), call(r#"{"x":"ab"}"#).links());
    assert_ne!(call(r#"{"x":"a\\"}"#).links(), call(r#"{"x":"a\\ "}"#).links());
}

#[test]
fn thoughts_count_in_the_turn_that_still_runs() {
    let thought = |text: &str| json!({"role": "assistant", "reasoning_content": text, "content": "b"});
    let running = |text: &str| {
        chain(&with(&[
            user("a"),
            thought(text),
            json!({"role": "tool", "content": "r"}),
        ]))
    };
    assert_eq!(shared(&running("x"), &running("y")), 1);
    let past = |text: &str| chain(&with(&[user("a"), thought(text), user("c")]));
    assert_eq!(past("x"), past("y"));
}

#[test]
fn each_rendered_part_counts() {
    let base = json!({"messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "r"}],
        "tools": [{"type": "function", "function": {"name": "f"}}]});
    let whole = chain(&base);
    for (pointer, parts_at) in [
        ("/messages/0/content", 0),
        ("/tools/0/function/name", 1),
        ("/messages/1/content/0/text", 2),
        ("/messages/1/content/1/image_url/url", 2),
        ("/messages/2/tool_calls/0/function/name", 3),
        ("/messages/3/content", 4),
    ] {
        let mut other = base.clone();
        let value = other.pointer_mut(pointer).unwrap();
        *value = format!("{}A", value.as_str().unwrap()).into();
        assert_eq!(shared(&whole, &chain(&other)), parts_at, "{pointer}");
    }
    let mut salted = base.clone();
    salted["cache_salt"] = "k".into();
    assert_eq!(shared(&whole, &chain(&salted)), 0);
}

#[test]
fn tools_stand_after_the_system_message_wherever_they_stand_in_the_body() {
    let first = chain_of_text(r#"{"tools":[{"name":"f"}],"messages":[{"role":"user","content":"a"}]}"#);
    let last = chain_of_text(r#"{"messages":[{"role":"user","content":"a"}],"tools":[{"name":"f"}]}"#);
    assert_eq!(first, last);
}

#[test]
fn a_changed_end_of_a_long_text_loses_only_its_piece() {
    let long = "x".repeat(3 * PIECE_BYTES);
    let one = chain(&with(&[user(&format!("{long}12:01"))]));
    let two = chain(&with(&[user(&format!("{long}12:02"))]));
    assert_eq!((one.links().len(), shared(&one, &two)), (4, 3));
}

#[test]
fn a_prompt_without_messages_is_a_chain_too() {
    let of = |body: &str| {
        let body = body.to_owned().into_bytes().into();
        Chain::of(&read(&Endpoint::Completions, body, &AskLimits::default(), &Grants::default()).unwrap())
    };
    let text = "y".repeat(PIECE_BYTES);
    let one = of(&json!({"prompt": format!("{text}a")}).to_string());
    let two = of(&json!({"prompt": format!("{text}b")}).to_string());
    assert_eq!((one.links().len(), shared(&one, &two)), (2, 1));
}

#[test]
fn it_is_bounded_and_says_how_much_is_left_out() {
    let many: Vec<Value> = (0..MESSAGES_LIMIT + 10).map(|i| user(&i.to_string())).collect();
    assert!(chain(&with(&many)).links().len() <= CHAIN_LINKS_LIMIT);
    let long = chain(&with(&[user(&"z".repeat((CHAIN_LINKS_LIMIT + 2) * PIECE_BYTES))]));
    assert_eq!(long.links().len(), CHAIN_LINKS_LIMIT);
    assert_eq!(long.bytes(), ((CHAIN_LINKS_LIMIT + 2) * PIECE_BYTES) as u64);
}
