//! The allowlist (B1): what port 5002 answers at all. vLLM's control routes (sleep, pause, abort, weight updates, reset) are
//! unknown here like any other path, so that not even their existence is told.
//!
//! A doubled or trailing slash is accepted, since clients join base URLs carelessly. `OPTIONS` is the caller's: it asks
//! [`find`] for the endpoint and [`Endpoint::methods`] for the answer. `HEAD` goes where `GET` goes.

use crate::protocol::fault::{ErrorShape, Fault, FaultKind, clip};

/// What can be asked of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`: through the answer pipeline.
    ChatCompletions,
    /// `POST /v1/completions`: through the answer pipeline.
    Completions,
    /// `GET /v1/models`.
    Models,
    /// `GET /v1/models/{id}`; the id may hold slashes.
    Model(String),
    /// `POST /v1/responses`: forwarded.
    Responses,
    /// `POST /v1/messages`, Anthropic's dialect: forwarded.
    Messages,
    /// `POST /v1/messages/count_tokens`: forwarded.
    CountTokens,
    /// `POST /v1/embeddings`: forwarded.
    Embeddings,
    /// `POST /rerank`, `/v1/rerank`: forwarded.
    Rerank,
    /// `POST /score`, `/v1/score`: forwarded.
    Score,
    /// `POST /tokenize`.
    Tokenize,
    /// `POST /detokenize`.
    Detokenize,
    /// `POST /v1/requests/{id}/cancel` (B12).
    Cancel(String),
    /// `GET /health`: no key.
    Health,
    /// `GET` or `POST /ping`: no key.
    Ping,
    /// `GET /version`.
    Version,
}

/// Longest path that is looked at, in bytes: an id of 256 bytes with every byte percent-encoded fits well.
const PATH_LIMIT_BYTES: usize = 2048;

/// Method and path to an endpoint. A query string is ignored.
///
/// # Errors
/// [`FaultKind::RouteUnknown`], with the way out if only `/v1` is wrong; [`FaultKind::MethodNotAllowed`].
pub fn route(method: &str, path: &str) -> Result<Endpoint, Fault> {
    let endpoint = find(method, path)?;
    let asked = if method == "HEAD" { "GET" } else { method };
    if endpoint.methods().contains(&asked) {
        return Ok(endpoint);
    }
    let message = format!(
        "Not allowed to {} on {}; use {}.",
        clip(method, 16),
        shown(path),
        endpoint.methods().join(" or ")
    );
    Err(Fault::new(FaultKind::MethodNotAllowed, message))
}

/// The endpoint of a path whatever the method, for `OPTIONS` and the `Allow` header; the method only words the refusal.
///
/// # Errors
/// [`FaultKind::RouteUnknown`].
pub fn find(method: &str, path: &str) -> Result<Endpoint, Fault> {
    if path.len() > PATH_LIMIT_BYTES {
        let message = format!("The path is longer than {PATH_LIMIT_BYTES} bytes.");
        return Err(Fault::new(FaultKind::RouteUnknown, message));
    }
    let bare = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = bare.split('/').filter(|part| !part.is_empty()).collect();
    if let Some(endpoint) = endpoint_at(&parts) {
        return Ok(endpoint);
    }
    let mut message = format!("Unknown request URL: {} {}.", clip(method, 16), shown(path));
    let with_v1: Vec<&str> = std::iter::once("v1").chain(parts.iter().copied()).collect();
    if endpoint_at(&with_v1).is_some() {
        message.push_str(" base_url must end in /v1.");
    } else if let ["v1", rest @ ..] = parts.as_slice()
        && let Some(endpoint) = endpoint_at(rest)
    {
        let once = if endpoint.path().starts_with("/v1/") {
            "once in /v1"
        } else {
            "without /v1 for this route"
        };
        message.push_str(&format!(" base_url must end {once}: the path is {}.", endpoint.path()));
    }
    Err(Fault::new(FaultKind::RouteUnknown, message))
}

