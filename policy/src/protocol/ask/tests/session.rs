//! What a body says about its conversation (B32).

use super::*;

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
