//! What B4 refuses, and what it must not.

use super::*;

/// The keys that are judged in every endpoint's top-level object.
const JUDGED: &str = "model stream stream_options n best_of max_tokens max_completion_tokens max_output_tokens tools tool_choice \
    parallel_tool_calls response_format structured_outputs guided_json guided_regex guided_choice guided_grammar structural_tag logprobs \
    prompt_logprobs chat_template_kwargs messages input system instructions prompt session_id prompt_cache_key previous_response_id \
    conversation metadata user priority kv_transfer_params ec_transfer_params prompt_embeds chat_template vllm_xargs logits_processors";

/// And in those of rerankers and scorers.
const DOCUMENTS: &str = "query queries documents items data_1 data_2 text_1 text_2";

/// The keys that are judged in a message and its parts.
const PART: &str = "role content type output image_url video_url audio_url file_url url image video audio file input_image input_video \
    input_audio image_embeds audio_embeds prompt_embeds source";

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
fn b4_judged_keys_must_not_be_repeated() {
    for key in JUDGED.split(' ') {
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
    for key in DOCUMENTS.split(' ') {
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
fn places_of_judged_keys_are_their_own() {
    // A collision would call two different keys a repetition: give every endpoint a body with all keys at once.
    let members: Vec<_> = JUDGED
        .split(' ')
        .chain(DOCUMENTS.split(' '))
        .map(|key| format!("\"{key}\":null"))
        .collect();
    let body = format!("{{{}}}", members.join(","));
    for endpoint in &BODIES {
        assert!(read_as(endpoint, &body, &Grants::default()).is_ok(), "{endpoint:?}");
    }
    let members: Vec<_> = PART.split(' ').map(|key| format!("\"{key}\":null")).collect();
    let body = format!(r#"{{"messages":[{{{0}}},{{"content":[{{{0}}}]}}]}}"#, members.join(","));
    assert!(chat(&body).is_ok(), "{:?}", chat(&body));
}
