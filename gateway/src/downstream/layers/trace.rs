//! The outermost layer: gives a request its id and its route, and makes responses of faults.
//!
//! Every request leaves a record, but for what is answered from what the process knows (health, models, version): the flow's
//! own, or for what was refused on the way, one made here.

use http::header::{ALLOW, CONNECTION, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Version};
use hyper::body::Incoming;
use sluice_policy::protocol::ask::{self, Endpoint};
use sluice_policy::protocol::fault::{ErrorShape, Fault, FaultKind};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::{Layer, Service};

use super::rate;
use crate::downstream::cors::Cors;
use crate::downstream::faults;
use crate::flow::call::Call;
use crate::flow::refusal::Refusals;
use crate::flow::reply::Reply;

/// `x-request-id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A client's own id is used up to this length.
const MAX_ID_BYTES: usize = 128;

/// Limits of a request's head. hyper has its own, larger ones, which end the connection without a word.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Names and values together.
    pub bytes: usize,
    /// Header lines.
    pub count: usize,
}

/// The layer.
#[derive(Clone)]
pub struct Trace {
    /// In force when a request comes.
    pub limits: Arc<dyn Fn() -> HeadLimits + Send + Sync>,
    /// Origins that a browser may call from.
    pub cors: Arc<dyn Fn() -> Arc<Cors> + Send + Sync>,
    /// Connections are to end with their next answer: another process takes the ones after.
    pub closes: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Records of what is refused before the flow.
    pub refusals: Refusals,
}

impl<S> Layer<S> for Trace {
    type Service = Traced<S>;
    fn layer(&self, inner: S) -> Traced<S> {
        Traced {
            inner,
            trace: self.clone(),
        }
    }
}

/// The service.
#[derive(Clone)]
pub struct Traced<S> {
    inner: S,
    trace: Trace,
}

impl<S> Service<Request<Incoming>> for Traced<S>
where
    S: Service<Call<Incoming>, Response = Reply, Error = Fault> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let accepted = Instant::now();
        let (head, body) = request.into_parts();
        let cors = (self.trace.cors)();
        let origin = cors.admitted(&head);
        if let Some(preflight) = origin.as_ref().and_then(|origin| cors.preflight(&head, origin)) {
            return Box::pin(std::future::ready(Ok(preflight)));
        }
        let id = request_id(&head.headers);
        let routed = limits(&head.headers, (self.trace.limits)())
            .and_then(|()| ask::route(head.method.as_str(), head.uri.path()));
        let mut inner = self.inner.clone();
        let refusals = self.trace.refusals.clone();
        let closes = self.trace.closes.clone();
        let is_h1 = head.version < Version::HTTP_2;
        Box::pin(async move {
            let mut reply = match routed {
                Err(fault) => {
                    let mut reply = faults::reply(&fault, shape_of_path(head.uri.path()));
                    let endpoint = ask::find(head.method.as_str(), head.uri.path()).ok();
                    refusals.refused(&id, accepted, endpoint.as_ref(), &fault);
                    if fault.kind == FaultKind::MethodNotAllowed
                        && let Some(endpoint) = endpoint
                        && let Ok(methods) = HeaderValue::from_str(&endpoint.methods().join(", "))
                    {
                        reply.headers_mut().insert(ALLOW, methods);
                    }
                    reply
                }
                Ok(endpoint) => {
                    let shape = shape_of(&endpoint);
                    let (refusal, claim) = refusals.expect(&id, accepted, &endpoint);
                    let call = Call {
                        id: id.clone(),
                        accepted,
                        endpoint,
                        head,
                        identity: None,
                        permit: None,
                        charge: None,
                        buffered: None,
                        claim,
                        body,
                    };
                    let answered = inner.call(call).await;
                    let allowance = refusal.allowance();
                    let mut reply = match answered {
                        Ok(reply) => {
                            refusal.answered();
                            reply
                        }
                        Err(fault) => {
                            refusal.refused(&fault);
                            faults::reply(&fault, shape)
                        }
                    };
                    if let Some(allowance) = allowance {
                        rate::write(&allowance, reply.headers_mut());
                    }
                    reply
                }
            };
            if let Ok(value) = HeaderValue::from_str(&id) {
                reply.headers_mut().insert(REQUEST_ID, value);
            }
            if let Some(origin) = origin {
                cors.mark(&mut reply, origin);
            }
            if is_h1 && (closes)() {
                reply
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(reply)
        })
    }
}

fn shape_of(endpoint: &Endpoint) -> ErrorShape {
    match endpoint {
        Endpoint::Messages | Endpoint::CountTokens => ErrorShape::Anthropic,
        _ => ErrorShape::OpenAi,
    }
}

fn shape_of_path(path: &str) -> ErrorShape {
    if path.trim_end_matches('/').contains("/messages") {
        ErrorShape::Anthropic
    } else {
        ErrorShape::OpenAi
    }
}

fn limits(headers: &HeaderMap, limits: HeadLimits) -> Result<(), Fault> {
    if headers.len() > limits.count {
        let message = format!(
            "The request has more than {} headers (limit header_count).",
            limits.count
        );
        return Err(Fault::new(FaultKind::HeadersTooLarge, message));
    }
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if bytes > limits.bytes {
        let message = format!(
            "The request's headers are larger than {} bytes (limit header_bytes).",
            limits.bytes
        );
        return Err(Fault::new(FaultKind::HeadersTooLarge, message));
    }
    Ok(())
}

fn request_id(headers: &HeaderMap) -> Arc<str> {
    let theirs = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    match theirs {
        Some(id) if !id.is_empty() && id.len() <= MAX_ID_BYTES && id.bytes().all(|b| b.is_ascii_graphic()) => id.into(),
        _ => crate::flow::ids::request_id().into(),
    }
}
