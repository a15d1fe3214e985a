//! What is wanted: one replica as configured, with everything that its launcher needs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_policy::profile::Profile;
use sluice_policy::profile::life::Rules;

use super::SupervisorError;
use crate::config::duration;
use crate::simulator::SimConfig;
use crate::upstream::{Address, Tls};

/// Names are file names and label values: so long at most.
pub const NAME_BYTES_MAX: usize = 64;

/// A replica may be called so: letters, digits, `-`, `_`, `.`, the last not at the beginning.
pub fn is_replica_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.chars().all(plain)
}

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
    /// TLS to an external one, if its URL asks for it.
    pub tls: Option<Arc<Tls>>,
    /// Who starts it.
    pub launcher: LauncherConfig,
}

impl ReplicaSpec {
    /// Whether the name can be a file name, and a simulated or launched replica has what it needs.
    ///
    /// # Errors
    /// Names the replica and the setting.
    pub fn check(&self) -> Result<(), SupervisorError> {
        if !is_replica_name(&self.name) {
            return Err(SupervisorError::Name(self.name.clone()));
        }
        self.launcher.check().map_err(|error| SupervisorError::Setting {
            replica: self.name.clone(),
            error,
        })
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
    Simulated(Box<SimConfig>),
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

    /// The port of this machine that it takes, if it is known beforehand.
    pub fn port(&self) -> Option<u16> {
        match self {
            LauncherConfig::Process(process) => Some(process.port),
            LauncherConfig::External(_) | LauncherConfig::Simulated(_) => None,
        }
    }

    /// Whether it is asked over TLS.
    pub fn is_secure(&self) -> bool {
        match self {
            LauncherConfig::External(external) => {
                Address::from_url(&external.url).is_ok_and(|address| address.is_secure())
            }
            LauncherConfig::Process(_) | LauncherConfig::Simulated(_) => false,
        }
    }

    /// Whether Sluice starts the process.
    pub fn is_process(&self) -> bool {
        matches!(self, LauncherConfig::Process(_))
    }

    /// Whether Sluice makes the answers up.
    pub fn is_simulated(&self) -> bool {
        matches!(self, LauncherConfig::Simulated(_))
    }

    /// What types can't say.
    ///
    /// # Errors
    /// Names the first setting that is missing or out of its range.
    pub fn check(&self) -> Result<(), SettingError> {
        let wrong = |key, problem: &str| {
            Err(SettingError {
                key,
                problem: problem.to_owned(),
            })
        };
        match self {
            LauncherConfig::External(external) if external.url.is_empty() => {
                wrong("url", "must be given, as \"http://127.0.0.1:8000\"")
            }
            LauncherConfig::External(external) if external.probe.is_zero() => wrong("probe", "must be above 0"),
            LauncherConfig::Process(process) => process.check(),
            LauncherConfig::Simulated(simulated) => simulated.check().map_err(|error| SettingError {
                key: error.key,
                problem: format!("must be {}", error.range),
            }),
            LauncherConfig::External(_) => Ok(()),
        }
    }
}

/// A launcher's setting that is missing or out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {problem}")]
pub struct SettingError {
    /// The setting.
    pub key: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// A vLLM that somebody else starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalConfig {
    /// Where it listens, as `http://127.0.0.1:8000`. Must be given.
    #[serde(default)]
    pub url: String,
    /// How often its `/health` is asked. Default 2 s.
    #[serde(default = "default_probe", with = "duration")]
    pub probe: Duration,
}

impl ExternalConfig {
    /// A vLLM at that URL, all else by default.
    pub fn at(url: &str) -> ExternalConfig {
        ExternalConfig {
            url: url.to_owned(),
            probe: default_probe(),
        }
    }
}

/// A vLLM that Sluice starts, waits for, restarts and stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessConfig {
    /// Where it will listen, on loopback. Must be given.
    #[serde(default)]
    pub port: u16,
    /// The program and its first arguments; `serve`, the model and the profile's flags follow. Default `["vllm"]`.
    #[serde(default = "default_command")]
    pub command: Vec<String>,
    /// Environment variables of its own, such as `CUDA_VISIBLE_DEVICES`; the gateway's environment comes first, without the
    /// gateway's secrets. Never a key: that is the backend's `key_env`. Default none.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// By then it must be ready; else it is ended and tried again. A first start downloads and compiles. Default 20 min.
    #[serde(default = "default_start_timeout", with = "duration")]
    pub start_timeout: Duration,
    /// Time from SIGTERM to SIGKILL. Default 30 s.
    #[serde(default = "default_stop_grace", with = "duration")]
    pub stop_grace: Duration,
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
            start_timeout: default_start_timeout(),
            stop_grace: default_stop_grace(),
            on_exit: OnExit::default(),
        }
    }

    fn check(&self) -> Result<(), SettingError> {
        let program = self.command.first().is_some_and(|program| !program.is_empty());
        let (key, problem) = if self.port == 0 {
            ("port", "must be given: where vLLM is to listen, as 8000")
        } else if !program {
            ("command", "must name a program, as [\"vllm\"]")
        } else if self.env.contains_key(KEY_VARIABLE) {
            (
                "env",
                "must not hold VLLM_API_KEY: name the variable in the backend's key_env",
            )
        } else if self.start_timeout.is_zero() {
            ("start_timeout", "must be above 0")
        } else {
            return Ok(());
        };
        Err(SettingError {
            key,
            problem: problem.to_owned(),
        })
    }

    pub(super) fn rules(&self) -> Rules {
        Rules {
            start_timeout: self.start_timeout,
            stop_grace: self.stop_grace,
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

fn default_probe() -> Duration {
    Duration::from_secs(2)
}

fn default_command() -> Vec<String> {
    vec!["vllm".to_owned()]
}

fn default_start_timeout() -> Duration {
    Duration::from_secs(20 * 60)
}

fn default_stop_grace() -> Duration {
    Duration::from_secs(30)
}

#[cfg(test)]
mod tests {
    use crate::simulator::Gpu;

    use super::*;

    fn read(text: &str) -> Result<LauncherConfig, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn each_launcher_reads_with_its_defaults() {
        let external = ExternalConfig::at("http://127.0.0.1:8000");
        let text = "launcher = \"external\"\nurl = \"http://127.0.0.1:8000\"";
        assert_eq!(read(text), Ok(LauncherConfig::External(external)));
        assert_eq!(
            read("launcher = \"process\"\nport = 8000"),
            Ok(LauncherConfig::Process(ProcessConfig::on_port(8000)))
        );
        let simulated = SimConfig {
            gpu: Gpu::Rtx4090x2,
            ..SimConfig::default()
        };
        assert_eq!(
            read("launcher = \"simulated\"\ngpu = \"rtx4090x2\""),
            Ok(LauncherConfig::Simulated(Box::new(simulated)))
        );
    }

    #[test]
    fn a_field_of_another_launcher_is_refused() {
        for (text, part) in [
            ("launcher = \"external\"\nurl = \"http://a\"\nport = 1", "port"),
            ("launcher = \"process\"\nport = 1\nurl = \"http://a\"", "url"),
            ("launcher = \"simulated\"\nmodel = \"m\"", "model"),
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
