//! What a replica is asked beside requests: how it takes tools (B19), when it becomes ready, by three requests of one token; who opens
//! think blocks; its engine's figures, and whether it gives a token at all (B36).
//!
//! `tool_choice: "none"` must keep the tools in the prompt, or the gateway can't find the calls itself: the prompt's tokens
//! with and without tools tell (old versions, and `--exclude-tools-when-tool-choice-none`, drop them). Whether vLLM has a
//! parser of its own shows in what it says to `auto`: without one it answers 400.
//!
//! | `none` keeps the tools | `auto` | set-up |
//! | --- | --- | --- |
//! | yes | 400 | [`ToolSetup::Raw`] |
//! | yes | 200 | [`ToolSetup::Parsers`] |
//! | no | 200 | [`ToolSetup::EngineOnly`] |
//! | no | 400 | [`ToolSetup::Raw`], and a warning: this replica can't do tools |

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use serde_json::{Value, json};
use sluice_policy::health::engine::EngineStats;
use sluice_policy::reasoning::Opener;
use std::sync::Arc;
use std::time::Duration;

use super::client::{self, SendLimits};
use super::replica::{Replica, ToolSetup};
use super::{Segments, UpstreamError};

/// A busy engine may let a probe wait behind long prefills.
const PATIENCE: Duration = Duration::from_secs(60);
/// Whether a server is still the same one is known by then, or taken as not.
const ALIVE: Duration = Duration::from_secs(2);
/// An answer of one token is below 4 KB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A page of metrics is about 100 KB.
const MAX_METRICS_BYTES: usize = 4 * 1024 * 1024;

/// Why a replica's set-up isn't known.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// It has no address.
    #[error("the replica has no address yet")]
    NoAddress,
    /// An answer that isn't one.
    #[error("status {0} where 200 was expected")]
    Status(u16),
    /// Without `usage.prompt_tokens` nothing can be told.
    #[error("no usage in the answer")]
    NoUsage,
}

