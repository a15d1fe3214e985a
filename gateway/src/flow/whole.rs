//! A non-stream answer: the same attempts and stages, held whole. A failed one is asked anew, since nothing was shown.

use bytes::Bytes;
use sluice_policy::protocol::fault::Fault;
use sluice_policy::turn::{Facts, Turn};
use std::sync::Arc;

use super::attempt::{self, Tried};
use super::exchange::Exchange;
use super::plan;
use super::registry::Entry;
use crate::upstream::InFlight;

/// The message of the first replica that gives a whole one.
///
/// # Errors
/// The last fault when nothing is left to try, or why it was stopped.
pub async fn answer(
    exchange: &Arc<Exchange>,
    entry: &Entry,
    mut tried: Tried,
) -> (Tried, Result<(Bytes, Facts, InFlight), Fault>) {
    loop {
        let begun = tokio::select! {
            stop = entry.stopped() => return (tried, Err(stop.fault())),
            begun = attempt::next(exchange.clone(), std::mem::take(&mut tried)) => begun,
        };
        let (so_far, begun) = begun;
        tried = so_far;
        let mut live = match begun {
            Ok(live) => live,
            Err(fault) => return (tried, Err(fault)),
        };
        let body = tokio::select! {
            stop = entry.stopped() => return (tried, Err(stop.fault())),
            body = live.answer.collect(exchange.limits.answer_bytes) => body,
        };
        match body {
            Ok(body) => {
                let stages = plan::answer(&exchange.ask, &exchange.wishes, live.in_flight.replica());
                let message = Turn::whole(stages, &body).map(|(message, facts)| (message, facts, live.in_flight));
                return (tried, message);
            }
            Err(error) => {
                live.in_flight.replica().failed();
                tried = tried.after(attempt::fault_of(&error));
            }
        }
    }
}
