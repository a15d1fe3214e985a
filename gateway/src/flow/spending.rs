//! What a request takes of its key's limits (B3): refused before its body is read if that can be told, charged when its prompt is known,
//! settled by its account at the end.

use sluice_policy::protocol::fault::{Fault, FaultKind};

use crate::keys::Exceeded;
use crate::record::Record;

/// What the client is told.
pub fn refusal(exceeded: Exceeded) -> Fault {
    match exceeded {
        Exceeded::Requests { limit, wait } => {
            let message = format!("This key may send {} requests a minute.", limit.0);
            Fault::new(FaultKind::RequestRate, message).with_retry_after(wait)
        }
        Exceeded::Tokens { limit, wait } => {
            let message = format!("This key may use {} tokens a minute.", limit.0);
            Fault::new(FaultKind::TokenRate, message).with_retry_after(wait)
        }
        Exceeded::Concurrency { limit } => {
            let message = format!("This key may have {limit} requests at once.");
            Fault::new(FaultKind::KeyLimited, message)
        }
    }
}

/// Tokens that a request used, if its prompt was charged with `prompt`. One that was never sent, or that the engine refused or failed, costs
/// nothing; where the engine didn't say, the estimate stands.
pub fn used_tokens(record: &Record, prompt: u64) -> u64 {
    if record.attempts == 0 || (record.status >= 400 && !record.cancelled) {
        return 0;
    }
    let prompt = record.prompt_tokens.unwrap_or(prompt);
    prompt.saturating_add(record.completion_tokens.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_is_charged_in_the_end() {
        let record = |attempts, status, cancelled, prompt_tokens, completion_tokens| Record {
            attempts,
            status,
            cancelled,
            prompt_tokens,
            completion_tokens,
            ..Record::default()
        };
        for (record, expected) in [
            (record(1, 200, false, Some(12), Some(30)), 42),
            // Without the engine's word the estimate stands.
            (record(1, 200, false, None, Some(30)), 130),
            (record(1, 200, false, None, None), 100),
            // Left in prefill, which was computed.
            (record(1, 0, true, None, None), 100),
            (record(1, 499, true, None, Some(3)), 103),
            // Never sent, refused, failed before a byte.
            (record(0, 0, true, None, None), 0),
            (record(0, 503, false, None, None), 0),
            (record(1, 400, false, None, None), 0),
            (record(3, 502, false, None, None), 0),
        ] {
            assert_eq!(used_tokens(&record, 100), expected, "{record:?}");
        }
    }
}
