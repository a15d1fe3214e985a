//! `[history]`: past turns are made safe before they are sent (B30).

use serde::{Deserialize, Serialize};

/// What becomes of past turns that vLLM or its chat template would refuse.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistoryConfig {
    /// `on-refusal` (default): past `arguments` that aren't a JSON object in a string are mended or become `{}`, calls and tool
    /// results get the ids that they lack, and what only some templates refuse (a system message in the middle, a turn without
    /// content) is changed for the models whose template did. `off`: every message is sent as it came.
    pub normalise: Normalise,
}

/// See [`HistoryConfig::normalise`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalise {
    /// What vLLM refuses always, what a template refuses once it did.
    #[default]
    OnRefusal,
    /// Nothing.
    Off,
}
