//! `[[backend]]` and `[[backend.replica]]`: the served models, and the vLLMs that serve each.

use serde::{Deserialize, Serialize};

use crate::simulator::Gpu;

/// A served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// Name of this backend in logs, records and metrics. Unique; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The model id that vLLM serves and that clients ask for. Empty (default) = the first id of the replicas' own
    /// `/v1/models`. A simulated replica answers as this id with `-simulated` at its end.
    #[serde(default)]
    pub model: String,
    /// Further ids that clients may ask for; sent upstream as `model`. Default none.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Launch profile of the replicas that Sluice starts. Default `chunked_only_safe`.
    #[serde(default = "default_profile")]
    pub profile: String,
    /// Environment variable with the key that vLLM wants (`--api-key`). Empty (default) = vLLM wants none.
    #[serde(default)]
    pub key_env: String,
    /// The vLLMs that serve it, at least one.
    #[serde(default)]
    pub replica: Vec<ReplicaConfig>,
}

impl BackendConfig {
    /// A backend with the default of every other setting.
    pub fn new(name: &str, replica: Vec<ReplicaConfig>) -> Self {
        Self {
            name: name.to_owned(),
            model: String::new(),
            aliases: Vec::new(),
            profile: default_profile(),
            key_env: String::new(),
            replica,
        }
    }
}

fn default_profile() -> String {
    "chunked_only_safe".to_owned()
}

/// One vLLM, or its stand-in. Which keys may be given depends on `launcher`; loading checks that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaConfig {
    /// Name in logs, records, metrics and `x-sluice-replica`. Unique over all backends.
    pub name: String,
    /// Who starts it.
    pub launcher: LauncherKind,
    /// `external`: where it listens, as `http://127.0.0.1:8000`.
    #[serde(default)]
    pub url: String,
    /// `process`: the port that it will listen on, on loopback.
    #[serde(default)]
    pub port: u16,
    /// `process`: the program and its first arguments; `serve`, the model and the profile's flags follow. Default
    /// `["vllm"]`.
    #[serde(default = "default_command")]
    pub command: Vec<String>,
    /// `simulated`: whose speed it imitates, `h100` (default) or `rtx4090x2`.
    #[serde(default)]
    pub gpu: Gpu,
}

fn default_command() -> Vec<String> {
    vec!["vllm".to_owned()]
}

/// Who starts a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LauncherKind {
    /// Somebody else; Sluice knows its URL.
    External,
    /// Sluice, as a process of this machine.
    Process,
    /// Nobody: answers are made up inside Sluice and say so.
    Simulated,
}

impl ReplicaConfig {
    /// An external replica at `url`.
    pub fn external(name: &str, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..Self::bare(name, LauncherKind::External)
        }
    }

    /// A simulated replica with the default rates.
    pub fn simulated(name: &str) -> Self {
        Self::bare(name, LauncherKind::Simulated)
    }

    fn bare(name: &str, launcher: LauncherKind) -> Self {
        Self {
            name: name.to_owned(),
            launcher,
            url: String::new(),
            port: 0,
            command: default_command(),
            gpu: Gpu::default(),
        }
    }
}
