//! `[continuation]`: what becomes of a streamed answer whose replica is lost in the middle (B31).

use serde::{Deserialize, Serialize};

/// Going on elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContinuationConfig {
    /// Default true: another replica goes on with the answer, from its text so far; the client sees one answer. False: an error
    /// event ends it.
    pub enabled: bool,
    /// How often one answer goes on. Default 3, at least 1.
    pub count: u32,
}

impl Default for ContinuationConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            count: 3,
        }
    }
}
