//! Bodies in, asks and refusals out.

mod media;
mod refusals;
mod session;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read_as(endpoint: &Endpoint, body: &str, grants: &Grants) -> Result<Ask, Fault> {
    read(
        endpoint,
        Bytes::copy_from_slice(body.as_bytes()),
        &AskLimits::default(),
        grants,
    )
}

fn chat(body: &str) -> Result<Ask, Fault> {
    read_as(&Endpoint::ChatCompletions, body, &Grants::default())
}

/// An ask that must be readable.
fn asked(body: &str) -> Ask {
    chat(body).unwrap_or_else(|fault| panic!("{body}: {fault:?}"))
}

/// Code (or `-`) and parameter (or `-`) of a refusal, which must be a 400.
fn refused(endpoint: &Endpoint, body: &str) -> String {
    let fault = read_as(endpoint, body, &Grants::default()).expect_err(body);
    assert_eq!(fault.status(), 400, "{body}");
    format!(
        "{} {}",
        fault.kind.code().unwrap_or("-"),
        fault.param.as_deref().unwrap_or("-")
    )
}

/// Every endpoint with a body.
const BODIES: [Endpoint; 10] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::CountTokens,
    Endpoint::Embeddings,
    Endpoint::Rerank,
    Endpoint::Score,
    Endpoint::Tokenize,
    Endpoint::Detokenize,
];

#[test]
fn an_empty_object_has_openais_defaults() {
    let ask = asked("{}");
    assert_eq!(ask.model, None);
    assert!(!ask.stream && !ask.include_usage && !ask.continuous_usage && !ask.strict_tools && !ask.response_format);
    assert!(!ask.logprobs && !ask.images && ask.parallel_tool_calls);
    assert_eq!(
        (ask.n, ask.max_tokens, ask.thinking, ask.tools.clone()),
        (1, None, None, None)
    );
    assert_eq!(
        (ask.messages, ask.prompt_bytes, ask.tool_choice.clone()),
        (0, 0, ToolChoice::Absent)
    );
    assert_eq!((ask.session.key.clone(), ask.session.user.clone()), (None, None));
}

#[test]
fn a_whole_chat_request_is_read() {
    let tools = r#"[{"type":"function","function":{"name":"f","strict":true,"parameters":{"strict":false}}}, {"type":"function","function":{"name":"g"}}]"#;
    let messages = r#"[{"role":"system","content":"s"},{"role":"user","content":"u"}]"#;
    let body = format!(
        r#"{{"model":"Qwen\/Qwen3","messages":{messages},"stream":true,"stream_options":{{"include_usage":true,"continuous_usage_stats":true}},
            "n":2,"max_tokens":100,"max_completion_tokens":50,"tools":{tools},"tool_choice":"required","parallel_tool_calls":false,
            "response_format":{{"type":"json_object"}},"logprobs":true,"chat_template_kwargs":{{"enable_thinking":false}},
            "user":" me ","session_id":"s1","unknown_field":{{"model":1,"n":99,"stream":"x"}}}}"#
    );
    let ask = asked(&body);
    assert_eq!(ask.model.as_deref(), Some("Qwen/Qwen3"));
    assert!(
        ask.stream
            && ask.include_usage
            && ask.continuous_usage
            && ask.strict_tools
            && ask.response_format
            && ask.logprobs
    );
    assert!(!ask.parallel_tool_calls && !ask.images);
    assert_eq!(
        (ask.n, ask.max_tokens, ask.thinking, ask.messages, ask.tool_count),
        (2, Some(50), Some(false), 2, 2)
    );
    assert_eq!(ask.tools.as_deref(), Some(tools.as_bytes()));
    assert_eq!(ask.tool_choice, ToolChoice::Required);
    assert_eq!(ask.prompt_bytes, (tools.len() + messages.len()) as u64);
    assert_eq!(ask.session.user.as_deref(), Some("me"));
    assert_eq!(ask.session.key, Some((SessionSource::SessionId, "s1".to_owned())));
    assert_eq!(ask.raw("n").as_deref(), Some(b"2".as_slice()));
    assert_eq!(ask.raw("nothing"), None);
    // B4, B13: nothing of it is touched.
    assert_eq!(ask.upstream_body(&[]).concat(), body.as_bytes());
}

