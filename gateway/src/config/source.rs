//! Which configuration: `--config`, else `./config.toml`, else `$XDG_CONFIG_HOME/sluice/config.toml` (or `~/.config`), else
//! the one built in; and on top of it what the command line says. Read again at each reload, the command line stays on top.

use std::{
    ffi::OsString,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{BackendConfig, Config, ConfigError, ReplicaConfig, SHIPPED};

/// Where a configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file, or none.
    pub origin: Origin,
    /// What the command line says on top.
    pub overrides: Overrides,
}

/// The file that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `--config`.
    Named(PathBuf),
    /// Found in one of the usual places.
    Found(PathBuf),
    /// No file anywhere: the shipped defaults with two simulated replicas.
    BuiltIn,
}

/// What `sluice serve` may say instead of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`: in place of `[server] listen`.
    pub listen: Option<SocketAddr>,
    /// `--backend`: one external replica in place of all `[[backend]]`.
    pub backend: Option<BackendOverride>,
}

/// `--backend URL [--backend-key-env NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendOverride {
    /// vLLM's address.
    pub url: String,
    /// Environment variable with vLLM's key; empty = none.
    pub key_env: String,
}

impl Overrides {
    /// Puts them into `config`.
    pub(super) fn apply(&self, config: &mut Config) {
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        if let Some(BackendOverride { url, key_env }) = &self.backend {
            let backend = BackendConfig::new("vllm", vec![ReplicaConfig::external("vllm", url)]);
            config.backend = vec![BackendConfig {
                key_env: key_env.clone(),
                ..backend
            }];
        }
    }
}

impl Source {
    /// Looks for the file; `named` is `--config`, `env` the process's environment.
    pub fn find(named: Option<PathBuf>, overrides: Overrides, env: impl Fn(&str) -> Option<OsString>) -> Self {
        let origin = match named {
            Some(path) => Origin::Named(path),
            None => usual_places(env)
                .find(|path| path.exists())
                .map_or(Origin::BuiltIn, Origin::Found),
        };
        Self { origin, overrides }
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Named(path) | Origin::Found(path) => Some(path),
            Origin::BuiltIn => None,
        }
    }

    /// Reads and checks it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        match self.file() {
            Some(path) => Config::load_with(path, &self.overrides),
            None => Config::parse("the built-in configuration", SHIPPED, &self.overrides),
        }
    }
}

/// For the log: where the configuration comes from.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Named(path) | Origin::Found(path) => write!(f, "{}", path.display()),
            Origin::BuiltIn => {
                f.write_str("built-in defaults (no config.toml here or in the user's configuration folder)")
            }
        }
    }
}

fn usual_places(env: impl Fn(&str) -> Option<OsString>) -> impl Iterator<Item = PathBuf> {
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    [
        Some(PathBuf::from("config.toml")),
        user.map(|folder| folder.join("sluice/config.toml")),
    ]
    .into_iter()
    .flatten()
}
