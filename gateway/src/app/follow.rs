//! Carries what the supervisor says of a replica to where requests look, and learns what only the replica knows.
//!
//! Enters: a replica of a backend, its slot there, the supervisor's states. Leaves: address, readiness, model, tool set-up and the size
//! of its KV cache on the replica and its backend. Ends when nobody tells any more.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use super::{greeting, health};
use crate::flow::Flow;
use crate::supervisor::ReplicaState;
use crate::upstream::replica::Readiness;
use crate::upstream::{Address, Backend, Replica, Tls, probe};

/// A probe of a replica's set-up that failed is tried again.
const PROBE_AGAIN: Duration = Duration::from_secs(5);
/// And at most so often: what it would find is a default by then.
const PROBE_TRIES: u32 = 5;

/// See the module.
pub async fn follow(
    backend: Arc<Backend>,
    replica: Arc<Replica>,
    slot: usize,
    tls: Option<Arc<Tls>>,
    mut states: watch::Receiver<ReplicaState>,
    flow: Arc<Flow>,
) {
    loop {
        let state = states.borrow_and_update().clone();
        replica.set_may_return(state.may_return());
        match &state {
            ReplicaState::Ready { url, models, .. } => {
                let address = Address::from_url(url).inspect_err(
                    |error| tracing::error!(replica = %replica.name(), url, %error, "requests can't be sent there"),
                );
                replica.moved_to(address.ok().map(|address| address.with_tls(tls.as_ref())));
                learn(&backend, &replica, models).await;
                let before = replica.readiness();
                if replica.was_ready() && before != Readiness::Ready {
                    replica.has_returned();
                    backend.routing().restarted(slot);
                }
                replica.set_readiness(Readiness::Ready);
                tokio::spawn(learn_capacity(backend.clone(), replica.clone(), slot));
                if before != Readiness::Ready {
                    greeting::ready(&backend, &replica, url);
                }
            }
            // Not known to be down: requests wait for the first look.
            ReplicaState::Looking { .. } => {}
            ReplicaState::Starting { .. } => {
                replica.set_readiness(Readiness::Down);
            }
            _ => {
                if replica.set_readiness(Readiness::Down) == Readiness::Ready {
                    tracing::warn!(replica = %replica.name(), state = state.name(), "replica is not ready any more");
                }
            }
        }
        health::show(&flow, &replica);
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// How much its KV cache holds, for the index of what is cached where.
async fn learn_capacity(backend: Arc<Backend>, replica: Arc<Replica>, slot: usize) {
    match probe::kv_tokens(&replica).await {
        Ok(Some(tokens)) => {
            backend.routing().capacity(slot, tokens);
            backend.places().kv_tokens(slot, tokens);
            tracing::info!(replica = %replica.name(), tokens, "the size of the replica's KV cache is known");
        }
        Ok(None) => {
            tracing::debug!(replica = %replica.name(), "the replica's metrics don't say how large its KV cache is")
        }
        Err(error) => tracing::debug!(replica = %replica.name(), %error, "the replica's metrics can't be read"),
    }
}

/// What only the replica knows: its model's id, and how it takes tools.
async fn learn(backend: &Arc<Backend>, replica: &Arc<Replica>, models: &[String]) {
    if replica.model().is_empty() {
        match models.first() {
            Some(model) => {
                replica.serves(model);
                backend.learn_model(model);
            }
            None => tracing::warn!(replica = %replica.name(), "the replica lists no model"),
        }
    }
    match probe::opener(replica, &replica.model()).await {
        Ok(opener) => replica.set_opener(opener),
        Err(error) => {
            tracing::debug!(replica = %replica.name(), %error, "who opens think blocks will be learned from answers")
        }
    }
    let replica = replica.clone();
    // Requests need not wait for it: until it is known the replica is taken for one that gives raw text.
    tokio::spawn(async move {
        for _ in 0..PROBE_TRIES {
            match probe::tool_setup(&replica, &replica.model()).await {
                Ok(setup) => {
                    replica.set_tool_setup(setup);
                    tracing::info!(replica = %replica.name(), ?setup, "how the replica takes tools is known");
                    return;
                }
                Err(error) => {
                    tracing::debug!(replica = %replica.name(), %error, "how the replica takes tools isn't known yet");
                    tokio::time::sleep(PROBE_AGAIN).await;
                }
            }
        }
        tracing::warn!(replica = %replica.name(), "how the replica takes tools could not be found out; taken as raw text");
    });
}
