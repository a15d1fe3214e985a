//! A replica's health as the path sees it: `policy`'s breaker behind a lock and with a clock, and signs of life of its engine.
//!
//! Enters: what became of requests ([`Event`]), signs of life. Leaves: whether somebody may ask, a
//! [`Passage`] that counts until it is dropped, and one line of log for each change. The lock is held for one step, never over an await.
//! Who looks at the engine again and again is `app::health`.

use sluice_policy::health::breaker::{Breaker, Event, Pass, Phase, Rules, Verdict};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::replica::Name;

/// See the module.
pub struct Health {
    replica: Name,
    breaker: Mutex<Logged>,
    /// A byte of an answer has come since somebody looked.
    spoke: AtomicBool,
    /// A stream that had begun was given up as silent since then.
    stalled: AtomicBool,
    born: Instant,
}

/// A breaker, and the phase that the log has.
struct Logged {
    breaker: Breaker,
    phase: Phase,
}

/// Signs since the last look.
#[derive(Debug, Clone, Copy)]
pub struct Signs {
    /// A byte of an answer came.
    pub spoke: bool,
    /// A stream was given up as silent.
    pub stalled: bool,
}

impl Health {
    /// Of this replica: nothing is held against it.
    pub fn new(replica: Name) -> Arc<Health> {
        Arc::new(Health {
            replica,
            breaker: Mutex::new(Logged {
                breaker: Breaker::default(),
                phase: Phase::Closed,
            }),
            spoke: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            born: Instant::now(),
        })
    }

    /// Other rules from now on.
    pub fn set_rules(&self, rules: Rules) {
        self.with(|breaker, _| breaker.set_rules(rules));
    }

    /// Something happened.
    pub fn step(&self, event: Event) {
        self.with(|breaker, now| breaker.step(event, now));
    }

    /// Where the breaker stands.
    pub fn phase(&self) -> Phase {
        self.with(|breaker, now| breaker.state(now).phase())
    }

    /// Somebody who asked now would be admitted.
    pub fn admits(&self) -> bool {
        self.with(|breaker, now| breaker.verdict(now)) != Verdict::Reject
    }

    /// Somebody asks.
    pub fn admit(self: &Arc<Self>) -> Option<Passage> {
        let pass = self.with(|breaker, now| breaker.admit(now))?;
        Some(self.passage(pass))
    }

    /// Somebody asks whom nobody else can serve.
    pub fn admit_anyway(self: &Arc<Self>) -> Passage {
        self.passage(self.with(|breaker, _| breaker.admit_anyway()))
    }

    /// A byte of an answer has come. Called for each: it is a read, as a rule.
    pub fn spoke(&self) {
        if !self.spoke.load(Ordering::Relaxed) {
            self.spoke.store(true, Ordering::Relaxed);
        }
    }

    /// A stream that had begun is given up as silent.
    pub fn stalled(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    /// What there was since the last call.
    pub fn take_signs(&self) -> Signs {
        Signs {
            spoke: self.spoke.swap(false, Ordering::Relaxed),
            stalled: self.stalled.swap(false, Ordering::Relaxed),
        }
    }

    fn passage(self: &Arc<Self>, pass: Pass) -> Passage {
        Passage {
            health: self.clone(),
            pass: Some(pass),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Breaker, Duration) -> T) -> T {
        let mut logged = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.born.elapsed();
        let done = act(&mut logged.breaker, now);
        let phase = logged.breaker.state(now).phase();
        let was = std::mem::replace(&mut logged.phase, phase);
        drop(logged);
        if was != phase {
            self.log(phase);
        }
        done
    }

    fn log(&self, phase: Phase) {
        let replica = &*self.replica.get();
        match phase {
            Phase::Open => tracing::warn!(replica, "the replica fails: it is left alone for a moment"),
            Phase::Hung => tracing::error!(
                replica,
                "the replica hangs: it has work and makes no progress; its requests are left"
            ),
            Phase::Probing => tracing::info!(replica, "the replica may be back: a few requests try it"),
            Phase::Returning => tracing::info!(replica, "the replica is back: it gets more and more requests"),
            Phase::Closed => tracing::info!(replica, "the replica takes all requests again"),
        }
    }
}

/// Somebody who was admitted; dropping it ends the count.
pub struct Passage {
    health: Arc<Health>,
    pass: Option<Pass>,
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.health.with(|breaker, _| breaker.ended(pass));
        }
    }
}
