//! Asks whether a vLLM answers, and as what: single GET requests, each on a connection of its own.
//!
//! Every look is bounded in time and bytes, and says what it found in words that can be shown. It is apart from the client of
//! `upstream`, which carries requests: nothing here is pooled, retried or counted.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::time::timeout;

use crate::upstream::Address;

/// Of one answer.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Of a version: it goes into logs and `/health`.
const VERSION_CHARS_MAX: usize = 40;
/// Of one look, from connecting to the answer's end. A busy engine's front end may need seconds for `/health`.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a look found nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProbeError {
    /// Nobody listens, or the connection broke.
    #[error("{path}: {problem}")]
    Connection { path: &'static str, problem: String },
    /// No whole answer in time.
    #[error("{0}: no answer within {LOOK_TIMEOUT:?}")]
    Slow(&'static str),
    /// An answer that a ready vLLM doesn't give.
    #[error("{path}: status {status}{}", hint(*status))]
    Status { path: &'static str, status: u16 },
    /// `/v1/models` can't be read.
    #[error("/v1/models: not a list of models")]
    NoModels,
    /// Another model is served there.
    #[error("/v1/models lists {found}, not `{wanted}`")]
    OtherModel { wanted: String, found: String },
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => " (it wants another key: see the backend's key_env)",
        _ => "",
    }
}

/// A vLLM that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// What `/version` says.
    pub(super) version: Option<String>,
    /// The ids that it lists.
    pub(super) models: Vec<String>,
}

/// Looks once whether a vLLM is ready at `address` and lists `model` (any, if empty).
pub(super) async fn look(address: &Address, model: &str, key: Option<&str>) -> Result<Found, ProbeError> {
    expect_ok(address, "/health", None).await?;
    let models = ids(&expect_ok(address, "/v1/models", key).await?)?;
    if !model.is_empty() && !models.iter().any(|id| id == model) {
        let found = if models.is_empty() {
            "nothing".to_owned()
        } else {
            format!("`{}`", models.join("`, `"))
        };
        return Err(ProbeError::OtherModel {
            wanted: model.to_owned(),
            found,
        });
    }
    Ok(Found {
        version: version(address).await,
        models,
    })
}

/// What `/version` says, if it is a vLLM's answer. (Another Sluice gives its name too.)
pub(super) async fn version(address: &Address) -> Option<String> {
    #[derive(Deserialize)]
    struct Version {
        version: String,
        name: Option<String>,
    }
    let body = expect_ok(address, "/version", None).await.ok()?;
    let said = serde_json::from_slice::<Version>(&body)
        .ok()
        .filter(|said| said.name.is_none())?;
    Some(said.version.chars().take(VERSION_CHARS_MAX).collect())
}

/// Whether `/health` says 200.
pub(super) async fn health(address: &Address) -> bool {
    expect_ok(address, "/health", None).await.is_ok()
}

fn ids(body: &[u8]) -> Result<Vec<String>, ProbeError> {
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    #[derive(Deserialize)]
    struct Models {
        data: Vec<Model>,
    }
    let models: Models = serde_json::from_slice(body).map_err(|_| ProbeError::NoModels)?;
    Ok(models.data.into_iter().map(|model| model.id).collect())
}

async fn expect_ok(address: &Address, path: &'static str, key: Option<&str>) -> Result<Bytes, ProbeError> {
    match timeout(LOOK_TIMEOUT, get(address, path, key)).await {
        Ok(Ok((200, body))) => Ok(body),
        Ok(Ok((status, _))) => Err(ProbeError::Status { path, status }),
        Ok(Err(problem)) => Err(ProbeError::Connection { path, problem }),
        Err(_) => Err(ProbeError::Slow(path)),
    }
}

