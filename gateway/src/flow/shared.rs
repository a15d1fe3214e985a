//! What other gateways know of a conversation that is new here, and what they are told of all (`affinity`).

use super::exchange::Exchange;
use crate::upstream::Choice;

/// Before the first attempt. Known sessions, and gateways that share nothing, pass at once.
pub(super) async fn ask(exchange: &Exchange) {
    let Some(affinity) = &exchange.affinity else { return };
    let (backend, session) = (exchange.backend(), exchange.session.hash);
    if exchange.candidates.hint().is_some() || backend.routing().knows(session) {
        return;
    }
    // Boxed: it is rare, and would make room in every attempt.
    if let Some(hint) = Box::pin(affinity.ask(backend, session, &exchange.chain)).await {
        exchange.candidates.learns(hint);
    }
}

/// The conversation goes there.
pub(super) fn tell(exchange: &Exchange, choice: &Choice) {
    if let Some(affinity) = &exchange.affinity {
        let session = exchange.session.hash;
        affinity.tell(exchange.backend(), session, &exchange.chain, choice.replica.name());
    }
}
