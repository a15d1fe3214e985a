//! The one configuration file: TOML in, a checked [`Config`] out, or an error that names file, line, key and remedy.
//!
//! Each section's struct is the truth about its settings: default, unit, effect and danger stand at its fields. The
//! workspace's `config.toml` states the same for people, and a test holds the two together. Secrets never stand in the file,
//! only names of environment variables. Where a file is looked for, `source` says; how a changed file comes into effect
//! without touching running requests, `live` says.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::admin::AdminConfig;
use crate::record::RecordConfig;

pub use self::{
    admission::AdmissionConfig,
    affinity::AffinityConfig,
    auth::AuthConfig,
    backend::{BackendConfig, ReplicaConfig, UpstreamTlsConfig},
    continuation::ContinuationConfig,
    discovery::DiscoveryConfig,
    error::{ConfigError, Place, Problem},
    health::HealthConfig,
    history::{HistoryConfig, Normalise},
    hold::HoldConfig,
    limits::LimitsConfig,
    live::{Live, Reload, on_hangup},
    log::{LogConfig, LogFormat},
    profile::ProfileTable,
    reasoning::{ReasoningConfig, ReasoningForm, ReasoningNames, ThinkOpener},
    routing::RoutingConfig,
    server::{ServerConfig, TlsConfig},
    source::{BackendOverride, Origin, Overrides, Source},
    tools::{BadSchema, OnInvalid, ReleaseMode, ToolParsing, ToolsConfig},
    upstream::UpstreamConfig,
    watch::Watch,
};

mod admission;
mod affinity;
mod auth;
mod backend;
mod continuation;
mod discovery;
mod document;
// Durations with their unit.
pub mod duration;
mod error;
mod limits;
// The running configuration and how it is reloaded.
pub mod live;
mod log;
mod profile;
mod reading;
mod health;
mod history;
mod hold;
mod reasoning;
mod routing;
mod server;
// Sizes with their unit.
pub mod size;
// Which file, and what the command line adds to it.
pub mod source;
mod tools;
mod upstream;
mod validate;
// Files that are watched for changes.
pub mod watch;

/// The largest configuration that is read, in bytes. The shipped one has about 10 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The shipped `config.toml`: every default with its comment, and one backend with two simulated replicas.
pub const SHIPPED: &str = include_str!("../../config.toml");

/// The whole file. `Config::default()` has every default and no backend.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The client's side.
    pub server: ServerConfig,
    /// What a request and an answer may take.
    pub limits: LimitsConfig,
    /// Who may ask.
    pub auth: AuthConfig,
    /// The operators' side.
    pub admin: AdminConfig,
    /// What is kept of requests.
    pub records: RecordConfig,
    /// What goes to standard error.
    pub log: LogConfig,
    /// What becomes of `<think>`.
    pub reasoning: ReasoningConfig,
    /// What becomes of past turns.
    pub history: HistoryConfig,
    /// Who finds tool calls.
    pub tools: ToolsConfig,
    /// vLLM's side.
    pub upstream: UpstreamConfig,
    /// Answers whose replica is lost.
    pub continuation: ContinuationConfig,
    /// What waits for a replica that is away.
    pub hold: HoldConfig,
    /// When a replica is left alone.
    pub health: HealthConfig,
    /// Which replica.
    pub routing: RoutingConfig,
    /// What a replica is given, and who waits.
    pub admission: AdmissionConfig,
    /// Conversations' homes, shared with other gateways.
    pub affinity: AffinityConfig,
    /// Launch profiles beside the built-in ones, by name.
    pub profile: BTreeMap<String, ProfileTable>,
    /// The served models, at least one.
    pub backend: Vec<BackendConfig>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file can't be read, isn't TOML, has a key or value that isn't valid, or settings that contradict each other. All
    /// problems of the last kind come together.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(path, &Overrides::default())
    }

    /// [`Config::load`] with what the command line says on top.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = read(path).map_err(|source| ConfigError::Unreadable {
            file: path.to_path_buf(),
            source,
        })?;
        Self::parse(&path.display().to_string(), &text, overrides)
    }

    /// Reads and checks `text`; `name` is what errors call the file.
    ///
    /// # Errors
    /// As [`Config::load`], but for reading.
    pub fn parse(name: &str, text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        reading::read(text, overrides).map_err(|problems| ConfigError::Invalid {
            file: name.to_owned(),
            problems,
        })
    }
}

/// Reads another file of ours (the key file) with the same care for errors; `name` is what they call it.
///
/// # Errors
/// `text` isn't TOML of this shape.
pub(crate) fn read_table<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, ConfigError> {
    let invalid = |problems| ConfigError::Invalid {
        file: name.to_owned(),
        problems,
    };
    reading::table(text, &[], |_| None)
        .map(|(table, _)| table)
        .map_err(invalid)
}

/// The file's text, bounded.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "larger than {}",
            size::format(FILE_BYTES_MAX)
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
