//! What is wanted: one replica as configured, with everything that its launcher needs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_policy::profile::Profile;
use sluice_policy::profile::life::Rules;

use super::SupervisorError;
use crate::simulator::Gpu;

/// Names are file names and label values: so long at most.
const NAME_BYTES_MAX: usize = 64;

/// One replica that the supervisor holds.
#[derive(Debug, Clone)]
pub struct ReplicaSpec {
    /// Its name in the config, unique over all backends; letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// The model id that it must list before it counts as ready; empty: any.
    pub model: String,
    /// Further ids that a launched one answers to.
    pub aliases: Vec<String>,
    /// The key that it wants.
    pub key: ReplicaKey,
    /// How a launched one is started.
    pub profile: Profile,
    /// Who starts it.
    pub launcher: LauncherConfig,
}

impl ReplicaSpec {
    /// Whether the name can be a file name, and a simulated or launched replica has what it needs.
    ///
    /// # Errors
    /// Names the replica and the setting.
    pub fn check(&self) -> Result<(), SupervisorError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty()
            || self.name.len() > NAME_BYTES_MAX
            || self.name.starts_with('.')
            || !self.name.chars().all(plain)
        {
            return Err(SupervisorError::Name(self.name.clone()));
        }
        let setting = |key, problem| {
            Err(SupervisorError::Setting {
                replica: self.name.clone(),
                key,
                problem,
            })
        };
        match &self.launcher {
            LauncherConfig::Process(process) if process.port == 0 => setting("port", "must be given"),
            LauncherConfig::Process(process) if process.command.first().is_none_or(|program| program.is_empty()) => {
                setting("command", "must name a program")
            }
            LauncherConfig::Process(process) if process.env.contains_key(KEY_VARIABLE) => setting(
                "env",
                "must not hold VLLM_API_KEY: name the variable in the backend's key_env",
            ),
            LauncherConfig::External(external) if external.url.is_empty() => setting("url", "must be given"),
            _ => Ok(()),
        }
    }
}

/// The environment variable from which vLLM takes the key that it wants.
pub const KEY_VARIABLE: &str = "VLLM_API_KEY";

/// The key that a replica wants from us.
#[derive(Clone, PartialEq, Eq)]
pub enum ReplicaKey {
    /// None is configured.
    NotWanted,
    /// The config names a variable, but the environment doesn't have it: nothing is started with an open door by mistake.
    Missing {
        /// The variable's name.
        variable: String,
    },
    /// The key.
    Given(String),
}

impl ReplicaKey {
    /// The value of the environment variable `variable` (the backend's `key_env`); an empty name wants no key.
    pub fn from_env(variable: &str) -> ReplicaKey {
        if variable.is_empty() {
            return ReplicaKey::NotWanted;
        }
        match std::env::var(variable) {
            Ok(key) if !key.is_empty() => ReplicaKey::Given(key),
            _ => ReplicaKey::Missing {
                variable: variable.to_owned(),
            },
        }
    }

    pub(super) fn value(&self) -> Option<&str> {
        match self {
            ReplicaKey::Given(key) => Some(key),
            ReplicaKey::NotWanted | ReplicaKey::Missing { .. } => None,
        }
    }
}

impl fmt::Debug for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplicaKey::NotWanted => f.write_str("NotWanted"),
            ReplicaKey::Missing { variable } => write!(f, "Missing({variable})"),
            ReplicaKey::Given(_) => f.write_str("Given(***)"),
        }
    }
}

/// Who starts a replica; the field `launcher` in the file chooses the variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "launcher", rename_all = "lowercase")]
pub enum LauncherConfig {
    /// Somebody else: it is only watched.
    External(ExternalConfig),
    /// Sluice, as a process of this machine.
    Process(ProcessConfig),
    /// Nobody: answers are made up inside Sluice, and say so.
    Simulated(SimulatedConfig),
}

impl LauncherConfig {
    /// The name in the file, in logs and in `/health`.
    pub fn name(&self) -> &'static str {
        match self {
            LauncherConfig::External(_) => "external",
            LauncherConfig::Process(_) => "process",
            LauncherConfig::Simulated(_) => "simulated",
        }
    }
}

/// A vLLM that somebody else starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalConfig {
    /// Where it listens, as `http://127.0.0.1:8000`.
    pub url: String,
    /// Seconds between two looks at it. Default 2.
    #[serde(default = "default_probe_s")]
    pub probe_s: u32,
}

