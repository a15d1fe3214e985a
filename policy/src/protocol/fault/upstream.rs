//! What vLLM says when it refuses or fails, as the client gets it (B5).
//!
//! Its own handlers write `{"error":{"message","type","param","code"}}`; its key check a string in `error`, its router a `detail`,
//! its server plain text. Versions differ in words: 0.12 repeats an error in Python's form behind the path of the file that raised
//! it, 0.32 names the parameter. The table of the tests is made from recordings of both.

use serde_json::Value;

use super::{Fault, FaultKind, clip};

/// Longest message taken over, in bytes: old versions quote the whole request in it.
const MESSAGE_LIMIT_BYTES: usize = 8 * 1024;

impl Fault {
    /// What vLLM answered instead of a 200, as the client gets it (B5).
    ///
    /// The client's own mistakes keep vLLM's message in our shape, server paths stripped. What says that *we* are misconfigured
    /// (401, 403, any redirect, 405, a 404 without an error object) becomes [`FaultKind::UpstreamMisconfigured`] without vLLM's
    /// words; the caller logs replica and setting. Everything else is a failure that another replica may mend.
    pub fn from_upstream(status: u16, body: &[u8]) -> Fault {
        let said = Said::read(body);
        let kind = match status {
            400 if said.is_context_overflow() => FaultKind::ContextLength,
            400 => FaultKind::BadRequest,
            404 if said.structured && said.names_model() => FaultKind::ModelUnknown,
            404 if said.structured => FaultKind::ObjectUnknown,
            413 => FaultKind::BodyTooLarge,
            422 => FaultKind::Unprocessable,
            300..=399 | 401 | 403 | 404 | 405 => return Fault::misconfigured(status),
            _ => FaultKind::UpstreamFailed(status),
        };
        let message = said
            .message
            .unwrap_or_else(|| format!("The model server answered {status} without a message."));
        Fault {
            param: said.param,
            ..Fault::new(kind, message)
        }
    }

    /// An error object that came *inside* a stream, after a 200 (an engine that dies says so this way). Its own `code` is its
    /// status; without a usable one it is a 500.
    pub fn from_upstream_event(data: &[u8]) -> Fault {
        let status = Said::read(data).status.unwrap_or(500);
        Fault::from_upstream(status, data)
    }

    fn misconfigured(status: u16) -> Fault {
        let message = format!(
            "The model server refused this gateway ({status}). This is a fault in the gateway's settings for that server, not in your \
             request; its operator has been told."
        );
        Fault::new(FaultKind::UpstreamMisconfigured, message)
    }
}

/// What can be read out of an upstream's error body, whatever its shape.
#[derive(Default)]
struct Said {
    /// Whether there was an error *object*: vLLM's handlers write one, its router and its key check don't.
    structured: bool,
    message: Option<String>,
    param: Option<String>,
    status: Option<u16>,
    kind: String,
}

impl Said {
    fn read(body: &[u8]) -> Said {
        let Ok(Value::Object(top)) = serde_json::from_slice::<Value>(body) else {
            return Said {
                message: plain_text(body),
                ..Said::default()
            };
        };
        // vLLM before 0.10 and its neighbours put the fields at the top level, beside `"object":"error"`.
        let flat =
            top.get("object").is_some_and(|object| object == "error") || top.get("type").is_some_and(|t| t == "error");
        match top.get("error") {
            Some(Value::Object(error)) => Said::of(error),
            Some(Value::String(text)) => Said {
                message: Some(presentable(text)),
                ..Said::default()
            },
            _ if flat => Said::of(&top),
            _ => Said {
                message: top.get("detail").and_then(Value::as_str).map(presentable),
                ..Said::default()
            },
        }
    }

    fn of(error: &serde_json::Map<String, Value>) -> Said {
        let text = |key: &str| error.get(key).and_then(Value::as_str);
        Said {
            structured: true,
            message: text("message").filter(|message| !message.is_empty()).map(presentable),
            param: text("param").and_then(field),
            status: error
                .get("code")
                .and_then(Value::as_u64)
                .and_then(|code| u16::try_from(code).ok()),
            kind: text("type").unwrap_or_default().to_owned(),
        }
    }

