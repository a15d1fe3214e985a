//! `[hold]`: requests and answers that wait for a replica which is away (B31, B35).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Waiting for a replica's return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoldConfig {
    /// How long a replica that was there is waited for, by a request that no other one can take, and by an answer that no other one can
    /// go on with. Default 10 min. Streaming clients get keep-alive comments meanwhile.
    #[serde(with = "duration")]
    pub time: Duration,
    /// Requests of one model that wait so at once. Default 256; more are refused with 503. 0 = none waits. Answers that have begun
    /// aren't counted.
    pub count: usize,
}

impl Default for HoldConfig {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(600),
            count: 256,
        }
    }
}
