//! Bodies in, asks and refusals out.

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
fn b4_what_isnt_a_json_object_is_400() {
    for (body, said) in [
        ("", "The request body is empty; a JSON object is expected."),
        (" \n ", "The request body is empty; a JSON object is expected."),
        ("[]", "The request body must be a JSON object, not an array."),
        ("\"x\"", "The request body must be a JSON object, not a string."),
        ("null", "The request body must be a JSON object, not null."),
        ("1", "The request body must be a JSON object, not a number."),
        ("[", "The request body is not valid JSON: expected a value at byte 1."),
        (
            "{\"a\":1",
            "The request body is not valid JSON: expected `,` or `}` at byte 6.",
        ),
        (
            "{\"a\":1}x",
            "The request body is not valid JSON: expected the end of the document at byte 7.",
        ),
        (
            "{\"a\":{\"b\":tru}}",
            "The request body is not valid JSON: expected a value at byte 10.",
        ),
        (
            "{\"messages\":[{\"role\":\"user\",\"content\":\"\u{1}\"}]}",
            "The request body is not valid JSON: unescaped control character in a string at byte 39.",
        ),
        (
            "hello",
            "The request body is not valid JSON: expected a value at byte 0.",
        ),
    ] {
        let fault = chat(body).expect_err(body);
        assert_eq!((fault.status(), fault.message.as_str()), (400, said));
    }
    let fault = read(
        &Endpoint::ChatCompletions,
        Bytes::from_static(b"{\"a\":\"\xff\"}"),
        &AskLimits::default(),
        &Grants::ALL,
    );
    assert_eq!(
        fault.unwrap_err().message,
        "The request body is not valid JSON: not UTF-8 at byte 6."
    );
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
fn b4_limits_one_by_one() {
    let limits = AskLimits {
        json_depth: 6,
        fields: 4,
        n: 3,
        max_tokens: 1000,
        grammar_bytes: 20,
        tools: 2,
        tools_bytes: 60,
    };
    let check = |body: &str| {
        read(
            &Endpoint::ChatCompletions,
            Bytes::copy_from_slice(body.as_bytes()),
            &limits,
            &Grants::default(),
        )
    };
    for (good, bad, param, named) in [
        (r#"{"x":[[[[[1]]]]]}"#, r#"{"x":[[[[[[1]]]]]]}"#, None, "json_depth"),
        (
            r#"{"messages":[{"a":[[[1]]]}]}"#,
            r#"{"messages":[{"a":[[[[1]]]]}]}"#,
            None,
            "json_depth",
        ),
        (
            r#"{"a":1,"b":1,"c":1,"d":1}"#,
            r#"{"a":1,"b":1,"c":1,"d":1,"e":1}"#,
            None,
            "fields",
        ),
        (r#"{"n":3}"#, r#"{"n":4}"#, Some("n"), "limit n"),
        (r#"{"n":3.0}"#, r#"{"n":4e0}"#, Some("n"), "limit n"),
        (r#"{"n":0}"#, r#"{"n":99999999999999999999}"#, Some("n"), "limit n"),
        (r#"{"n":-5}"#, r#"{"n":1e400}"#, Some("n"), "limit n"),
        (r#"{"best_of":3}"#, r#"{"best_of":4}"#, Some("best_of"), "limit n"),
        (
            r#"{"max_tokens":1000}"#,
            r#"{"max_tokens":1001}"#,
            Some("max_tokens"),
            "max_tokens",
        ),
        (
            r#"{"max_completion_tokens":1000}"#,
            r#"{"max_completion_tokens":1001}"#,
            Some("max_completion_tokens"),
            "max_tokens",
        ),
        (
            r#"{"max_output_tokens":1000}"#,
            r#"{"max_output_tokens":1001}"#,
            Some("max_output_tokens"),
            "max_tokens",
        ),
        (
            r#"{"guided_regex":"0123456789abcdefgh"}"#,
            r#"{"guided_regex":"0123456789abcdefghi"}"#,
            Some("guided_regex"),
            "grammar_bytes",
        ),
        (
            r#"{"response_format":{"type": "text"  }}"#,
            r#"{"response_format":{"type": "text"     }}"#,
            Some("response_format"),
            "grammar_bytes",
        ),
        (
            r#"{"structured_outputs":{}}"#,
            r#"{"structured_outputs":{"json":"0123456789"}}"#,
            Some("structured_outputs"),
            "grammar_bytes",
        ),
        (
            r#"{"tools":[{},{}]}"#,
            r#"{"tools":[{},{},{}]}"#,
            Some("tools"),
            "limit tools",
        ),
        (
            r#"{"tools":[{"description":"0123456789012345678901234567890123456"}]}"#,
            r#"{"tools":[{"description":"01234567890123456789012345678901234567890123"}]}"#,
            Some("tools"),
            "tools_bytes",
        ),
    ] {
        assert!(check(good).is_ok(), "{good}: {:?}", check(good));
        let fault = check(bad).expect_err(bad);
        assert_eq!((fault.status(), fault.param.as_deref()), (400, param), "{bad}");
        assert!(fault.message.contains(named), "{bad}: {}", fault.message);
    }
}

#[test]
fn b4_fields_that_need_a_grant() {
    let none = Grants::default();
    let cases: [(&str, &str, &str, Grants); 11] = [
        (
            r#"{"kv_transfer_params":{"a":1}}"#,
            "kv_transfer_params",
            "kv_transfer",
            Grants {
                kv_transfer: true,
                ..none
            },
        ),
        (
            r#"{"ec_transfer_params":{"a":1}}"#,
            "ec_transfer_params",
            "kv_transfer",
            Grants {
                kv_transfer: true,
                ..none
            },
        ),
        (
            r#"{"prompt_embeds":"AAAA"}"#,
            "prompt_embeds",
            "prompt_embeds",
            Grants {
                prompt_embeds: true,
                ..none
            },
        ),
        (
            r#"{"chat_template":"{{ 1 }}"}"#,
            "chat_template",
            "chat_template",
            Grants {
                chat_template: true,
                ..none
            },
        ),
        (
            r#"{"chat\u005ftemplate":"{{ 1 }}"}"#,
            "chat_template",
            "chat_template",
            Grants {
                chat_template: true,
                ..none
            },
        ),
        (
            r#"{"chat_template_kwargs":{"chat_template":"{{ 1 }}"}}"#,
            "chat_template_kwargs.chat_template",
            "chat_template",
            Grants {
                chat_template: true,
                ..none
            },
        ),
        (
            r#"{"chat_template_kwargs":{"a":1,"tokeniz\u0065":true}}"#,
            "chat_template_kwargs.tokenize",
            "chat_template",
            Grants {
                chat_template: true,
                ..none
            },
        ),
        (
            r#"{"vllm_xargs":{"a":1}}"#,
            "vllm_xargs",
            "vllm_xargs",
            Grants {
                vllm_xargs: true,
                ..none
            },
        ),
        (
            r#"{"vllm_xargs":[]}"#,
            "vllm_xargs",
            "vllm_xargs",
            Grants {
                vllm_xargs: true,
                ..none
            },
        ),
        (
            r#"{"logits_processors":["a.b"]}"#,
            "logits_processors",
            "logits_processors",
            Grants {
                logits_processors: true,
                ..none
            },
        ),
        (
            r#"{"x":1,"logits_processors":"","y":2}"#,
            "logits_processors",
            "logits_processors",
            Grants {
                logits_processors: true,
                ..none
            },
        ),
    ];
    for (body, param, permission, grants) in cases {
        for endpoint in &BODIES {
            assert_eq!(
                refused(endpoint, body),
                format!("field_not_permitted {param}"),
                "{endpoint:?} {body}"
            );
            let fault = read_as(endpoint, body, &none).unwrap_err();
            assert!(
                fault.message.contains(&format!("the permission {permission}")),
                "{}",
                fault.message
            );
            assert!(read_as(endpoint, body, &grants).is_ok(), "{endpoint:?} {body}");
            let others = Grants {
                remote_media: !grants.remote_media,
                kv_transfer: !grants.kv_transfer,
                prompt_embeds: !grants.prompt_embeds,
                chat_template: !grants.chat_template,
                vllm_xargs: !grants.vllm_xargs,
                logits_processors: !grants.logits_processors,
            };
            assert!(read_as(endpoint, body, &others).is_err(), "{endpoint:?} {body}");
        }
    }
    // Null is how some clients say nothing; deeper is nobody's business.
    assert!(chat(r#"{"chat_template":null,"kv_transfer_params":null,"x":{"chat_template":"y"}}"#).is_ok());
}

#[test]
fn b4_media_must_be_in_the_request() {
    let part = |part: &str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"a"}},{{"role":"user","content":[{{"type":"text","text":"http://x"}},{part}]}}]}}"#
        )
    };
    for (media, key) in [
        (
            r#"{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}"#,
            "url",
        ),
        (r#"{"type":"image_url","image_url":{"url":"https://x/y.png"}}"#, "url"),
        (
            r#"{"type":"image_url","image_url":{"detail":"low","url":"HTTPS://x/y.png"}}"#,
            "url",
        ),
        (
            r#"{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}"#,
            "url",
        ),
        (
            r#"{"type":"image_url","image_url":{"url":" data:image/png;base64,AA"}}"#,
            "url",
        ),
        (r#"{"type":"image_url","image_url":{"url":"\u0068ttp://x"}}"#, "url"),
        (r#"{"type":"image_url","image_url":{"u\u0072l":"http://x"}}"#, "url"),
        (r#"{"type":"image_url","image_url":{"url":"/etc/passwd"}}"#, "url"),
        (r#"{"type":"image_url","image_url":{"url":""}}"#, "url"),
        (r#"{"type":"image_url","image_url":"http://x"}"#, "image_url"),
        (r#"{"image_url":"http://x"}"#, "image_url"),
        (r#"{"im\u0061ge_url":"http://x"}"#, "image_url"),
        (r#"{"type":"text","text":"x","image_url":{"url":"http://x"}}"#, "url"),
        (r#"{"type":"video_url","video_url":{"url":"http://x"}}"#, "url"),
        (r#"{"type":"audio_url","audio_url":{"url":"http://x"}}"#, "url"),
        (
            r#"{"type":"input_audio","input_audio":{"url":"http://x","format":"wav"}}"#,
            "url",
        ),
        (r#"{"type":"input_audio","input_audio":"http://x"}"#, "input_audio"),
        (r#"{"type":"image","image":"http://x"}"#, "image"),
        (r#"{"type":"image","url":"http://x"}"#, "url"),
        (r#"{"type":"video","video":["data:x","  file:///x"]}"#, "video"),
        (
            r#"{"type":"video_url","video_url":{"url":["data:x","http://x"]}}"#,
            "url",
        ),
        (r#"{"type":"image_url","image_url":[{"url":"http://x"}]}"#, "url"),
        (r#"{"type":"file","file":{"file_url":"http://x"}}"#, "file_url"),
        (
            r#"{"type":"x","thing_of_tomorrow_url":"http://x"}"#,
            "thing_of_tomorrow_url",
        ),
        (r#"{"type":"image","source":{"type":"url","url":"http://x"}}"#, "url"),
        (
            r#"{"type":"tool_result","content":[{"type":"image","source":{"url":"http://x"}}]}"#,
            "url",
        ),
        (r#"[{"type":"image_url","image_url":"http://x"}]"#, "image_url"),
    ] {
        let body = part(media);
        assert_eq!(
            refused(&Endpoint::ChatCompletions, &body),
            format!("field_not_permitted messages[1].{key}"),
            "{media}"
        );
        assert!(
            read_as(
                &Endpoint::ChatCompletions,
                &body,
                &Grants {
                    remote_media: true,
                    ..Grants::default()
                }
            )
            .is_ok(),
            "{media}"
        );
        let others = Grants {
            remote_media: false,
            ..Grants::ALL
        };
        assert!(read_as(&Endpoint::ChatCompletions, &body, &others).is_err(), "{media}");
    }
    for (media, images) in [
        (
            r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}"#,
            true,
        ),
        (
            r#"{"type":"image_url","image_url":{"url":"DATA:image\/png;base64,iVBORw0KGgo="}}"#,
            true,
        ),
        (
            r#"{"type":"image_url","image_url":"data:image/png;base64,iVBORw0KGgo="}"#,
            true,
        ),
        (
            r#"{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}"#,
            true,
        ),
        (
            r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}"#,
            true,
        ),
        (r#"{"type":"image","image":"iVBORw0KGgo="}"#, true),
        (r#"{"type":"image_url","image_url":null,"uuid":"x"}"#, false),
        (
            r#"{"type":"text","text":"see https://x and file:///y","cache_control":{"type":"ephemeral"}}"#,
            false,
        ),
        // Not media: a call's arguments, a citation, a search result's source.
        (
            r#"{"type":"tool_use","name":"fetch","input":{"url":"https://x","image_url":"https://x"}}"#,
            false,
        ),
        (
            r#"{"type":"output_text","text":"x","annotations":[{"type":"url_citation","url":"https://x"}]}"#,
            false,
        ),
        (
            r#"{"type":"search_result","source":"https://x","content":[{"type":"text","text":"y"}]}"#,
            false,
        ),
    ] {
        assert_eq!(asked(&part(media)).images, images, "{media}");
    }
}

#[test]
fn b4_media_are_found_in_every_dialect() {
    let url = r#"{"type":"image_url","image_url":{"url":"http://x"}}"#;
    for (endpoint, body, param) in [
        (
            Endpoint::ChatCompletions,
            format!(r#"{{"messages":[{{"role":"user","content":{url}}}]}}"#),
            "messages[0]",
        ),
        (
            Endpoint::Tokenize,
            format!(r#"{{"messages":[{{"content":[{url}],"role":"user"}}]}}"#),
            "messages[0]",
        ),
        (
            Endpoint::Embeddings,
            format!(r#"{{"messages":[{{"role":"user","content":[{url}]}}]}}"#),
            "messages[0]",
        ),
        (
            Endpoint::Embeddings,
            format!(r#"{{"input":[{{"content":[{url}]}}]}}"#),
            "input[0]",
        ),
        (
            Endpoint::Messages,
            format!(r#"{{"messages":[{{"role":"user","content":[{{"type":"tool_result","content":[{url}]}}]}}]}}"#),
            "messages[0]",
        ),
        (Endpoint::Messages, format!(r#"{{"system":[{url}]}}"#), "system[0]"),
        (
            Endpoint::CountTokens,
            format!(r#"{{"messages":[{{"role":"user","content":[{url}]}}]}}"#),
            "messages[0]",
        ),
        (
            Endpoint::Responses,
            format!(r#"{{"input":[{{"role":"user","content":[{url}]}}]}}"#),
            "input[0]",
        ),
        (
            Endpoint::Responses,
            format!(r#"{{"input":[{{"type":"function_call_output","output":[{url}]}}]}}"#),
            "input[0]",
        ),
        (Endpoint::Responses, format!(r#"{{"input":[{url}]}}"#), "input[0]"),
        (
            Endpoint::Rerank,
            format!(r#"{{"query":"q","documents":[{{"content":[{url}]}}]}}"#),
            "documents[0]",
        ),
        (
            Endpoint::Rerank,
            format!(r#"{{"query":{{"content":[{url}]}}}}"#),
            "query[0]",
        ),
        (
            Endpoint::Rerank,
            format!(r#"{{"documents":{{"content":[{url}]}}}}"#),
            "documents[0]",
        ),
        (
            Endpoint::Score,
            format!(r#"{{"data_1":{{"content":[{url}]}}}}"#),
            "data_1[0]",
        ),
        (
            Endpoint::Score,
            format!(r#"{{"text_2":[{{"content":[{url}]}}]}}"#),
            "text_2[0]",
        ),
    ] {
        assert_eq!(
            refused(&endpoint, &body),
            format!("field_not_permitted {param}.url"),
            "{endpoint:?} {body}"
        );
        assert!(read_as(&endpoint, &body, &Grants::ALL).is_ok());
    }
    // Documents of a chat request are texts with their sources.
    assert!(chat(r#"{"documents":[{"url":"https://x","text":"t"}]}"#).is_ok());
    assert!(
        read_as(
            &Endpoint::Responses,
            r#"{"prompt":{"id":"p","variables":{"url":"https://x"}}}"#,
            &Grants::default()
        )
        .is_ok()
    );
}

#[test]
fn b4_embeddings_in_parts_need_the_grant_for_tensors() {
    for key in ["image_embeds", "audio_embeds", "prompt_embeds", "video_embeds"] {
        let body =
            format!(r#"{{"messages":[{{"role":"user","content":[{{"type":"{key}","{key}":{{"a":"AAAA"}}}}]}}]}}"#);
        assert_eq!(
            refused(&Endpoint::ChatCompletions, &body),
            format!("field_not_permitted messages[0].{key}")
        );
        assert!(
            read_as(
                &Endpoint::ChatCompletions,
                &body,
                &Grants {
                    prompt_embeds: true,
                    ..Grants::default()
                }
            )
            .is_ok()
        );
    }
}

#[test]
fn b4_content_too_deep_to_judge_is_refused() {
    let nested = |levels: usize| {
        let url = r#"{"type":"image_url","image_url":"http://x"}"#;
        let content = r#"[{"content":"#.repeat(levels) + url + &"}]".repeat(levels);
        format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#)
    };
    assert_eq!(
        refused(&Endpoint::ChatCompletions, &nested(3)),
        "field_not_permitted messages[0].image_url"
    );
    assert_eq!(refused(&Endpoint::ChatCompletions, &nested(30)), "- messages[0]");
    let arrays = format!(
        r#"{{"messages":[{{"role":"user","content":{}1{}}}]}}"#,
        "[".repeat(40),
        "]".repeat(40)
    );
    assert_eq!(refused(&Endpoint::ChatCompletions, &arrays), "- messages[0]");
    let media = format!(
        r#"{{"messages":[{{"content":[{{"image_url":{}1{}}}]}}]}}"#,
        "[".repeat(40),
        "]".repeat(40)
    );
    assert_eq!(refused(&Endpoint::ChatCompletions, &media), "- messages[0]");
}

#[test]
fn b4_judged_keys_must_not_be_repeated() {
    for key in [
        "model",
        "stream",
        "stream_options",
        "n",
        "best_of",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structural_tag",
        "logprobs",
        "prompt_logprobs",
        "chat_template_kwargs",
        "messages",
        "input",
        "system",
        "instructions",
        "prompt",
        "session_id",
        "prompt_cache_key",
        "previous_response_id",
        "conversation",
        "metadata",
        "user",
        "priority",
        "kv_transfer_params",
        "ec_transfer_params",
        "prompt_embeds",
        "chat_template",
        "vllm_xargs",
        "logits_processors",
    ] {
        let (first, rest) = key.split_at(1);
        let escaped = format!("\\u{:04x}{rest}", u32::from(first.as_bytes()[0]));
        for body in [
            format!(r#"{{"{key}":null,"{key}":null}}"#),
            format!(r#"{{"{key}":null,"x":1,"{escaped}":null}}"#),
        ] {
            assert_eq!(refused(&Endpoint::ChatCompletions, &body), format!("- {key}"), "{body}");
        }
        assert!(
            chat(&format!(r#"{{"{key}":null,"x":{{"{key}":1,"{key}":2}}}}"#)).is_ok(),
            "{key} elsewhere"
        );
    }
    for key in [
        "query",
        "queries",
        "documents",
        "items",
        "data_1",
        "data_2",
        "text_1",
        "text_2",
    ] {
        let body = format!(r#"{{"{key}":null,"{key}":null}}"#);
        assert_eq!(refused(&Endpoint::Score, &body), format!("- {key}"));
        assert_eq!(refused(&Endpoint::Rerank, &body), format!("- {key}"));
    }
    for (body, param) in [
        (
            r#"{"messages":[{"role":"user"},{"role":"user","role":"system"}]}"#,
            "messages[1].role",
        ),
        (
            r#"{"messages":[{"content":"a","cont\u0065nt":"b"}]}"#,
            "messages[0].content",
        ),
        (
            r#"{"messages":[{"content":[{"type":"text","type":"image_url"}]}]}"#,
            "messages[0].type",
        ),
        (
            r#"{"messages":[{"content":[{"image_url":"data:","image_url":"data:"}]}]}"#,
            "messages[0].image_url",
        ),
        (
            r#"{"messages":[{"content":[{"image_url":{"url":"data:","url":"data:"}}]}]}"#,
            "messages[0].url",
        ),
        (
            r#"{"messages":[{"content":[{"source":null,"source":null}]}]}"#,
            "messages[0].source",
        ),
        (
            r#"{"tools":[{"type":"function"},{"function":{},"function":{}}]}"#,
            "tools[1].function",
        ),
        (r#"{"tools":[{"strict":false,"strict":true}]}"#, "tools[0].strict"),
        (
            r#"{"tools":[{"function":{"name":"a","name":"b"}}]}"#,
            "tools[0].function.name",
        ),
        (
            r#"{"tools":[{"function":{"strict":true,"str\u0069ct":false}}]}"#,
            "tools[0].function.strict",
        ),
        (
            r#"{"tools":[{"function":{"parameters":{},"parameters":{}}}]}"#,
            "tools[0].function.parameters",
        ),
        (
            r#"{"tool_choice":{"type":"function","function":{"name":"a","name":"b"}}}"#,
            "tool_choice.function.name",
        ),
        (
            r#"{"tool_choice":{"function":{},"function":{}}}"#,
            "tool_choice.function",
        ),
        (
            r#"{"stream_options":{"include_usage":true,"include_usage":false}}"#,
            "stream_options.include_usage",
        ),
        (
            r#"{"chat_template_kwargs":{"enable_thinking":true,"enable_thinking":false}}"#,
            "chat_template_kwargs.enable_thinking",
        ),
        (
            r#"{"metadata":{"session_id":"a","session_id":"b"}}"#,
            "metadata.session_id",
        ),
        (r#"{"conversation":{"id":"a","id":"b"}}"#, "conversation.id"),
        (
            r#"{"response_format":{"type":"text","type":"json_object"}}"#,
            "response_format.type",
        ),
    ] {
        assert_eq!(
            refused(&Endpoint::ChatCompletions, body),
            format!("- {param}"),
            "{body}"
        );
    }
    // Keys of what isn't judged are not our business.
    for body in [
        r#"{"x":1,"x":2}"#,
        r#"{"messages":[{"name":"a","name":"b","tool_calls":[{"id":1,"id":2}]}]}"#,
        r#"{"messages":[{"content":[{"text":"a","text":"b"}]}]}"#,
        r#"{"tools":[{"function":{"parameters":{"type":1,"type":2}}}]}"#,
        r#"{"metadata":{"a":1,"a":2},"chat_template_kwargs":{"a":1,"a":2}}"#,
    ] {
        assert!(chat(body).is_ok(), "{body}");
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
fn b32_the_bodys_rungs_in_their_order_wherever_they_stand() {
    use SessionSource::*;
    let rungs = [
        (r#""session_id":"a""#, SessionId, "a"),
        (r#""prompt_cache_key":"b""#, PromptCacheKey, "b"),
        (r#""conversation":"c""#, Conversation, "c"),
        (r#""previous_response_id":"d""#, PreviousResponseId, "d"),
        (r#""metadata":{"x":1,"session_id":"e"}"#, MetadataSessionId, "e"),
    ];
    for (first, (_, source, value)) in rungs.iter().enumerate() {
        let members: Vec<_> = rungs[first..].iter().map(|(member, ..)| *member).collect();
        let reversed: Vec<_> = members.iter().rev().copied().collect();
        for members in [members, reversed] {
            let key = asked(&format!("{{{}}}", members.join(","))).session.key;
            assert_eq!(key, Some((*source, (*value).to_owned())), "{members:?}");
        }
    }
    for (body, key) in [
        (r#"{"conversation":{"id":" conv_1 "}}"#, Some((Conversation, "conv_1"))),
        (
            r#"{"session_id":"","prompt_cache_key":"\u0062"}"#,
            Some((PromptCacheKey, "b")),
        ),
        (r#"{"session_id":"  ","user":"u"}"#, None),
        (r#"{"session_id":7,"metadata":{"session_id":null}}"#, None),
        (r#"{"request_id":"r","id":"x","trace_id":"t"}"#, None),
    ] {
        let found = asked(body).session.key;
        assert_eq!(found, key.map(|(source, text)| (source, text.to_owned())), "{body}");
    }
    let long = asked(&format!(
        r#"{{"session_id":"{}","user":"{}"}}"#,
        "é".repeat(500),
        "u".repeat(500)
    ))
    .session;
    assert!(long.key.unwrap().1.len() <= 256 && long.user.unwrap().len() <= 256);
}

#[test]
fn b32_the_conversation_hash_stays_as_the_conversation_grows() {
    let hash = |body: &str| asked(body).session.conversation_hash;
    let turn1 = hash(r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]}"#);
    let same = [
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"},{"role":"user","content":"v"}]}"#,
        r#"{"temperature":1,"messages": [ {"content" : "s", "role":"system"} ,{"role":"user","name":"x","content":"u"},{"role":"system","content":"later"}],"stream":true}"#,
        r#"{"messages":[{"role":"developer","content":"s"},{"role":"us\u0065r","content":"u"}]}"#,
    ];
    for body in same {
        assert_eq!(hash(body), turn1, "{body}");
    }
    let other = [
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"v"}]}"#,
        r#"{"messages":[{"role":"system","content":"t"},{"role":"user","content":"u"}]}"#,
        r#"{"messages":[{"role":"user","content":"u"}]}"#,
        r#"{"messages":[{"role":"user","content":"s"},{"role":"user","content":"u"}]}"#,
        r#"{"messages":[{"role":"system","content":"su"},{"role":"user","content":""}]}"#,
        r#"{"messages":[{"role":"system","content":"u"},{"role":"user","content":"s"}]}"#,
        r#"{"messages":[]}"#,
    ];
    let mut hashes: Vec<u64> = other.iter().map(|body| hash(body)).chain([turn1]).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), other.len() + 1);
    // Long first messages differ by head, tail and length.
    let long = |head: &str, middle: usize, tail: &str| {
        hash(&format!(
            r#"{{"messages":[{{"role":"user","content":"{head}{}{tail}"}}]}}"#,
            "x".repeat(middle)
        ))
    };
    let base = long("a", 20_000, "b");
    for other in [long("b", 20_000, "b"), long("a", 20_000, "a"), long("a", 20_001, "b")] {
        assert_ne!(base, other);
    }
    // Other dialects have beginnings too.
    let of = |endpoint: Endpoint, body: &str| {
        read_as(&endpoint, body, &Grants::default())
            .unwrap()
            .session
            .conversation_hash
    };
    let anthropic = of(
        Endpoint::Messages,
        r#"{"system":"s","messages":[{"role":"user","content":"u"}]}"#,
    );
    assert_eq!(
        anthropic,
        of(
            Endpoint::Messages,
            r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"x"}],"system":"s"}"#
        )
    );
    assert_ne!(
        anthropic,
        of(
            Endpoint::Messages,
            r#"{"system":"t","messages":[{"role":"user","content":"u"}]}"#
        )
    );
    let responses = of(Endpoint::Responses, r#"{"instructions":"s","input":"hi"}"#);
    assert_ne!(
        responses,
        of(Endpoint::Responses, r#"{"instructions":"s","input":"ho"}"#)
    );
    let prompt = |text: &str| of(Endpoint::Completions, &json!({ "prompt": text }).to_string());
    assert_ne!(prompt("a"), prompt("b"));
    let head = "h".repeat(3000);
    assert_eq!(
        prompt(&head),
        prompt(&format!("{head} and more")),
        "a growing prompt keeps its beginning"
    );
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

#[test]
fn places_of_judged_keys_are_their_own() {
    // A collision would call two different keys a repetition: give every endpoint a body with all keys at once.
    let keys = [
        "model",
        "stream",
        "stream_options",
        "n",
        "best_of",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structural_tag",
        "logprobs",
        "prompt_logprobs",
        "chat_template_kwargs",
        "messages",
        "input",
        "system",
        "instructions",
        "prompt",
        "session_id",
        "prompt_cache_key",
        "previous_response_id",
        "conversation",
        "metadata",
        "user",
        "priority",
        "kv_transfer_params",
        "ec_transfer_params",
        "prompt_embeds",
        "chat_template",
        "vllm_xargs",
        "logits_processors",
        "query",
        "queries",
        "documents",
        "items",
        "data_1",
        "data_2",
        "text_1",
        "text_2",
    ];
    let members: Vec<_> = keys.iter().map(|key| format!("\"{key}\":null")).collect();
    let body = format!("{{{}}}", members.join(","));
    for endpoint in &BODIES {
        assert!(read_as(endpoint, &body, &Grants::default()).is_ok(), "{endpoint:?}");
    }
    let part = [
        "role",
        "content",
        "type",
        "output",
        "image_url",
        "video_url",
        "audio_url",
        "file_url",
        "url",
        "image",
        "video",
        "audio",
        "file",
        "input_image",
        "input_video",
        "input_audio",
        "image_embeds",
        "audio_embeds",
        "prompt_embeds",
        "source",
    ];
    let members: Vec<_> = part.iter().map(|key| format!("\"{key}\":null")).collect();
    let body = format!(r#"{{"messages":[{{{0}}},{{"content":[{{{0}}}]}}]}}"#, members.join(","));
    assert!(chat(&body).is_ok(), "{:?}", chat(&body));
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

    /// Wherever a remote URL stands under a media key of content, it is found, and nothing else is in its way.
    #[test]
    fn no_remote_url_slips_through(
        url in prop::sample::select(vec!["http://x", "HTTPS://x", "file:///x", "ftp://x", "//x", "x", " data:,", "gopher:x"]),
        key in prop::sample::select(vec!["image_url", "video_url", "audio_url", "file_url", "url", "new_url"]),
        form in 0..4,
        wraps in 0usize..4,
        place in 0usize..3,
        escape in any::<bool>(),
    ) {
        let body = |url: &str| {
            let value = match form {
                0 => json!(url),
                1 => json!({ "detail": "low", "url": url }),
                2 => json!(["data:,", url]),
                _ => json!([{ "url": url }]),
            };
            let mut part = json!({ "type": "text", key: value });
            for _ in 0..wraps {
                let mut content = vec![json!({ "type": "text", "text": "http://x" }), json!("y")];
                content.insert(place.min(content.len()), part);
                part = json!({ "type": "tool_result", "content": content });
            }
            let text = json!({ "messages": [{ "role": "user", "content": [part] }] }).to_string();
            if escape { text.replace("url\":", "\\u0075rl\":") } else { text }
        };
        let fault = chat(&body(url)).unwrap_err();
        prop_assert_eq!(fault.kind, FaultKind::FieldNotPermitted);
        prop_assert!(chat(&body("data:image/png;base64,AA==")).is_ok());
    }
}
