//! What `policy::route` knows of a backend, behind a lock and with a clock; and the guard of a request that it sent somewhere.
//!
//! The lock is held for one decision or one lesson: microseconds, never over an await. A [`Routed`] counts from before its request is
//! sent until it is dropped, whatever became of it; in between it is told of the first token and of the usage.

use sluice_policy::protocol::usage::Usage;
use sluice_policy::route::choose::{Decision, Margins, Question, RouteSettings, Router, Ticket, Used};
use sluice_policy::route::saved::{Saved, SavedReplica};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::health::Passage;

/// See the module.
pub struct Routing {
    router: Mutex<Router>,
    born: Instant,
}

impl Routing {
    /// Of so many replicas.
    pub fn new(replicas: usize, settings: RouteSettings) -> Routing {
        Routing {
            router: Mutex::new(Router::new(replicas, settings)),
            born: Instant::now(),
        }
    }

    /// Decides, and counts what was decided.
    pub fn decide(
        self: &Arc<Self>,
        question: Question<'_>,
        margins: Margins,
        ring: impl Iterator<Item = usize>,
    ) -> Option<(Decision, Routed)> {
        let now = self.now();
        let mut router = self.router();
        router.set_margins(margins);
        let decision = router.choose(question, ring, now)?;
        let ticket = router.dispatch(question.session, question.chain, &decision, now);
        drop(router);
        let routed = Routed {
            routing: self.clone(),
            ticket: Some(ticket),
            has_token: false,
            used: Used::default(),
            passage: None,
        };
        Some((decision, routed))
    }

    /// What would be decided; nothing is counted.
    pub fn consider(
        &self,
        question: Question<'_>,
        margins: Margins,
        ring: impl Iterator<Item = usize>,
    ) -> Option<Decision> {
        let now = self.now();
        let mut router = self.router();
        router.set_margins(margins);
        router.choose(question, ring, now)
    }

    /// This session has a home.
    pub fn knows(&self, session: u64) -> bool {
        self.router().knows(session, self.now())
    }

    /// A replica says how many tokens its KV cache holds; 0: it caches no prefixes.
    pub fn capacity(&self, replica: usize, kv_tokens: u64) {
        self.router().capacity(replica, kv_tokens);
    }

    /// A replica has started anew: its cache is empty.
    pub fn restarted(&self, replica: usize) {
        self.router().restarted(replica);
    }

    /// Another replica has this number from now on.
    pub fn occupy(&self, replica: usize) {
        self.router().occupy(replica);
    }

    /// Nothing that was sent there is under way.
    pub fn is_idle(&self, replica: usize) -> bool {
        self.router().is_idle(replica)
    }

    /// Requests that wait in a replica's engine, as its metrics say; 0 if they say nothing.
    pub fn waiting(&self, replica: usize, waiting: usize) {
        self.router().waiting(replica, waiting);
    }

    /// Expected time of all prefills that a replica was given and hasn't done.
    pub fn prefill_ahead(&self, replica: usize) -> Duration {
        self.router().prefill_ahead(replica)
    }

    /// For the state folder.
    pub fn save(&self, names: &[&str]) -> Saved {
        self.router().save(names, self.now())
    }

    /// What an earlier gateway knew; false if it can't be taken over.
    pub fn restore(&self, saved: &Saved, names: &[&str], since: Duration) -> bool {
        self.router().restore(saved, names, since)
    }

    /// The same for replicas that weren't there yet then.
    pub fn restore_late(&self, saved: &[SavedReplica], names: &[&str], since: Duration) {
        self.router().restore_late(saved, names, since, self.now());
    }

    fn now(&self) -> Duration {
        self.born.elapsed()
    }

    fn router(&self) -> MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub struct Routed {
    routing: Arc<Routing>,
    ticket: Option<Ticket>,
    has_token: bool,
    used: Used,
    /// Its replica's breaker counts it as long.
    passage: Option<Passage>,
}

impl Routed {
    /// The replica's breaker let it pass.
    pub fn passes(&mut self, passage: Passage) {
        self.passage = Some(passage);
    }

    /// A token has come; only the first one counts.
    pub fn token(&mut self) {
        if !self.has_token
            && let Some(ticket) = &mut self.ticket
        {
            self.has_token = true;
            self.routing.router().first_token(ticket, self.routing.now());
        }
    }

    /// What the answer says that it took.
    pub fn used(&mut self, usage: &Usage) {
        self.used = Used {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
        };
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.routing.router().ended(ticket, self.used, self.routing.now());
        }
    }
}
