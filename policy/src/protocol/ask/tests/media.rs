//! Media that vLLM would fetch, in every dialect and disguise (B4).

use super::*;

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

proptest! {
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
