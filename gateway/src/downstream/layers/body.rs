//! The whole body, within its limits (B4): bytes, time, and the process's share of memory.
//!
//! The body is kept until the answer ends, since another replica may have to be asked with the same bytes; so what is
//! counted here is given back only then. Bytes are counted as they come: a declared length reserves nothing.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower::{Layer, Service};

use crate::flow::call::{Buffered, Buffers, Call};
use crate::flow::reply::Reply;

/// The largest buffer that a declared length makes us reserve at once; beyond it the buffer grows with what comes.
const FIRST_RESERVE_BYTES: usize = 1 << 20;

/// A body in one piece is copied out of hyper's read buffer (8 KiB) up to this size.
const COPIED_BYTES: usize = 4096;

/// Limits of one body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Bytes.
    pub bytes: u64,
    /// From the head to the last byte.
    pub time: Duration,
}

/// The layer.
#[derive(Clone)]
pub struct ReadBody {
    /// Shared by all requests.
    pub buffers: Arc<Buffers>,
    /// The limits in force when a request comes.
    pub limits: Arc<dyn Fn() -> BodyLimits + Send + Sync>,
}

impl<S> Layer<S> for ReadBody {
    type Service = BodyRead<S>;
    fn layer(&self, inner: S) -> BodyRead<S> {
        BodyRead {
            inner,
            read: self.clone(),
        }
    }
}

/// The service.
#[derive(Clone)]
pub struct BodyRead<S> {
    inner: S,
    read: ReadBody,
}

impl<S> Service<Call<Incoming>> for BodyRead<S>
where
    S: Service<Call<Bytes>, Response = Reply, Error = Fault> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Fault>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<Incoming>) -> Self::Future {
        let limits = (self.read.limits)();
        let buffers = self.read.buffers.clone();
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let call = read(call, limits, &buffers).await?;
            inner.call(call).await
        })
    }
}

async fn read(mut call: Call<Incoming>, limits: BodyLimits, buffers: &Arc<Buffers>) -> Result<Call<Bytes>, Fault> {
    if let Some(encoding) = call.head.headers.get(http::header::CONTENT_ENCODING)
        && encoding.as_bytes() != b"identity"
    {
        return Err(Fault::new(
            FaultKind::BodyEncoded,
            "A request body with a Content-Encoding is not accepted.",
        ));
    }
    if call.body.is_end_stream() {
        return Ok(call.with_body(Bytes::new()));
    }
    let declared = call.body.size_hint().lower();
    if declared > limits.bytes {
        return Err(too_large(limits));
    }
    let mut buffered = Buffered::none(buffers);
    let body = tokio::time::timeout(limits.time, collect(&mut call.body, declared, limits, &mut buffered))
        .await
        .map_err(|_| {
            let message = format!(
                "The request body did not arrive in time (limit body_time, {:?}).",
                limits.time
            );
            Fault::new(FaultKind::BodyTimeout, message)
        })??;
    call.buffered = Some(buffered);
    Ok(call.with_body(body))
}

async fn collect(
    body: &mut Incoming,
    declared: u64,
    limits: BodyLimits,
    buffered: &mut Buffered,
) -> Result<Bytes, Fault> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Fault::new(FaultKind::ClientGone, "The request body ended early."));
        };
        let Ok(data) = frame.into_data() else { continue };
        buffered.more(data.len() as u64)?;
        if (first.len() + all.len() + data.len()) as u64 > limits.bytes {
            return Err(too_large(limits));
        }
        if first.is_empty() && all.is_empty() {
            first = data; // often the only piece: then nothing is copied
            continue;
        }
        if all.is_empty() {
            all.reserve(
                (declared as usize)
                    .min(FIRST_RESERVE_BYTES)
                    .max(first.len() + data.len()),
            );
            all.extend_from_slice(&first);
            first = Bytes::new();
        }
        all.extend_from_slice(&data);
    }
    Ok(match all.is_empty() {
        // A small body is a slice of hyper's read buffer and would keep all of it until the answer ends.
        true if first.len() <= COPIED_BYTES => Bytes::copy_from_slice(&first),
        true => first,
        false => all.freeze(),
    })
}

fn too_large(limits: BodyLimits) -> Fault {
    let message = format!(
        "The request body is larger than {} bytes (limit body_bytes).",
        limits.bytes
    );
    Fault::new(FaultKind::BodyTooLarge, message)
}