fn endpoint_at(parts: &[&str]) -> Option<Endpoint> {
    Some(match parts {
        ["v1", "chat", "completions"] => Endpoint::ChatCompletions,
        ["v1", "completions"] => Endpoint::Completions,
        ["v1", "models"] => Endpoint::Models,
        ["v1", "models", id @ ..] => Endpoint::Model(decoded(&id.join("/"))?),
        ["v1", "responses"] => Endpoint::Responses,
        ["v1", "messages"] => Endpoint::Messages,
        ["v1", "messages", "count_tokens"] => Endpoint::CountTokens,
        ["v1", "embeddings"] => Endpoint::Embeddings,
        ["rerank"] | ["v1", "rerank"] => Endpoint::Rerank,
        ["score"] | ["v1", "score"] => Endpoint::Score,
        ["v1", "requests", id, "cancel"] => Endpoint::Cancel(decoded(id)?),
        ["tokenize"] => Endpoint::Tokenize,
        ["detokenize"] => Endpoint::Detokenize,
        ["health"] => Endpoint::Health,
        ["ping"] => Endpoint::Ping,
        ["version"] => Endpoint::Version,
        _ => return None,
    })
}

impl Endpoint {
    /// Label of records and metrics: a closed set, no ids in it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "chat",
            Endpoint::Completions => "completions",
            Endpoint::Models => "models",
            Endpoint::Model(_) => "model",
            Endpoint::Responses => "responses",
            Endpoint::Messages => "messages",
            Endpoint::CountTokens => "count_tokens",
            Endpoint::Embeddings => "embeddings",
            Endpoint::Rerank => "rerank",
            Endpoint::Score => "score",
            Endpoint::Tokenize => "tokenize",
            Endpoint::Detokenize => "detokenize",
            Endpoint::Cancel(_) => "cancel",
            Endpoint::Health => "health",
            Endpoint::Ping => "ping",
            Endpoint::Version => "version",
        }
    }

    /// The path as vLLM and the documentation spell it; `{id}` stands for an id.
    pub fn path(&self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
            Endpoint::Models => "/v1/models",
            Endpoint::Model(_) => "/v1/models/{id}",
            Endpoint::Responses => "/v1/responses",
            Endpoint::Messages => "/v1/messages",
            Endpoint::CountTokens => "/v1/messages/count_tokens",
            Endpoint::Embeddings => "/v1/embeddings",
            Endpoint::Rerank => "/v1/rerank",
            Endpoint::Score => "/v1/score",
            Endpoint::Tokenize => "/tokenize",
            Endpoint::Detokenize => "/detokenize",
            Endpoint::Cancel(_) => "/v1/requests/{id}/cancel",
            Endpoint::Health => "/health",
            Endpoint::Ping => "/ping",
            Endpoint::Version => "/version",
        }
    }

    /// Methods for `Allow` and preflights; `HEAD` is understood where `GET` is.
    pub fn methods(&self) -> &'static [&'static str] {
        match self {
            Endpoint::Models | Endpoint::Model(_) | Endpoint::Health | Endpoint::Version => &["GET"],
            Endpoint::Ping => &["GET", "POST"],
            _ => &["POST"],
        }
    }

    /// Whether a JSON body is read and sent upstream.
    pub fn has_body(&self) -> bool {
        !matches!(self, Endpoint::Cancel(_) | Endpoint::Ping) && self.methods() == ["POST"]
    }

    /// Whether the answer goes through our stages; what is forwarded instead says `x-sluice-pipeline: engine`.
    pub fn has_pipeline(&self) -> bool {
        matches!(self, Endpoint::ChatCompletions | Endpoint::Completions)
    }

    /// Whether it answers without a key (B2).
    pub fn is_open(&self) -> bool {
        matches!(self, Endpoint::Health | Endpoint::Ping)
    }

    /// The dialect of its errors, and whether `x-api-key` is a key here (B2).
    pub fn shape(&self) -> ErrorShape {
        match self {
            Endpoint::Messages | Endpoint::CountTokens => ErrorShape::Anthropic,
            _ => ErrorShape::OpenAi,
        }
    }
}

