//! `[tools]`: who finds the tool calls in an answer (B19).

use serde::{Deserialize, Serialize};

/// Tool calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolsConfig {
    /// `gateway` (default): vLLM is asked for raw text and Sluice finds the calls, also on a vLLM without
    /// `--enable-auto-tool-choice`. `engine`: all parsing is left to vLLM, with its faults.
    pub parsing: ToolParsing,
}

/// Who finds the tool calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolParsing {
    /// Sluice.
    #[default]
    Gateway,
    /// vLLM.
    Engine,
}
