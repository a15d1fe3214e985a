//! What runs in this process: one entry per request, for whoever must reach an answer that waits.
//!
//! A relay is polled only when its socket has room or its upstream has bytes. Cancel, drain and deadlines reach it through
//! its entry: they set a state and wake it, and the relay looks there first in each poll.

use foldhash::HashMap;
use futures_util::task::AtomicWaker;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Locks for the entries: requests of different shards never wait for each other.
const SHARDS: usize = 16;

/// Why an answer must end now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// `POST /v1/requests/{id}/cancel`.
    Cancelled = 1,
    /// The drain's time is over.
    Drained = 2,
}

impl Stop {
    /// What the client is told.
    pub fn fault(self) -> Fault {
        match self {
            Stop::Cancelled => Fault::new(FaultKind::Cancelled, "The request was cancelled."),
            Stop::Drained => Fault::new(
                FaultKind::Draining,
                "The gateway is shutting down; the answer could not end in time.",
            ),
        }
    }
}

/// Ends a client connection from outside.
#[derive(Debug, Clone, Default)]
pub struct HangUp(Arc<Notify>);

impl HangUp {
    /// Ends it.
    pub fn now(&self) {
        self.0.notify_one();
    }

    /// Waits until it must end.
    pub async fn wanted(&self) {
        self.0.notified().await;
    }
}

/// One running request.
#[derive(Default)]
pub struct Entry {
    stop: AtomicU8,
    waker: AtomicWaker,
    notify: Notify,
    /// When its relay was last polled, in ms since the registry's start; 0: it has none that must be polled.
    polled_ms: AtomicU64,
    hang_up: Option<HangUp>,
}

impl Entry {
    /// Whether the answer must end; registers the task for when it must.
    pub fn poll_stop(&self, cx: &Context<'_>) -> Option<Stop> {
        self.waker.register(cx.waker());
        self.stop()
    }

    /// A relay was polled. It wakes itself for keep-alives, so one that isn't polled for long has a client that reads nothing.
    pub fn polled(&self, since_start: Duration) {
        self.polled_ms
            .store((since_start.as_millis() as u64).max(1), Ordering::Relaxed);
    }

    /// The same for an `async fn`: waits until it must end.
    pub async fn stopped(&self) -> Stop {
        loop {
            let notified = self.notify.notified();
            if let Some(stop) = self.stop() {
                return stop;
            }
            notified.await;
        }
    }

    fn stop(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Acquire) {
            1 => Some(Stop::Cancelled),
            2 => Some(Stop::Drained),
            _ => None,
        }
    }

    fn end(&self, why: Stop) {
        self.stop.store(why as u8, Ordering::Release);
        self.waker.wake();
        self.notify.notify_waiters();
    }
}

/// By key name and request id.
type Entries = HashMap<(Arc<str>, Arc<str>), Arc<Entry>>;
type Shard = Mutex<Entries>;

/// All running requests.
pub struct Registry {
    shards: [Shard; SHARDS],
    start: Instant,
    running: AtomicUsize,
    limit: AtomicUsize,
    idle: Notify,
}

