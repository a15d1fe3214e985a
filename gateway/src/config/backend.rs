//! `[[backend]]` and `[[backend.replica]]`: the served models, and the vLLMs that serve each.

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{
    Spanned,
    de::{DeTable, Deserializer},
};

use super::discovery::DiscoveryConfig;
use crate::simulator::SimConfig;
use crate::supervisor::{ExternalConfig, LauncherConfig, ProcessConfig};

/// A served model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Launch profile of the replicas that Sluice starts: a built-in one or a `[profile.NAME]`. Default `chunked_only_safe`.
    #[serde(default = "default_profile")]
    pub profile: String,
    /// Environment variable with the key that vLLM wants (`--api-key`). Empty (default) = vLLM wants none.
    #[serde(default)]
    pub key_env: String,
    /// Backends by name, in order, that get its requests while no replica of it is up or expected back, those that find no place or no answer
    /// there before anything was shown, and those with images if it takes none. The answer's `model` says what answered. Default none.
    #[serde(default)]
    pub fallback: Vec<String>,
    /// It takes images, video and audio. Default true; false sends requests that have some to the first fallback that does.
    #[serde(default = "default_images")]
    pub images: bool,
    /// TLS to those of its replicas whose `url` begins with https://.
    #[serde(default)]
    pub tls: UpstreamTlsConfig,
    /// Replicas that are found, beside those that are named.
    #[serde(default)]
    pub discovery: DiscoveryConfig,
    /// The vLLMs that serve it, at least one, unless they are found.
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
            fallback: Vec::new(),
            images: default_images(),
            tls: UpstreamTlsConfig::default(),
            discovery: DiscoveryConfig::default(),
            replica,
        }
    }
}

/// `[backend.tls]`: whom we trust, and who we are. Files are read again at each reload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTlsConfig {
    /// PEM file with the authorities that may have signed a replica's certificate. Empty (default) = the system's.
    pub ca: PathBuf,
    /// PEM file with our own certificate, for replicas that want one (mTLS). Empty (default) = none.
    pub cert: PathBuf,
    /// PEM file with its private key. Danger: readable for the gateway's user only.
    pub key: PathBuf,
    /// The name that a replica's certificate must be for. Empty (default) = the host of its `url`.
    pub server_name: String,
}

fn default_images() -> bool {
    true
}

fn default_profile() -> String {
    "chunked_only_safe".to_owned()
}

/// One vLLM, or its stand-in. Which keys stand beside `launcher` depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaConfig {
    /// Name in logs, records, metrics and `x-sluice-replica`. Unique over all backends.
    pub name: String,
    /// Who starts it, and that launcher's settings.
    #[serde(flatten)]
    pub launcher: LauncherConfig,
}

impl ReplicaConfig {
    /// An external replica at `url`.
    pub fn external(name: &str, url: &str) -> Self {
        Self::new(name, LauncherConfig::External(ExternalConfig::at(url)))
    }

    /// A simulated replica with the default rates.
    pub fn simulated(name: &str) -> Self {
        Self::new(name, LauncherConfig::Simulated(Box::default()))
    }

    /// A replica of that launcher.
    pub fn new(name: &str, launcher: LauncherConfig) -> Self {
        Self {
            name: name.to_owned(),
            launcher,
        }
    }
}

/// What serde refuses in a `[[backend.replica]]`, and where.
#[derive(Debug)]
pub(super) struct Refusal {
    /// serde's message.
    pub(super) message: String,
    /// The key or value.
    pub(super) span: Range<usize>,
    /// Valid keys beside those that `message` names.
    pub(super) also: &'static [&'static str],
}

/// The keys that stand in every `[[backend.replica]]`.
const OF_EVERY_REPLICA: [&str; 2] = ["name", "launcher"];

/// The first replica that serde refuses, with the place. Behind `flatten` serde knows no places any more: what a launcher takes
/// is read once more, by itself.
pub(super) fn refusal(file: &DeTable<'_>) -> Option<Refusal> {
    tables(file, "backend")
        .flat_map(|backend| tables(backend.1, "replica"))
        .find_map(|(span, replica)| refusal_of(span, replica))
}

/// The tables of the array `key`.
fn tables<'t, 'i>(above: &'t DeTable<'i>, key: &str) -> impl Iterator<Item = (Range<usize>, &'t DeTable<'i>)> {
    let items = above.get(key).and_then(|value| value.get_ref().as_array());
    items
        .into_iter()
        .flatten()
        .filter_map(|item| Some((item.span(), item.get_ref().as_table()?)))
}

fn refusal_of(span: Range<usize>, replica: &DeTable<'_>) -> Option<Refusal> {
    let only = |wanted: &dyn Fn(&str) -> bool| {
        let entries = replica.iter().filter(|(key, _)| wanted(key.get_ref()));
        let table: DeTable<'_> = entries.map(|(key, value)| (key.clone(), value.clone())).collect();
        Deserializer::from(Spanned::new(span.clone(), table))
    };
    let launcher = replica.get("launcher")?;
    let settings = only(&|key| !OF_EVERY_REPLICA.contains(&key));
    let (error, at) = match launcher.get_ref().as_str() {
        Some("external") => (ExternalConfig::deserialize(settings).err()?, None),
        Some("process") => (ProcessConfig::deserialize(settings).err()?, None),
        Some("simulated") => (SimConfig::deserialize(settings).err()?, None),
        _ => (
            LauncherConfig::deserialize(only(&|key| key == "launcher")).err()?,
            Some(launcher.span()),
        ),
    };
    Some(Refusal {
        message: error.message().to_owned(),
        span: at.or(error.span()).unwrap_or(span),
        also: &OF_EVERY_REPLICA,
    })
}