/// Percent-decoding of an id; none if it is not UTF-8 or has control characters (it may end in a header or a log line).
fn decoded(id: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(id.len());
    let mut rest = id.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        // Signs are no hex digits, though `from_str_radix` takes them.
        let hex = tail
            .get(..2)
            .filter(|hex| byte == b'%' && hex.iter().all(u8::is_ascii_hexdigit));
        match hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|id| !id.contains(char::is_control))
}

/// The path for a message: bounded, without its query (it may hold a key).
fn shown(path: &str) -> &str {
    clip(path.split(['?', '#']).next().unwrap_or_default(), 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(method: &str, path: &str) -> (u16, String) {
        let fault = route(method, path).expect_err(path);
        (fault.status(), fault.message)
    }

    #[test]
    fn b1_the_allowlist() {
        let id = |id: &str| id.to_owned();
        for (method, path, wanted) in [
            ("POST", "/v1/chat/completions", Endpoint::ChatCompletions),
            ("POST", "/v1/completions", Endpoint::Completions),
            ("GET", "/v1/models", Endpoint::Models),
            ("GET", "/v1/models/qwen3", Endpoint::Model(id("qwen3"))),
            (
                "GET",
                "/v1/models/Qwen/Qwen3-32B-AWQ",
                Endpoint::Model(id("Qwen/Qwen3-32B-AWQ")),
            ),
            (
                "GET",
                "/v1/models/Qwen%2fQwen3-32B-AWQ",
                Endpoint::Model(id("Qwen/Qwen3-32B-AWQ")),
            ),
            ("GET", "/v1/models/a%", Endpoint::Model(id("a%"))),
            ("GET", "/v1/models/a%+1%zz%4", Endpoint::Model(id("a%+1%zz%4"))),
            ("POST", "/v1/responses", Endpoint::Responses),
            ("POST", "/v1/messages", Endpoint::Messages),
            ("POST", "/v1/messages/count_tokens", Endpoint::CountTokens),
            ("POST", "/v1/embeddings", Endpoint::Embeddings),
            ("POST", "/rerank", Endpoint::Rerank),
            ("POST", "/v1/rerank", Endpoint::Rerank),
            ("POST", "/score", Endpoint::Score),
            ("POST", "/v1/score", Endpoint::Score),
            ("POST", "/tokenize", Endpoint::Tokenize),
            ("POST", "/detokenize", Endpoint::Detokenize),
            ("POST", "/v1/requests/abc-1/cancel", Endpoint::Cancel(id("abc-1"))),
            ("GET", "/health", Endpoint::Health),
            ("HEAD", "/health", Endpoint::Health),
            ("GET", "/ping", Endpoint::Ping),
            ("POST", "/ping", Endpoint::Ping),
            ("GET", "/version", Endpoint::Version),
            // Careless joins, and queries.
            ("POST", "/v1/chat/completions/", Endpoint::ChatCompletions),
            ("POST", "/v1//chat/completions", Endpoint::ChatCompletions),
            ("POST", "//v1///chat/completions//", Endpoint::ChatCompletions),
            ("POST", "/v1/chat/completions?api-version=1", Endpoint::ChatCompletions),
            ("GET", "/v1/models/?limit=2", Endpoint::Models),
        ] {
            assert_eq!(route(method, path).as_ref(), Ok(&wanted), "{method} {path}");
        }
    }

    #[test]
    fn b1_everything_else_is_404() {
        for path in [
            "/",
            "",
            "/v1",
            "/v1/",
            "/v1/chat",
            "/v1/chat/completions/x",
            "/V1/chat/completions",
            "/v1/audio/transcriptions",
            "/v2/rerank",
            "/v1/models/%0d%0aset-cookie:x",
            "/v1/models/%ff",
            "/v1/requests/cancel",
            "/v1/responses/resp_1",
            "/v1/chat/completions/render",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/invocations",
            // vLLM's control routes, as deep as they are: like any unknown path.
            "/sleep",
            "/wake_up",
            "/is_sleeping",
            "/pause",
            "/resume",
            "/abort_requests",
            "/collective_rpc",
            "/update_weights",
            "/init_weight_transfer_engine",
            "/reset_prefix_cache",
            "/reset_mm_cache",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/scale_elastic_ep",
            "/start_profile",
            "/server_info",
            "/../v1/models",
            "/v1/%2e%2e/sleep",
        ] {
            for method in ["GET", "POST", "OPTIONS"] {
                let (status, message) = refused(method, path);
                assert_eq!(status, 404, "{path}");
                assert!(
                    message.starts_with(&format!("Unknown request URL: {method} ")),
                    "{message}"
                );
                assert!(!message.contains("base_url"), "{message}");
            }
        }
    }

    #[test]
    fn b1_a_base_url_without_v1_is_told() {
        for path in [
            "/chat/completions",
            "/completions",
            "/models",
            "//responses/",
            "/messages",
            "/embeddings?x=1",
        ] {
            let (status, message) = refused("POST", path);
            assert_eq!(status, 404);
            assert!(message.ends_with("base_url must end in /v1."), "{message}");
        }
        let (_, message) = refused("POST", "/v1/v1/chat/completions");
        assert!(
            message.ends_with("base_url must end once in /v1: the path is /v1/chat/completions."),
            "{message}"
        );
        let (_, message) = refused("POST", "/v1/tokenize");
        assert!(
            message.ends_with("base_url must end without /v1 for this route: the path is /tokenize."),
            "{message}"
        );
    }

    #[test]
    fn b1_another_method_is_405_and_says_which() {
        for (method, path, uses) in [
            ("GET", "/v1/chat/completions", "POST"),
            ("HEAD", "/v1/chat/completions", "POST"),
            ("POST", "/v1/models", "GET"),
            ("DELETE", "/v1/models/x", "GET"),
            ("PUT", "/ping", "GET or POST"),
            ("OPTIONS", "/v1/chat/completions", "POST"),
        ] {
            let fault = route(method, path).expect_err(path);
            assert_eq!(fault.kind, FaultKind::MethodNotAllowed);
            assert_eq!(fault.message, format!("Not allowed to {method} on {path}; use {uses}."));
        }
        // The caller's own answer to OPTIONS.
        let endpoint = find("OPTIONS", "/v1/chat/completions/").unwrap();
        assert_eq!(endpoint.methods(), ["POST"]);
    }

    #[test]
    fn refusals_are_bounded_and_hide_the_query() {
        let (_, message) = refused("POST", &format!("/{}", "x".repeat(5000)));
        assert!(message.len() < 300, "{message}");
        let (_, message) = refused(&"M".repeat(500), &format!("/é{}?key=sk-secret", "é".repeat(500)));
        assert!(message.len() < 300 && !message.contains("secret"), "{message}");
    }

    #[test]
    fn each_endpoint_knows_its_own() {
        for endpoint in [Endpoint::Health, Endpoint::Ping] {
            assert!(endpoint.is_open() && !endpoint.has_body() && !endpoint.has_pipeline());
        }
        for endpoint in [Endpoint::Messages, Endpoint::CountTokens] {
            assert_eq!(endpoint.shape(), ErrorShape::Anthropic);
            assert!(endpoint.has_body() && !endpoint.has_pipeline() && !endpoint.is_open());
        }
        for endpoint in [Endpoint::ChatCompletions, Endpoint::Completions] {
            assert!(endpoint.has_pipeline() && endpoint.has_body());
        }
        assert!(!Endpoint::Cancel("x".into()).has_body());
        assert!(!Endpoint::Models.has_body());
    }
}
