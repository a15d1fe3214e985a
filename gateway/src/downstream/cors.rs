//! Cross-origin requests by configuration: which browser origins may call, and the preflight, which carries no key.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use http::{Method, Response, StatusCode, request};
use sluice_policy::protocol::ask;

use crate::flow::reply::{Reply, ReplyBody};

/// Response headers that a page may read.
const EXPOSED: &str = "x-request-id, x-sluice-replica, x-sluice-fallback, x-sluice-route, x-sluice-attempts, x-sluice-simulated, \
    x-sluice-pipeline, retry-after, x-should-retry";

/// The origins that may call.
#[derive(Debug, Default)]
pub struct Cors {
    origins: Vec<HeaderValue>,
    any: bool,
}

impl Cors {
    /// From `server.cors_origins`; `*` stands for every origin.
    pub fn new(origins: &[String]) -> Self {
        let any = origins.iter().any(|origin| origin == "*");
        Cors {
            origins: origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok())
                .collect(),
            any,
        }
    }

    /// The request's origin, if it may call.
    pub fn admitted(&self, head: &request::Parts) -> Option<HeaderValue> {
        let origin = head.headers.get(ORIGIN)?;
        (self.any || self.origins.contains(origin)).then(|| origin.clone())
    }

    /// The answer to a preflight; `None` if the request is none.
    pub fn preflight(&self, head: &request::Parts, origin: &HeaderValue) -> Option<Reply> {
        if head.method != Method::OPTIONS || !head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        let endpoint = ask::find("OPTIONS", head.uri.path()).ok()?;
        let mut reply = Response::new(ReplyBody::Whole(Bytes::new()));
        *reply.status_mut() = StatusCode::NO_CONTENT;
        let headers = reply.headers_mut();
        if let Ok(methods) = HeaderValue::from_str(&endpoint.methods().join(", ")) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        if let Some(asked) = head.headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        self.mark(&mut reply, origin.clone());
        Some(reply)
    }

    /// Lets the page read the response.
    pub fn mark(&self, reply: &mut Reply, origin: HeaderValue) {
        let headers = reply.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
}
