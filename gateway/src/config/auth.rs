//! `[auth]`: where the keys come from. Secrets never stand in the file, only the names of what holds them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// Serves everybody, without a key. Default false. Danger: whoever reaches the port uses the GPU; refused unless
    /// `[server] listen` is a loopback address.
    pub allow_no_key: bool,
    /// Environment variable that holds a key. Default `VLLM_MEDIUM_API_KEY`; an unset or empty variable adds no key. Empty
    /// = no key by environment.
    pub key_env: String,
    /// File of key hashes, written by `sluice key`. Empty (default) = `keys.toml` in the state folder. A change takes
    /// effect without a restart.
    pub key_file: PathBuf,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            allow_no_key: false,
            key_env: "VLLM_MEDIUM_API_KEY".to_owned(),
            key_file: PathBuf::new(),
        }
    }
}

impl AuthConfig {
    /// The key file in effect.
    pub fn key_path(&self, state_folder: &Path) -> PathBuf {
        if self.key_file.as_os_str().is_empty() {
            state_folder.join("keys.toml")
        } else {
            self.key_file.clone()
        }
    }
}