#[test]
fn endpoints_without_a_body_read_none() {
    for endpoint in [
        Endpoint::Models,
        Endpoint::Health,
        Endpoint::Cancel("x".into()),
        Endpoint::Ping,
    ] {
        let ask = read_as(&endpoint, "not json", &Grants::default()).unwrap();
        assert_eq!(ask.upstream_body(&[]).concat(), b"not json");
    }
}

#[test]
fn values_that_the_gateway_needs_must_be_what_they_are() {
    for (body, param) in [
        (r#"{"model":1}"#, "model"),
        (r#"{"model":["a"]}"#, "model"),
        (r#"{"stream":"true"}"#, "stream"),
        (r#"{"stream":1}"#, "stream"),
        (
            r#"{"stream_options":{"include_usage":"yes"}}"#,
            "stream_options.include_usage",
        ),
        (
            r#"{"stream_options":{"continuous_usage_stats":1}}"#,
            "stream_options.continuous_usage_stats",
        ),
        (r#"{"n":"2"}"#, "n"),
        (r#"{"n":1.5}"#, "n"),
        (r#"{"n":true}"#, "n"),
        (r#"{"max_tokens":"10"}"#, "max_tokens"),
        (r#"{"max_completion_tokens":[]}"#, "max_completion_tokens"),
        (r#"{"max_tokens":0.5}"#, "max_tokens"),
        (r#"{"parallel_tool_calls":0}"#, "parallel_tool_calls"),
    ] {
        assert_eq!(
            refused(&Endpoint::ChatCompletions, body),
            format!("- {param}"),
            "{body}"
        );
    }
    let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(5000));
    assert_eq!(refused(&Endpoint::ChatCompletions, &long), "- model");
    // Null is the default of each.
    let ask = asked(
        r#"{"model":null,"stream":null,"stream_options":null,"n":null,"max_tokens":null,"tools":null,"tool_choice":null,"parallel_tool_calls":null,
            "response_format":null,"structured_outputs":null,"logprobs":null,"chat_template_kwargs":null,"messages":null,"metadata":null,"user":null}"#,
    );
    assert_eq!(
        (
            ask.model,
            ask.stream,
            ask.n,
            ask.parallel_tool_calls,
            ask.response_format
        ),
        (None, false, 1, true, false)
    );
    // Everything else is vLLM's to refuse.
    for body in [
        r#"{"messages":"hi"}"#,
        r#"{"messages":{"role":"user"}}"#,
        r#"{"messages":[1,"x",null,[]]}"#,
        r#"{"messages":[{"role":1,"content":2}]}"#,
        r#"{"messages":[{"content":[1,null,{"image_url":3}]}]}"#,
        r#"{"tools":{}}"#,
        r#"{"tools":[1,{"function":2},{"strict":"x"}]}"#,
        r#"{"tool_choice":7}"#,
        r#"{"stream_options":[]}"#,
        r#"{"temperature":"hot","top_p":[],"logprobs":"x"}"#,
        r#"{"chat_template_kwargs":"x","metadata":[],"user":5,"session_id":7,"conversation":true}"#,
        r#"{"stream_options":{"include_usage":true}}"#,
        r#"{"max_tokens":0,"n":0}"#,
        r#"{"max_tokens":-1,"n":-1}"#,
    ] {
        assert!(chat(body).is_ok(), "{body}: {:?}", chat(body));
    }
}

/// Whatever was sent to a real vLLM for the recordings is read here, and sent on as it came.
#[test]
fn recorded_requests_are_read_and_forwarded_as_they_are() {
    let mut seen = 0;
    for folder in ["raw", "parsers", "parsers-v0.12"] {
        for entry in std::fs::read_dir(crate::protocol::fault::tests::recordings().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if !path.to_string_lossy().ends_with(".request.json") {
                continue;
            }
            let request: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let line = (request["method"].as_str().unwrap(), request["path"].as_str().unwrap());
            let Ok(endpoint) = route(line.0, line.1) else { continue };
            if !endpoint.has_body() || !request["body"].is_object() {
                continue;
            }
            seen += 1;
            let mut wanted = request["body"].clone();
            let text = serde_json::to_string_pretty(&wanted).unwrap();
            let grants = Grants {
                vllm_xargs: true,
                ..Grants::default()
            };
            let ask = read_as(&endpoint, &text, &grants).unwrap_or_else(|fault| panic!("{path:?}: {}", fault.message));
            wanted.as_object_mut().unwrap().shift_remove("priority");
            let sent = ask.upstream_body(&[]).concat();
            assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), wanted, "{path:?}");
            assert_eq!(ask.stream, wanted["stream"] == true, "{path:?}");
            assert_eq!(u64::from(ask.n), wanted["n"].as_u64().unwrap_or(1).max(1), "{path:?}");
            assert_eq!(
                ask.messages as usize,
                wanted["messages"].as_array().map_or(0, Vec::len),
                "{path:?}"
            );
            assert_eq!(
                ask.tool_count as usize,
                wanted["tools"].as_array().map_or(0, Vec::len),
                "{path:?}"
            );
        }
    }
    assert!(seen > 300, "only {seen} recorded requests found");
}

#[test]
fn tool_choice_in_each_form() {
    let named = |name: &str| ToolChoice::Named(name.to_owned());
    for (value, wanted) in [
        ("null", ToolChoice::Absent),
        ("\"auto\"", ToolChoice::Auto),
        ("\"\\u0061uto\"", ToolChoice::Auto),
        ("\"none\"", ToolChoice::None),
        ("\"required\"", ToolChoice::Required),
        ("\"always\"", ToolChoice::Unknown),
        (r#"{"type":"function","function":{"name":"f"}}"#, named("f")),
        (r#"{"function":{"description":1,"name":"f\n"}}"#, named("f\n")),
        (r#"{"type":"function","name":"f"}"#, named("f")),
        (r#"{"type":"tool","name":"f"}"#, ToolChoice::Unknown),
        (r#"{"type":"any"}"#, ToolChoice::Unknown),
        (r#"{"type":"function","function":{"name":7}}"#, ToolChoice::Unknown),
        (r#"{"type":"function","function":"f"}"#, ToolChoice::Unknown),
        ("[]", ToolChoice::Unknown),
        ("true", ToolChoice::Unknown),
    ] {
        assert_eq!(
            asked(&format!(r#"{{"tool_choice":{value}}}"#)).tool_choice,
            wanted,
            "{value}"
        );
    }
}

#[test]
fn what_rules_the_answer() {
    for (body, grammar) in [
        (r#"{"response_format":{"type":"text"}}"#, false),
        (r#"{"response_format":{"type":"json_object"}}"#, true),
        (
            r#"{"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"text"}}}}"#,
            true,
        ),
        (r#"{"response_format":{}}"#, true),
        (r#"{"structured_outputs":{"json":{}}}"#, true),
        (r#"{"structured_outputs":null}"#, false),
        (r#"{"guided_json":{}}"#, true),
        (r#"{"guided_regex":null}"#, false),
    ] {
        assert_eq!(asked(body).response_format, grammar, "{body}");
    }
    for (body, logprobs) in [
        (r#"{"logprobs":true}"#, true),
        (r#"{"logprobs":false}"#, false),
        (r#"{"logprobs":0}"#, true),
        (r#"{"prompt_logprobs":1}"#, true),
        (r#"{"top_logprobs":5}"#, false),
    ] {
        assert_eq!(asked(body).logprobs, logprobs, "{body}");
    }
    for (body, thinking) in [
        (r#"{"chat_template_kwargs":{"enable_thinking":true}}"#, Some(true)),
        (
            r#"{"chat_template_kwargs":{"x":{"enable_thinking":true},"enable_thinking":false}}"#,
            Some(false),
        ),
        (r#"{"chat_template_kwargs":{"enable_thinking":"false"}}"#, None),
        (r#"{"enable_thinking":false}"#, None),
    ] {
        assert_eq!(asked(body).thinking, thinking, "{body}");
    }
    for (tools, strict, count) in [
        (r#"[]"#, false, 0),
        (r#"[{"function":{"strict":true}}]"#, true, 1),
        (r#"[{"function":{"strict":false}},{"strict":true}]"#, true, 2),
        (r#"[{"function":{"parameters":{"strict":true}}}]"#, false, 1),
        (r#"[{"function":{"strict":"true"}}]"#, false, 1),
    ] {
        let ask = asked(&format!(r#"{{"tools":{tools}}}"#));
        assert_eq!((ask.strict_tools, ask.tool_count), (strict, count), "{tools}");
        assert_eq!(ask.tools.as_deref(), (count > 0).then_some(tools.as_bytes()));
    }
}

#[test]
fn prompt_bytes_leave_media_out() {
    let image = format!(r#"{{"url":"data:image/png;base64,{}"}}"#, "A".repeat(10_000));
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{image}}},{{"type":"text","text":"hi"}}]}}]}}"#
    );
    let ask = asked(&body);
    assert!(ask.images);
    assert_eq!(
        ask.prompt_bytes,
        (body.len() - image.len() - r#"{"messages":}"#.len()) as u64
    );
    let completions = |body: &str| {
        read_as(&Endpoint::Completions, body, &Grants::default())
            .unwrap()
            .prompt_bytes
    };
    assert_eq!(completions(r#"{"prompt":"12345"}"#), 7);
    assert_eq!(completions(r#"{"prompt":[1,2,3]}"#), 7);
}

#[test]
fn debug_shows_no_prompt() {
    let ask = asked(
        r#"{"messages":[{"role":"user","content":"SECRET"}],"user":"SECRET","session_id":"SECRET","tools":[{"x":"SECRET"}]}"#,
    );
    let shown = format!("{ask:?}");
    assert!(
        !shown.contains("SECRET") && shown.contains("ChatCompletions"),
        "{shown}"
    );
}

/// A request with judged keys and odd values anywhere.
fn odd_body() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "model",
        "stream",
        "n",
        "max_tokens",
        "tools",
        "tool_choice",
        "messages",
        "content",
        "role",
        "type",
        "image_url",
        "url",
        "input",
        "function",
        "name",
        "strict",
        "stream_options",
        "include_usage",
        "chat_template_kwargs",
        "enable_thinking",
        "chat_template",
        "metadata",
        "session_id",
        "conversation",
        "id",
        "response_format",
        "user",
        "source",
        "prompt",
        "x",
    ]);
    let leaf = prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("user"),
        json!("system"),
        json!("http://x"),
        json!("data:,"),
        json!("auto"),
        json!("function"),
        json!("text"),
    ]);
    let value = leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((key.clone(), inner), 0..5).prop_map(|members| Value::Object(
                members
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect()
            )),
        ]
    });
    value.prop_map(|value| {
        if value.is_object() {
            value
        } else {
            json!({ "messages": value })
        }
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), which in 0..BODIES.len()) {
        let _ = read(&BODIES[which], Bytes::from(bytes), &AskLimits::default(), &Grants::default());
    }

    #[test]
    fn no_json_panics_and_bodies_stay_whole(body in crate::protocol::skim::tests::json(), which in 0..BODIES.len()) {
        if let Ok(ask) = read_as(&BODIES[which], &body, &Grants::ALL) {
            prop_assert_eq!(ask.upstream_body(&[]).concat(), body.as_bytes());
        }
    }

    #[test]
    fn odd_requests_are_read_or_refused(body in odd_body(), which in 0..BODIES.len(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&body).unwrap() } else { body.to_string() };
        match read_as(&BODIES[which], &text, &Grants::ALL) {
            Err(fault) => prop_assert_eq!(fault.status(), 400),
            Ok(ask) => {
                prop_assert_eq!(ask.model.as_deref(), body["model"].as_str());
                prop_assert_eq!(ask.stream, body["stream"] == true);
                prop_assert_eq!(ask.include_usage, body["stream_options"]["include_usage"] == true);
                prop_assert_eq!(ask.thinking, body["chat_template_kwargs"]["enable_thinking"].as_bool());
                let tools = body["tools"].as_array().filter(|tools| !tools.is_empty());
                let raw = ask.tools.as_deref().map(|raw| serde_json::from_slice::<Value>(raw).unwrap());
                prop_assert_eq!(raw.as_ref().and_then(Value::as_array), tools);
                prop_assert_eq!(ask.upstream_body(&[]).concat(), text.as_bytes());
            }
        }
    }
}
