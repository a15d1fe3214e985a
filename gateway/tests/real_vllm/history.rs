//! Past turns (B30): what vLLM refuses for ever is made safe, and the KV prefix of a conversation stays as with direct access.

use serde_json::{Value, json};

use crate::engine::{Engine, KEY, SetUp, shared};
use crate::gateway::Gateway;
use crate::script::{MODEL, Script, tools};
use crate::wire::{Call, Whole};

fn direct(engine: &Engine, body: &Value) -> Whole {
    let call = Call {
        port: engine.port,
        method: "POST",
        path: "/v1/chat/completions",
        key: Some(KEY),
        headers: &[],
        body: Some(body),
    };
    call.whole().expect("an answer of the engine")
}

/// A conversation in which one call was made and answered.
fn after_a_call(call: &Value) -> Value {
    let question = format!("What is the weather in Paris? {}", Script::say("Rain.").marker());
    json!({"model": MODEL, "max_tokens": 16, "temperature": 0, "messages": [
        {"role": "user", "content": question},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c"},
    ]})
}

fn call(arguments: Value) -> Value {
    json!({"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}})
}

#[test]
fn what_vllm_refuses_at_every_later_turn_is_taken() {
    let engine = shared(SetUp::Raw);
    let gateway = Gateway::before(SetUp::Raw);
    let (mut no_id, mut no_type, mut no_arguments) = (call(json!("{}")), call(json!("{}")), call(json!("{}")));
    no_id.as_object_mut().unwrap().remove("id");
    no_type.as_object_mut().unwrap().remove("type");
    no_arguments["function"].as_object_mut().unwrap().remove("arguments");
    for (what, call) in [
        ("an object", call(json!({"city": "Paris"}))),
        ("null", call(Value::Null)),
        ("no arguments", no_arguments),
        ("half a surrogate pair", call(json!(r#"{"city": "\ud83d"}"#))),
        ("no id", no_id),
        ("no type", no_type),
    ] {
        let body = after_a_call(&call);
        assert_eq!(direct(engine, &body).status, 400, "{what}, directly");
        let answer = gateway.chat(&body).json();
        assert_eq!(answer["choices"][0]["message"]["content"], "Rain.", "{what}");
    }
}

/// vLLM 0.32 takes `{}` for arguments that aren't JSON: the model forgets what it did. (0.12 answers 400.)
#[test]
fn what_a_past_call_said_is_kept() {
    let engine = shared(SetUp::Raw);
    let gateway = Gateway::before(SetUp::Raw);
    let tokens = |answer: Whole| answer.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    let [broken, good, empty] =
        ["{'city': 'Paris'}", r#"{"city": "Paris"}"#, "{}"].map(|arguments| after_a_call(&call(json!(arguments))));
    assert_eq!(tokens(direct(engine, &broken)), tokens(direct(engine, &empty)));
    assert_eq!(tokens(gateway.chat(&broken)), tokens(direct(engine, &good)));
}

/// Ten turns of an agent with a tool. Each side has a cache of its own (`cache_salt`) and goes on with the messages that it got.
#[test]
fn ten_turns_find_the_same_prefix_as_with_direct_access() {
    const CITIES: [&str; 10] = [
        "Paris", "Rome", "Oslo", "Bern", "Kyiv", "Lima", "Cairo", "Delhi", "Tunis", "Quito",
    ];
    let engine = shared(SetUp::Parsers);
    let gateway = Gateway::before(SetUp::Parsers);
    let cached = [
        cached_tokens("direct", &CITIES, |body| direct(engine, body)),
        cached_tokens("sluice", &CITIES, |body| gateway.chat(body)),
    ];
    let (last, before) = (cached[0][9], cached[0][8]);
    assert!(before > 128 && last > before, "the cache is in use: {cached:?}");
    assert_eq!(cached[0], cached[1]);
}

fn cached_tokens(salt: &str, cities: &[&str], ask: impl Fn(&Value) -> Whole) -> Vec<u64> {
    let script = |city: &str| {
        let call = json!({"name": "get_weather", "arguments": {"city": city}});
        Script::say(&format!(
            "<think>\nNext is {city}.\n</think>\n\n<tool_call>\n{call}\n</tool_call>"
        ))
        .marker()
    };
    let mut messages =
        vec![json!({"role": "user", "content": format!("The weather everywhere. {}", script(cities[0]))})];
    let mut cached = Vec::new();
    for turn in 0..cities.len() {
        let body = json!({"model": MODEL, "max_tokens": 256, "temperature": 0, "cache_salt": salt, "tools": tools(),
            "messages": messages});
        let answer = ask(&body);
        assert_eq!(answer.status, 200);
        let answer = answer.json();
        cached.push(
            answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap(),
        );
        let message = answer["choices"][0]["message"].clone();
        let call = &message["tool_calls"][0];
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert_eq!(arguments, json!({"city": cities[turn]}), "turn {turn} of {salt}");
        let next = cities.get(turn + 1).map(|city| script(city)).unwrap_or_default();
        let result = json!({"role": "tool", "tool_call_id": call["id"], "content": format!("Rain. {next}")});
        messages.extend([message, result]);
    }
    cached
}
