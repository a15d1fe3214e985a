//! The request reader: any body, at any endpoint that takes one.
//!
//! Holds: no panic; without an edit the body leaves as it came (but for `priority`); what was JSON stays JSON after an edit,
//! and only the edited member is another one.
#![no_main]

use std::borrow::Cow;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use sluice_policy::protocol::ask::{Ask, AskLimits, Edit, Endpoint, Grants, read};

const ENDPOINTS: [Endpoint; 8] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::CountTokens,
    Endpoint::Embeddings,
    Endpoint::Tokenize,
    Endpoint::Detokenize,
];

fuzz_target!(|input: &[u8]| {
    let [choice, body @ ..] = input else { return };
    let endpoint = &ENDPOINTS[usize::from(choice & 7)];
    let grants = if choice & 8 == 0 {
        Grants::default()
    } else {
        Grants::ALL
    };
    let body = Bytes::copy_from_slice(body);
    let Ok(ask) = read(endpoint, body.clone(), &AskLimits::default(), &grants) else {
        return;
    };
    assert_eq!(ask.body, body);

    // serde_json keeps the last of repeated keys and refuses some of JSON (numbers beyond a double): then there is nothing to
    // compare with.
    let Ok(Value::Object(before)) = serde_json::from_slice::<Value>(&body) else {
        return;
    };
    let after = edited(&ask, &[]);
    if !before.contains_key("priority") {
        assert_eq!(after.as_slice(), body.as_ref(), "not one byte is another one");
    }
    let without = |map: &Map<String, Value>, keys: &[&str]| -> Map<String, Value> {
        map.iter()
            .filter(|(key, _)| !keys.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    let set = object(&edited(
        &ask,
        &[
            Edit::Set("stream", Cow::Borrowed(b"true")),
            Edit::Set("model", Cow::Borrowed(b"\"m\"")),
        ],
    ));
    assert_eq!(
        (&set["stream"], &set["model"]),
        (&Value::Bool(true), &Value::String("m".to_owned()))
    );
    let judged = ["stream", "model", "priority"];
    assert_eq!(
        without(&set, &judged),
        without(&before, &judged),
        "the rest is untouched"
    );

    let removed = object(&edited(&ask, &[Edit::Remove("tool_choice")]));
    assert_eq!(removed, without(&before, &["tool_choice", "priority"]));
});

fn edited(ask: &Ask, edits: &[Edit<'_>]) -> Vec<u8> {
    ask.upstream_body(edits).concat()
}

fn object(body: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(body).expect("what was a JSON object stays one")
}
