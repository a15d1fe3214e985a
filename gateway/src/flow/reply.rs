//! What the client gets: a response whose body is whole, relayed, or passed through.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

use super::gate::{Gated, More};
use super::{PassThrough, Relay};

/// A response on its way to the client.
pub type Reply = Response<ReplyBody>;

/// Its body. `hyper` polls it only when the socket has room, and drops it when the client leaves.
pub enum ReplyBody {
    /// Known from the start.
    Whole(Bytes),
    /// A streamed answer through the pipeline.
    Relay(Box<Gated<Relay>>),
    /// A streamed answer as the engine sent it.
    PassThrough(Box<Gated<PassThrough>>),
}

impl ReplyBody {
    /// See [`ReplyBody::Relay`].
    pub fn relay(relay: Relay) -> Self {
        ReplyBody::Relay(Box::new(Gated::new(relay)))
    }

    /// See [`ReplyBody::PassThrough`].
    pub fn pass_through(pass: PassThrough) -> Self {
        ReplyBody::PassThrough(Box::new(Gated::new(pass)))
    }
}

/// Why a body is cut: the client sees an aborted response, never a clean end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The engine's answer ended early and was passed through as it came.
    #[error("the answer of the engine ended early")]
    EndedEarly,
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            ReplyBody::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            ReplyBody::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            ReplyBody::Relay(relay) => relay
                .poll_with(cx, Relay::poll)
                .map(|frame| frame.map(|bytes| Ok(Frame::data(bytes)))),
            ReplyBody::PassThrough(pass) => pass
                .poll_with(cx, |pass, cx| pass.poll(cx).map(|bytes| (bytes, More::Perhaps)))
                .map(|frame| frame.map(|bytes| bytes.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ReplyBody::Whole(bytes) => bytes.is_empty(),
            ReplyBody::Relay(relay) => relay.get_ref().is_over(),
            ReplyBody::PassThrough(pass) => pass.get_ref().is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ReplyBody::Relay(_) | ReplyBody::PassThrough(_) => SizeHint::default(),
        }
    }
}

/// A whole JSON body.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(ReplyBody::Whole(body.into()));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}
