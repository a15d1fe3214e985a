//! Drives the engine in real time: one task, one lock, one waker per request.
//!
//! Handlers submit jobs and get a [`Ticket`]; the task advances [`Core`] and tells each ticket's [`Signal`] how many
//! tokens are there. A body that is polled reads its signal, never the engine. Dropping a ticket is how a client that
//! left aborts its sequences.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::config::SimConfig;
use super::engine::{Core, Job, Next, Reached};

/// The running engine; a cheap handle.
#[derive(Clone)]
pub(super) struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Notify,
    epoch: Instant,
}

struct State {
    core: Core,
    signals: HashMap<u64, (Arc<Signal>, usize)>,
    aborted_requests: u64,
    is_dead: bool,
}

/// Why a job wasn't taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turned {
    /// The queue is full, or the KV cache is too small for the job.
    Away,
    /// The engine is dead.
    Dead,
}

impl Engine {
    /// An engine that does nothing until [`Engine::drive`] runs.
    pub(super) fn new(config: &SimConfig) -> Self {
        let state = State {
            core: Core::new(config),
            signals: HashMap::new(),
            aborted_requests: 0,
            is_dead: false,
        };
        let shared = Shared {
            state: Mutex::new(state),
            work: Notify::new(),
            epoch: Instant::now(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Advances the engine for ever; drop the future to stop it. Two drivers do no harm.
    pub(super) async fn drive(&self) {
        loop {
            match self.advance() {
                Next::Now => tokio::task::yield_now().await,
                Next::Idle => self.shared.work.notified().await,
                Next::At(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(self.shared.epoch + at) => {}
                        () = self.shared.work.notified() => {}
                    }
                }
            }
        }
    }

    /// Takes a request in, one job for each choice.
    pub(super) fn submit(&self, jobs: Vec<Job>) -> Result<Ticket, Turned> {
        let signal = Arc::new(Signal::new(jobs.len()));
        let now = self.now();
        let mut state = self.state();
        if state.is_dead {
            return Err(Turned::Dead);
        }
        let ids = state.core.submit(jobs, now).ok_or(Turned::Away)?;
        for (choice, id) in ids.iter().enumerate() {
            state.signals.insert(*id, (Arc::clone(&signal), choice));
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(Ticket {
            engine: self.clone(),
            ids,
            signal,
        })
    }

    /// Looks at the engine under its lock.
    pub(super) fn read<T>(&self, look: impl FnOnce(&Core) -> T) -> T {
        look(&self.state().core)
    }

    /// Requests that were aborted because their client left.
    pub(super) fn aborted_requests(&self) -> u64 {
        self.state().aborted_requests
    }

    /// Whether the engine has died.
    pub(super) fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// Stops (or resumes) making steps without telling anybody.
    pub(super) fn set_hung(&self, hung: bool) {
        self.state().core.set_hung(hung);
        self.shared.work.notify_one();
    }

    /// Forgets all cached prefixes.
    pub(super) fn forget_prefixes(&self) {
        self.state().core.forget_prefixes();
    }

    /// The engine dies: everything it had fails, nothing new is taken.
    pub(super) fn die(&self) {
        let mut state = self.state();
        state.is_dead = true;
        let lost: Vec<(u64, (Arc<Signal>, usize))> = state.signals.drain().collect();
        let ids: Vec<u64> = lost.iter().map(|(id, _)| *id).collect();
        state.core.fail(&ids);
        drop(state);
        for (_, (signal, _)) in lost {
            signal.die();
        }
    }

    fn advance(&self) -> Next {
        let mut reached: Vec<Reached> = Vec::new();
        let now = self.now();
        let mut state = self.state();
        let next = state.core.advance(now, &mut reached);
        let mut wakers: Vec<Waker> = Vec::new();
        for one in &reached {
            if let Some((signal, choice)) = state.signals.get(&one.id) {
                wakers.extend(signal.reach(*choice, one.produced, one.cached));
                if one.is_last {
                    state.signals.remove(&one.id);
                }
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        next
    }

    fn now(&self) -> Duration {
        self.shared.epoch.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The engine's state is whole between any two statements that can panic: go on with it.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in the engine. Dropping it aborts what isn't finished.
pub(super) struct Ticket {
    engine: Engine,
    ids: Vec<u64>,
    signal: Arc<Signal>,
}

impl Ticket {
    /// Waits for progress beyond `seen` and updates it.
    pub(super) fn poll_progress(&self, seen: &mut Progress, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.poll(seen, cx)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.engine.state();
        for id in &self.ids {
            state.signals.remove(id);
        }
        if state.core.abort(&self.ids) > 0 {
            state.aborted_requests += 1;
            drop(state);
            self.engine.shared.work.notify_one();
        }
    }
}

/// How far a request has come, as its body last saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Tokens of each choice.
    pub(super) produced: Vec<u32>,
    /// Cached prompt tokens of the first choice.
    pub(super) cached: u32,
    /// The engine died under it.
    pub(super) is_dead: bool,
}

impl Progress {
    /// Nothing yet, for `choices` choices.
    pub(super) fn new(choices: usize) -> Self {
        Self {
            produced: vec![0; choices],
            ..Self::default()
        }
    }
}

/// Where the engine leaves word for one request.
struct Signal {
    word: Mutex<Word>,
}

struct Word {
    progress: Progress,
    waker: Option<Waker>,
}

impl Signal {
    fn new(choices: usize) -> Self {
        Self {
            word: Mutex::new(Word {
                progress: Progress::new(choices),
                waker: None,
            }),
        }
    }

    fn word(&self) -> MutexGuard<'_, Word> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reach(&self, choice: usize, produced: u32, cached: u32) -> Option<Waker> {
        let mut word = self.word();
        if let Some(place) = word.progress.produced.get_mut(choice) {
            *place = produced;
        }
        if choice == 0 {
            word.progress.cached = cached;
        }
        word.waker.take()
    }

    fn die(&self) {
        let mut word = self.word();
        word.progress.is_dead = true;
        let waker = word.waker.take();
        drop(word);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, seen: &mut Progress, cx: &mut Context<'_>) -> Poll<()> {
        let mut word = self.word();
        if word.progress != *seen {
            seen.clone_from(&word.progress);
            return Poll::Ready(());
        }
        if !word.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            word.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}
