//! `[continuation]`: what becomes of a streamed answer whose replica is lost in the middle (B31).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Going on elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContinuationConfig {
    /// Default true: another replica goes on with the answer, from its text so far; the client sees one answer. False: an error
    /// event ends it.
    pub enabled: bool,
    /// How often one answer goes on. Default 3, at least 1.
    pub count: u32,
    /// How long a replica is waited for that can go on, also the same one after its restart. Default 10 min. The client gets
    /// keep-alive comments meanwhile.
    #[serde(with = "duration")]
    pub hold: Duration,
}

impl Default for ContinuationConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            count: 3,
            hold: Duration::from_secs(600),
        }
    }
}
