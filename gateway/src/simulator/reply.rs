//! Response heads as uvicorn writes them: which headers, in which order, for which kind of body.
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::body::Reply;
use super::refusal::Refusal;

/// Whether a browser asks before it asks.
pub(super) fn is_preflight(request: &Request<Incoming>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// No origin is allowed.
pub(super) fn preflight() -> Response<Reply> {
    let vary =
        "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network";
    let headers = [
        (header::VARY, vary),
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
        LENGTH,
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
    ];
    respond(
        StatusCode::BAD_REQUEST,
        &headers,
        Reply::Whole(Some(Bytes::from_static(b"Disallowed CORS origin"))),
    )
}

/// A JSON answer or an error.
pub(super) fn answered(result: Result<String, Refusal>) -> Response<Reply> {
    match result {
        Ok(body) => json_reply(StatusCode::OK, body),
        Err(refusal) => refuse(&refusal, Vary::Origin),
    }
}

/// `vary`, which only answers from within uvicorn's outermost layer have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vary {
    /// None.
    None,
    /// `Origin`.
    Origin,
}

/// An error.
pub(super) fn refuse(refusal: &Refusal, vary: Vary) -> Response<Reply> {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = Reply::Whole(Some(Bytes::from(refusal.body.clone())));
    let headers: &[_] = match vary {
        Vary::None => &[LENGTH, JSON],
        Vary::Origin => &[LENGTH, JSON, VARY_ORIGIN],
    };
    respond(status, headers, body)
}

/// A whole JSON answer.
pub(super) fn json_reply(status: StatusCode, body: String) -> Response<Reply> {
    respond(
        status,
        &[LENGTH, JSON, VARY_ORIGIN],
        Reply::Whole(Some(Bytes::from(body))),
    )
}

/// An answer without a body.
pub(super) fn empty_reply(status: StatusCode) -> Response<Reply> {
    respond(status, &[LENGTH, VARY_ORIGIN], Reply::Whole(Some(Bytes::new())))
}

/// A header.
pub(super) type Header<'a> = (HeaderName, &'a str);

/// Stands for the body's length, at its place among the headers.
pub(super) const LENGTH: Header<'_> = (header::CONTENT_LENGTH, "");
/// The media type of whole answers and errors.
pub(super) const JSON: Header<'_> = (header::CONTENT_TYPE, "application/json");
/// The media type of streams.
pub(super) const EVENTS: Header<'_> = (header::CONTENT_TYPE, "text/event-stream; charset=utf-8");
/// The media type of `/metrics`.
pub(super) const METRICS: Header<'_> = (header::CONTENT_TYPE, "text/plain; version=1.0.0; charset=utf-8");
/// What answers from within the CORS layer have.
pub(super) const VARY_ORIGIN: Header<'_> = (header::VARY, "Origin");

/// A response with uvicorn's headers: `date` and `server`, then `headers` in their order (hyper adds the transfer
/// coding of a stream). A value that can't stand in a header is left out.
pub(super) fn respond(status: StatusCode, headers: &[Header<'_>], body: Reply) -> Response<Reply> {
    let length = match &body {
        Reply::Whole(bytes) => bytes.as_ref().map_or(0, Bytes::len),
        Reply::Stream(_) => 0,
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let map = response.headers_mut();
    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let first = [(header::DATE, date.as_str()), (header::SERVER, "uvicorn")];
    for (name, value) in first.iter().chain(headers) {
        if *name == header::CONTENT_LENGTH {
            map.insert(name, HeaderValue::from(length));
        } else if let Ok(value) = HeaderValue::from_str(value) {
            map.insert(name, value);
        }
    }
    response
}
