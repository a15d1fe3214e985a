//! Looks at each replica's engine again and again: its figures for routing, its progress for its breaker (B36).
//!
//! Enters: a replica, the running configuration. Leaves: the engine's figures on the replica, waiting requests for the router,
//! preemptions for its room, and what the breaker is told: that the engine hangs (its requests leave, and go on elsewhere), that it
//! moves again. A hung engine makes no steps once its requests have left, so it is asked for a token of its own, never by a client's
//! request. `policy::health` judges.

use sluice_policy::health::breaker::{Event, Phase};
use sluice_policy::health::engine::EngineStats;
use sluice_policy::health::progress::{self, Look, Progress};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::build;
use crate::config::{HealthConfig, Live};
use crate::flow::Flow;
use crate::upstream::replica::{Readiness, Standing};
use crate::upstream::{Backend, Replica, probe};

/// Of one look. A busy front end may be late: then nothing is known this time.
const LOOK_TIME: Duration = Duration::from_secs(5);
/// For the token that shows that an engine moves again; asked again as long as it doesn't.
const TOKEN_TIME: Duration = Duration::from_secs(10);

/// The names of [`Standing`], for a metric.
const STATES: [&str; Standing::ALL.len()] = {
    let mut names = [""; Standing::ALL.len()];
    let mut place = 0;
    while place < names.len() {
        names[place] = Standing::ALL[place].as_str();
        place += 1;
    }
    names
};

/// One replica of a backend, and who looks at it.
pub struct Watch {
    /// The running configuration.
    pub live: Arc<Live>,
    /// For metrics.
    pub flow: Arc<Flow>,
    /// Whose it is.
    pub backend: Arc<Backend>,
    /// Its slot there.
    pub slot: usize,
    /// Itself.
    pub replica: Arc<Replica>,
}

/// What is known of its engine.
enum Seen {
    Moving(Progress),
    Hung { steps: Option<u64> },
}

impl Watch {
    /// Looks until the gateway ends.
    pub async fn run(self) {
        let born = Instant::now();
        let mut seen = Seen::Moving(Progress::new(Duration::ZERO));
        let mut preemptions = None;
        loop {
            let health = self.live.get().health.clone();
            self.replica.health.set_rules(build::breaker(&health));
            tokio::time::sleep(health.probe).await;
            let is_there = self.replica.readiness() != Readiness::Down && self.replica.address().is_some();
            let stats = if is_there { self.figures().await } else { None };
            let waiting = stats.map_or(0, |stats| usize::try_from(stats.requests_waiting).unwrap_or(usize::MAX));
            self.backend.routing().waiting(self.slot, waiting);
            let preempted = stats.map(|stats| stats.preemptions);
            if preemptions.is_some() && preempted > preemptions {
                self.backend.places().preempted(self.slot);
            }
            preemptions = preempted.or(preemptions);
            seen = if is_there {
                self.judge(seen, stats, &health, born.elapsed()).await
            } else {
                Seen::Moving(Progress::new(born.elapsed()))
            };
            show(&self.flow, &self.replica);
        }
    }

    async fn figures(&self) -> Option<EngineStats> {
        let looked = tokio::time::timeout(LOOK_TIME, probe::engine(&self.replica)).await;
        let stats = looked.ok()?.ok()?;
        self.replica.set_started_s(stats.and_then(|stats| stats.started_s));
        stats
    }

    async fn judge(&self, seen: Seen, stats: Option<EngineStats>, health: &HealthConfig, now: Duration) -> Seen {
        let signs = self.replica.health.take_signs();
        let steps = stats.and_then(|stats| stats.steps);
        // The supervisor may have said meanwhile that it is another one.
        let is_hung = self.replica.health.phase() == Phase::Hung;
        match seen {
            Seen::Hung { steps: then } if is_hung => {
                let moves = steps.is_some() && then.is_some() && steps != then;
                if moves || self.gives_a_token().await {
                    self.replica.health.step(Event::Alive);
                    return Seen::Moving(Progress::new(now));
                }
                Seen::Hung { steps: then }
            }
            Seen::Hung { .. } => Seen::Moving(Progress::new(now)),
            Seen::Moving(mut progress) => {
                let look = Look {
                    in_flight: self.replica.in_flight(),
                    steps,
                    spoke: signs.spoke,
                    stalled: signs.stalled,
                };
                let ahead = self.backend.routing().prefill_ahead(self.slot);
                if !progress.look(look, progress::limit(health.hung_after, ahead), now) {
                    return Seen::Moving(progress);
                }
                let left = self.replica.hangs();
                let silent = progress.silent();
                tracing::warn!(replica = %self.replica.name(), ?silent, left, "requests leave the replica that hangs");
                Seen::Hung { steps }
            }
        }
    }

    async fn gives_a_token(&self) -> bool {
        let model = self.replica.model();
        let token = probe::gives_a_token(&self.replica, &model);
        // Boxed: it is a whole request, and rare.
        matches!(tokio::time::timeout(TOKEN_TIME, Box::pin(token)).await, Ok(Ok(())))
    }
}

/// For operators.
pub fn show(flow: &Flow, replica: &Replica) {
    let standing = replica.standing();
    let metrics = &flow.books.metrics;
    metrics.replica_up(&replica.name(), standing.is_up());
    metrics.replica_state(&replica.name(), standing.as_str(), &STATES);
}