impl Registry {
    /// For at most `limit` requests at once.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Registry {
            shards: std::array::from_fn(|_| Shard::default()),
            start: Instant::now(),
            running: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            idle: Notify::new(),
        })
    }

    /// A place for one more request, unless the process is full.
    pub fn admit(self: &Arc<Self>) -> Option<Permit> {
        if self.running.fetch_add(1, Ordering::AcqRel) >= self.limit() {
            self.leave();
            return None;
        }
        Some(Permit(self.clone()))
    }

    /// Requests at once.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// A reload changed the limit.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Running now.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// Registers a request under its id and its key's name: only the same key may cancel it.
    pub fn register(self: &Arc<Self>, id: &Arc<str>, key: &Arc<str>, hang_up: Option<HangUp>) -> Registered {
        let entry = Arc::new(Entry {
            hang_up,
            ..Entry::default()
        });
        self.shard(id).insert((key.clone(), id.clone()), entry.clone());
        Registered {
            registry: self.clone(),
            id: id.clone(),
            key: key.clone(),
            entry,
        }
    }

    /// Cancels; false if no such request of this key runs.
    pub fn cancel(&self, id: &str, key: &Arc<str>) -> bool {
        let entry = self.shard(id).get(&(key.clone(), Arc::from(id))).cloned();
        entry.inspect(|entry| entry.end(Stop::Cancelled)).is_some()
    }

    /// Hangs up on clients that have read nothing for `limit`. On HTTP/1.1 the transport's own timer is as quick; a stream
    /// of an HTTP/2 connection that its client doesn't read shows only here. Returns how many.
    pub fn hang_up_on_stalled(&self, limit: Duration) -> usize {
        let now_ms = self.start.elapsed().as_millis() as u64;
        let limit_ms = limit.as_millis() as u64;
        let mut count = 0;
        for shard in &self.shards {
            for entry in lock(shard).values() {
                let polled_ms = entry.polled_ms.load(Ordering::Relaxed);
                if polled_ms != 0
                    && polled_ms + limit_ms < now_ms
                    && let Some(hang_up) = &entry.hang_up
                {
                    hang_up.now();
                    count += 1;
                }
            }
        }
        count
    }

    /// Since the registry's start: what [`Entry::polled`] is told.
    pub fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// Ends everything that still runs: the drain's time is over.
    pub fn end_all(&self) {
        for shard in &self.shards {
            let entries: Vec<_> = lock(shard).values().cloned().collect();
            entries.iter().for_each(|entry| entry.end(Stop::Drained));
        }
    }

    /// Waits until nothing runs.
    pub async fn is_idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.running() == 0 {
                return;
            }
            notified.await;
        }
    }

    fn leave(&self) {
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }

    fn shard(&self, id: &str) -> MutexGuard<'_, Entries> {
        let sum = id
            .bytes()
            .fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let [first, ..] = &self.shards;
        lock(self.shards.get(sum % SHARDS).unwrap_or(first))
    }
}

fn lock(shard: &Shard) -> MutexGuard<'_, Entries> {
    // Nothing that can panic runs under the lock.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's place in the process.
pub struct Permit(Arc<Registry>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A request's entry, taken out when dropped.
pub struct Registered {
    registry: Arc<Registry>,
    id: Arc<str>,
    key: Arc<str>,
    /// The entry.
    pub entry: Arc<Entry>,
}

impl Registered {
    /// See [`Entry::polled`].
    pub fn polled(&self, now: Instant) {
        self.entry.polled(self.registry.since_start(now));
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut shard = self.registry.shard(&self.id);
        let own = (self.key.clone(), self.id.clone());
        // A client may send one id twice: the later request's entry stays.
        if shard.get(&own).is_some_and(|entry| Arc::ptr_eq(entry, &self.entry)) {
            shard.remove(&own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_what_runs() {
        let registry = Registry::new(1);
        let permit = registry.admit().unwrap();
        assert!(registry.admit().is_none());
        drop(permit);
        assert!(registry.admit().is_some());
    }

    #[tokio::test]
    async fn only_the_same_key_cancels() {
        let registry = Registry::new(9);
        let id: Arc<str> = "a".into();
        let registered = registry.register(&id, &"one".into(), None);
        assert!(!registry.cancel("a", &"two".into()));
        assert!(registry.cancel("a", &"one".into()));
        assert_eq!(registered.entry.stopped().await, Stop::Cancelled);
        drop(registered);
        assert!(!registry.cancel("a", &"one".into()));
    }

    #[tokio::test]
    async fn a_relay_that_nobody_polls_has_a_client_that_reads_nothing() {
        let registry = Registry::new(9);
        let hang_up = HangUp::default();
        let (quiet, read): (Arc<str>, Arc<str>) = ("quiet".into(), "read".into());
        let stalled = registry.register(&quiet, &"k".into(), Some(hang_up.clone()));
        let unpolled = registry.register(&read, &"k".into(), Some(HangUp::default()));
        stalled.entry.polled(Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(registry.hang_up_on_stalled(Duration::from_secs(60)), 0);
        assert_eq!(registry.hang_up_on_stalled(Duration::from_millis(5)), 1);
        hang_up.wanted().await;
        drop(unpolled);
    }

    #[tokio::test]
    async fn idle_is_seen_by_one_who_waits() {
        let registry = Registry::new(9);
        let permit = registry.admit();
        let waits = tokio::spawn({
            let registry = registry.clone();
            async move { registry.is_idle().await }
        });
        tokio::task::yield_now().await;
        drop(permit);
        waits.await.unwrap();
    }
}