    fn names_model(&self) -> bool {
        let message = self.message.as_deref().unwrap_or_default();
        self.param.as_deref() == Some("model") || (self.kind == "NotFoundError" && message.starts_with("The model "))
    }

    /// Whether a shorter conversation would have been accepted. A `max_tokens` that alone exceeds the context isn't that: an agent
    /// that compacts its history on `context_length_exceeded` would do so for ever.
    fn is_context_overflow(&self) -> bool {
        let message = self.message.as_deref().unwrap_or_default();
        let context = number_after(message, "maximum context length is ");
        let output = number_after(message, "is too large: ");
        match (context, output) {
            (Some(context), Some(output)) => output <= context,
            (Some(_), None) => true,
            (None, _) => message.contains("longer than the maximum model length"),
        }
    }
}

/// vLLM's `body.messages` is `messages` to the client; its `body` and `body.28` (an offset) name no field.
fn field(param: &str) -> Option<String> {
    let field = param
        .strip_prefix("body")
        .map_or(param, |rest| rest.trim_start_matches('.'));
    let names = !field.is_empty() && !field.bytes().all(|byte| byte.is_ascii_digit());
    names.then(|| clip(field, 256).to_owned())
}

fn number_after(text: &str, words: &str) -> Option<u64> {
    let (_, rest) = text.split_once(words)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits)?.parse().ok()
}

/// A short plain-text body is a message (`Internal Server Error`); a page of HTML isn't.
fn plain_text(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim();
    let short = !text.is_empty() && text.len() <= 512 && !text.starts_with(['<', '{', '[']);
    short.then(|| presentable(text))
}

/// The message without the server's paths (vLLM 0.12 appends the frame that raised it), and bounded.
fn presentable(message: &str) -> String {
    // The frame is `\n\n  File "…", line N, in f\n    POST … [the same error again]`; newlines of quoted values are escaped there.
    let frame = message.match_indices('\n').find(|(at, _)| {
        message
            .get(*at..)
            .is_some_and(|rest| rest.trim_start().starts_with("File \"") && rest.contains("\", line "))
    });
    let shown = message
        .get(..frame.map_or(message.len(), |(at, _)| at))
        .unwrap_or(message)
        .trim_end();
    without_paths(clip(shown, MESSAGE_LIMIT_BYTES))
}

