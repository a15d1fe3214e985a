//! `[tools]`: who finds the tool calls in an answer (B19), and what becomes of those that can't be checked (B25).

use serde::{Deserialize, Serialize};

/// Tool calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolsConfig {
    /// `gateway` (default): vLLM is asked for raw text and Sluice finds the calls, also on a vLLM without
    /// `--enable-auto-tool-choice`. `engine`: all parsing is left to vLLM, with its faults.
    pub parsing: ToolParsing,
    /// Tools whose schema can't be compiled, so that nobody can check their calls: `pass` (default) lets them through unchecked
    /// (verdict `passed_unchecked`), `refuse` answers 400. A tool with `strict: true` is always refused then.
    pub bad_schema: BadSchema,
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

/// What becomes of a request with a schema that can't be compiled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadSchema {
    /// Its calls aren't checked.
    #[default]
    Pass,
    /// 400, naming the tool.
    Refuse,
}
