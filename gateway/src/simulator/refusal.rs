//! Errors as vLLM words them: a status and a JSON body, byte for byte like the recordings.
use serde_json::{Value, json};

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// HTTP status.
    pub(super) status: u16,
    /// JSON body.
    pub(super) body: String,
}

impl Refusal {
    fn new(status: u16, kind: &str, message: &str, param: Option<&str>) -> Self {
        let body = json!({"error": {"message": message, "type": kind, "param": param, "code": status}});
        Self {
            status,
            body: body.to_string(),
        }
    }

    /// What a request checks itself, without a parameter to blame.
    pub(super) fn bad(message: &str) -> Self {
        Self::new(400, "BadRequestError", message, None)
    }

    /// A parameter that isn't acceptable; vLLM repeats its name and value in the message.
    pub(super) fn parameter(message: &str, param: &str, value: Option<&str>) -> Self {
        let value = value.map(|value| format!(", value={value}")).unwrap_or_default();
        Self::new(
            400,
            "BadRequestError",
            &format!("{message} (parameter={param}{value})"),
            Some(param),
        )
    }

    /// A field of the wrong type, or one that is missing, in pydantic's words.
    pub(super) fn invalid(kind: &str, place: &str, message: &str, input: &str) -> Self {
        let text = format!(
            "1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{message}', 'input': '{input}'}}"
        );
        Self::new(400, "Bad Request", &text, Some(place))
    }

    /// A past call that isn't one, in pydantic's words: it isn't a custom tool's call either.
    pub(super) fn past_call(kind: &str, place: &str, message: &str, input: &str, call: &Value) -> Self {
        let other = place.split('.').nth(1).unwrap_or_default();
        let other = format!("body.{other}.ChatCompletionMessageCustomToolCallParam");
        let all = shown(Some(call));
        let missing = |key: &str| {
            format!("  {{'type': 'missing', 'loc': '{other}.{key}', 'msg': 'Field required', 'input': '{all}'}}")
        };
        let mut lines = vec![format!(
            "  {{'type': '{kind}', 'loc': '{place}', 'msg': '{message}', 'input': '{input}'}}"
        )];
        lines.extend(call.get("id").is_none().then(|| missing("id")));
        lines.push(missing("custom"));
        lines.push(match call.get("type").and_then(Value::as_str) {
            None => missing("type"),
            Some(said) => format!(
                "  {{'type': 'literal_error', 'loc': '{other}.type', 'msg': \"Input should be 'custom'\", 'input': '{said}', \
                 'ctx': {{'expected': \"'custom'\"}}}}"
            ),
        });
        let text = format!("{} validation errors:\n{}", lines.len(), lines.join("\n"));
        Self::new(400, "Bad Request", &text, Some(place))
    }

    /// A body that isn't JSON, broken at this byte.
    pub(super) fn not_json(at: usize) -> Self {
        let place = format!("body.{at}");
        let text = format!(
            "1 validation error:\n  {{'type': 'json_invalid', 'loc': '{place}', 'msg': 'JSON decode error', 'input': \
             '<dict of 0 items>', 'ctx': {{'error': 'Expecting value'}}}}"
        );
        Self::new(400, "Bad Request", &text, Some(&place))
    }

    /// A media type other than JSON.
    pub(super) fn media_type() -> Self {
        let text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed";
        Self::new(400, "Bad Request", text, None)
    }

    /// A model that isn't served.
    pub(super) fn model(asked: &str, served: &str) -> Self {
        let text = format!("The model `{asked}` does not exist. Valid aliases: {served}.");
        Self::new(404, "NotFoundError", &text, Some("model"))
    }

    /// The engine died.
    pub(super) fn engine_dead() -> Self {
        Self::new(500, "InternalServerError", ENGINE_ERROR, None)
    }

    /// The engine's queue is full, or the KV cache too small. vLLM has no such answer.
    pub(super) fn queue_full() -> Self {
        Self::new(
            503,
            "ServiceUnavailableError",
            "The simulator's queue is full, or its KV cache is too small.",
            None,
        )
    }

    /// A body that is too large. vLLM has no such limit.
    pub(super) fn too_large(limit: u64) -> Self {
        let text = format!("The request body is larger than the simulator's max_body_bytes ({limit}).");
        Self::new(413, "Payload Too Large", &text, None)
    }

    /// Any status, on request of a knob.
    pub(super) fn with_status(status: u16) -> Self {
        let kind = match status {
            400 => "BadRequestError",
            401 => return Self::unauthorized(),
            403 => "PermissionDeniedError",
            404 => "NotFoundError",
            429 => "RateLimitError",
            500 => "InternalServerError",
            503 => "ServiceUnavailableError",
            _ => "SimulatedError",
        };
        Self::new(status, kind, "Simulated fault", None)
    }

    /// No key, or a wrong one.
    pub(super) fn unauthorized() -> Self {
        Self {
            status: 401,
            body: r#"{"error":"Unauthorized"}"#.to_owned(),
        }
    }

    /// No such route.
    pub(super) fn not_found() -> Self {
        Self {
            status: 404,
            body: r#"{"detail":"Not Found"}"#.to_owned(),
        }
    }

    /// The route has other methods.
    pub(super) fn method_not_allowed() -> Self {
        Self {
            status: 405,
            body: r#"{"detail":"Method Not Allowed"}"#.to_owned(),
        }
    }
}

const ENGINE_ERROR: &str = "EngineCore encountered an issue. See stack trace (above) for the root cause.";

/// The event with which a stream ends when the engine dies; `[DONE]` follows. (Python's spacing, as recorded.)
pub(super) fn error_event() -> String {
    format!(
        "data: {{\"error\": {{\"message\": \"{ENGINE_ERROR}\", \"type\": \"InternalServerError\", \"param\": null, \"code\": 500}}}}\n\n"
    )
}

/// A value as pydantic's `input` is shown.
pub(super) fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "None".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => format!("<list of {} items>", items.len()),
        Some(Value::Object(map)) => format!("<dict of {} items>", map.len()),
        Some(Value::Bool(true)) => "True".to_owned(),
        Some(Value::Bool(false)) => "False".to_owned(),
        Some(number) => number.to_string(),
    }
}