/// Replaces what looks like a path of the server's file system by `[path]`.
fn without_paths(text: &str) -> String {
    const ROOTS: [&str; 12] = [
        "/app/", "/data/", "/etc/", "/home/", "/mnt/", "/opt/", "/proc/", "/root/", "/srv/", "/tmp/", "/usr/", "/var/",
    ];
    let is_end = |c: char| c.is_whitespace() || "\"'`,;:()[]{}<>=".contains(c);
    let mut shown = String::with_capacity(text.len());
    for token in text.split_inclusive(is_end) {
        let word = token.trim_end_matches(is_end);
        let private = ROOTS.iter().any(|root| word.starts_with(root))
            || word.contains("/site-packages/")
            || word.contains("/dist-packages/");
        if private {
            shown.push_str("[path]");
            shown.push_str(token.get(word.len()..).unwrap_or_default());
        } else {
            shown.push_str(token);
        }
    }
    shown
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::ErrorShape;
    use super::super::tests::line;
    use super::*;

    /// The recordings of a real vLLM: beside the workspace, or where the environment says.
    pub(crate) fn recordings() -> PathBuf {
        let shared = std::env::var_os("SLUICE_SHARED").map(PathBuf::from);
        let shared = shared.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
        let recordings = shared.join("vllm/recordings");
        assert!(
            recordings.is_dir(),
            "recordings not found at {}: set SLUICE_SHARED",
            recordings.display()
        );
        recordings
    }

    /// Status and body of a recorded response; none for a chunked one.
    fn recorded(path: &std::path::Path) -> Option<(u16, Vec<u8>)> {
        let raw = std::fs::read(path).unwrap();
        let split = memchr::memmem::find(&raw, b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&raw[..split]).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (!head.to_ascii_lowercase().contains("transfer-encoding: chunked")).then(|| (status, raw[split + 4..].to_vec()))
    }

    /// What the client gets of each recorded error: status, type, code, param. `-` is null.
    const WANTED: &[(&str, &str)] = &[
        ("raw/err_bad_key", "502 server_error upstream_misconfigured -"),
        ("raw/err_basic_auth", "502 server_error upstream_misconfigured -"),
        ("raw/err_no_key", "502 server_error upstream_misconfigured -"),
        ("raw/err_trailing_slash", "502 server_error upstream_misconfigured -"),
        ("raw/err_embeddings", "502 server_error upstream_misconfigured -"),
        ("raw/err_bad_regex", "400 invalid_request_error - -"),
        ("raw/err_completions_no_prompt", "400 invalid_request_error - prompt"),
        (
            "raw/err_context_too_long",
            "400 invalid_request_error context_length_exceeded input_tokens",
        ),
        (
            "raw/err_context_too_long.stream",
            "400 invalid_request_error context_length_exceeded input_tokens",
        ),
        ("raw/err_empty_body", "400 invalid_request_error - -"),
        ("raw/err_empty_messages", "400 invalid_request_error - -"),
        ("raw/err_image", "400 invalid_request_error - -"),
        ("raw/err_invalid_json", "400 invalid_request_error - -"),
        ("raw/err_json_array", "400 invalid_request_error - -"),
        ("raw/err_logit_bias_bad", "400 invalid_request_error - logit_bias"),
        ("raw/err_max_tokens_0", "400 invalid_request_error - max_tokens"),
        ("raw/err_max_tokens_huge", "400 invalid_request_error - max_tokens"),
        ("raw/err_messages_string", "400 invalid_request_error - messages"),
        ("raw/err_n_0", "400 invalid_request_error - -"),
        ("raw/err_n_2_greedy", "400 invalid_request_error - -"),
        ("raw/err_no_messages", "400 invalid_request_error - messages"),
        (
            "raw/err_stream_options_no_stream",
            "400 invalid_request_error - stream_options",
        ),
        ("raw/err_temperature_-1", "400 invalid_request_error - temperature"),
        ("raw/err_temperature_string", "400 invalid_request_error - temperature"),
        ("raw/err_text_plain", "400 invalid_request_error - -"),
        (
            "raw/err_tool_choice_bad_value",
            "400 invalid_request_error - tool_choice",
        ),
        (
            "raw/err_tool_choice_no_tools",
            "400 invalid_request_error - tool_choice",
        ),
        (
            "raw/err_tool_choice_required_no_tools",
            "400 invalid_request_error - tool_choice",
        ),
        (
            "raw/err_tool_choice_unknown_function",
            "400 invalid_request_error - tool_choice",
        ),
        ("raw/err_tools_bad", "400 invalid_request_error - tools.0.function"),
        ("raw/err_tools_bad_schema_required", "400 invalid_request_error - -"),
        ("raw/err_tools_empty", "400 invalid_request_error - tools"),
        ("raw/err_top_logprobs_100", "400 invalid_request_error - logprobs"),
        ("raw/err_top_p_2", "400 invalid_request_error - top_p"),
        ("raw/err_wrong_model", "404 invalid_request_error model_not_found model"),
        ("raw/get_unknown_route", "502 server_error upstream_misconfigured -"),
        ("raw/get_get_chat_405", "502 server_error upstream_misconfigured -"),
        (
            "raw/responses_get_missing",
            "404 invalid_request_error not_found response_id",
        ),
        ("raw/messages_bad", "400 invalid_request_error - messages"),
        ("raw/messages_xapikey", "502 server_error upstream_misconfigured -"),
        ("raw/tool_auto", "400 invalid_request_error - -"),
        ("raw/response_format_object", "500 server_error upstream_failed -"),
        ("parsers/tool_required_rejected", "500 server_error upstream_failed -"),
        ("parsers-v0.12/err_bad_key", "502 server_error upstream_misconfigured -"),
        (
            "parsers-v0.12/err_trailing_slash",
            "502 server_error upstream_misconfigured -",
        ),
        (
            "parsers-v0.12/err_assistant_args_not_json",
            "400 invalid_request_error - -",
        ),
        (
            "parsers-v0.12/err_context_too_long",
            "400 invalid_request_error context_length_exceeded -",
        ),
        ("parsers-v0.12/err_max_tokens_huge", "400 invalid_request_error - -"),
        ("parsers-v0.12/err_json_array", "500 server_error upstream_failed -"),
        ("parsers-v0.12/err_tools_bad", "400 invalid_request_error - -"),
        (
            "parsers-v0.12/err_wrong_model",
            "404 invalid_request_error model_not_found -",
        ),
        (
            "parsers-v0.12/responses_get_missing",
            "404 invalid_request_error not_found -",
        ),
    ];

    #[test]
    fn b5_recorded_errors_as_the_client_gets_them() {
        for (name, wanted) in WANTED {
            let (status, body) = recorded(&recordings().join(format!("{name}.response.http"))).unwrap();
            let fault = Fault::from_upstream(status, &body);
            assert_eq!(line(&fault), *wanted, "{name}");
            assert!(!fault.message.is_empty());
        }
    }

    #[test]
    fn b5_every_recorded_error_becomes_ours() {
        let mut seen = 0;
        for folder in ["raw", "parsers", "parsers-v0.12"] {
            for entry in std::fs::read_dir(recordings().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if !name.ends_with(".response.http") {
                    continue;
                }
                let Some((status, body)) = recorded(&path).filter(|(status, _)| *status >= 300) else {
                    continue;
                };
                seen += 1;
                let fault = Fault::from_upstream(status, &body);
                let retryable = matches!(status, 500..=599);
                assert_eq!(fault.kind.retryable(), retryable, "{folder}/{name}");
                line(&fault);
                for leak in ["File \"", "site-packages", ".py\"", ".py:", "\", line "] {
                    assert!(!fault.message.contains(leak), "{folder}/{name}: {}", fault.message);
                }
                // vLLM's own words where the client is at fault.
                if (400..=499).contains(&fault.status()) {
                    // The server's CORS layer writes plain text.
                    let Ok(said) = serde_json::from_slice::<Value>(&body) else {
                        assert_eq!(name, "options_chat.response.http");
                        continue;
                    };
                    let said = said["error"]["message"].as_str().unwrap();
                    assert!(said.starts_with(fault.message.as_str()), "{folder}/{name}");
                    assert!(folder == "parsers-v0.12" || said == fault.message, "{folder}/{name}");
                } else if fault.kind == FaultKind::UpstreamMisconfigured {
                    assert!(!fault.message.contains("Unauthorized") && !fault.message.contains("Not Found"));
                }
            }
        }
        assert!(seen > 100, "only {seen} recorded errors found");
    }

    #[test]
    fn b5_server_paths_are_stripped_and_words_kept() {
        for (said, shown) in [
            (
                "plain words, a/b, 1/2 and https://docs.vllm.ai/en/",
                "plain words, a/b, 1/2 and https://docs.vllm.ai/en/",
            ),
            ("No such file: '/root/.cache/model.bin'", "No such file: '[path]'"),
            (
                "see /usr/lib/python3/dist-packages/vllm/x.py:12: boom",
                "see [path]:12: boom",
            ),
            ("in ./venv/lib/site-packages/vllm/y.py, line 3", "in [path], line 3"),
            (
                "bad\n\n  File \"/x/y.py\", line 692, in create\n    POST /v1 [x]",
                "bad",
            ),
            (
                "grammar: File \"a\" is fine\nsecond line",
                "grammar: File \"a\" is fine\nsecond line",
            ),
            (
                "the model `/models/qwen` does not exist",
                "the model `/models/qwen` does not exist",
            ),
        ] {
            let body = json!({"error": {"message": said, "type": "BadRequestError", "param": null, "code": 400}});
            assert_eq!(Fault::from_upstream(400, body.to_string().as_bytes()).message, shown);
        }
        let long = json!({"error": {"message": "é".repeat(100_000), "code": 400}}).to_string();
        assert_eq!(
            Fault::from_upstream(400, long.as_bytes()).message.len(),
            MESSAGE_LIMIT_BYTES
        );
    }

    #[test]
    fn b5_context_overflow_in_each_wording() {
        let kind =
            |said: &str| Fault::from_upstream(400, json!({"error": {"message": said}}).to_string().as_bytes()).kind;
        for overflow in [
            "This model's maximum context length is 32768 tokens. However, you requested 4000 output tokens and your prompt contains at \
             least 30000 input tokens, for a total of at least 34000 tokens.",
            "This model's maximum context length is 32768 tokens. However, your request has 33009 input tokens.",
            "The decoder prompt (length 33009) is longer than the maximum model length of 32768.",
            "'max_tokens' or 'max_completion_tokens' is too large: 4000. This model's maximum context length is 32768 tokens and your \
             request has 30000 input tokens (4000 > 32768 - 30000).",
        ] {
            assert_eq!(kind(overflow), FaultKind::ContextLength, "{overflow}");
        }
        // No shorter history would help.
        for other in [
            "'max_tokens' or 'max_completion_tokens' is too large: 40000. This model's maximum context length is 32768 tokens and your \
             request has 15 input tokens (40000 > 32768 - 15).",
            "max_tokens=40000 cannot be greater than max_model_len=32768. Please request fewer output tokens.",
            "temperature must be non-negative, got -1.0.",
        ] {
            assert_eq!(kind(other), FaultKind::BadRequest, "{other}");
        }
    }

    #[test]
    fn b5_other_shapes_of_upstream_errors() {
        for (status, body, kind, message) in [
            (
                413,
                r#"{"error":{"message":"too big"}}"#,
                FaultKind::BodyTooLarge,
                "too big",
            ),
            (422, r#"{"error":{"message":"no"}}"#, FaultKind::Unprocessable, "no"),
            (
                404,
                r#"{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError"}"#,
                FaultKind::ModelUnknown,
                "The model `x` does not exist.",
            ),
            (
                404,
                r#"{"type":"error","message":"gone"}"#,
                FaultKind::ObjectUnknown,
                "gone",
            ),
            (
                400,
                "",
                FaultKind::BadRequest,
                "The model server answered 400 without a message.",
            ),
            (
                500,
                "Internal Server Error",
                FaultKind::UpstreamFailed(500),
                "Internal Server Error",
            ),
            (
                502,
                "<html><body>bad gateway</body></html>",
                FaultKind::UpstreamFailed(502),
                "The model server answered 502 without a message.",
            ),
            (503, r#"{"detail":"busy"}"#, FaultKind::UpstreamFailed(503), "busy"),
            (
                504,
                "{",
                FaultKind::UpstreamFailed(504),
                "The model server answered 504 without a message.",
            ),
        ] {
            let fault = Fault::from_upstream(status, body.as_bytes());
            assert_eq!((fault.kind, fault.message.as_str()), (kind, message), "{body}");
            assert_eq!(fault.status(), status);
        }
        // Statuses that no client should see as they are.
        for (status, shown) in [
            (429, 502),
            (418, 502),
            (599, 502),
            (100, 502),
            (204, 502),
            (302, 502),
            (403, 502),
        ] {
            assert_eq!(Fault::from_upstream(status, b"{}").status(), shown, "{status}");
        }
    }

    #[test]
    fn b10_an_error_event_has_its_own_status() {
        let event = br#"{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,"code":500}}"#;
        let fault = Fault::from_upstream_event(event);
        assert_eq!(fault.kind, FaultKind::UpstreamFailed(500));
        assert!(fault.kind.retryable());
        let fault = Fault::from_upstream_event(br#"{"error":{"message":"bad grammar","code":400}}"#);
        assert_eq!(fault.kind, FaultKind::BadRequest);
        for odd in [
            "{}",
            "x",
            r#"{"error":"boom"}"#,
            r#"{"error":{"code":"nan"}}"#,
            r#"{"error":{"code":99999999}}"#,
        ] {
            assert_eq!(
                Fault::from_upstream_event(odd.as_bytes()).kind,
                FaultKind::UpstreamFailed(500),
                "{odd}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_upstream_bytes_panic(status in 100u16..600, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let fault = Fault::from_upstream(status, &body);
            prop_assert!((400..600).contains(&fault.status()));
            Fault::from_upstream_event(&body);
        }

        #[test]
        fn no_upstream_json_panics(status in 400u16..600, body in crate::protocol::skim::tests::json(), message in "(\\PC|\n|File \"|\", line ){0,30}") {
            Fault::from_upstream(status, body.as_bytes());
            let error = json!({"error": {"message": message, "param": message, "type": message, "code": status}}).to_string();
            let fault = Fault::from_upstream(status, error.as_bytes());
            prop_assert!(serde_json::from_slice::<Value>(&fault.body(ErrorShape::OpenAi)).is_ok());
        }
    }
}