/// Who opens think blocks (B15): read off the end of the prompt that the served template renders, through `/tokenize` and
/// `/detokenize`.
///
/// # Errors
/// The replica did not answer, or not as vLLM does.
pub async fn opener(replica: &Replica, model: &str) -> Result<Opener, ProbeError> {
    let conversation =
        json!({"model": model, "messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": true});
    let (status, body) = send(replica, "/tokenize", Bytes::from(conversation.to_string())).await?;
    if matches!(status.as_u16(), 404 | 405 | 501) {
        return Ok(Opener::Model); // no vLLM, or one without templates: tags are the model's own
    }
    if status != StatusCode::OK {
        return Err(ProbeError::Status(status.as_u16()));
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let tokens = json!({"model": model, "tokens": body.get("tokens")});
    let (status, body) = send(replica, "/detokenize", Bytes::from(tokens.to_string())).await?;
    if status != StatusCode::OK {
        return Err(ProbeError::Status(status.as_u16()));
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Opener::of_prompt(
        body.get("prompt").and_then(Value::as_str).unwrap_or_default(),
    ))
}

/// Tokens that its KV cache keeps for later prompts, as `vllm:cache_config_info` says; 0 if it keeps none. `None`: it doesn't say.
///
/// # Errors
/// The replica did not answer.
pub async fn kv_tokens(replica: &Replica) -> Result<Option<u64>, ProbeError> {
    Ok(cache_config(&metrics(replica).await?))
}

/// What its engine says of itself; `None` if its metrics are no vLLM's.
///
/// # Errors
/// The replica did not answer.
pub async fn engine(replica: &Replica) -> Result<Option<EngineStats>, ProbeError> {
    Ok(EngineStats::read(&metrics(replica).await?))
}

/// The server that `started` then runs still, and says that its engine does: nothing has died there since.
pub async fn has_run_since(replica: &Replica, started: f64) -> bool {
    let look = async {
        let (status, _) = exchange(replica, Method::GET, "/health", Bytes::new(), MAX_ANSWER_BYTES)
            .await
            .ok()?;
        let stats = engine(replica).await.ok()??;
        (status == StatusCode::OK).then_some(stats.started_s?)
    };
    let now = tokio::time::timeout(ALIVE, look).await;
    // Printed by the same process both times: the very same figure.
    now.is_ok_and(|now| now.map(f64::to_bits) == Some(started.to_bits()))
}

async fn metrics(replica: &Replica) -> Result<String, ProbeError> {
    let (status, body) = exchange(replica, Method::GET, "/metrics", Bytes::new(), MAX_METRICS_BYTES).await?;
    if status != StatusCode::OK {
        return Err(ProbeError::Status(status.as_u16()));
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Waits for one token: only an engine that moves gives one.
///
/// # Errors
/// The replica did not answer, or not as vLLM does.
pub async fn gives_a_token(replica: &Replica, model: &str) -> Result<(), ProbeError> {
    prompt_tokens(ask(replica, model, None).await?).map(|_| ())
}

/// Of the metrics' text; engines of data-parallel ranks are added up.
fn cache_config(metrics: &str) -> Option<u64> {
    let engines = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("vllm:cache_config_info{"));
    let tokens = engines.map(|labels| {
        let label = |name: &str| {
            let of = |part: &'_ str| {
                part.strip_prefix(name)?
                    .strip_prefix("=\"")?
                    .split('"')
                    .next()
                    .map(str::to_owned)
            };
            labels.split(',').find_map(of)
        };
        let number = |name: &str| label(name)?.parse::<u64>().ok();
        let tokens = number("num_gpu_blocks")?.checked_mul(number("block_size")?)?;
        Some(if label("enable_prefix_caching").as_deref() == Some("False") {
            0
        } else {
            tokens
        })
    });
    tokens.flatten().reduce(u64::saturating_add)
}

/// Asks how it takes tools.
///
/// # Errors
/// The replica did not answer, or not as vLLM does. Nothing is known then.
pub async fn tool_setup(replica: &Replica, model: &str) -> Result<ToolSetup, ProbeError> {
    let plain = prompt_tokens(ask(replica, model, None).await?)?;
    let with_tools = prompt_tokens(ask(replica, model, Some("none")).await?)?;
    let (status, _) = ask(replica, model, Some("auto")).await?;
    let keeps = with_tools > plain;
    Ok(match (keeps, status) {
        (true, StatusCode::OK) => ToolSetup::Parsers,
        (false, StatusCode::OK) => ToolSetup::EngineOnly,
        (true, _) => ToolSetup::Raw,
        (false, _) => {
            tracing::warn!(replica = %replica.name(), "tool calls can't work on this replica: it drops the tools from the prompt and has no parser");
            ToolSetup::Raw
        }
    })
}

fn prompt_tokens((status, body): (StatusCode, Bytes)) -> Result<u64, ProbeError> {
    if status != StatusCode::OK {
        return Err(ProbeError::Status(status.as_u16()));
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    body.pointer("/usage/prompt_tokens")
        .and_then(Value::as_u64)
        .ok_or(ProbeError::NoUsage)
}

async fn ask(replica: &Replica, model: &str, tool_choice: Option<&str>) -> Result<(StatusCode, Bytes), ProbeError> {
    let mut body = json!({
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
        "temperature": 0,
    });
    if let (Some(choice), Some(fields)) = (tool_choice, body.as_object_mut()) {
        let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
        let function =
            json!({"name": "get_weather", "description": "The weather of a city.", "parameters": parameters});
        fields.insert("tools".into(), json!([{"type": "function", "function": function}]));
        fields.insert("tool_choice".into(), choice.into());
    }
    send(replica, "/v1/chat/completions", Bytes::from(body.to_string())).await
}

async fn send(replica: &Replica, path: &'static str, body: Bytes) -> Result<(StatusCode, Bytes), ProbeError> {
    exchange(replica, Method::POST, path, body, MAX_ANSWER_BYTES).await
}

async fn exchange(
    replica: &Replica,
    method: Method,
    path: &'static str,
    body: Bytes,
    most: usize,
) -> Result<(StatusCode, Bytes), ProbeError> {
    let address = replica.address().ok_or(ProbeError::NoAddress)?;
    let body = Segments::new(vec![body]);
    let request = || {
        let mut request = Request::new(body.clone());
        *request.method_mut() = method.clone();
        *request.uri_mut() = Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(HOST, address.host_header());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(authorization) = replica.authorization() {
            headers.insert(AUTHORIZATION, authorization);
        }
        request
    };
    let limits = SendLimits {
        connect: PATIENCE,
        head: PATIENCE,
        idle: Duration::ZERO,
    };
    // A pool of its own: a connection is woken by the runtime that opened it, and requests must not wait for that of the probes.
    let mut answer = client::send(&Arc::default(), &address, request, limits).await?;
    let status = answer.status();
    let body = tokio::time::timeout(PATIENCE, answer.collect(most))
        .await
        .map_err(|_| UpstreamError::HeadTimeout(PATIENCE))??;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Address;

    #[test]
    fn the_kv_caches_size_is_read_off_the_metrics() {
        let engine = |n: u32, caching: &str| {
            format!(
                "vllm:cache_config_info{{block_size=\"16\",enable_prefix_caching=\"{caching}\",engine=\"{n}\",num_gpu_blocks=\"8750\",num_gpu_blocks_override=\"None\"}} 1.0\n"
            )
        };
        let head = "# TYPE vllm:cache_config_info gauge\n";
        for (metrics, tokens) in [
            (format!("{head}{}", engine(0, "True")), Some(140_000)),
            (format!("{}{}", engine(0, "True"), engine(1, "True")), Some(280_000)),
            (engine(0, "False"), Some(0)),
            (
                "vllm:cache_config_info{block_size=\"None\",num_gpu_blocks=\"None\"} 1.0".to_owned(),
                None,
            ),
            (head.to_owned(), None),
        ] {
            assert_eq!(cache_config(&metrics), tokens, "{metrics}");
        }
    }
    /// A connection is woken by the runtime that opened it: requests would wait for that of the probes.
    #[tokio::test]
    async fn a_probe_leaves_requests_no_connection() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let replica = Replica::new("a", false, None, Some(Address::loopback(port)));
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
            while !head.ends_with(b"{}") {
                let read = stream.read(&mut buffer).await.unwrap();
                assert_ne!(read, 0, "the request is whole");
                head.extend_from_slice(&buffer[..read]);
            }
            // It stays open: by the answer it could be used again.
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .await
                .unwrap();
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 0, "the probe closes it");
        };
        let (answer, ()) = tokio::join!(send(&replica, "/tokenize", Bytes::from_static(b"{}")), server);
        assert_eq!(answer.unwrap(), (StatusCode::OK, Bytes::from_static(b"{}")));
        assert!(replica.pool.is_empty());
    }
}
