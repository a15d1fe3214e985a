//! An answer that is forwarded as the engine sent it, streams too: endpoints without the answer pipeline.

use bytes::Bytes;
use sluice_policy::health::breaker::Event;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::task::{Context, Poll};

use super::account::Account;
use super::attempt::{self, Live};
use super::exchange::Exchange;
use super::registry::Registered;
use super::reply::BodyError;
use std::sync::Arc;

/// See the module.
pub struct PassThrough {
    live: Option<Box<Live>>,
    account: Box<Account>,
    registered: Registered,
    /// Its body counts against the buffers until the end.
    _exchange: Arc<Exchange>,
}

impl PassThrough {
    /// Over an answer that has begun.
    pub fn new(exchange: Arc<Exchange>, registered: Registered, account: Box<Account>, live: Live) -> Self {
        PassThrough {
            live: Some(Box::new(live)),
            account,
            registered,
            _exchange: exchange,
        }
    }

    /// Nothing more will come.
    pub fn is_over(&self) -> bool {
        self.live.is_none()
    }

    /// The next bytes. An early end of the engine's answer is an aborted response: nothing may be added to it.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if let Some(stop) = self.registered.entry.poll_stop(cx)
            && self.live.take().is_some()
        {
            self.account.refused(&stop.fault());
            return Poll::Ready(Some(Err(BodyError::EndedEarly)));
        }
        let Some(live) = &mut self.live else {
            return Poll::Ready(None);
        };
        if live.in_flight.poll_left(cx).is_ready() {
            self.live = None;
            self.account.refused(&attempt::hangs());
            return Poll::Ready(Some(Err(BodyError::EndedEarly)));
        }
        match live.answer.poll_data(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(bytes))) => {
                live.in_flight.replica().health.spoke();
                self.account.sent(bytes.len());
                Poll::Ready(Some(Ok(bytes)))
            }
            Poll::Ready(None) => {
                live.in_flight.replica().health.step(Event::Good);
                self.account.finished_plain();
                self.live = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => {
                self.live = None;
                self.account.refused(&Fault::new(
                    FaultKind::UpstreamBroke,
                    "The replica's answer ended early.",
                ));
                Poll::Ready(Some(Err(BodyError::EndedEarly)))
            }
        }
    }
}
