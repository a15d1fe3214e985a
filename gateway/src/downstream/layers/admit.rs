//! Room in the process: one permit for each request from here to the end of its answer.

use sluice_policy::protocol::ask::Endpoint;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{Layer, Service};

use super::trace::{Either, refuse};
use crate::flow::call::Call;
use crate::flow::registry::Registry;
use crate::flow::reply::Reply;

/// The layer.
#[derive(Clone)]
pub struct Admit {
    /// Counts what runs.
    pub registry: Arc<Registry>,
}

impl<S> Layer<S> for Admit {
    type Service = Admitted<S>;
    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted {
            inner,
            registry: self.registry.clone(),
        }
    }
}

/// The service.
#[derive(Clone)]
pub struct Admitted<S> {
    inner: S,
    registry: Arc<Registry>,
}

impl<S, B> Service<Call<B>> for Admitted<S>
where
    S: Service<Call<B>, Response = Reply, Error = Fault>,
{
    type Response = Reply;
    type Error = Fault;
    type Future = Either<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call<B>) -> Self::Future {
        if matches!(
            call.endpoint,
            Endpoint::Health | Endpoint::Ping | Endpoint::Version | Endpoint::Cancel(_)
        ) {
            // Asked most when the process is full: never refused for that.
            return Either::Left(self.inner.call(call));
        }
        match self.registry.admit() {
            Some(permit) => {
                call.permit = Some(permit);
                Either::Left(self.inner.call(call))
            }
            None => {
                let message = format!("Too many requests at once (limit {}).", self.registry.limit());
                refuse(Fault::new(FaultKind::Capacity, message))
            }
        }
    }
}
