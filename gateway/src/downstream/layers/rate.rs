//! A key's own limits (B3): looked at before a byte of the body is read, told in OpenAI's headers. A key without limits pays nothing.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use sluice_policy::protocol::ask::Endpoint;
use sluice_policy::protocol::fault::Fault;
use std::time::Duration;

use super::gate::Check;
use crate::flow::call::Call;
use crate::flow::spending;
use crate::keys::{Allowance, Rate};

/// Bytes of a body for each token of its prompt: only says how long a key in debt must wait.
const BYTES_PER_TOKEN: u64 = 4;

/// Limit, what is left, time until all is there again.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// See the module.
#[derive(Clone)]
pub struct Rates;

impl Check for Rates {
    fn check<B>(&self, call: &mut Call<B>) -> Result<(), Fault> {
        let Some(allowance) = call.identity.as_ref().and_then(|key| key.allowance.as_ref()) else {
            return Ok(());
        };
        // Answered here: nothing is used.
        if matches!(
            call.endpoint,
            Endpoint::Health
                | Endpoint::Ping
                | Endpoint::Version
                | Endpoint::Models
                | Endpoint::Model(_)
                | Endpoint::Cancel(_)
        ) {
            return Ok(());
        }
        let length = call.head.headers.get(CONTENT_LENGTH);
        let bytes = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let charge = allowance.begin(bytes.unwrap_or_default() / BYTES_PER_TOKEN);
        call.charge = Some(charge.map_err(spending::refusal)?);
        Ok(())
    }
}

/// How the key stands, as OpenAI says it.
pub fn write(allowance: &Allowance, headers: &mut HeaderMap) {
    let rates = [(REQUESTS, allowance.request_rate()), (TOKENS, allowance.token_rate())];
    for (names, rate) in rates {
        let Some(Rate { limit, left, reset }) = rate else {
            continue;
        };
        let [limit_name, left_name, reset_name] = names;
        headers.insert(limit_name, HeaderValue::from(limit));
        headers.insert(left_name, HeaderValue::from(left));
        if let Ok(reset) = HeaderValue::from_str(&reset_text(reset)) {
            headers.insert(reset_name, reset);
        }
    }
}

/// As OpenAI writes it: `0s`, `20ms`, `1.5s`, `6m0s`; rounded up to whole milliseconds.
fn reset_text(reset: Duration) -> String {
    let millis = reset.as_nanos().div_ceil(1_000_000);
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let (seconds, thousandths) = (rest / 1_000, rest % 1_000);
    let fraction = match thousandths {
        0 => String::new(),
        _ => format!(".{thousandths:03}").trim_end_matches('0').to_owned(),
    };
    match (minutes, seconds, thousandths) {
        (0, 0, 1..) => format!("{thousandths}ms"),
        (0, ..) => format!("{seconds}{fraction}s"),
        _ => format!("{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_openai_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ms"),
            (20_000_000, "20ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (59_999_999_999, "1m0s"),
            (90_951_000_000, "1m30.951s"),
            (360_000_000_000, "6m0s"),
        ] {
            assert_eq!(reset_text(Duration::from_nanos(nanos)), text);
        }
    }
}
