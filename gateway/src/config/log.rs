//! `[log]`: what goes to standard error.

use serde::{Deserialize, Serialize};

/// The log. It never holds a prompt, an answer or a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info` (default), `debug` or `trace`; also for one module: `info,sluice_gateway::flow=debug`. Plain
    /// `info` shows only warnings of the process shell (`pingora_core`).
    /// Danger: `trace` writes several lines for each request. Needs a restart.
    pub level: String,
    /// `text` (default) for people, `json` for machines. Needs a restart.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
