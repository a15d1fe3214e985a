//! `[affinity]`: what several gateways before the same fleet tell each other of their conversations, through Redis or Valkey.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// A server that all of them share. It is only ever asked for hints: without it, every gateway goes by what it knows and by the ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AffinityConfig {
    /// Homes of conversations are shared. Default false. Backends and replicas must have the same names on every gateway.
    pub enabled: bool,
    /// `redis://HOST:PORT`, or `rediss://` for TLS by the authorities that the system trusts; a user before the host and a database after it
    /// may be given. Never a password.
    pub url: String,
    /// Environment variable with the server's password. Empty (default) = it wants none. What is stored is hashed with it, so that gateways
    /// with different passwords share nothing.
    pub password_env: String,
    /// All keys on the server begin so: fleets that share nothing have different ones. Default `sluice`.
    pub prefix: String,
    /// A home is forgotten by the server after so long without a turn. Default 2 h, as in the gateway itself.
    #[serde(with = "duration")]
    pub expiry: Duration,
    /// How long a request of a conversation that this gateway doesn't know waits for the server's answer. Default 20 ms.
    #[serde(with = "duration")]
    pub timeout: Duration,
}

impl Default for AffinityConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            url: "redis://127.0.0.1:6379".to_owned(),
            password_env: String::new(),
            prefix: "sluice".to_owned(),
            expiry: Duration::from_secs(2 * 3600),
            timeout: Duration::from_millis(20),
        }
    }
}
