//! Every error that a client can see: a `Fault` goes in, status, headers, body or stream event come out.
//!
//! Kinds are by cause, so that each caller says what happened and this file alone says how it looks (B5): OpenAI's
//! `{"error":{"message","type","param","code"}}`, Anthropic's shape where its dialect is spoken, the same object as a stream
//! event once a head has been sent. `Fault::from_upstream` reads what vLLM answered: its words are kept where the client is
//! at fault, its status is not where we are. This room never logs: a message may quote a prompt, so records and metrics use
//! `FaultKind::name`.
//!
//! | cause | status | `code` | ask again? |
//! | --- | --- | --- | --- |
//! | key missing, not `Bearer KEY`, not accepted | 401 | `missing_api_key`, `invalid_authorization`, `invalid_api_key` | no |
//! | route, method, model, object | 404, 405 | `unknown_url`, `method_not_supported`, `model_not_found`, `not_found` | no |
//! | body late, too large, encoded; headers too large | 408, 413, 415, 431 | `body_timeout`, `body_too_large`, … | 408 only |
//! | a bad request | 400, 422 | none, `field_not_permitted`, `context_length_exceeded` | no |
//! | a limit of the key (`type` `requests` or `tokens` for its rates), or of failed logins | 429 | `rate_limit_exceeded`, `too_many_failed_logins` | yes |
//! | no room here | 503 | `capacity`, `buffers_full`, `draining`, `no_replica` | yes |
//! | vLLM failed | 500, 502, 503, 504 | `upstream_…` | yes |
//! | we set vLLM up wrongly | 502 | `upstream_misconfigured` | no |

mod upstream;

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

/// `Retry-After` where a cause knows no better one.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// One error as a client sees it. Build with [`Fault::new`], refine with the `with_…` methods.
///
/// `Display` and `Debug` leave the message out, so that no log line quotes a prompt by accident.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", kind.name())]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// For the client; it may quote the client's own request, so it is never logged or stored.
    pub message: String,
    /// The request field at fault, as a path like `messages[2].content`.
    pub param: Option<String>,
    /// `Retry-After` of the head. [`Fault::new`] sets one second for 429 and 503.
    pub retry_after: Option<Duration>,
}

/// Faults by cause. The closed set that status, type, code and side are matched on, here and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// No key in the request (B2).
    KeyMissing,
    /// An `Authorization` that isn't `Bearer KEY` (B2).
    KeyMalformed,
    /// A key that is unknown, expired or revoked: these look alike (B2).
    KeyRejected,
    /// A good key that may not do this: another model, a missing permission (B3).
    KeyForbidden,
    /// Too many failed logins from this address.
    LoginsLimited,
    /// A limit of the key itself: its concurrency, or its wait in the queue (B3, B34).
    KeyLimited,
    /// The key has had its requests of this minute (B3).
    RequestRate,
    /// The key has had its tokens of this minute (B3).
    TokenRate,
    /// Not a route of the allowlist (B1).
    RouteUnknown,
    /// A route of ours, by another method (B1).
    MethodNotAllowed,
    /// No backend serves this model (B5).
    ModelUnknown,
    /// An object of the path or the body doesn't exist: a request to cancel, a stored response.
    ObjectUnknown,
    /// Header bytes or count above the limit (B4).
    HeadersTooLarge,
    /// Body bytes above the limit (B4), or vLLM's 413.
    BodyTooLarge,
    /// The body did not arrive within its time (B4).
    BodyTimeout,
    /// A request `Content-Encoding` (B4).
    BodyEncoded,
    /// The body isn't JSON that vLLM would read, or a value of it is wrong (B4), or vLLM's 400.
    BadRequest,
    /// A field or medium that this key isn't granted (B4).
    FieldNotPermitted,
    /// vLLM's 422.
    Unprocessable,
    /// Prompt and wanted output don't fit into the model's context, by vLLM's word (B5).
    ContextLength,
    /// The request was cancelled through `/v1/requests/{id}/cancel` (B12).
    Cancelled,
    /// The client left; nobody reads this, the record does (B11).
    ClientGone,
    /// The client stopped reading for longer than the write-stall limit (B11).
    ClientStalled,
    /// No place in the queue, or a wait above `queue_wait` (B34).
    Capacity,
    /// Buffered bytes over all requests are at their limit (B4).
    BuffersFull,
    /// This process is on its way out (B37).
    Draining,
    /// No replica of this backend is up.
    NoReplica,
    /// vLLM refused *us*: 401, 403, 307, 405, a 404 of its router (B5).
    UpstreamMisconfigured,
    /// No connection, or it was closed before any answer.
    UpstreamUnreachable,
    /// vLLM answered 5xx, or an error event in a stream; the status is kept if it is 500, 502, 503 or 504, else it is 502.
    UpstreamFailed(u16),
    /// A stream ended without a finish (B10).
    UpstreamBroke,
    /// A stream fell silent for longer than the stall limit, or the engine hangs (B10, B36).
    UpstreamStalled,
    /// No answer within the deadline.
    UpstreamTimeout,
    /// Something that vLLM doesn't say: an oversized event, a body that isn't JSON.
    UpstreamGarbled,
    /// A tool call that isn't valid, where the configuration lets the answer fail for it (B27).
    CallInvalid,
    /// The replica died and this kind of answer can't go on elsewhere (B31).
    NotContinuable,
    /// In flight at two engine deaths: never sent again (B31).
    Poison,
    /// A bug of ours.
    Internal,
}

