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
    /// The database. Empty (default) = `records.sqlite` in the state folder. Danger: not on a network file system, its locks
    /// don't hold there. Needs a restart.
    pub file: PathBuf,
    /// Rows that may wait for the writer. Default 4,096; more are shed and counted, a request never waits. Needs a restart.
    pub queue: usize,
    /// Older rows are deleted. Default 30 d, 0 = kept for ever. Needs a restart.
    #[serde(with = "duration")]
    pub keep: Duration,
    /// Above this size of the database the oldest rows are deleted. Default 1 GiB, 0 = no bound. Needs a restart.
    #[serde(with = "size")]
    pub max_bytes: u64,
}

impl Default for RecordsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            file: PathBuf::new(),
            queue: 4_096,
            keep: Duration::from_secs(30 * 86_400),
            max_bytes: 1 << 30,
        }
    }
}

impl RecordsConfig {
    /// The database in effect.
    pub fn path(&self, state_folder: &Path) -> PathBuf {
        if self.file.as_os_str().is_empty() {
            state_folder.join("records.sqlite")
        } else {
            self.file.clone()
        }
    }
}
