//! Request policy as tower layers, outermost first: what a request must pass before `flow` gets it.
//!
//! | layer | enters | leaves | refuses |
//! | --- | --- | --- | --- |
//! | `trace` | `Request<Incoming>` | [`Call<Incoming>`] | unknown routes, header limits |
//! | `guard` | a call | the same | a panic becomes 500 |
//! | `auth` | a call | with an identity | 401, 429 |
//! | `admit` | a call | with a permit | 503 |
//! | `body` | a call | [`Call<Bytes>`] | 408, 413, 415, 503 |
//!
//! A layer answers with a [`Fault`]; only `trace` makes a response of it. Permits live inside the call and move into the
//! response's body: a tower limit that ends at the response head would count nothing of a stream (trap 3).

/// Identity of the request, its route, faults to responses.
pub mod trace;
/// A panic of one request ends that request.
pub mod guard;
/// Who asks.
pub mod auth;
/// Room in the process.
pub mod admit;
/// The whole body, within its limits.
pub mod body;

use http::request;
use sluice_policy::protocol::ask::Endpoint;
use std::sync::Arc;
use std::time::Instant;

use super::keys::KeyId;
use crate::flow::account::Claim;
use crate::flow::registry::Permit;

/// A request on its way through the layers.
pub struct Call<B> {
    /// `x-request-id`: the client's, or ours.
    pub id: Arc<str>,
    /// When its head was read.
    pub accepted: Instant,
    /// What it asks of.
    pub endpoint: Endpoint,
    /// Headers and URI.
    pub head: request::Parts,
    /// Whose key it is; none only where no key is needed.
    pub identity: Option<Arc<KeyId>>,
    /// Its place in the process, given back when the answer ends.
    pub permit: Option<Permit>,
    /// Bytes of it that count against the process's buffers.
    pub buffered: Option<body::Buffered>,
    /// Who accounts for it.
    pub claim: Claim,
    /// The body.
    pub body: B,
}

impl<B> Call<B> {
    /// With another body.
    pub fn with_body<C>(self, body: C) -> Call<C> {
        let Call {
            id,
            accepted,
            endpoint,
            head,
            identity,
            permit,
            buffered,
            claim,
            body: _,
        } = self;
        Call {
            id,
            accepted,
            endpoint,
            head,
            identity,
            permit,
            buffered,
            claim,
            body,
        }
    }

    /// The name of its key, for records and for who may cancel it; empty without a key.
    pub fn key_name(&self) -> Arc<str> {
        self.identity.as_ref().map_or("", |identity| &identity.name).into()
    }

    /// A header as text; none if it isn't visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }
}
