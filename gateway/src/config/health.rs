//! `[health]`: when a replica is left alone, and how it comes back (B36).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Breaker and progress of each replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthConfig {
    /// How often each replica's engine is looked at (its `/metrics`). Default 1 s, 100 ms to 5 s. Each look is one answer of 70 KB (vLLM 0.32).
    #[serde(with = "duration")]
    pub probe: Duration,
    /// A replica with requests in flight whose engine makes no step for so long hangs: its streams go on elsewhere. Default 60 s; three
    /// times the expected prefill of all that runs there, if that is more. Danger: below a long step's time, healthy engines are left.
    #[serde(with = "duration")]
    pub hung_after: Duration,
    /// A replica that fails is left alone for so long. Default 500 ms; doubled each time that the trials after it fail.
    #[serde(with = "duration")]
    pub rest: Duration,
    /// The longest such rest. Default 10 s.
    #[serde(with = "duration")]
    pub longest_rest: Duration,
    /// Answers of 500 and above in a row, with no good one between, after which a replica is left alone. Default 5, at least 1. A broken
    /// connection needs no second one.
    pub refusals: u32,
    /// Requests at once that try a replica that may be back. Default 2, at least 1. The rest goes elsewhere, if it can.
    pub trials: usize,
    /// Once the trials went well it gets more and more requests, and all after so long. Default 30 s.
    #[serde(with = "duration")]
    pub ramp: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            probe: Duration::from_secs(1),
            hung_after: Duration::from_secs(60),
            rest: Duration::from_millis(500),
            longest_rest: Duration::from_secs(10),
            refusals: 5,
            trials: 2,
            ramp: Duration::from_secs(30),
        }
    }
}
