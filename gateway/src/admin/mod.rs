//! The admin listener: `GET /metrics` and `GET /health`, on a port of its own so that neither needs a client's key.
//!
//! A socket enters, HTTP/1.1 answers leave; nothing here changes anything, and nothing here knows the rooms whose state it
//! shows: they hand in a closure. Because there is no key, it listens on loopback only unless the configuration says
//! otherwise. It never gets in the way of the traffic: connections are few, short-lived and bounded.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::telemetry::{self, Metrics};

/// Connections at once; more wait in the kernel's backlog.
const CONNECTIONS: usize = 64;

/// A connection that sends no (or no complete) request head is closed after this.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// No connection lives longer, whatever it does: one that doesn't read its answer would keep its place.
const CONNECTION_LIMIT: Duration = Duration::from_secs(120);

/// How long answers that are on their way may take after the shutdown.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Pause after a failed accept: the usual cause is that no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// `[admin]`: the listener for operators and scrapers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Whether there is an admin listener. Default `true`.
    pub enabled: bool,
    /// Address and port. Default `"127.0.0.1:5003"`. It needs no key: who reaches it can read model, replica and error
    /// names and all counts.
    pub listen: SocketAddr,
    /// Allows an address other than loopback. Default `false`. Only where something else keeps strangers out.
    pub allow_remote: bool,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5003)),
            allow_remote: false,
        }
    }
}

impl AdminConfig {
    /// Refuses an address that strangers may reach, unless the configuration allows it.
    ///
    /// # Errors
    /// [`AdminError::NotLoopback`].
    pub fn check(&self) -> Result<(), AdminError> {
        let loopback = self.listen.ip().to_canonical().is_loopback();
        if self.enabled && !self.allow_remote && !loopback {
            return Err(AdminError::NotLoopback(self.listen));
        }
        Ok(())
    }
}

/// What is wrong with `[admin]`.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Everybody on the network could read it.
    #[error("[admin] listen = \"{0}\" is not loopback and needs no key: use 127.0.0.1, or say allow_remote = true")]
    NotLoopback(SocketAddr),
}

/// What the listener shows. Clones are cheap.
#[derive(Clone)]
pub struct AdminState {
    /// For `/metrics`.
    pub metrics: Metrics,
    /// For `/health`: an object whose members are shown as they are, like `replicas`. A member `status` other than `ok`
    /// and `degraded` makes the answer a 503. Called for each request, so it must not block.
    pub health: Arc<dyn Fn() -> Value + Send + Sync>,
}

impl std::fmt::Debug for AdminState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminState").finish_non_exhaustive()
    }
}

/// Serves the listener until `shutdown` is ready, then finishes what is being answered, within a second.
pub async fn serve(listener: TcpListener, state: AdminState, shutdown: impl Future<Output = ()> + Send) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (close, closing) = watch::channel(false);
    tokio::pin!(shutdown);
    loop {
        let next = async {
            // Closed by nobody; if it were, there would be no places left to give.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let (place, accepted) = tokio::select! {
            () = &mut shutdown => break,
            next = next => match next {
                Some(next) => next,
                None => break,
            },
        };
        match accepted {
            Ok((stream, _)) => {
                let (state, closing) = (state.clone(), closing.clone());
                tokio::spawn(async move {
                    let _place = place;
                    connection(stream, state, closing).await;
                });
            }
            Err(error) => {
                warn!(%error, "admin listener: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    drop(closing);
    close.send_replace(true);
    // Every connection holds a receiver.
    let _ = timeout(CLOSE_LIMIT, close.closed()).await;
}

async fn connection<T>(stream: T, state: AdminState, mut closing: watch::Receiver<bool>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, state.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = timeout(CONNECTION_LIMIT, async {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
        }
        timeout(CLOSE_LIMIT, connection.as_mut()).await.unwrap_or(Ok(()))
    });
    if let Ok(Err(error)) = served.await {
        debug!(%error, "admin connection");
    }
}

async fn answer(request: Request<Incoming>, state: AdminState) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => metrics(state.metrics).await,
        (&Method::GET | &Method::HEAD, "/health") => health(&*state.health),
        (_, "/metrics" | "/health") => {
            let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n");
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        _ => reply(
            StatusCode::NOT_FOUND,
            TEXT,
            "the admin listener has /metrics and /health\n",
        ),
    })
}

async fn metrics(metrics: Metrics) -> Response<Full<Bytes>> {
    // Many series take milliseconds, and files in /proc are read: not on a thread that relays streams.
    match tokio::task::spawn_blocking(move || metrics.render()).await {
        Ok(text) => reply(StatusCode::OK, telemetry::CONTENT_TYPE, text),
        Err(error) => {
            warn!(%error, "metrics could not be rendered");
            reply(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                "metrics could not be rendered, the log says why\n",
            )
        }
    }
}

fn health(state: &(dyn Fn() -> Value + Send + Sync)) -> Response<Full<Bytes>> {
    let mut body = Map::new();
    body.insert("status".to_owned(), Value::from("ok"));
    body.insert("version".to_owned(), Value::from(env!("CARGO_PKG_VERSION")));
    if let Value::Object(members) = state() {
        body.extend(members);
    }
    let serves = matches!(body.get("status").and_then(Value::as_str), Some("ok" | "degraded"));
    let status = if serves {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    reply(status, JSON, format!("{}\n", Value::Object(body)))
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

fn reply(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
