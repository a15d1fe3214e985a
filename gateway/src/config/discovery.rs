//! `[backend.discovery]`: replicas of a backend that are found, beside those that stand in the file.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Where to look. What is found is a set of external replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryConfig {
    /// `host:port`, or `https://host:port`: each address of this name is a replica. Empty (default) = none. An answer that fails or
    /// is empty changes nothing.
    pub dns: String,
    /// How often the name is looked up. Default 10 s.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// A file with a list of `name` and `url` each: JSON if its name ends in `.json`, else TOML (`[[replica]]`). Empty (default) = none.
    /// It is watched; one that can't be used changes nothing.
    pub file: PathBuf,
    /// How often the `/health` of a replica that was found is asked. Default 2 s.
    #[serde(with = "duration")]
    pub probe: Duration,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            dns: String::new(),
            interval: Duration::from_secs(10),
            file: PathBuf::new(),
            probe: Duration::from_secs(2),
        }
    }
}

impl DiscoveryConfig {
    /// Replicas are looked for.
    pub fn is_enabled(&self) -> bool {
        !self.dns.is_empty() || !self.file.as_os_str().is_empty()
    }
}
