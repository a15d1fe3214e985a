//! `[admin]`: the listener for operators, `/metrics` and `/health`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The operators' side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Default true. Needs a restart.
    pub enabled: bool,
    /// Address and port. Default `127.0.0.1:5003`. Danger: it asks for no key; names of models, replicas and keys and all
    /// figures are open to whoever reaches it. Needs a restart.
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([127, 0, 0, 1], 5003)),
        }
    }
}