/// hyper says no more than that a connection broke: why, as that TLS wants a certificate of ours, is in what it was caused by.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// One GET. The connection lives as long as this future: dropped, it is closed.
async fn get(address: &Address, path: &str, key: Option<&str>) -> Result<(u16, Bytes), String> {
    let stream = address.connect().await.map_err(|error| error.to_string())?;
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| with_cause(&error))?;
    let mut request = Request::get(path)
        .header(HOST, address.host_header())
        .header(CONNECTION, "close");
    if let Some(key) = key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| "the key can't be sent in a header".to_owned())?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let exchange = async {
        let answer = client.send_request(request).await.map_err(|error| with_cause(&error))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        _ = connection => exchange.await, // it has ended: what it read, or its error, is with the exchange already
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each request by its path; returns what it was asked.
    async fn server(
        answers: &[(&'static str, &'static str)],
    ) -> (Address, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, asked) = tokio::sync::mpsc::unbounded_channel();
        let answers = answers.to_vec();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let path = head.split(' ').nth(1).unwrap().to_owned();
                let answer = answers
                    .iter()
                    .find(|(route, _)| *route == path)
                    .map_or("404 Not Found\r\n\r\n", |(_, answer)| answer);
                let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await;
                tell.send(head).unwrap();
            }
        });
        (Address::loopback(port), asked)
    }

    const MODELS: &str =
        "200 OK\r\n\r\n{\"object\":\"list\",\"data\":[{\"id\":\"a\",\"object\":\"model\"},{\"id\":\"b\"}]}";

    #[tokio::test]
    async fn a_ready_vllm_is_found_with_its_version_and_only_v1_gets_the_key() {
        let version = "200 OK\r\n\r\n{\"version\":\"0.32.0\"}";
        let (address, mut asked) = server(&[
            ("/health", "200 OK\r\n\r\n"),
            ("/v1/models", MODELS),
            ("/version", version),
        ])
        .await;
        let found = look(&address, "b", Some("sk-1")).await.unwrap();
        assert_eq!(
            found,
            Found {
                version: Some("0.32.0".to_owned()),
                models: vec!["a".to_owned(), "b".to_owned()]
            }
        );
        for (path, keyed) in [("/health", false), ("/v1/models", true), ("/version", false)] {
            let head = asked.recv().await.unwrap();
            assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
            assert_eq!(head.contains("authorization: Bearer sk-1"), keyed, "{head}");
        }
    }

    #[tokio::test]
    async fn what_is_not_ready_says_why() {
        let (address, _asked) = server(&[("/health", "200 OK\r\n\r\n"), ("/v1/models", MODELS)]).await;
        assert_eq!(
            look(&address, "", None).await.unwrap().version,
            None,
            "no /version is no fault"
        );
        let error = look(&address, "c", None).await.unwrap_err().to_string();
        assert_eq!(error, "/v1/models lists `a`, `b`, not `c`");

        let (address, _asked) = server(&[("/health", "503 Service Unavailable\r\n\r\n")]).await;
        assert_eq!(
            look(&address, "a", None).await,
            Err(ProbeError::Status {
                path: "/health",
                status: 503
            })
        );

        let refused = "401 Unauthorized\r\n\r\n{\"error\":\"Unauthorized\"}";
        let (address, _asked) = server(&[("/health", "200 OK\r\n\r\n"), ("/v1/models", refused)]).await;
        let error = look(&address, "a", None).await.unwrap_err().to_string();
        assert!(error.contains("401") && error.contains("key_env"), "{error}");

        let (address, _asked) = server(&[("/health", "200 OK\r\n\r\n"), ("/v1/models", "200 OK\r\n\r\n<html>")]).await;
        assert_eq!(look(&address, "a", None).await, Err(ProbeError::NoModels));

        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let error = look(&Address::loopback(free), "a", None).await.unwrap_err();
        assert!(
            matches!(error, ProbeError::Connection { path: "/health", .. }),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_vllm_is_told_from_another_sluice() {
        let at = async |version: &'static str| {
            let (address, _asked) = server(&[("/health", "200 OK\r\n\r\n"), ("/version", version)]).await;
            super::super::vllm_at(address.authority()).await
        };
        assert_eq!(
            at("200 OK\r\n\r\n{\"version\":\"0.32.0\"}").await.as_deref(),
            Some("0.32.0")
        );
        assert_eq!(
            at("200 OK\r\n\r\n{\"version\":\"0.1.0\",\"name\":\"sluice\"}").await,
            None
        );
        assert_eq!(at("200 OK\r\n\r\nok").await, None);
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut() {
        static LONG: std::sync::LazyLock<String> =
            std::sync::LazyLock::new(|| format!("200 OK\r\n\r\n{}", "x".repeat(BODY_BYTES_MAX + 1)));
        let (address, _asked) = server(&[("/health", LONG.as_str())]).await;
        let error = look(&address, "a", None).await.unwrap_err();
        assert!(
            matches!(&error, ProbeError::Connection { problem, .. } if problem.contains("limit")),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_slow_not_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap(); // accepts in the kernel, never answers
        let address = Address::loopback(listener.local_addr().unwrap().port());
        assert_eq!(look(&address, "a", None).await, Err(ProbeError::Slow("/health")));
    }
}
