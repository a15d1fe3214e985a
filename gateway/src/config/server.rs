//! `[server]`: where Sluice listens, how it uses the machine, and the times of a downstream connection.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::duration;

/// The client's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port for clients. Default `127.0.0.1:5002`. Danger: `0.0.0.0:5002` opens the gateway to the network;
    /// that is refused while `[auth] allow_no_key` is on. Needs a restart.
    pub listen: SocketAddr,
    /// Threads that serve requests. 0 (default) = one for each core. Needs a restart.
    pub threads: usize,
    /// Lets an idle thread take work of a busy one. Default true; false gives each thread its own connections, which costs
    /// less CPU and evens out load less well. Needs a restart.
    pub work_stealing: bool,
    /// Accepts HTTP/2 beside HTTP/1.1: by ALPN with TLS, by prior knowledge without. Default true. Needs a restart.
    pub http2: bool,
    /// Folder for keys and records. Empty (default) = `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/sluice`, else
    /// `~/.local/state/sluice`; see [`ServerConfig::state_folder`]. Needs a restart.
    pub state_dir: PathBuf,
    /// Origins that a browser may call from, as `https://app.example.com`; `"*"` allows all. Default none. Preflight
    /// requests need no key.
    pub cors_origins: Vec<String>,
    /// A client that takes no byte for this long is cut off, so that it can't hold a place for ever. Default 60 s.
    #[serde(with = "duration")]
    pub write_stall: Duration,
    /// How long running streams may take to finish after SIGTERM, and in the old process after `sluice upgrade`. Default 120 s. The process leaves as soon as the last ends.
    #[serde(with = "duration")]
    pub drain: Duration,
    /// The response head is sent when the upstream's status is known, or after this time. Default 15 s. Danger: what goes
    /// wrong after the head can no longer be a status, only an error event in the stream.
    #[serde(with = "duration")]
    pub head_after: Duration,
    /// A stream that is silent for this long gets an SSE comment, which keeps proxies from closing it. Default 5 s, 0 = off.
    #[serde(with = "duration")]
    pub keep_alive: Duration,
    /// TLS for the clients' listener.
    pub tls: TlsConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5002)),
            threads: 0,
            work_stealing: true,
            http2: true,
            state_dir: PathBuf::new(),
            cors_origins: Vec::new(),
            write_stall: Duration::from_secs(60),
            drain: Duration::from_secs(120),
            head_after: Duration::from_secs(15),
            keep_alive: Duration::from_secs(5),
            tls: TlsConfig::default(),
        }
    }
}

impl ServerConfig {
    /// The state folder in effect, `env` being the process's environment. `None` if the setting is empty and none of
    /// `STATE_DIRECTORY` (the first, if systemd gives several), `XDG_STATE_HOME` and `HOME` holds an absolute path.
    pub fn state_folder(&self, env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        if !self.state_dir.as_os_str().is_empty() {
            return Some(self.state_dir.clone());
        }
        let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let systemd = env("STATE_DIRECTORY")
            .and_then(|folders| folders.to_str().and_then(|f| f.split(':').next()).map(PathBuf::from))
            .filter(|path| path.is_absolute());
        systemd
            .or_else(|| absolute("XDG_STATE_HOME").map(|base| base.join("sluice")))
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state/sluice")))
    }

    /// [`ServerConfig::threads`] with 0 resolved to the machine's cores.
    pub fn worker_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// `[server.tls]`: a certificate makes the listener speak TLS only, HTTP/1.1 and HTTP/2 by ALPN.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Default false. Needs a restart.
    pub enabled: bool,
    /// PEM file with the certificate chain, the server's own first. Another path needs a restart; a renewed file is taken over at
    /// a reload.
    pub cert: PathBuf,
    /// PEM file with the private key (PKCS#8, PKCS#1 or SEC1). Danger: readable for the gateway's user only.
    pub key: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(env: &[(&str, &str)]) -> Option<String> {
        let lookup = |name: &str| {
            env.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| OsString::from(value))
        };
        ServerConfig::default()
            .state_folder(lookup)
            .map(|path| path.display().to_string())
    }

    #[test]
    fn the_state_folder_is_the_first_that_the_environment_names() {
        let home = ("HOME", "/home/ada");
        let xdg = ("XDG_STATE_HOME", "/data/state");
        assert_eq!(folder(&[home]).as_deref(), Some("/home/ada/.local/state/sluice"));
        assert_eq!(folder(&[home, xdg]).as_deref(), Some("/data/state/sluice"));
        let systemd = ("STATE_DIRECTORY", "/var/lib/sluice:/var/lib/other");
        assert_eq!(folder(&[home, xdg, systemd]).as_deref(), Some("/var/lib/sluice"));
        assert_eq!(
            folder(&[home, ("XDG_STATE_HOME", "relative")]).as_deref(),
            Some("/home/ada/.local/state/sluice")
        );
        assert_eq!(
            folder(&[("STATE_DIRECTORY", ""), home]).as_deref(),
            Some("/home/ada/.local/state/sluice")
        );
        assert_eq!(folder(&[]), None);
    }

    #[test]
    fn a_configured_state_folder_wins() {
        let server = ServerConfig {
            state_dir: "/srv/sluice".into(),
            ..ServerConfig::default()
        };
        assert_eq!(
            server.state_folder(|_| Some("/other".into())),
            Some("/srv/sluice".into())
        );
    }
}