/// A vLLM that Sluice starts, waits for, restarts and stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessConfig {
    /// Where it will listen, on loopback.
    pub port: u16,
    /// The program and its first arguments; `serve`, the model and the profile's flags follow. Default `["vllm"]`.
    #[serde(default = "default_command")]
    pub command: Vec<String>,
    /// Environment variables of its own, such as `CUDA_VISIBLE_DEVICES`; the gateway's environment comes first, without the
    /// gateway's secrets. Never a key: that is the backend's `key_env`. Default none.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Seconds until it must be ready; then it is ended and tried again. A first start downloads and compiles. Default 1,200.
    #[serde(default = "default_start_timeout_s")]
    pub start_timeout_s: u32,
    /// Seconds from SIGTERM to SIGKILL. Default 30.
    #[serde(default = "default_stop_grace_s")]
    pub stop_grace_s: u32,
    /// What becomes of it when the gateway ends. Default `stop`.
    #[serde(default)]
    pub on_exit: OnExit,
}

impl ProcessConfig {
    /// `vllm` on that port, all else by default.
    pub fn on_port(port: u16) -> ProcessConfig {
        ProcessConfig {
            port,
            command: default_command(),
            env: BTreeMap::new(),
            start_timeout_s: default_start_timeout_s(),
            stop_grace_s: default_stop_grace_s(),
            on_exit: OnExit::default(),
        }
    }

    pub(super) fn rules(&self) -> Rules {
        Rules {
            start_timeout: Duration::from_secs(self.start_timeout_s.into()),
            stop_grace: Duration::from_secs(self.stop_grace_s.into()),
            ..Rules::default()
        }
    }
}

/// What becomes of a launched vLLM when the gateway ends in order. (After a gateway that was killed, its vLLM runs on, and the
/// next gateway takes it over if it is what would be started, and ends it if not.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExit {
    /// It is stopped; nothing of its session stays behind.
    #[default]
    Stop,
    /// It runs on with its warm cache, and the next gateway takes it over.
    Leave,
}

/// A replica without a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatedConfig {
    /// Whose speed it imitates. Default `h100`.
    pub gpu: Gpu,
}

fn default_probe_s() -> u32 {
    2
}

fn default_command() -> Vec<String> {
    vec!["vllm".to_owned()]
}

fn default_start_timeout_s() -> u32 {
    20 * 60
}

fn default_stop_grace_s() -> u32 {
    30
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LauncherConfig, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn each_launcher_reads_with_its_defaults() {
        let external = ExternalConfig {
            url: "http://127.0.0.1:8000".to_owned(),
            probe_s: 2,
        };
        let text = "launcher = \"external\"\nurl = \"http://127.0.0.1:8000\"";
        assert_eq!(read(text), Ok(LauncherConfig::External(external)));
        assert_eq!(
            read("launcher = \"process\"\nport = 8000"),
            Ok(LauncherConfig::Process(ProcessConfig::on_port(8000)))
        );
        let simulated = LauncherConfig::Simulated(SimulatedConfig { gpu: Gpu::Rtx4090x2 });
        assert_eq!(read("launcher = \"simulated\"\ngpu = \"rtx4090x2\""), Ok(simulated));
    }

    #[test]
    fn a_field_of_another_launcher_is_refused() {
        for (text, part) in [
            ("launcher = \"external\"\nurl = \"http://a\"\nport = 1", "port"),
            ("launcher = \"process\"\nport = 1\nurl = \"http://a\"", "url"),
            ("launcher = \"process\"", "port"),
            ("launcher = \"container\"", "container"),
            ("port = 1", "launcher"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn it_can_be_embedded_beside_a_name() {
        #[derive(Debug, Deserialize)]
        struct Replica {
            name: String,
            #[serde(flatten)]
            launcher: LauncherConfig,
        }
        let replica: Replica =
            toml::from_str("name = \"a\"\nlauncher = \"process\"\nport = 1\non_exit = \"leave\"").unwrap();
        assert_eq!(replica.name, "a");
        assert_eq!(
            replica.launcher,
            LauncherConfig::Process(ProcessConfig {
                on_exit: OnExit::Leave,
                ..ProcessConfig::on_port(1)
            })
        );
        let error = toml::from_str::<Replica>("name = \"a\"\nlauncher = \"process\"\nport = 1\nnmae = 2").unwrap_err();
        assert!(error.to_string().contains("nmae"), "{error}");
    }

    #[test]
    fn a_key_never_shows() {
        assert_eq!(format!("{:?}", ReplicaKey::Given("sk-secret".to_owned())), "Given(***)");
        assert_eq!(ReplicaKey::from_env(""), ReplicaKey::NotWanted);
        let variable = "SLUICE_TEST_NO_SUCH_VARIABLE".to_owned();
        assert_eq!(ReplicaKey::from_env(&variable), ReplicaKey::Missing { variable });
    }
}
