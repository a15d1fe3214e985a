//! A layer that only decides: a call goes on as it is, or ends here with a fault.

use sluice_policy::protocol::fault::Fault;
use std::future::Ready;
use std::task::{Context, Poll};
use tower::{Layer, Service};

use crate::flow::call::Call;
use crate::flow::reply::Reply;

/// What decides.
pub trait Check: Clone {
    /// Looks at a call, and may note on it what was found.
    ///
    /// # Errors
    /// What the client is told instead of an answer.
    fn check<B>(&self, call: &mut Call<B>) -> Result<(), Fault>;
}

/// The layer.
#[derive(Clone)]
pub struct Gate<C>(pub C);

impl<C: Check, S> Layer<S> for Gate<C> {
    type Service = Gated<C, S>;
    fn layer(&self, inner: S) -> Gated<C, S> {
        let check = self.0.clone();
        Gated { check, inner }
    }
}

/// The service.
#[derive(Clone)]
pub struct Gated<C, S> {
    check: C,
    inner: S,
}

impl<C: Check, S, B> Service<Call<B>> for Gated<C, S>
where
    S: Service<Call<B>, Response = Reply, Error = Fault>,
{
    type Response = Reply;
    type Error = Fault;
    type Future = futures_util::future::Either<S::Future, Ready<Result<Reply, Fault>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call<B>) -> Self::Future {
        match self.check.check(&mut call) {
            Ok(()) => futures_util::future::Either::Left(self.inner.call(call)),
            Err(fault) => futures_util::future::Either::Right(std::future::ready(Err(fault))),
        }
    }
}
