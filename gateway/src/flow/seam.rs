//! Another replica for an answer whose own was lost in the middle (B31): found, waited for, asked.
//!
//! Enters: who asked last, what has been tried, the question that `policy` made of the answer so far. Leaves: an answer that goes
//! on, or why there is none. Replicas that failed are left out until nobody else is left; then, within `hold`, all may be asked
//! again: the lost one may have been restarted. Tokens and text are `again`'s.
//!
//! | what came | what follows |
//! | --- | --- |
//! | it goes on | the session is pinned there |
//! | it failed for its own reasons | the next usable one |
//! | two engine deaths | `poison` |
//! | it refuses, or no token is left | the end |
//! | nobody is usable | a look every `PAUSE`, until `hold` is over |

use sluice_policy::protocol::fault::Fault;
use sluice_policy::turn::AskAgain;
use std::time::Instant;

use super::again::{Asker, Begun, Unasked};
use super::attempt::Tried;
use super::hold::PAUSE;
use super::relay::Asking;
use super::shared;
use crate::upstream::Choice;

/// The replica of the last answer is asked first.
pub(super) fn at_hand(asker: Asker, tried: Tried, question: AskAgain) -> Asking {
    Box::pin(async move {
        let (asker, begun) = asker.ask(question.clone()).await;
        match begun {
            Err(Unasked::Failed(fault)) => after(asker, tried, question, fault).await,
            begun => (asker, tried, begun),
        }
    })
}

/// The replica of the last answer is lost.
pub(super) fn elsewhere(asker: Asker, tried: Tried, question: AskAgain) -> Asking {
    Box::pin(search(asker, tried, question))
}

async fn after(
    asker: Asker,
    mut tried: Tried,
    question: AskAgain,
    fault: Fault,
) -> (Asker, Tried, Result<Begun, Unasked>) {
    if !fault.kind.retryable() {
        return (asker, tried, Err(Unasked::Failed(fault)));
    }
    tried.failed(fault);
    search(asker, tried, question).await
}

async fn search(mut asker: Asker, mut tried: Tried, question: AskAgain) -> (Asker, Tried, Result<Begun, Unasked>) {
    let exchange = asker.exchange().clone();
    let until = Instant::now() + exchange.limits.hold.time;
    // What the client hears if nobody goes on: not what became of the last try.
    let lost = tried.last_failure();
    let mut left_out: Vec<usize> = place(&asker).into_iter().collect();
    loop {
        if tried.is_poison().await {
            return (asker, tried, Err(Unasked::Failed(Fault::poison())));
        }
        let Some(choice) = choose(&asker, &left_out) else {
            if Instant::now() >= until {
                return (asker, tried, Err(Unasked::Failed(lost)));
            }
            left_out.clear();
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        tried.moves(&choice);
        exchange.moves(&choice);
        shared::tell(&exchange, &choice);
        left_out.push(choice.index);
        let (asked, begun) = asker.at(choice.replica.clone()).ask(question.clone()).await;
        asker = asked;
        match begun {
            Ok(mut begun) => {
                begun.live.routed = Some(choice.routed);
                return (asker, tried, Ok(begun));
            }
            Err(Unasked::Failed(fault)) if fault.kind.retryable() => tried.failed(fault),
            begun => return (asker, tried, begun),
        }
    }
}

/// Where the replica that was lost stands among those of its backend.
fn place(asker: &Asker) -> Option<usize> {
    asker.exchange().backend().slot_of(&asker.replica_name())
}

/// A replica that may be asked now; not one that rests and would only be asked for want of a better one.
fn choose(asker: &Asker, left_out: &[usize]) -> Option<Choice> {
    let exchange = asker.exchange();
    let backend = exchange.backend();
    let choice = || backend.choose(exchange.wanted(left_out));
    backend.has_usable(left_out).then(choice).flatten()
}
