//! `[routing]`: how easily conversations move between replicas.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Margins around the expected time to the first token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingConfig {
    /// A conversation leaves its replica for one that would need less than this part of the time. Default 0.7, 0.1 to 1. Higher
    /// spreads load sooner and computes more prompts anew.
    pub stay_ratio: f64,
    /// And only if it saves at least so much. Default 50 ms.
    #[serde(with = "duration")]
    pub stay_margin: Duration,
    /// A replica that got nothing for so long gets a new session now and then, so that a wrong estimate is noticed. Default 60 s.
    #[serde(with = "duration")]
    pub trial_after: Duration,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self {
            stay_ratio: 0.7,
            stay_margin: Duration::from_millis(50),
            trial_after: Duration::from_secs(60),
        }
    }
}
