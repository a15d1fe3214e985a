//! Faults to status and body: the only place.

use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use sluice_policy::protocol::fault::{ErrorShape, Fault};

use crate::flow::reply::{Reply, json};

/// `x-should-retry`: the OpenAI SDKs obey it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The response for a fault.
pub fn reply(fault: &Fault, shape: ErrorShape) -> Reply {
    let status = StatusCode::from_u16(fault.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply: Response<_> = json(status, fault.body(shape));
    let headers = reply.headers_mut();
    if let Some(after) = fault.retry_after {
        // Whole seconds, rounded up: asking a moment too early helps nobody.
        headers.insert(
            RETRY_AFTER,
            HeaderValue::from(after.as_secs_f64().ceil().max(1.0) as u64),
        );
    }
    if let Some(retry) = fault.kind.should_retry() {
        headers.insert(
            SHOULD_RETRY,
            HeaderValue::from_static(if retry { "true" } else { "false" }),
        );
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    reply
}
