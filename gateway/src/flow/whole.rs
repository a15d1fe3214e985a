//! A non-stream answer: the same attempts and stages, held whole. A failed one is asked anew, since nothing was shown; a call
//! of it that isn't valid is asked again (B26).

use bytes::Bytes;
use sluice_policy::health::breaker::Event;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use sluice_policy::turn::{Budget, Facts, Turn, Whole};
use std::sync::Arc;

use super::again::{Asker, Begun, Unasked};
use super::attempt::{self, Tried};
use super::exchange::Exchange;
use super::plan;
use super::registry::Entry;
use crate::upstream::{InFlight, Replica, UpstreamError};

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
            () = live.in_flight.left() => Ok(Err(Unheard::Hangs)),
            body = tokio::time::timeout(stall, live.answer.collect(exchange.limits.answer_bytes)) => {
                body.map(|body| body.map_err(Unheard::Broke))
            }
        };
        let fault = match body {
            Ok(Ok(body)) => {
                live.in_flight.replica().health.spoke();
                live.in_flight.replica().health.step(Event::Good);
                let told = tokio::select! {
                    stop = entry.stopped() => return (tried, Err(stop.fault())),
                    told = tell(exchange, live.in_flight.replica(), &body) => told,
                };
                match told {
                    Ok((message, facts)) => {
                        if let Some(routed) = &mut live.routed {
                            routed.used(&facts.usage);
                        }
                        exchange.used(&facts.usage);
                        return (tried, Ok((message, facts, live.in_flight)));
                    }
                    // A message that is no whole one (B10) is the replica's failure; what it says of the request isn't.
                    Err(fault) if fault.kind.retryable() => fault,
                    Err(fault) => return (tried, Err(fault)),
                }
            }
            Ok(Err(Unheard::Hangs)) => attempt::hangs(),
            Ok(Err(Unheard::Broke(error))) => {
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

/// Why a body isn't whole.
enum Unheard {
    /// The replica was given up (B36).
    Hangs,
    /// It broke.
    Broke(UpstreamError),
}

/// The message of this body, calls asked again if need be.
async fn tell(exchange: &Arc<Exchange>, replica: &Arc<Replica>, body: &Bytes) -> Result<(Bytes, Facts), Fault> {
    let mut whole = Turn::whole_or_ask(plan::answer(&exchange.ask, &exchange.wishes, replica), body)?;
    let mut kept = None;
    loop {
        let (question, retold) = match whole {
            Whole::Answer(message, facts) => return Ok((message, facts)),
            Whole::AskAgain(question, retold) => (question, retold),
        };
        let asker = kept
            .take()
            .unwrap_or_else(|| Asker::new(exchange.clone(), replica.clone()));
        let (asker, begun) = asker.ask(question).await;
        kept = Some(asker);
        let answer = match begun {
            Ok(begun) => collect(exchange, begun).await.map_err(Unasked::Failed),
            Err(unasked) => Err(unasked),
        };
        whole = match answer {
            Ok((answer, budget, prompt_tokens)) => retold.heard(&answer, budget, prompt_tokens)?,
            Err(Unasked::NoRoom { .. }) => retold.cut_short()?,
            Err(Unasked::Failed(_)) if retold.can_give_up() => retold.give_up()?,
            Err(Unasked::Failed(fault)) => return Err(fault),
        };
    }
}

async fn collect(exchange: &Exchange, mut begun: Begun) -> Result<(Bytes, Budget, u64), Fault> {
    let limits = &exchange.limits;
    // The head came with the body, within the question's own time.
    let body = tokio::time::timeout(limits.stall, begun.live.answer.collect(limits.answer_bytes)).await;
    match body {
        Ok(Ok(body)) => Ok((body, begun.budget, begun.prompt_tokens)),
        Ok(Err(error)) => Err(attempt::fault_of(&error)),
        Err(_) => Err(Fault::new(
            FaultKind::UpstreamStalled,
            "The replica's answer did not end in time.",
        )),
    }
}
