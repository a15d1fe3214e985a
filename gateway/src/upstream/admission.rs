//! Places at a backend's replicas: `policy::admission` behind a lock and with a clock, and the guards of those who wait and who run.
//!
//! A request enters with its [`Arrival`]. Where nobody waits and there is room, it leaves with a [`Choice`] and its [`Place`] at once: one
//! lock, and no entry in the queue. Else it is [`Waiting`]: no task and no channel, its waker stands in the queue, and dropping
//! it is leaving. Who is called is placed where the router wants it, among the replicas that have room by then. Lock order:
//! admission, then the router; neither is held over an await.
//!
//! A conversation whose home is full goes elsewhere at once if the home's next place is farther away than the first token there;
//! else it waits for its home for at most that long.

use sluice_policy::admission::queue::{Priority, QueueLimits, Waiter};
use sluice_policy::admission::room::{Capacity, Holds, Room};
use sluice_policy::admission::{Admission, Held, Refusal, Wants};
use sluice_policy::protocol::usage::Usage;
use sluice_policy::route::choose::Reason;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::fleet::{Backend, Choice, Wanted};

type Order = Admission<Option<Waker>>;

/// What is known of a request that wants a place.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The name of its key.
    pub key: Arc<str>,
    /// How urgent.
    pub priority: Priority,
    /// What it takes.
    pub wants: Wants,
    /// Of its body.
    pub bytes: u64,
}

/// See the module.
pub struct Places {
    order: Mutex<Order>,
    /// A replica has said how large its KV cache is.
    counts_tokens: AtomicBool,
    born: Instant,
}

impl Places {
    /// At replicas of these sizes.
    pub fn new(capacities: impl IntoIterator<Item = Capacity>) -> Places {
        Places {
            order: Mutex::new(Admission::new(capacities)),
            counts_tokens: AtomicBool::new(false),
            born: Instant::now(),
        }
    }

    /// A replica says how many tokens its KV cache holds.
    pub fn kv_tokens(&self, replica: usize, tokens: u64) {
        let mut order = self.order();
        let known = order.capacity(replica);
        let kv_tokens = Some(tokens).filter(|tokens| *tokens > 0);
        order.set_capacity(replica, Capacity { kv_tokens, ..known });
        self.counts_tokens.fetch_or(kv_tokens.is_some(), Ordering::Relaxed);
    }

    /// A replica runs so many sequences at once, if that is known.
    pub fn sequences(&self, replica: usize, sequences: Option<u32>) {
        let mut order = self.order();
        let known = order.capacity(replica);
        order.set_capacity(replica, Capacity { sequences, ..known });
    }

    /// Another replica has this number from now on.
    pub fn occupy(&self, replica: usize, capacity: Capacity) {
        self.order().occupy(replica, capacity);
    }

    /// Nobody runs there, nor has been called there.
    pub fn is_idle(&self, replica: usize) -> bool {
        self.order().is_idle(replica)
    }

    /// A replica's metrics say that it had to stop running sequences.
    pub fn preempted(&self, replica: usize) {
        self.order().preempted(replica, self.now());
    }

    /// What is held of a replica's room, here and in a process that this one took over from.
    pub fn holds(&self, replica: usize) -> Holds {
        self.order().room(replica).map(Room::holds).unwrap_or_default()
    }

    /// Whether what a prompt shares with others matters.
    pub fn counts_tokens(&self) -> bool {
        self.counts_tokens.load(Ordering::Relaxed)
    }

    /// Of a prompt of so many bytes, as measured so far.
    pub fn prompt_tokens(&self, prompt_bytes: u64) -> u64 {
        self.order().prompt_tokens(prompt_bytes)
    }

    /// Requests that wait, of this priority.
    pub fn waiting(&self, priority: Priority) -> usize {
        self.order().waiting(priority)
    }

    /// Requests that go before this one; `None` if it doesn't wait.
    pub fn ahead(&self, id: u64) -> Option<usize> {
        self.order().queue().ahead(id, self.now())
    }

    fn now(&self) -> Duration {
        self.born.elapsed()
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a request that came or looked again.
#[expect(
    clippy::large_enum_variant,
    reason = "most requests are placed at once: a box would be an allocation for each"
)]
pub enum Entered {
    /// It runs there.
    Placed(Choice, Place),
    /// It waits.
    Waits(Waiting),
    /// It gets no place.
    Refused(Refusal),
    /// No replica may be asked.
    Nobody,
}

/// A place for this request, or a place in the queue.
pub fn enter(backend: &Arc<Backend>, wanted: Wanted<'_>, arrival: &Arrival, limits: &QueueLimits) -> Entered {
    let (may, _) = backend.may_be_asked(wanted.tried);
    if !may.contains(&true) {
        return Entered::Nobody;
    }
    let places = backend.places();
    let now = places.now();
    let mut order = places.order();
    let need = order.need(&arrival.wants);
    let fits = order.fitting(&need, &may, now);
    let prompt_bytes = arrival.wants.prompt_bytes;
    let is_first = order.queue().is_empty();
    if is_first
        && fits == may
        && let Some(choice) = backend.choose(wanted)
    {
        let held = order.take(choice.index, need, prompt_bytes, choice.anew, now);
        return Entered::Placed(choice, Place::new(backend, held));
    }
    let Some(seen) = backend.consider(wanted, &may) else {
        return Entered::Nobody;
    };
    let mut others = may.clone();
    if let Some(other) = others.get_mut(seen.replica) {
        *other = false;
    }
    let elsewhere = backend.consider(wanted, &others);
    let has_past = seen.cached_bytes > 0 && matches!(seen.reason, Reason::Session | Reason::Shared | Reason::Prefix);
    let home = elsewhere
        .filter(|_| has_past)
        .map(|elsewhere| (seen.replica, now + elsewhere.expected));
    let waits_for_home = home.is_some_and(|(home, until)| {
        let expected = order.expected_at(home);
        fits.get(home) == Some(&false) && expected.is_some_and(|expected| now + expected <= until)
    });
    if is_first
        && !waits_for_home
        && let Some(choice) = backend.choose_among(wanted, Some(&fits))
    {
        let held = order.take(choice.index, need, prompt_bytes, choice.anew, now);
        return Entered::Placed(choice, Place::new(backend, held));
    }
    let (work_tokens, is_cached) = order.work(&need, prompt_bytes, seen.cached_bytes);
    let waiter = Waiter {
        key: arrival.key.clone(),
        priority: arrival.priority,
        need,
        bytes: arrival.bytes,
        is_cached,
        work_tokens,
        home,
        tag: None,
    };
    let id = match order.wait(waiter, limits, now) {
        Ok(id) => id,
        Err(refusal) => return Entered::Refused(refusal),
    };
    drop(order);
    Entered::Waits(Waiting {
        backend: backend.clone(),
        id,
        prompt_bytes,
        until: Order::until(now, limits),
        is_in: true,
    })
}

