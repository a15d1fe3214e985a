//! `tool_choice: "required"` and a named function, in both set-ups and both ways (B19, B28): with its parsers vLLM guides the
//! decoding and finds the call; without them it refuses these, and Sluice sends a structural tag of the model's own notation.
//!
//! A model that wants something else is made to call: here one of random weights that was told nothing. Our grammar bounds the
//! white space between its tokens. vLLM's own doesn't, and this model writes it for ever, so that before its parsers the answer
//! is scripted: what the grammar refuses, vLLM answers with 500.

use std::thread;

use serde_json::{Value, json};

use crate::engine::SetUp;
use crate::gateway::Gateway;
use crate::message::Message;
use crate::script::{MODEL, Script};

/// Function, property, and what the property may be.
const PICKS: [(&str, &str, &[&str]); 2] = [
    ("pick_colour", "colour", &["red", "green"]),
    ("pick_size", "size", &["small", "large"]),
];

fn picks() -> Value {
    let tool = |(name, property, values): (&str, &str, &[&str])| {
        json!({"type": "function", "function": {"name": name, "description": "Pick one", "parameters": {
            "type": "object", "required": [property], "additionalProperties": false,
            "properties": {property: {"type": "string", "enum": values}}}}})
    };
    Value::Array(PICKS.map(tool).to_vec())
}

fn named(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

#[test]
fn a_model_that_is_told_nothing_makes_a_required_call() {
    for message in unscripted(&json!("required")) {
        expect_one_call(&message, &["pick_colour", "pick_size"]);
        assert_eq!(message.finish.as_deref(), Some("tool_calls"));
    }
}

#[test]
fn a_model_that_is_told_nothing_calls_the_named_function() {
    for (name, ..) in PICKS {
        for message in unscripted(&named(name)) {
            expect_one_call(&message, &[name]);
            assert_eq!(message.finish.as_deref(), Some("stop"), "as OpenAI's");
        }
    }
}

/// What the grammar lets the model say, said: both set-ups give the same calls, streamed and whole.
#[test]
fn scripted_calls_are_the_same_everywhere() {
    let colour = "<tool_call>\n{\"name\": \"pick_colour\", \"arguments\": {\"colour\": \"green\"}}\n</tool_call>";
    let want = |finish| Message::expect(None, None, &[("pick_colour", r#"{"colour": "green"}"#)], finish);
    let script = Script::say(colour);
    for set_up in SetUp::BOTH {
        for (choice, finish) in [(json!("required"), "tool_calls"), (named("pick_colour"), "stop")] {
            let body = script.chat(more(&choice));
            for message in both_ways(&Gateway::before(set_up), &body) {
                assert_eq!(message, want(finish), "{set_up:?}, {choice}");
            }
        }
    }
}

fn more(choice: &Value) -> Value {
    json!({"tools": picks(), "tool_choice": choice, "parallel_tool_calls": false,
        "chat_template_kwargs": {"enable_thinking": false}})
}

/// Both messages of a model that is told nothing.
fn unscripted(choice: &Value) -> [Message; 2] {
    let mut body = more(choice);
    body["model"] = json!(MODEL);
    body["messages"] = json!([{"role": "user", "content": "Say hello."}]);
    (body["max_tokens"], body["temperature"]) = (json!(1000), json!(0));
    both_ways(&Gateway::before(SetUp::Raw), &body)
}

/// Arguments that fit the schema: one property, one of its values, nothing else.
fn expect_one_call(message: &Message, names: &[&str]) {
    let [(name, arguments)] = &message.calls[..] else {
        panic!("{} calls, finish {:?}", message.calls.len(), message.finish)
    };
    assert!(names.contains(&name.as_str()), "{name} is called");
    let (_, property, values) = PICKS.into_iter().find(|pick| pick.0 == name).unwrap();
    let arguments: Value = serde_json::from_str(arguments).expect("arguments are JSON");
    let fits = |value: &&str| arguments == json!({property: value});
    assert!(values.iter().any(fits), "{name} gets {arguments}");
    assert_eq!(message.content, None, "nothing is said beside the call");
}

/// The whole answer and the streamed one.
fn both_ways(gateway: &Gateway, body: &Value) -> [Message; 2] {
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    thread::scope(|scope| {
        let whole = scope.spawn(|| Message::of_body(&gateway.chat(body).json()));
        let stream = scope.spawn(|| Message::of_events(&gateway.stream("guided", &streamed).events().unwrap()));
        [
            whole.join().expect("the whole answer"),
            stream.join().expect("the stream"),
        ]
    })
}
