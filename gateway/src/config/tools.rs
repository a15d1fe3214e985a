//! `[tools]`: who finds the tool calls in an answer (B19), what becomes of those that can't be checked (B25), and of those that
//! aren't valid (B26, B27).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{duration, size};

/// Tool calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolsConfig {
    /// `gateway` (default): vLLM is asked for raw text and Sluice finds the calls, also on a vLLM without
    /// `--enable-auto-tool-choice`. `engine`: vLLM parses; its calls are checked and repaired, what its parsers miss is found, but
    /// what they have lost can't be asked again.
    pub parsing: ToolParsing,
    /// Tools whose schema can't be compiled, so that nobody can check their calls: `pass` (default) lets them through unchecked
    /// (verdict `passed_unchecked`), `refuse` answers 400. A tool with `strict: true` is always refused then.
    pub bad_schema: BadSchema,
    /// How many calls of one answer are asked again when they aren't valid. Default 1, at most 8; 0: none is. Each one costs the
    /// engine the call once more; its prompt is in the cache.
    pub reask: u8,
    /// Time for a call that is asked again. Default 30 s; after it: `on_invalid`.
    #[serde(with = "duration")]
    pub reask_time: Duration,
    /// Tokens of a call that is asked again. Default 2,048; above: `on_invalid`.
    pub reask_tokens: u64,
    /// When a stream shows a call. `hold`: when it is whole and valid. `certain`: as its bytes become certain, so that no repair can
    /// change them. `auto` (default): held, and past `release_bytes` or `release_after` as `certain`. A key may have a mode of its
    /// own, and the header `x-sluice-tools` says it for one request. A call of which something was shown can't be asked again: if
    /// it isn't valid, the answer fails.
    pub release: ReleaseMode,
    /// With `auto`: text of a call that is held. Default 4 KiB.
    #[serde(with = "size")]
    pub release_bytes: u64,
    /// With `auto`: how long a call is held. Default 10 s.
    #[serde(with = "duration")]
    pub release_after: Duration,
    /// What the client gets of a call that still isn't valid. `text` (default): its raw text as content. `pass`: the call as the
    /// model wrote it, if it is JSON with a name and arguments, else text. `error`: the answer fails with `invalid_tool_call`.
    pub on_invalid: OnInvalid,
}

impl Default for ToolsConfig {
    fn default() -> Self {
        Self {
            parsing: ToolParsing::default(),
            bad_schema: BadSchema::default(),
            reask: 1,
            reask_time: Duration::from_secs(30),
            reask_tokens: 2048,
            release: ReleaseMode::default(),
            release_bytes: 4 << 10,
            release_after: Duration::from_secs(10),
            on_invalid: OnInvalid::default(),
        }
    }
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

/// What becomes of a call that isn't valid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInvalid {
    /// Its raw text is content.
    #[default]
    Text,
    /// It is a call as it was written.
    Pass,
    /// The answer fails.
    Error,
}

/// When a call is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum ReleaseMode {
    /// When it is whole and valid.
    Hold,
    /// As its bytes become certain.
    Certain,
    /// Held within bounds, then as they become certain.
    #[default]
    Auto,
}
