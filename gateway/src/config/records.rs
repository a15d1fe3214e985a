//! `[records]`: one row for each request, in SQLite. Never a prompt, an answer or a key.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{duration, size};

/// What is kept of requests, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordsConfig {
    /// Default true. Without records `sluice requests` and `sluice stats` find nothing; metrics stay. Needs a restart.
    pub enabled: bool,
    /// The SQLite file; a relative path is taken from the state folder. Default `requests.db`. Danger: not on a network file
    /// system, its locks don't hold there. Needs a restart.
    pub path: PathBuf,
    /// Rows that started longer ago are deleted. Default 30 d. Needs a restart.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Above this size of the file the oldest rows are deleted. Default 1 GiB (some 3 million rows), at least 1 MiB. Needs a
    /// restart.
    #[serde(with = "size")]
    pub max_bytes: u64,
    /// Finished requests that may wait for the writer. Default 10,000; more are shed and counted, a request never waits. Needs
    /// a restart.
    pub queue_rows: usize,
}

impl Default for RecordsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            path: PathBuf::from("requests.db"),
            max_age: Duration::from_secs(30 * 86_400),
            max_bytes: 1 << 30,
            queue_rows: 10_000,
        }
    }
}

impl RecordsConfig {
    /// The file in effect.
    pub fn file(&self, state_folder: &Path) -> PathBuf {
        state_folder.join(&self.path)
    }
}
