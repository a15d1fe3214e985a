//! What stays the same over all attempts of one request: the ask, where it may go, and its limits.

use bytes::Bytes;
use http::Method;
use http::header::{HeaderName, HeaderValue};
use sluice_policy::admission::queue::QueueLimits;
use sluice_policy::protocol::ask::Ask;
use sluice_policy::protocol::usage::Usage;
use sluice_policy::route::chain::Chain;
use sluice_policy::route::choose::Margins;
use sluice_policy::route::session::SessionKey;
use sluice_policy::turn::{AskAgain, Guide};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::account::Progress;
use super::call::Buffered;
use super::candidates::Candidates;
use super::history::History;
use super::hold::HoldLimits;
use super::plan::{self, Wishes};
use super::registry::Permit;
use crate::affinity::Affinity;
use crate::upstream::admission::Arrival;
use crate::upstream::{Backend, Choice, Replica, Wanted};

/// Bounds of one request's way through the replicas.
#[derive(Debug, Clone, Copy)]
pub struct ExchangeLimits {
    /// Attempts before the first data line.
    pub attempts: u32,
    /// Time to connect.
    pub connect: Duration,
    /// Age of a pooled connection.
    pub idle: Duration,
    /// Until the head, and until the first token: the engine may queue and prefill for long.
    pub answer: Duration,
    /// Silence of a stream that has begun.
    pub stall: Duration,
    /// Silence after which a comment is sent; zero: none.
    pub keep_alive: Duration,
    /// Silence after which the head is sent without knowing the upstream's.
    pub head_after: Duration,
    /// One upstream event.
    pub event_bytes: usize,
    /// How easily conversations move.
    pub margins: Margins,
    /// An answer that is held whole.
    pub answer_bytes: usize,
    /// A call that is held for longer is shown as it becomes certain, where that is wanted.
    pub release_after: Duration,
    /// A call that is asked again.
    pub again: AgainLimits,
    /// An answer whose replica was lost.
    pub seam: SeamLimits,
    /// A request that nobody can take, and an answer that nobody can go on with.
    pub hold: HoldLimits,
    /// Who waits for a place; `None`: nobody does.
    pub queue: Option<QueueLimits>,
}

/// Bounds of a question.
#[derive(Debug, Clone, Copy)]
pub struct AgainLimits {
    /// From the question to the end of the guided call.
    pub time: Duration,
    /// Tokens of the guided call.
    pub tokens: u64,
}

/// Bounds of going on.
#[derive(Debug, Clone, Copy)]
pub struct SeamLimits {
    /// How often one answer goes on.
    pub count: u32,
}

/// See the module.
pub struct Exchange {
    /// `x-request-id`.
    pub id: Arc<str>,
    /// What is asked.
    pub ask: Ask,
    /// How the answer is made.
    pub wishes: Wishes,
    /// What is changed of past turns.
    pub history: History,
    /// Whose replicas are asked, and its place there.
    pub candidates: Candidates,
    /// Which conversation.
    pub session: SessionKey,
    /// Its prompt, hashed piece by piece.
    pub chain: Arc<Chain>,
    /// Bounds.
    pub limits: ExchangeLimits,
    /// What it wants a place for; `None`: it needs none.
    pub arrival: Option<Arrival>,
    /// Its number while it waits for one; else 0.
    pub queued: AtomicU64,
    /// Where other gateways are asked about the conversation, and told where it goes.
    pub affinity: Option<Arc<Affinity>>,
    /// Upstream's method and path.
    pub method: Method,
    /// See `method`.
    pub path: &'static str,
    /// Headers of the client that vLLM may see: trace context.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
    /// Ours, unique per request: vLLM derives the completion's id from it.
    pub own_id: String,
    /// Questions about its answer so far.
    pub asked: AtomicU32,
    /// Where the account reads which attempt is under way.
    pub progress: Progress,
    /// Given back when the answer ends.
    pub buffered: Option<Buffered>,
    /// The same.
    pub permit: Option<Permit>,
}

impl Exchange {
    /// Whose replicas are asked now.
    pub fn backend(&self) -> &Arc<Backend> {
        self.candidates.backend()
    }

    /// The next backend's replicas are asked from now on; `None` if there is none.
    pub fn go_over(&self) -> Option<&Arc<Backend>> {
        let from = self.backend();
        if !self.candidates.go_over() {
            return None;
        }
        let backend = self.backend();
        self.queued.store(0, Ordering::Relaxed);
        self.history.begin_anew(backend.refuses());
        self.progress.goes_over(from, backend);
        Some(backend)
    }

    /// The conversation has had turns before this one.
    pub fn has_past(&self) -> bool {
        // A system and a user message begin a conversation.
        self.ask.messages > 2
    }

    /// What is to be decided for the next attempt, leaving out replicas that were `tried`.
    pub fn wanted<'w>(&'w self, tried: &'w [usize]) -> Wanted<'w> {
        Wanted {
            session: self.session,
            chain: &self.chain,
            has_past: self.has_past(),
            tried,
            hint: self.candidates.hint(),
            margins: self.limits.margins,
        }
    }

    /// This replica is asked from now on: its place goes with it.
    pub fn moves(&self, choice: &Choice) {
        if let Some(place) = self.candidates.place() {
            place.moves(choice.index);
        }
    }

    /// What the answer took.
    pub fn used(&self, usage: &Usage) {
        if let Some(place) = self.candidates.place() {
            place.used(usage);
        }
    }

    /// Requests that go before it; `None` if it doesn't wait.
    pub fn ahead(&self) -> Option<usize> {
        match self.queued.load(Ordering::Relaxed) {
            0 => None,
            id => self.backend().places().ahead(id),
        }
    }

    /// The body as this replica should get it.
    pub fn upstream_body(&self, replica: &Replica) -> Vec<Bytes> {
        plan::upstream_body(&self.ask, &self.wishes, &self.history, replica)
    }

    /// The id of a question. vLLM logs it beside that of the attempt, which it begins with. Questions may be put more than once,
    /// to a replica that still works on the one before: each gets an id of its own.
    pub fn again_id(&self, question: &AskAgain) -> Option<HeaderValue> {
        let part = match question.guide {
            Guide::Call { .. } => "call",
            Guide::Free => "rest",
        };
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("{}-{part}-{}-{asked}", self.own_id, question.number)).ok()
    }

    /// Each attempt has an id of its own: some versions of vLLM refuse an id that still runs.
    pub fn upstream_id(&self, attempt: u32) -> Option<HeaderValue> {
        let text = if attempt == 1 {
            self.own_id.clone()
        } else {
            format!("{}-{attempt}", self.own_id)
        };
        HeaderValue::from_str(&text).ok()
    }
}
