//! The gateway as a process, scripted replicas, and clients that see every byte.

mod breaks;
mod client;
mod gateway;
mod records;
mod replica;
pub(crate) mod store;
pub(crate) mod tls;
pub(crate) mod upstream_tls;

pub(crate) use breaks::Breaks;
pub(crate) use client::{Client, Message, Request, ask};
pub(crate) use gateway::{Gateway, Settings, is_gone, two, two_with};
pub(crate) use records::{record, records};
pub(crate) use replica::{Asked, Replica, chunk, completion, delta, finish, first, is_asked_first, usage};

use std::time::Duration;

/// The client's key.
pub(crate) const KEY: &str = "sk-of-the-client";
/// The replica's key.
pub(crate) const BACKEND_KEY: &str = "sk-of-the-replica";
/// The model that scripted replicas serve.
pub(crate) const MODEL: &str = "test/model";
/// Another one that they list, for a second backend.
pub(crate) const OTHER_MODEL: &str = "test/other";
/// Nothing in these tests takes so long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `what`, but not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Asks again and again until `look` sees it.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
