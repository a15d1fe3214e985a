//! Homes of conversations that several gateways before the same fleet share, through Redis or Valkey (`[affinity]`; off by default).
//!
//! Enters: a conversation that this gateway doesn't know; where one was sent. Leaves: a [`Hint`] for the router, after at most `timeout`.
//! The note itself is `policy`'s (`route::shared`), its names are keyed hashes (`names`), the server is `store`'s. Nothing here can fail a
//! request or hold it longer: without the server the ring decides, where all gateways agree on new sessions.

// What things are called on the server.
mod names;
// The server.
mod store;

use arc_swap::ArcSwapOption;
use redis::{Client, ConnectionInfo, IntoConnectionInfo};
use sluice_policy::route::chain::Chain;
use sluice_policy::route::shared::{Hint, Note};
use std::sync::Arc;

use self::names::Names;
use self::store::{Found, Store, StoreSettings};
use crate::config::AffinityConfig;
use crate::supervisor::ReplicaKey;
use crate::telemetry::Metrics;
use crate::upstream::Backend;

/// What is wrong with `[affinity] url`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    /// It is none that can be used.
    #[error("this is no redis://HOST:PORT or rediss://HOST:PORT")]
    Form,
    /// It has a password.
    #[error("a password stands in it")]
    Password,
}

/// Where the server of this URL is.
///
/// # Errors
/// It can't be used, or has a secret in it.
pub fn server(url: &str) -> Result<ConnectionInfo, UrlFault> {
    let is_ours = url.starts_with("redis://") || url.starts_with("rediss://");
    // Its options belong to the library: what they would change here has settings, or isn't safe.
    if !is_ours || url.contains(['?', '#']) {
        return Err(UrlFault::Form);
    }
    let info = url.into_connection_info().map_err(|_| UrlFault::Form)?;
    match info.redis_settings().password() {
        Some(_) => Err(UrlFault::Password),
        None => Ok(info),
    }
}

/// See the module.
pub struct Affinity {
    open: ArcSwapOption<Open>,
    metrics: Metrics,
}

/// As it is configured now.
struct Open {
    settings: AffinityConfig,
    names: Names,
    store: Store,
}

/// This conversation is sent there.
pub(super) struct Telling {
    backend: Arc<str>,
    session: u64,
    chain: Arc<Chain>,
    replica: Arc<str>,
}

impl Telling {
    /// Key and value on the server.
    fn entry(&self, names: &Names) -> (String, String) {
        let name = names.of(&self.backend, self.session);
        let note = Note::new(&self.replica, &self.chain, |link| name.mark(link));
        (name.key(), note.to_text())
    }
}

impl Affinity {
    /// Off.
    pub fn new(metrics: Metrics) -> Affinity {
        Affinity {
            open: ArcSwapOption::empty(),
            metrics,
        }
    }

    /// These settings are in force from now on. To be called on the runtime that is to keep the connection.
    pub fn follow(&self, settings: &AffinityConfig) {
        let is_same = match &*self.open.load() {
            Some(open) => open.settings == *settings,
            None => !settings.enabled,
        };
        if !is_same {
            self.open.store(self.opened(settings).map(Arc::new));
        }
    }

    fn opened(&self, settings: &AffinityConfig) -> Option<Open> {
        if !settings.enabled {
            return None;
        }
        let password = match ReplicaKey::from_env(&settings.password_env) {
            ReplicaKey::NotWanted => String::new(),
            ReplicaKey::Given(password) => password,
            ReplicaKey::Missing { variable } => {
                tracing::error!(%variable, "the password of [affinity] isn't in the environment: homes aren't shared");
                return None;
            }
        };
        let names = Names::new(&settings.prefix, &password);
        let client = server(&settings.url)
            .map_err(|error| error.to_string())
            .and_then(|info| {
                let mut login = info.redis_settings().clone();
                if !password.is_empty() {
                    login = login.set_password(&password);
                }
                Client::open(info.set_redis_settings(login)).map_err(|error| error.to_string())
            });
        let failed = |error| tracing::error!(%error, "[affinity] can't be used: homes aren't shared");
        let store = StoreSettings {
            client: client.map_err(failed).ok()?,
            names: names.clone(),
            expiry: settings.expiry,
            timeout: settings.timeout,
        };
        Some(Open {
            settings: settings.clone(),
            names,
            store: Store::open(store, self.metrics.clone()),
        })
    }

    /// Homes are shared.
    pub fn is_on(&self) -> bool {
        self.open.load().is_some()
    }

    /// What another gateway knows of this session, for its next turn with this prompt.
    pub async fn ask(&self, backend: &Backend, session: u64, chain: &Chain) -> Option<Hint> {
        let open = self.open.load_full()?;
        let name = open.names.of(&backend.name, session);
        let found = open.store.get(&name.key()).await;
        let hint = match &found {
            Found::Text(text) => Note::parse(text).and_then(|note| {
                Some(Hint {
                    replica: backend.slot_of(&note.replica)?,
                    cached_bytes: note.cached_bytes(chain, |link| name.mark(link)),
                })
            }),
            Found::Nothing | Found::Failed | Found::Unasked => None,
        };
        self.metrics.affinity_asked(match (&found, hint) {
            (_, Some(_)) => "hit",
            // One of another form, or of a replica that isn't there any more, says nothing.
            (Found::Text(_) | Found::Nothing, None) => "miss",
            (Found::Failed, None) => "failed",
            (Found::Unasked, None) => "unasked",
        });
        hint
    }

    /// This session's turn goes to that replica. Never waits.
    pub fn tell(&self, backend: &Backend, session: u64, chain: &Arc<Chain>, replica: Arc<str>) {
        if let Some(open) = &*self.open.load() {
            open.store.put(Telling {
                backend: backend.name.clone(),
                session,
                chain: chain.clone(),
                replica,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_redis_or_rediss_without_a_password_and_without_options() {
        for url in [
            "redis://127.0.0.1:6379",
            "redis://valkey",
            "rediss://valkey.internal:6380/3",
            "redis://gateway@[::1]:6379",
        ] {
            assert!(server(url).is_ok(), "{url}");
        }
        for (url, fault) in [
            ("", UrlFault::Form),
            ("127.0.0.1:6379", UrlFault::Form),
            ("http://127.0.0.1:6379", UrlFault::Form),
            ("redis://", UrlFault::Form),
            ("redis://h:70000", UrlFault::Form),
            ("redis://h/x", UrlFault::Form),
            ("rediss://h/#insecure", UrlFault::Form),
            ("redis://h/?protocol=resp3", UrlFault::Form),
            ("redis://:secret@h", UrlFault::Password),
            ("redis://gateway:secret@h", UrlFault::Password),
        ] {
            assert_eq!(server(url).err(), Some(fault), "{url}");
        }
    }
}
