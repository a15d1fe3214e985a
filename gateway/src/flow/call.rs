//! A request as the layers hand it to the flow: who asks for what, with its place in the process and its bytes.

use http::request;
use sluice_policy::protocol::ask::Endpoint;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::refusal::Claim;
use super::registry::Permit;
use crate::keys::{Charge, KeyId};

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
    /// Its share of what its key may use, if that is limited.
    pub charge: Option<Charge>,
    /// Bytes of it that count against the process's buffers.
    pub buffered: Option<Buffered>,
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
            charge,
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
            charge,
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

/// Bytes of request bodies that the process holds.
#[derive(Debug)]
pub struct Buffers {
    held: AtomicU64,
    limit: u64,
}

impl Buffers {
    /// With `limit` bytes in all.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Buffers {
            held: AtomicU64::new(0),
            limit,
        })
    }
}

/// A share of the [`Buffers`], given back when dropped.
#[derive(Debug)]
pub struct Buffered {
    buffers: Arc<Buffers>,
    bytes: u64,
}

impl Buffered {
    /// Nothing yet.
    pub fn none(buffers: &Arc<Buffers>) -> Self {
        Buffered {
            buffers: buffers.clone(),
            bytes: 0,
        }
    }

    /// That many more.
    ///
    /// # Errors
    /// The process holds all it may.
    pub fn more(&mut self, bytes: u64) -> Result<(), Fault> {
        self.bytes += bytes;
        let held = self.buffers.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > self.buffers.limit {
            let message = format!(
                "The gateway holds as many request bytes as it may (limit buffered_bytes, {}).",
                self.buffers.limit
            );
            return Err(Fault::new(FaultKind::BuffersFull, message));
        }
        Ok(())
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.buffers.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
