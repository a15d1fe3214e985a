//! A place for the request before it is sent (B34): at once, after a wait in the queue, or none.
//!
//! Enters: an exchange, the replicas already tried. Leaves: the replica to ask, or why there is none. The place is the exchange's from
//! then on: further attempts at this backend, questions and seams keep it. Dropping the future is leaving the queue, so that a client
//! that leaves, a cancel and the drain need nothing of their own here.

use sluice_policy::admission::{Reason, Refusal};
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::account::Queued;
use super::exchange::Exchange;
use crate::upstream::Choice;
use crate::upstream::admission::{self, Entered};

/// One that waits looks by itself so often: a replica that becomes ready calls nobody.
const LOOK: Duration = Duration::from_millis(500);

/// The replica of the next attempt; `None` if no replica may be asked.
///
/// # Errors
/// The queue is full, or the wait too long.
pub(super) async fn choose(exchange: &Exchange, tried: &[usize]) -> Result<Option<Choice>, Fault> {
    let (Some(arrival), Some(limits)) = (&exchange.arrival, &exchange.limits.queue) else {
        return Ok(exchange.backend().choose(exchange.wanted(tried)));
    };
    if exchange.candidates.place().is_some() {
        let choice = exchange.backend().choose(exchange.wanted(tried));
        return Ok(choice.inspect(|choice| exchange.moves(choice)));
    }
    let mut entered = admission::enter(exchange.backend(), exchange.wanted(tried), arrival, limits);
    let mut waited = false;
    loop {
        match entered {
            Entered::Placed(choice, place) => {
                if waited {
                    exchange.progress.leaves_queue(Queued::Waited);
                }
                exchange.candidates.takes(place);
                exchange.queued.store(0, Ordering::Relaxed);
                return Ok(Some(choice));
            }
            Entered::Nobody => {
                if waited {
                    exchange.progress.leaves_queue(Queued::Waited);
                }
                return Ok(None);
            }
            Entered::Refused(refusal) => {
                exchange.progress.leaves_queue(queued(refusal.reason));
                return Err(fault(refusal));
            }
            Entered::Waits(waiting) => {
                if waited {
                    // Either way it looks again.
                    let _ = tokio::time::timeout(LOOK, waiting.called()).await;
                } else {
                    waited = true;
                    exchange.progress.queues(Instant::now());
                    exchange.queued.store(waiting.id(), Ordering::Relaxed);
                }
                entered = waiting.look(exchange.wanted(tried));
            }
        }
    }
}

fn queued(reason: Reason) -> Queued {
    match reason {
        Reason::Full => Queued::Full,
        Reason::Key => Queued::KeyFull,
        Reason::Wait => Queued::TooLong,
        Reason::Waited => Queued::Overdue,
    }
}

fn fault(refusal: Refusal) -> Fault {
    let (kind, message) = match refusal.reason {
        Reason::Full => (FaultKind::Capacity, "The queue for this model is full (limit queue)."),
        Reason::Key => (
            FaultKind::KeyLimited,
            "This key has as many requests in the queue as one key may (limit queue_of_key).",
        ),
        Reason::Wait => (
            FaultKind::Capacity,
            "The wait for this model would be too long (limit queue_wait).",
        ),
        Reason::Waited => (
            FaultKind::Capacity,
            "The wait for this model took too long (limit queue_wait).",
        ),
    };
    Fault::new(kind, message).with_retry_after(refusal.retry_after)
}
