//! `[admission]`: what a replica is given, and who waits for it (B34).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{duration, size};

/// A place for each request before it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// Requests wait here for what a replica can hold. Default true. Off, all go to vLLM at once, and wait there in the order in
    /// which they came.
    pub enabled: bool,
    /// Sequences that a replica is given at once. 0 (default) = `max_num_seqs` of its profile or simulator; no bound for an external one,
    /// which doesn't say it.
    pub sequences: u32,
    /// Requests that wait, for each backend. Default 512; above: 503.
    pub queue: usize,
    /// And those of one key. Default 256; above: 429.
    pub queue_of_key: usize,
    /// And their bodies. Default 256 MiB; above: 503.
    #[serde(with = "size")]
    pub queue_bytes: u64,
    /// A request that is expected to wait longer is refused at once, with 503 and an honest `Retry-After`; one that has waited three
    /// times as long is refused after all. Default 10 s.
    #[serde(with = "duration")]
    pub queue_wait: Duration,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            sequences: 0,
            queue: 512,
            queue_of_key: 256,
            queue_bytes: 256 << 20,
            queue_wait: Duration::from_secs(10),
        }
    }
}