/// Whose fault it is: what an alert and a metric ask first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client.
    Downstream,
    /// vLLM.
    Upstream,
    /// This gateway: its limits, its settings, its bugs.
    Internal,
}

impl Side {
    /// Label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Downstream => "downstream",
            Side::Upstream => "upstream",
            Side::Internal => "internal",
        }
    }
}

/// Which error object the client's dialect knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ErrorShape {
    /// `{"error":{"message","type","param","code"}}`.
    #[default]
    OpenAi,
    /// `{"type":"error","error":{"type","message"}}`, on `/v1/messages`.
    Anthropic,
}

impl Fault {
    /// A fault without a parameter; 429 and 503 get their default `retry_after`.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        let retry_after = matches!(kind.status(), 429 | 503).then_some(RETRY_AFTER_DEFAULT);
        Fault {
            kind,
            message: message.into(),
            param: None,
            retry_after,
        }
    }

    /// A bad request that names the field at fault.
    pub fn bad_request(param: impl Into<String>, message: impl Into<String>) -> Self {
        Fault::new(FaultKind::BadRequest, message).with_param(param)
    }

    /// 404 for a model that no backend serves: the message lists what there is (B5).
    pub fn model_unknown<'a>(model: &str, served: impl IntoIterator<Item = &'a str>) -> Self {
        let served = served
            .into_iter()
            .map(|id| format!("`{id}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let model = clip(model, 256);
        let message = format!("The model `{model}` does not exist. Models served here: {served}.");
        Fault::new(FaultKind::ModelUnknown, message).with_param("model")
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// A `Retry-After` that the cause knows (the end of a rate window, an expected wait).
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// HTTP status.
    pub fn status(&self) -> u16 {
        self.kind.status()
    }

    /// The engine died with the request in flight, for all that can be seen: the connection broke, or vLLM says so itself. What is
    /// slow, refuses, or was never reached didn't die of it.
    pub fn is_engine_death(&self) -> bool {
        match self.kind {
            FaultKind::UpstreamBroke => true,
            FaultKind::UpstreamFailed(_) => self.message.contains("EngineCore") || self.message.contains("EngineDead"),
            _ => false,
        }
    }

    /// A request that was in flight at as many engine deaths as are borne (B31).
    pub fn poison() -> Self {
        Fault::new(
            FaultKind::Poison,
            "Two model servers died while they worked on this request; it is not sent to another one.",
        )
    }

    /// Value of the `Retry-After` header: whole seconds, rounded up, at least 1.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after
            .map(|after| (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1))
    }

    /// The body of an answer with this fault's status, in the client's dialect.
    pub fn body(&self, shape: ErrorShape) -> Bytes {
        Bytes::from(self.value(shape).to_string())
    }

    /// The event that ends a stream whose head has been sent (B10): `data: {"error":…}` and the blank line. No `[DONE]` follows.
    pub fn event(&self) -> Bytes {
        Bytes::from(format!("data: {}\n\n", self.value(ErrorShape::OpenAi)))
    }

    fn value(&self, shape: ErrorShape) -> Value {
        match shape {
            ErrorShape::OpenAi => json!({ "error": {
                "message": self.message,
                "type": self.kind.error_type(),
                "param": self.param,
                "code": self.kind.code(),
            }}),
            ErrorShape::Anthropic => json!({ "type": "error", "error": {
                "type": self.kind.anthropic_type(),
                "message": self.message,
            }}),
        }
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fault")
            .field("kind", &self.kind)
            .field("param", &self.param)
            .field("message_bytes", &self.message.len())
            .finish_non_exhaustive()
    }
}

impl FaultKind {
    /// HTTP status.
    pub fn status(self) -> u16 {
        use FaultKind::*;
        match self {
            BadRequest | FieldNotPermitted | ContextLength => 400,
            KeyMissing | KeyMalformed | KeyRejected => 401,
            KeyForbidden => 403,
            RouteUnknown | ModelUnknown | ObjectUnknown => 404,
            MethodNotAllowed => 405,
            BodyTimeout | ClientStalled => 408,
            BodyTooLarge => 413,
            BodyEncoded => 415,
            Unprocessable => 422,
            LoginsLimited | KeyLimited | RequestRate | TokenRate => 429,
            HeadersTooLarge => 431,
            Cancelled | ClientGone => 499,
            Internal | Poison => 500,
            UpstreamMisconfigured
            | UpstreamUnreachable
            | UpstreamBroke
            | UpstreamGarbled
            | CallInvalid
            | NotContinuable => 502,
            UpstreamFailed(status @ (500 | 502 | 503 | 504)) => status,
            UpstreamFailed(_) => 502,
            Capacity | BuffersFull | Draining | NoReplica => 503,
            UpstreamStalled | UpstreamTimeout => 504,
        }
    }

    /// OpenAI's `type`.
    pub fn error_type(self) -> &'static str {
        match (self, self.status()) {
            // OpenAI says which of its rates it was.
            (FaultKind::RequestRate, _) => "requests",
            (FaultKind::TokenRate, _) => "tokens",
            (_, 403) => "permission_error",
            (_, 429) => "rate_limit_error",
            (_, 400..=498) => "invalid_request_error",
            (_, 499) => "request_cancelled",
            _ => "server_error",
        }
    }

    /// OpenAI's `code`: none for a plain bad request, one for all limits of a key, else [`FaultKind::name`].
    pub fn code(self) -> Option<&'static str> {
        match self {
            FaultKind::BadRequest | FaultKind::Unprocessable => None,
            FaultKind::RequestRate | FaultKind::TokenRate => FaultKind::KeyLimited.code(),
            kind => Some(kind.name()),
        }
    }

    /// A stable word for records, metrics and logs, and mostly the client's `code`.
    pub fn name(self) -> &'static str {
        use FaultKind::*;
        match self {
            KeyMissing => "missing_api_key",
            KeyMalformed => "invalid_authorization",
            KeyRejected => "invalid_api_key",
            KeyForbidden => "key_not_permitted",
            LoginsLimited => "too_many_failed_logins",
            KeyLimited => "rate_limit_exceeded",
            RequestRate => "requests_per_minute",
            TokenRate => "tokens_per_minute",
            RouteUnknown => "unknown_url",
            MethodNotAllowed => "method_not_supported",
            ModelUnknown => "model_not_found",
            ObjectUnknown => "not_found",
            HeadersTooLarge => "headers_too_large",
            BodyTooLarge => "body_too_large",
            BodyTimeout => "body_timeout",
            BodyEncoded => "content_encoding_not_supported",
            BadRequest => "bad_request",
            FieldNotPermitted => "field_not_permitted",
            Unprocessable => "unprocessable",
            ContextLength => "context_length_exceeded",
            Cancelled => "cancelled",
            ClientGone => "client_gone",
            ClientStalled => "client_stalled",
            Capacity => "capacity",
            BuffersFull => "buffers_full",
            Draining => "draining",
            NoReplica => "no_replica",
            UpstreamMisconfigured => "upstream_misconfigured",
            UpstreamUnreachable => "upstream_unreachable",
            UpstreamFailed(_) => "upstream_failed",
            UpstreamBroke => "upstream_broke",
            UpstreamStalled => "upstream_stalled",
            UpstreamTimeout => "upstream_timeout",
            UpstreamGarbled => "upstream_garbled",
            CallInvalid => "invalid_tool_call",
            NotContinuable => "not_continuable",
            Poison => "poison",
            Internal => "internal_error",
        }
    }

    /// Anthropic's `type`.
    fn anthropic_type(self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            _ => "api_error",
        }
    }

    /// Whose fault it is.
    pub fn side(self) -> Side {
        use FaultKind::*;
        match self {
            Capacity | BuffersFull | Draining | NoReplica | UpstreamMisconfigured | Internal => Side::Internal,
            UpstreamUnreachable | UpstreamFailed(_) | UpstreamBroke | UpstreamStalled | UpstreamTimeout
            | UpstreamGarbled | CallInvalid | NotContinuable | Poison => Side::Upstream,
            _ => Side::Downstream,
        }
    }

    /// Whether another replica may be asked with the same body before anything was shown (B31).
    pub fn retryable(self) -> bool {
        use FaultKind::*;
        matches!(
            self,
            UpstreamUnreachable
                | UpstreamFailed(_)
                | UpstreamBroke
                | UpstreamStalled
                | UpstreamTimeout
                | UpstreamGarbled
        )
    }

    /// The `x-should-retry` header (B5): `true` where time mends it, `false` where trying again can't help but the status alone
    /// makes SDKs try (they retry every 5xx, 408 and 429), none where the status says enough.
    pub fn should_retry(self) -> Option<bool> {
        use FaultKind::*;
        match self {
            UpstreamMisconfigured | NotContinuable | Poison | ClientStalled => Some(false),
            kind if matches!(kind.status(), 429 | 503) => Some(true),
            _ => None,
        }
    }
}

