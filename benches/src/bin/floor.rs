//! The floor of Sluice: its shell, its server and its upstream client without the pipeline, auth, records or routing.
//!
//! `floor LISTEN UPSTREAM [--no-steal]`, both as host:port. A request's body is read whole, sent to UPSTREAM by the gateway's
//! own client, and the answer is passed on as it comes, frames that are ready together in one. What Sluice costs beyond
//! this is the price of policy. One worker thread, with or without work stealing.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pingora_core::apps::ServerApp;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{Server, ShutdownWatch};
use pingora_core::services::listening::Service;
use sluice_gateway::upstream::client::{Pool, SendLimits, send};
use sluice_gateway::upstream::{Address, Answer, Segments, UpstreamError};
use std::convert::Infallible;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// As the gateway's relay merges.
const MERGE_BYTES: usize = 64 * 1024;
const LIMITS: SendLimits = SendLimits {
    connect: Duration::from_secs(2),
    head: Duration::from_secs(600),
    idle: Duration::from_secs(4),
};

struct Floor {
    address: Address,
    pool: Arc<Pool>,
}

impl Floor {
    async fn forward(&self, request: Request<Incoming>) -> Response<Passing> {
        match self.ask(request).await {
            Ok(answer) => {
                let mut response = Response::new(Passing::Answer(Box::new(answer)));
                if let Passing::Answer(answer) = response.body() {
                    let (status, content_type) = (answer.status(), answer.content_type().cloned());
                    *response.status_mut() = status;
                    if let Some(content_type) = content_type {
                        response.headers_mut().insert(CONTENT_TYPE, content_type);
                    }
                }
                response
            }
            Err(error) => {
                let mut response = Response::new(Passing::Whole(Bytes::from(error.to_string())));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        }
    }

    async fn ask(&self, request: Request<Incoming>) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let (head, body) = request.into_parts();
        let segments = Segments::new(vec![body.collect().await?.to_bytes()]);
        let request = || {
            let mut request = Request::new(segments.clone());
            *request.method_mut() = head.method.clone();
            *request.uri_mut() = head.uri.clone();
            let headers = request.headers_mut();
            headers.insert(HOST, self.address.host_header());
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            request
        };
        Ok(send(&self.pool, &self.address, request, LIMITS).await?)
    }
}

#[async_trait]
impl ServerApp for Floor {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        let service = service_fn(|request| {
            let floor = Arc::clone(self);
            async move { Ok::<_, Infallible>(floor.forward(request).await) }
        });
        // A client that leaves ends it with an error; there is nobody to tell.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
        None
    }
}

/// An answer on its way.
enum Passing {
    Whole(Bytes),
    Answer(Box<Answer>),
    Failed(UpstreamError),
    Over,
}

impl Passing {
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        match std::mem::replace(self, Passing::Over) {
            Passing::Over => Poll::Ready(None),
            Passing::Whole(bytes) => Poll::Ready(Some(Ok(bytes))),
            Passing::Failed(error) => Poll::Ready(Some(Err(error))),
            Passing::Answer(mut answer) => {
                let polled = answer.poll_data(cx);
                if !matches!(polled, Poll::Ready(None | Some(Err(_)))) {
                    *self = Passing::Answer(answer);
                }
                polled
            }
        }
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let passing = self.get_mut();
        let first = match passing.next(cx) {
            Poll::Ready(Some(Ok(bytes))) => bytes,
            other => return other.map(|end| end.map(|bytes| bytes.map(Frame::data))),
        };
        let mut merged = BytesMut::new();
        while merged.len() < MERGE_BYTES {
            match passing.next(cx) {
                Poll::Ready(Some(Ok(more))) => {
                    if merged.is_empty() {
                        merged.reserve((first.len() + more.len()) * 2);
                        merged.extend_from_slice(&first);
                    }
                    merged.extend_from_slice(&more);
                }
                Poll::Ready(Some(Err(error))) => {
                    *passing = Passing::Failed(error);
                    break;
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        let bytes = if merged.is_empty() { first } else { merged.freeze() };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Passing::Over)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (listen, upstream, work_stealing) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [listen, upstream] => (listen, upstream, true),
        [listen, upstream, "--no-steal"] => (listen, upstream, false),
        _ => return usage(),
    };
    let Ok(address) = Address::from_url(&format!("http://{upstream}")) else {
        return usage();
    };
    let conf = ServerConf {
        threads: 1,
        work_stealing,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut clients = Service::new(
        "clients".to_owned(),
        Floor {
            address,
            pool: Arc::default(),
        },
    );
    clients.add_listener(ListenerConfig::tcp(listen.to_owned()).l4_buffer(L4BufferSettings::unbuffered()));
    server.add_service(clients);
    server.run_forever()
}

#[expect(clippy::print_stderr, reason = "a program whose caller got it wrong")]
fn usage() -> ExitCode {
    eprintln!("usage: floor LISTEN UPSTREAM [--no-steal], both as host:port");
    ExitCode::from(2)
}
