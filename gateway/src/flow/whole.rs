//! A non-stream answer: the same attempts and stages, held whole. A failed one is asked anew, since nothing was shown.

use bytes::Bytes;
use sluice_policy::protocol::fault::{Fault, FaultKind, Side};
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
        // vLLM sends head and body at once: what comes after the head is bounded as the silence of a stream is.
        let stall = exchange.limits.stall;
        let body = tokio::select! {
            stop = entry.stopped() => return (tried, Err(stop.fault())),
            body = tokio::time::timeout(stall, live.answer.collect(exchange.limits.answer_bytes)) => body,
        };
        let fault = match body {
            Ok(Ok(body)) => {
                let stages = plan::answer(&exchange.ask, &exchange.wishes, live.in_flight.replica());
                match Turn::whole(stages, &body) {
                    Ok((message, facts)) => return (tried, Ok((message, facts, live.in_flight))),
                    // A message that is no whole one (B10) is the replica's failure; what it says of the request isn't.
                    Err(fault) if fault.kind.side() == Side::Upstream => fault,
                    Err(fault) => return (tried, Err(fault)),
                }
            }
            Ok(Err(error)) => {
                live.in_flight.replica().failed();
                attempt::fault_of(&error)
            }
            Err(_) => Fault::new(
                FaultKind::UpstreamStalled,
                format!("The replica's answer did not end within {stall:?}."),
            ),
        };
        tried = tried.after(fault);
    }
}
