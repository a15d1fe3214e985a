//! Records of requests that end before the flow has them: no route, a head beyond its limits, no key, no room, a body that
//! doesn't come.
//!
//! Enters: what is known so far. Leaves: a record, unless the flow made one. Who sends such requests needs no key, so their
//! rows are bounded apart from the queue's own bound: a scan must not push the rows of real requests out of a file that
//! keeps so many. What is past the bound is counted as shed, and the metrics count all of it.

use sluice_policy::protocol::ask::Endpoint;
use sluice_policy::protocol::fault::Fault;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::account::{Account, Books};
use crate::keys::{Allowance, KeyId};

/// Rows of requests without a key in each [`WINDOW`]; more are shed.
const UNNAMED_ROWS: u32 = 1_000;
/// See [`UNNAMED_ROWS`].
const WINDOW: Duration = Duration::from_secs(60);
/// `endpoint` of a record where no route was found.
const NO_ENDPOINT: &str = "none";

/// Makes the records of refused requests; clones are cheap.
#[derive(Clone)]
pub struct Refusals {
    books: Books,
    unnamed: Arc<Mutex<Window>>,
}

impl Refusals {
    /// Into these books.
    pub fn new(books: Books) -> Self {
        let unnamed = Arc::new(Mutex::new(Window::new(Instant::now())));
        Refusals { books, unnamed }
    }

    /// One for each request; the flow takes its [`Claim`] when it accounts for the request itself.
    pub fn expect(&self, id: &Arc<str>, accepted: Instant, endpoint: &Endpoint) -> (Refusal, Claim) {
        let claim = Claim::default();
        let refusal = Refusal {
            refusals: self.clone(),
            id: id.clone(),
            accepted,
            endpoint: endpoint.as_str(),
            claim: claim.clone(),
        };
        (refusal, claim)
    }

    /// A request that no layer gets to see.
    pub fn refused(&self, id: &str, accepted: Instant, endpoint: Option<&Endpoint>, fault: &Fault) {
        self.account(id, accepted, endpoint.map_or(NO_ENDPOINT, Endpoint::as_str), "")
            .refused(fault);
    }

    fn account(&self, id: &str, accepted: Instant, endpoint: &'static str, key_name: &str) -> Account {
        let mut account = Account::open(self.books.clone(), id, accepted, endpoint, key_name);
        if key_name.is_empty() && !self.has_room(Instant::now()) {
            account.shed();
        }
        account
    }

    fn has_room(&self, now: Instant) -> bool {
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    }
}

/// So many in each window of time.
struct Window {
    begun: Instant,
    rows: u32,
}

impl Window {
    fn new(now: Instant) -> Self {
        Window { begun: now, rows: 0 }
    }

    fn admit(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.begun) >= WINDOW {
            *self = Window::new(now);
        }
        self.rows = self.rows.saturating_add(1);
        self.rows <= UNNAMED_ROWS
    }
}

/// Taken by whoever accounts for the request.
#[derive(Clone, Default)]
pub struct Claim(Arc<Claimed>);

#[derive(Default)]
struct Claimed {
    taken: AtomicBool,
    key: OnceLock<Arc<KeyId>>,
}

impl Claim {
    /// The flow accounts for the request from here on.
    pub fn take(&self) {
        self.0.taken.store(true, Ordering::Relaxed);
    }

    /// Whose key it is, as soon as that is known: also what is refused later has a name.
    pub fn of_key(&self, key: &Arc<KeyId>) {
        let _ = self.0.key.set(key.clone());
    }

    fn is_taken(&self) -> bool {
        self.0.taken.load(Ordering::Relaxed)
    }
}

/// A request that nobody has claimed yet. Dropped unclaimed, it was cancelled: the client left on the way.
pub struct Refusal {
    refusals: Refusals,
    id: Arc<str>,
    accepted: Instant,
    endpoint: &'static str,
    claim: Claim,
}

impl Refusal {
    /// What its key may use, if that is limited.
    pub fn allowance(&self) -> Option<Allowance> {
        self.claim.0.key.get()?.allowance.clone()
    }

    /// Answered without the flow: no record.
    pub fn answered(self) {
        self.claim.take();
    }

    /// Refused: a record, unless the flow made one.
    pub fn refused(self, fault: &Fault) {
        if !self.claim.is_taken() {
            self.account().refused(fault);
        }
    }

    fn account(&self) -> Account {
        self.claim.take();
        let key_name = self.claim.0.key.get().map_or("", |key| &key.name);
        self.refusals.account(&self.id, self.accepted, self.endpoint, key_name)
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        if !self.claim.is_taken() {
            drop(self.account());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_a_key_are_bounded_in_each_window() {
        let begun = Instant::now();
        let mut window = Window::new(begun);
        let admitted =
            |window: &mut Window, at: Duration, count: u32| (0..count).filter(|_| window.admit(begun + at)).count();
        assert_eq!(admitted(&mut window, Duration::ZERO, 600), 600);
        assert_eq!(admitted(&mut window, WINDOW / 2, 600), 400);
        assert_eq!(admitted(&mut window, WINDOW, 2_000), 1_000);
        assert_eq!(admitted(&mut window, WINDOW * 3, 1), 1);
    }
}