/// Whoever is next now is called: their wakers, to be woken without the lock.
fn call(order: &mut Order, backend: &Backend, now: Duration) -> Vec<Waker> {
    let mut wakers = Vec::new();
    if !order.queue().is_empty() {
        let (may, _) = backend.may_be_asked(&[]);
        order.call(&may, now, |waker| wakers.extend(waker.take()));
    }
    wakers
}

/// So much of a replica's room is held by the process that this one took over from.
pub fn set_elsewhere(backend: &Arc<Backend>, replica: usize, holds: Holds) {
    change(backend, |order, _| order.set_elsewhere(replica, holds));
}

/// Changes who runs or waits, and calls whoever is next then.
fn change<T>(backend: &Backend, act: impl FnOnce(&mut Order, Duration) -> T) -> T {
    let places = backend.places();
    let mut order = places.order();
    let now = places.now();
    let done = act(&mut order, now);
    let wakers = call(&mut order, backend, now);
    drop(order);
    wake(wakers);
    done
}

/// The replicas are others: whoever fits now is called.
pub fn look_again(backend: &Backend) {
    change(backend, |_, _| ());
}

fn wake(wakers: Vec<Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

/// In the queue until dropped.
pub struct Waiting {
    backend: Arc<Backend>,
    id: u64,
    prompt_bytes: u64,
    until: Duration,
    is_in: bool,
}

impl Waiting {
    /// For [`Places::ahead`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits until it is called.
    pub async fn called(&self) {
        poll_fn(|cx| {
            let mut order = self.backend.places().order();
            if order.called(self.id).is_some() {
                return Poll::Ready(());
            }
            if let Some(tag) = order.tag_mut(self.id) {
                *tag = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Takes its place if it has been called.
    pub fn look(mut self, wanted: Wanted<'_>) -> Entered {
        let (may, _) = self.backend.may_be_asked(wanted.tried);
        if !may.contains(&true) {
            return Entered::Nobody;
        }
        let backend = self.backend.clone();
        let now = backend.places().now();
        let mut order = backend.places().order();
        let mut wakers = call(&mut order, &backend, now);
        let mut placed = None;
        if order.called(self.id).is_some()
            && let Some((need, fits)) = order.loosen(self.id, &may, now)
        {
            if let Some(choice) = backend.choose_among(wanted, Some(&fits)) {
                order.leave(self.id);
                self.is_in = false;
                let held = order.take(choice.index, need, self.prompt_bytes, choice.anew, now);
                placed = Some((choice, Place::new(&backend, held)));
            }
            // It may run elsewhere than where room was kept for it.
            wakers.extend(call(&mut order, &backend, now));
        }
        let refusal = (now >= self.until).then(|| order.waited(self.id, now));
        drop(order);
        wake(wakers);
        match (placed, refusal) {
            (Some((choice, place)), _) => Entered::Placed(choice, place),
            (None, Some(refusal)) => Entered::Refused(refusal),
            (None, None) => Entered::Waits(self),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_in {
            change(&self.backend, |order, _| order.leave(self.id));
        }
    }
}

/// A place at a replica, held until dropped: over all attempts, questions and seams of one answer.
pub struct Place {
    backend: Arc<Backend>,
    state: Mutex<Holding>,
}

struct Holding {
    held: Option<Held>,
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Place {
    fn new(backend: &Arc<Backend>, held: Held) -> Place {
        Place {
            backend: backend.clone(),
            state: Mutex::new(Holding {
                held: Some(held),
                prompt_tokens: None,
                completion_tokens: None,
            }),
        }
    }

    /// The answer is asked of this replica from now on.
    pub fn moves(&self, replica: usize) {
        if let Some(held) = &mut self.state().held {
            change(&self.backend, |order, _| order.move_to(held, replica));
        }
    }

    /// What the answer says that it took.
    pub fn used(&self, usage: &Usage) {
        let mut state = self.state();
        state.prompt_tokens = usage.prompt_tokens;
        state.completion_tokens = usage.completion_tokens.filter(|_| !usage.estimated);
    }

    fn state(&self) -> MutexGuard<'_, Holding> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer won't come from there. The same as dropping it.
    pub fn give_back(&self) {
        let (held, prompt, completion) = {
            let mut state = self.state();
            (state.held.take(), state.prompt_tokens, state.completion_tokens)
        };
        if let Some(held) = held {
            change(&self.backend, |order, now| {
                order.give_back(held, prompt, completion, now)
            });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}
