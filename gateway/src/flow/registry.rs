//! What runs in this process: one entry per request, for whoever must reach an answer that waits.
//!
//! A relay is polled only when its socket has room or its upstream has bytes. Cancel, drain and deadlines reach it through
//! its entry: they set a state and wake it, and the relay looks there first in each poll.

use futures_util::task::AtomicWaker;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
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

/// One running request.
#[derive(Default)]
pub struct Entry {
    stop: AtomicU8,
    waker: AtomicWaker,
    notify: Notify,
}

impl Entry {
    /// Whether the answer must end; registers the task for when it must.
    pub fn poll_stop(&self, cx: &Context<'_>) -> Option<Stop> {
        self.waker.register(cx.waker());
        self.stop()
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
    running: AtomicUsize,
    limit: AtomicUsize,
    idle: Notify,
}

impl Registry {
    /// For at most `limit` requests at once.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Registry {
            shards: std::array::from_fn(|_| Shard::default()),
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
    pub fn register(self: &Arc<Self>, id: &Arc<str>, key: &Arc<str>) -> Registered {
        let entry = Arc::new(Entry::default());
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
        let registered = registry.register(&id, &"one".into());
        assert!(!registry.cancel("a", &"two".into()));
        assert!(registry.cancel("a", &"one".into()));
        assert_eq!(registered.entry.stopped().await, Stop::Cancelled);
        drop(registered);
        assert!(!registry.cancel("a", &"one".into()));
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