/// The longest head of `text` within `limit` bytes that ends at a character.
pub(crate) fn clip(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    pub(crate) use super::upstream::tests::recordings;
    use super::*;

    /// One line of the table, out of the body that the client gets.
    pub(super) fn line(fault: &Fault) -> String {
        let body: Value = serde_json::from_slice(&fault.body(ErrorShape::OpenAi)).unwrap();
        let error = body["error"].as_object().unwrap();
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        let word = |key: &str| error[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {} {}", fault.status(), word("type"), word("code"), word("param"))
    }

    /// Every kind: the compiler holds this list complete through the match of `name`, this test through its length.
    const ALL: [FaultKind; 38] = {
        use FaultKind::*;
        [
            KeyMissing,
            KeyMalformed,
            KeyRejected,
            KeyForbidden,
            LoginsLimited,
            KeyLimited,
            RequestRate,
            TokenRate,
            RouteUnknown,
            MethodNotAllowed,
            ModelUnknown,
            ObjectUnknown,
            HeadersTooLarge,
            BodyTooLarge,
            BodyTimeout,
            BodyEncoded,
            BadRequest,
            FieldNotPermitted,
            Unprocessable,
            ContextLength,
            Cancelled,
            ClientGone,
            ClientStalled,
            Capacity,
            BuffersFull,
            Draining,
            NoReplica,
            UpstreamMisconfigured,
            UpstreamUnreachable,
            UpstreamFailed(500),
            UpstreamBroke,
            UpstreamStalled,
            UpstreamTimeout,
            UpstreamGarbled,
            CallInvalid,
            NotContinuable,
            Poison,
            Internal,
        ]
    };

    #[test]
    fn the_table_of_kinds() {
        let mut table = String::new();
        for kind in ALL {
            let retry = kind.should_retry().map_or("-".to_owned(), |retry| retry.to_string());
            table.push_str(&format!(
                "{} {} {} {} {} retry={retry} again={}\n",
                kind.name(),
                kind.status(),
                kind.error_type(),
                kind.anthropic_type(),
                kind.side().as_str(),
                kind.retryable(),
            ));
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn names_are_unique_and_codes_follow() {
        let mut names: Vec<_> = ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for kind in ALL {
            let code = match kind {
                FaultKind::BadRequest | FaultKind::Unprocessable => None,
                FaultKind::RequestRate | FaultKind::TokenRate => Some("rate_limit_exceeded"),
                kind => Some(kind.name()),
            };
            assert_eq!(kind.code(), code);
        }
    }

    #[test]
    fn b2_the_three_ways_of_a_bad_key_are_told_apart() {
        let kinds = [FaultKind::KeyMissing, FaultKind::KeyMalformed, FaultKind::KeyRejected];
        let codes: Vec<_> = kinds
            .iter()
            .map(|kind| (kind.status(), kind.code().unwrap(), kind.should_retry()))
            .collect();
        assert_eq!(
            codes,
            [
                (401, "missing_api_key", None),
                (401, "invalid_authorization", None),
                (401, "invalid_api_key", None)
            ]
        );
    }

    #[test]
    fn b5_retry_after_comes_with_429_and_503() {
        for kind in ALL {
            let fault = Fault::new(kind, "x");
            let wanted = matches!(kind.status(), 429 | 503);
            assert_eq!(fault.retry_after.is_some(), wanted, "{kind:?}");
            assert_eq!(kind.should_retry() == Some(true), wanted, "{kind:?}");
        }
        let after = |duration| {
            Fault::new(FaultKind::KeyLimited, "x")
                .with_retry_after(duration)
                .retry_after_s()
        };
        assert_eq!(after(Duration::ZERO), Some(1));
        assert_eq!(after(Duration::from_millis(1)), Some(1));
        assert_eq!(after(Duration::from_millis(2001)), Some(3));
        assert_eq!(after(Duration::from_secs(30)), Some(30));
    }

    #[test]
    fn b5_unknown_models_list_what_there_is() {
        let fault = Fault::model_unknown("gpt-\"4\"", ["qwen3", "embed"]);
        assert_eq!(line(&fault), "404 invalid_request_error model_not_found model");
        assert_eq!(
            fault.message,
            "The model `gpt-\"4\"` does not exist. Models served here: `qwen3`, `embed`."
        );
        assert!(Fault::model_unknown(&"é".repeat(10_000), []).message.len() < 400);
    }

    #[test]
    fn what_may_be_logged_has_no_message() {
        let fault = Fault::bad_request("messages", "SECRET prompt");
        assert_eq!(fault.to_string(), "bad_request");
        assert!(!format!("{fault:?}").contains("SECRET"));
    }

    #[test]
    fn bodies_in_both_dialects() {
        let fault = Fault::bad_request("a\"b", "line\nquote\" back\\ \u{1} 漢");
        let body = fault.body(ErrorShape::OpenAi);
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            "{\"error\":{\"message\":\"line\\nquote\\\" back\\\\ \\u0001 漢\",\"type\":\"invalid_request_error\",\"param\":\"a\\\"b\",\"code\":null}}"
        );
        let body = Fault::new(FaultKind::Capacity, "full").body(ErrorShape::Anthropic);
        assert_eq!(
            body,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"full"}}"#
        );
    }

    proptest! {
        #[test]
        fn an_event_is_one_data_line(message in "(?s).{0,60}", param in proptest::option::of("\\PC{0,10}")) {
            let fault = Fault { param, ..Fault::new(FaultKind::UpstreamBroke, message) };
            let event = fault.event();
            let text = std::str::from_utf8(&event).unwrap();
            let line = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
            prop_assert!(!line.contains(['\n', '\r']));
            let value: Value = serde_json::from_str(line).unwrap();
            prop_assert_eq!(value["error"]["message"].as_str(), Some(fault.message.as_str()));
        }
    }
}
