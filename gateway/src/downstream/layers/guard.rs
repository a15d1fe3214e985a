//! A panic of one request ends that request with a 500, and nothing else.

use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use tower::{Layer, Service};

use crate::flow::call::Call;
use crate::flow::reply::Reply;

/// The layer.
#[derive(Clone)]
pub struct Guard;

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;
    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner }
    }
}

/// The service.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
}

impl<S, B> Service<Call<B>> for Guarded<S>
where
    S: Service<Call<B>, Response = Reply, Error = Fault>,
{
    type Response = Reply;
    type Error = Fault;
    type Future = Caught<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<B>) -> Self::Future {
        let id = call.id.clone();
        Caught {
            inner: Box::pin(self.inner.call(call)),
            id,
        }
    }
}

/// The future of a guarded call.
pub struct Caught<F> {
    inner: Pin<Box<F>>,
    id: std::sync::Arc<str>,
}

impl<F: Future<Output = Result<Reply, Fault>>> Future for Caught<F> {
    type Output = Result<Reply, Fault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The future is dropped right after a panic and what it shares is atomic or poison-tolerant.
        match catch_unwind(AssertUnwindSafe(|| self.inner.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(_) => {
                tracing::error!(request = %self.id, "a request panicked; the panic's own message stands above");
                Poll::Ready(Err(Fault::new(FaultKind::Internal, "Internal error.")))
            }
        }
    }
}
