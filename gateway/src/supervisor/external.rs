//! A replica that somebody else starts: it is looked at, nothing more.

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use super::probe::{self, Found, ProbeError};
use super::{ExternalConfig, Order, ReplicaSpec, ReplicaState, Wanted};
use crate::upstream::Address;

/// A ready replica is called unreachable after so many failed looks in a row. An answer that is only slow is none: the front end
/// of a busy engine may need seconds, and whether an engine hangs is judged by its progress, elsewhere.
const LOOKS_FAILED_MAX: u32 = 3;

/// Looks at the replica until the gateway goes down or it is configured no more.
pub(super) async fn watch(
    spec: ReplicaSpec,
    config: ExternalConfig,
    mut wants: watch::Receiver<Order>,
    tell: watch::Sender<ReplicaState>,
) {
    let address = match Address::from_url(&config.url) {
        Ok(address) => address.with_tls(spec.tls.as_ref()),
        Err(error) => {
            tracing::error!(replica = spec.name, %error, "this replica can't be used");
            tell.send_replace(ReplicaState::Unreachable {
                since: Timestamp::now(),
                why: error.to_string(),
            });
            let _ = wants.wait_for(|order| order.wanted.is_final()).await;
            return;
        }
    };
    let pause = config.probe;
    let mut failed = 0;
    loop {
        let Order { wanted, name, key } = wants.borrow_and_update().clone();
        match wanted {
            Wanted::Close | Wanted::End | Wanted::LetGo => return,
            Wanted::Rest => {
                tell.send_replace(ReplicaState::Stopped);
                failed = 0;
                if wants.changed().await.is_err() {
                    return;
                }
                tell.send_replace(ReplicaState::Starting {
                    since: Timestamp::now(),
                });
            }
            Wanted::Run => {
                tokio::select! {
                    biased;
                    changed = wants.changed() => if changed.is_err() { return },
                    seen = probe::look(&address, &spec.model, key.value()) => {
                        let slow = matches!(seen, Err(ProbeError::Slow(_)));
                        failed = match &seen { Ok(_) => 0, Err(_) if slow => failed, Err(_) => failed + 1 };
                        judge(&name, &address, seen, failed, &tell);
                        tokio::select! { changed = wants.changed() => if changed.is_err() { return }, () = sleep(pause) => {} }
                    }
                }
            }
        }
    }
}

/// One look's consequence. A first failure of a ready replica changes nothing yet.
fn judge(
    name: &str,
    address: &Address,
    seen: Result<Found, ProbeError>,
    failed: u32,
    tell: &watch::Sender<ReplicaState>,
) {
    let now = tell.borrow().clone();
    match (now, seen) {
        (ReplicaState::Ready { version, models, .. }, Ok(found))
            if version == found.version && models == found.models => {}
        (_, Ok(found)) => {
            let url = address.url();
            tracing::info!(replica = name, url, version = found.version, models = ?found.models, "replica is ready");
            tell.send_replace(ReplicaState::Ready {
                since: Timestamp::now(),
                url,
                version: found.version,
                models: found.models,
            });
        }
        (ReplicaState::Ready { .. }, Err(error)) if failed >= LOOKS_FAILED_MAX => {
            tracing::error!(replica = name, %error, "replica can't be reached any more");
            tell.send_replace(ReplicaState::Unreachable {
                since: Timestamp::now(),
                why: error.to_string(),
            });
        }
        (ReplicaState::Looking { since }, Err(error)) => {
            tracing::warn!(replica = name, %error, "replica isn't ready yet");
            tell.send_replace(ReplicaState::Starting { since });
        }
        (ReplicaState::Starting { .. }, Err(error)) if failed == 1 => {
            tracing::warn!(replica = name, %error, "replica isn't ready yet");
        }
        (ReplicaState::Unreachable { since, why }, Err(error)) if why != error.to_string() => {
            tell.send_replace(ReplicaState::Unreachable {
                since,
                why: error.to_string(),
            });
        }
        (ReplicaState::Starting { since }, Err(error)) if failed >= LOOKS_FAILED_MAX => {
            tell.send_replace(ReplicaState::Unreachable {
                since,
                why: error.to_string(),
            });
        }
        (_, Err(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Result<Found, ProbeError> {
        Ok(Found {
            version: Some("0.32.0".to_owned()),
            models: vec!["m".to_owned()],
        })
    }

    fn gone() -> Result<Found, ProbeError> {
        Err(ProbeError::Connection {
            path: "/health",
            problem: "refused".to_owned(),
        })
    }

    #[test]
    fn one_failed_look_of_three_changes_nothing() {
        let address = Address::loopback(8000);
        let (tell, state) = watch::channel(ReplicaState::Starting {
            since: Timestamp::UNIX_EPOCH,
        });
        let names = |looks: [(Result<Found, ProbeError>, u32); 6]| -> Vec<&'static str> {
            looks
                .into_iter()
                .map(|(seen, failed)| {
                    judge("a", &address, seen, failed, &tell);
                    state.borrow().name()
                })
                .collect()
        };
        let looks = [
            (gone(), 1),
            (found(), 0),
            (gone(), 1),
            (gone(), 2),
            (gone(), 3),
            (found(), 0),
        ];
        assert_eq!(
            names(looks),
            ["starting", "ready", "ready", "ready", "unreachable", "ready"]
        );
    }

    #[test]
    fn one_that_never_came_is_unreachable_with_the_reason() {
        let address = Address::loopback(8000);
        let (tell, state) = watch::channel(ReplicaState::Looking {
            since: Timestamp::UNIX_EPOCH,
        });
        let mut states = Vec::new();
        for failed in 1..=3 {
            judge("a", &address, gone(), failed, &tell);
            states.push(std::mem::discriminant(&*state.borrow()));
        }
        let starting = std::mem::discriminant(&ReplicaState::Starting {
            since: Timestamp::UNIX_EPOCH,
        });
        assert_eq!(states[..2], [starting; 2], "the first look is a verdict");
        let ReplicaState::Unreachable { why, .. } = state.borrow().clone() else {
            panic!("{state:?}")
        };
        assert_eq!(why, "/health: refused");
    }
}
