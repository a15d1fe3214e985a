//! Every error that a client can see: a [`Fault`] goes in, status, headers, body or stream event come out.
//!
//! Kinds are by cause, so that each caller says what happened and this file alone says how it looks (B5): OpenAI's
//! `{"error":{"message","type","param","code"}}`, Anthropic's shape where its dialect is spoken, the same object as a stream
//! event once a head has been sent. [`Fault::from_upstream`] reads what vLLM answered: its words are kept where the client is
//! at fault, its status is not where we are. This room never logs: a message may quote a prompt, so records and metrics use
//! [`FaultKind::name`].
//!
//! | cause | status | `code` | ask again? |
//! | --- | --- | --- | --- |
//! | key missing, not `Bearer KEY`, not accepted | 401 | `missing_api_key`, `invalid_authorization`, `invalid_api_key` | no |
//! | route, method, model, object | 404, 405 | `unknown_url`, `method_not_supported`, `model_not_found`, `not_found` | no |
//! | body late, too large, encoded; headers too large | 408, 413, 415, 431 | `body_timeout`, `body_too_large`, … | 408 only |
//! | a bad request | 400, 422 | none, `field_not_permitted`, `context_length_exceeded` | no |
//! | a limit of the key, or of failed logins | 429 | `rate_limit_exceeded`, `too_many_failed_logins` | yes |
//! | no room here | 503 | `capacity`, `buffers_full`, `draining`, `no_replica` | yes |
//! | vLLM failed | 500, 502, 503, 504 | `upstream_…` | yes |
//! | we set vLLM up wrongly | 502 | `upstream_misconfigured` | no |

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

/// Longest message taken over from an upstream, in bytes: old vLLM versions quote the whole request in it.
const UPSTREAM_MESSAGE_LIMIT_BYTES: usize = 8 * 1024;

/// `Retry-After` where a cause knows no better one.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// One error as a client sees it. Build with [`Fault::new`], refine with the `with_…` methods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
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
    /// A limit of the key itself: its request or token rate, its concurrency, or its wait in the queue (B3, B34).
    KeyLimited,
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
            LoginsLimited | KeyLimited => 429,
            HeadersTooLarge => 431,
            Cancelled | ClientGone => 499,
            Internal | Poison => 500,
            UpstreamMisconfigured | UpstreamUnreachable | UpstreamBroke | UpstreamGarbled | NotContinuable => 502,
            UpstreamFailed(status @ (500 | 502 | 503 | 504)) => status,
            UpstreamFailed(_) => 502,
            Capacity | BuffersFull | Draining | NoReplica => 503,
            UpstreamStalled | UpstreamTimeout => 504,
        }
    }

    /// OpenAI's `type`.
    pub fn error_type(self) -> &'static str {
        match self.status() {
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=498 => "invalid_request_error",
            499 => "request_cancelled",
            _ => "server_error",
        }
    }

    /// OpenAI's `code`: none for a plain bad request, else [`FaultKind::name`].
    pub fn code(self) -> Option<&'static str> {
        match self {
            FaultKind::BadRequest | FaultKind::Unprocessable => None,
            kind => Some(kind.name()),
        }
    }

    /// A stable word for records, metrics and logs, and the client's `code`.
    pub fn name(self) -> &'static str {
        use FaultKind::*;
        match self {
            KeyMissing => "missing_api_key",
            KeyMalformed => "invalid_authorization",
            KeyRejected => "invalid_api_key",
            KeyForbidden => "key_not_permitted",
            LoginsLimited => "too_many_failed_logins",
            KeyLimited => "rate_limit_exceeded",
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
            | UpstreamGarbled | NotContinuable | Poison => Side::Upstream,
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
            param: text("param").map(|param| clip(param.strip_prefix("body.").unwrap_or(param), 256).to_owned()),
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
    without_paths(clip(shown, UPSTREAM_MESSAGE_LIMIT_BYTES))
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

/// The longest head of `text` within `limit` bytes that ends at a character.
pub(crate) fn clip(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}
