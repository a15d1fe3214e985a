//! Backends that may take one request, in the order of their fallbacks, and which of them has it now.
//!
//! Enters: that order. Leaves: the backend that is asked, with the request's place there (B34). Before anything of an answer is shown a
//! request may go over to the next one, never back: each has it once at most. When it goes over is `attempt`'s.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use sluice_policy::route::shared::Hint;

use crate::upstream::Backend;
use crate::upstream::admission::Place;

/// See the module.
pub struct Candidates {
    first: Candidate,
    /// Empty as a rule, and no allocation then.
    others: Vec<Candidate>,
    /// How many had it before.
    passed: AtomicUsize,
    /// The first isn't the one that was asked for.
    begins_elsewhere: bool,
}

struct Candidate {
    backend: Arc<Backend>,
    /// From the first attempt there to the end of the answer.
    place: OnceLock<Place>,
    /// What other gateways know of the conversation there, once they were asked.
    hint: OnceLock<Hint>,
}

impl Candidates {
    /// For a request for `asked`, in this order. `None` if there are none.
    pub fn new(asked: &Arc<Backend>, order: Vec<&Arc<Backend>>) -> Option<Candidates> {
        let mut order = order.into_iter().map(|backend| Candidate {
            backend: backend.clone(),
            place: OnceLock::new(),
            hint: OnceLock::new(),
        });
        let first = order.next()?;
        Some(Candidates {
            begins_elsewhere: !Arc::ptr_eq(asked, &first.backend),
            first,
            others: order.collect(),
            passed: AtomicUsize::new(0),
        })
    }

    /// All of them.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let others = self.others.iter().map(|other| &other.backend);
        std::iter::once(&self.first.backend).chain(others)
    }

    /// Who has it now.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.now().backend
    }

    /// Another one than was asked for has it.
    pub fn is_fallback(&self) -> bool {
        self.begins_elsewhere || self.passed.load(Ordering::Relaxed) > 0
    }

    /// Its place there, if it has one.
    pub fn place(&self) -> Option<&Place> {
        self.now().place.get()
    }

    /// It has this place there; a second one is given back at once.
    pub fn takes(&self, place: Place) {
        let _ = self.now().place.set(place);
    }

    /// What other gateways know of the conversation there, if they were asked and know it.
    pub fn hint(&self) -> Option<Hint> {
        self.now().hint.get().copied()
    }

    /// They know this. Told once: a request that is asked anew finds itself known.
    pub fn learns(&self, hint: Hint) {
        let _ = self.now().hint.set(hint);
    }

    /// The next one has it from now on, and its place is given back; false if there is none.
    pub fn go_over(&self) -> bool {
        let passed = self.passed.load(Ordering::Relaxed);
        if passed >= self.others.len() {
            return false;
        }
        if let Some(place) = self.place() {
            place.give_back();
        }
        // Only whoever makes the attempts comes here.
        self.passed.store(passed + 1, Ordering::Relaxed);
        true
    }

    fn now(&self) -> &Candidate {
        let passed = self.passed.load(Ordering::Relaxed);
        let other = passed.checked_sub(1).and_then(|place| self.others.get(place));
        other.unwrap_or(&self.first)
    }
}
