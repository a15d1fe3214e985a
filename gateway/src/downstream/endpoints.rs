//! What each endpoint does: answered here from what the process knows, or handed to `flow`.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json as value};
use sluice_policy::protocol::ask::Endpoint;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;
use tower::Service;

use crate::flow::Flow;
use crate::flow::call::Call;
use crate::flow::reply::{Reply, json};
use crate::upstream::{Backend, Fleet};

/// The innermost service.
#[derive(Clone)]
pub struct Endpoints {
    /// Requests that a replica answers.
    pub flow: Arc<Flow>,
    /// This process is on its way out: not ready any more.
    pub draining: Arc<AtomicBool>,
}

impl Service<Call<Bytes>> for Endpoints {
    type Response = Reply;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call<Bytes>) -> Self::Future {
        Box::pin(self.clone().answer(call))
    }
}

impl Endpoints {
    async fn answer(self, call: Call<Bytes>) -> Result<Reply, Fault> {
        let fleet = self.flow.fleet.load_full();
        match &call.endpoint {
            Endpoint::Health => Ok(self.health(&fleet)),
            Endpoint::Ping => Ok(if self.is_ready(&fleet) {
                json(StatusCode::OK, "{}")
            } else {
                json(StatusCode::SERVICE_UNAVAILABLE, "{}")
            }),
            Endpoint::Version => Ok(json(
                StatusCode::OK,
                value!({"version": env!("CARGO_PKG_VERSION"), "name": "sluice"}).to_string(),
            )),
            Endpoint::Models => {
                let data: Vec<Value> = fleet.backends.iter().flat_map(|backend| cards(backend)).collect();
                Ok(json(
                    StatusCode::OK,
                    value!({"object": "list", "data": data}).to_string(),
                ))
            }
            Endpoint::Model(id) => fleet
                .backends
                .iter()
                .flat_map(|backend| cards(backend))
                .find(|card| card.get("id").and_then(Value::as_str) == Some(id))
                .map(|card| json(StatusCode::OK, card.to_string()))
                .ok_or_else(|| Fault::model_unknown(id, fleet.model_ids().iter().map(String::as_str))),
            Endpoint::Cancel(id) => {
                if self.flow.registry.cancel(id, &call.key_name()) {
                    Ok(json(
                        StatusCode::OK,
                        value!({"id": id, "object": "request", "cancelled": true}).to_string(),
                    ))
                } else {
                    Err(Fault::new(
                        FaultKind::ObjectUnknown,
                        "No such request of this key is running.",
                    ))
                }
            }
            _ => self.flow.run(call).await,
        }
    }

    fn is_ready(&self, fleet: &Fleet) -> bool {
        !self.draining.load(Ordering::Relaxed) && fleet.replicas().iter().any(|(_, replica)| replica.standing().is_up())
    }

    /// 200 while at least one replica is ready and the process isn't draining.
    fn health(&self, fleet: &Fleet) -> Reply {
        let ready = self.is_ready(fleet);
        let status = match (ready, self.draining.load(Ordering::Relaxed)) {
            (true, _) => "ok",
            (false, true) => "draining",
            (false, false) => "no replica is ready",
        };
        let body = value!({
            "status": status,
            "simulated": fleet.backends.iter().any(|backend| backend.is_simulated()),
            "replicas": replicas(fleet),
        });
        json(
            if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            },
            body.to_string(),
        )
    }
}

/// The replicas as `/health` shows them: no addresses, since anybody may ask.
pub fn replicas(fleet: &Fleet) -> Vec<Value> {
    fleet
        .replicas()
        .iter()
        .map(|(backend, replica)| {
            value!({
                "name": &*replica.name(),
                "model": &*backend.model(),
                "state": replica.standing().as_str(),
                "simulated": replica.simulated,
                "in_flight": replica.in_flight(),
            })
        })
        .collect()
}

/// `/v1/models` entries of a backend: its id and its aliases.
fn cards(backend: &Backend) -> Vec<Value> {
    let created = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let model = backend.model();
    std::iter::once(model.as_str())
        .chain(backend.aliases.iter().map(String::as_str))
        .filter(|id| !id.is_empty())
        .map(|id| {
            value!({
                "id": id,
                "object": "model",
                "created": created,
                "owned_by": "sluice",
                "root": &*model,
                "parent": null,
            })
        })
        .collect()
}
