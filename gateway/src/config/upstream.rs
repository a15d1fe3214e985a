//! `[upstream]`: how the replicas are asked, chosen and given up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// vLLM's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Time for a connection to a replica. Default 2 s; after it another replica is tried.
    #[serde(with = "duration")]
    pub connect: Duration,
    /// Replicas that one request may be sent to before its first data line; one that can't be connected to isn't counted. Default 3,
    /// 1 = no second try.
    pub attempts: u32,
    /// An idle connection is closed after this time. Default 4 s. Danger: vLLM closes its side after 5 s, a longer time
    /// here makes requests fail on connections that are already gone.
    #[serde(with = "duration")]
    pub idle: Duration,
    /// The last bound of a whole answer's head, and of the first token of a stream: the engine may queue and prefill for long.
    /// Default 30 min. A replica that makes no progress is left sooner (`[health] hung_after`).
    #[serde(with = "duration")]
    pub answer: Duration,
    /// A stream that has begun and sends nothing for this long is given up. Default 60 s.
    #[serde(with = "duration")]
    pub stall: Duration,
    /// A replica gets a new session only while its running requests are at most this many times the mean of all. Default
    /// 1.25, at least 1. Lower spreads more evenly, higher keeps more sessions on the replica that has their KV cache.
    pub load_bound: f64,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            attempts: 3,
            idle: Duration::from_secs(4),
            answer: Duration::from_secs(30 * 60),
            stall: Duration::from_secs(60),
            load_bound: 1.25,
        }
    }
}
