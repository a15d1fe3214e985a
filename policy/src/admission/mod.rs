//! A place for each request before it is sent (B34): what fits goes at once, the rest waits in order, what would wait too long is refused.
//!
//! Problem: ten agents of 60k tokens on a replica of 140k push each other's cache out, and every turn is computed anew. Rule: a `room`
//! for each replica, one `queue` for the backend. A place that is given back *calls* who is next: the called one holds the room
//! where it fitted until it comes for it and is placed where the router wants it, so that nobody takes it in between. One that is due
//! (passed over often, or waiting for long) keeps a replica's room from the others until it fits there. Cold start: without a measured
//! time nobody is refused for the expected wait, only for want of a place in the queue.
//!
//! | a request | event | next |
//! | --- | --- | --- |
//! | new | nobody waits, a replica has room | runs ([`Admission::take`]) |
//! | new | else | waits ([`Admission::wait`]), or is refused |
//! | waits | it is next and fits | called, holds room ([`Admission::call`]) |
//! | called | comes | looks around ([`Admission::loosen`]), runs there or elsewhere |
//! | called | its replica can't be asked any more | waits again |
//! | waits, called | leaves | gone, what it held is free ([`Admission::leave`]) |
//! | runs | its replica is lost, another one goes on | runs there, room or not ([`Admission::move_to`]) |
//! | runs | ends | what it held is free, or kept for its next turn ([`Admission::give_back`]) |

// What one replica can hold.
pub mod room;
// Whose cache is kept between two turns.
mod kept;
// Who is next.
pub mod queue;
// Who was refused and comes again.
mod seniors;
// What a key may use in a minute.
pub mod rate;

use std::sync::Arc;
use std::time::Duration;

use self::queue::{AGE, Priority, Queue, QueueLimits, Waiter};
use self::room::{Capacity, Holds, Need, Room};
use self::seniors::Seniors;
use crate::route::chain::Chain;

/// Tokens of an answer before any was seen; tokens of a byte of prompt (JSON of English and code).
const FIRST_OUTPUT_TOKENS: f64 = 256.0;
const FIRST_TOKENS_PER_BYTE: f64 = 0.25;

/// No text has more tokens a byte, nor less; shorter prompts say more of the template than of the text.
const TOKENS_PER_BYTE: (f64, f64) = (0.02, 1.5);
const RATIO_LEAST_BYTES: u64 = 1024;

/// Weight of one more answer in the means.
const MEAN_WEIGHT: f64 = 0.05;

/// Who waited so many times the longest wait is refused after all: the expectation was wrong.
const OVERRUN: u32 = 3;

/// Who has waited so many times as long as if all took their turns is due: conversations whose cache is kept go before others until then.
const DUE_RATIO: u32 = 2;

/// What a prompt in a KV cache must have there to count as cached.
const CACHED_PART: f64 = 0.5;

/// Why a request gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The queue is full.
    Full,
    /// Its key has as many in the queue as one key may.
    Key,
    /// It would wait too long.
    Wait,
    /// It has waited too long.
    Waited,
}

/// A refusal, with the time after which another try makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Until then the queue is expected to have moved.
    pub retry_after: Duration,
}

/// A place: to be given back exactly once, with [`Admission::give_back`].
#[derive(Debug)]
pub struct Held {
    replica: usize,
    need: Need,
    prompt_bytes: u64,
    since: Duration,
    anew: Duration,
}

/// What is known of a request before it is sent.
#[derive(Debug, Clone)]
pub struct Wants {
    /// `n`.
    pub sequences: u32,
    /// Of the prompt.
    pub prompt_bytes: u64,
    /// The most that each answer may have.
    pub max_tokens: Option<u64>,
    /// The prompt, where its parts are known.
    pub chain: Arc<Chain>,
}

/// One backend's.
#[derive(Debug)]
pub struct Admission<T> {
    rooms: Vec<Room>,
    queue: Queue<T>,
    /// Who is due, and the replica whose room is kept for it.
    reserved: Option<(u64, usize)>,
    output_tokens: f64,
    tokens_per_byte: f64,
    has_ratio: bool,
    /// Mean seconds that a place is held; `None` before one was given back.
    held_s: Option<f64>,
    /// Who was refused and may come again.
    seniors: Seniors,
}

impl<T> Admission<T> {
    /// Of replicas of these sizes.
    pub fn new(capacities: impl IntoIterator<Item = Capacity>) -> Admission<T> {
        Admission {
            rooms: capacities.into_iter().map(Room::new).collect(),
            queue: Queue::default(),
            reserved: None,
            output_tokens: FIRST_OUTPUT_TOKENS,
            tokens_per_byte: FIRST_TOKENS_PER_BYTE,
            has_ratio: false,
            held_s: None,
            seniors: Seniors::default(),
        }
    }

    /// A replica's size.
    pub fn capacity(&self, replica: usize) -> Capacity {
        self.rooms.get(replica).map(Room::capacity).unwrap_or_default()
    }

    /// A replica's size is known, or has changed.
    pub fn set_capacity(&mut self, replica: usize, capacity: Capacity) {
        if let Some(room) = self.rooms.get_mut(replica) {
            room.set_capacity(capacity);
        }
    }

    /// Another replica has this number from now on, perhaps one more than there were. Nobody may run there ([`Admission::is_idle`]).
    pub fn occupy(&mut self, replica: usize, capacity: Capacity) {
        match self.rooms.get_mut(replica) {
            Some(room) => *room = Room::new(capacity),
            None => self.rooms.resize_with(replica + 1, || Room::new(capacity)),
        }
    }

    /// Nobody runs there, nor has been called there.
    pub fn is_idle(&self, replica: usize) -> bool {
        self.rooms.get(replica).is_none_or(|room| room.requests() == 0)
    }

    /// A replica had to stop running sequences.
    pub fn preempted(&mut self, replica: usize, now: Duration) {
        if let Some(room) = self.rooms.get_mut(replica) {
            room.preempted(now);
        }
    }

    /// Who waits.
    pub fn queue(&self) -> &Queue<T> {
        &self.queue
    }

    /// The tag of one that waits.
    pub fn tag_mut(&mut self, id: u64) -> Option<&mut T> {
        self.queue.waiter_mut(id).map(|waiter| &mut waiter.tag)
    }

    /// A replica's room.
    pub fn room(&self, replica: usize) -> Option<&Room> {
        self.rooms.get(replica)
    }

    /// So much of a replica's room is another process's.
    pub fn set_elsewhere(&mut self, replica: usize, holds: Holds) {
        if let Some(room) = self.rooms.get_mut(replica) {
            room.set_elsewhere(holds);
        }
    }

    /// What a request will take, as far as can be told.
    pub fn need(&self, wants: &Wants) -> Need {
        let output = wants.max_tokens.map_or(f64::INFINITY, |most| most as f64);
        let output = output.min(self.output_tokens) * f64::from(wants.sequences);
        Need {
            sequences: wants.sequences,
            prompt_tokens: self.prompt_tokens(wants.prompt_bytes),
            output_tokens: output as u64,
            chain: wants.chain.clone(),
        }
    }

    /// Of a prompt of so many bytes, as measured so far.
    pub fn prompt_tokens(&self, prompt_bytes: u64) -> u64 {
        (prompt_bytes as f64 * self.tokens_per_byte) as u64
    }

    /// Tokens to compute for it, if so many bytes of its prompt are cached; and whether that is most of it.
    pub fn work(&self, need: &Need, prompt_bytes: u64, cached_bytes: u64) -> (u64, bool) {
        let part = (cached_bytes as f64 / prompt_bytes.max(1) as f64).min(1.0);
        let uncached = (need.prompt_tokens as f64 * (1.0 - part)) as u64;
        (uncached.saturating_add(need.output_tokens), part >= CACHED_PART)
    }

    /// Of those that `may` be asked, the replicas that have room for it.
    pub fn fitting(&mut self, need: &Need, may: &[bool], now: Duration) -> Vec<bool> {
        let kept = self.reserved.map(|(_, replica)| replica);
        let rooms = self.rooms.iter_mut().enumerate();
        rooms
            .map(|(replica, room)| {
                room.ease(now);
                may.get(replica) == Some(&true) && kept != Some(replica) && room.fits(need, now)
            })
            .collect()
    }

    /// It runs there from now on. `anew`: how long its prompt would take there with nothing cached.
    pub fn take(&mut self, replica: usize, need: Need, prompt_bytes: u64, anew: Duration, now: Duration) -> Held {
        if let Some(room) = self.rooms.get_mut(replica) {
            room.goes_on(&need, now);
            room.take(&need);
        }
        Held {
            replica,
            need,
            prompt_bytes,
            since: now,
            anew,
        }
    }

    /// It runs on elsewhere: its client has seen a part of the answer, so it waits for no room.
    pub fn move_to(&mut self, held: &mut Held, replica: usize) {
        if held.replica != replica {
            if let Some(room) = self.rooms.get_mut(held.replica) {
                room.give_back(&held.need);
            }
            if let Some(room) = self.rooms.get_mut(replica) {
                room.take(&held.need);
            }
            held.replica = replica;
        }
    }

    /// It has ended. What its answer says that it took is learned from; if it says nothing, there is no next turn to keep the cache for.
    pub fn give_back(&mut self, held: Held, prompt_tokens: Option<u64>, output_tokens: Option<u64>, now: Duration) {
        let sequences = held.need.sequences.max(1);
        if let Some(room) = self.rooms.get_mut(held.replica) {
            match output_tokens {
                Some(_) => room.keep(held.need, held.anew, now),
                None => room.give_back(&held.need),
            }
        }
        let seconds = now.saturating_sub(held.since).as_secs_f64();
        self.held_s = Some(
            self.held_s
                .map_or(seconds, |mean| mean + MEAN_WEIGHT * (seconds - mean)),
        );
        if let Some(output) = output_tokens {
            let each = output as f64 / f64::from(sequences);
            self.output_tokens += MEAN_WEIGHT * (each - self.output_tokens);
        }
        if let Some(prompt) = prompt_tokens.filter(|_| held.prompt_bytes >= RATIO_LEAST_BYTES) {
            let ratio = (prompt as f64 / held.prompt_bytes as f64).clamp(TOKENS_PER_BYTE.0, TOKENS_PER_BYTE.1);
            let weight = if self.has_ratio { MEAN_WEIGHT } else { 1.0 };
            self.tokens_per_byte += weight * (ratio - self.tokens_per_byte);
            self.has_ratio = true;
        }
    }

    /// It waits; its id.
    ///
    /// # Errors
    /// The queue is full, or it would wait too long.
    pub fn wait(&mut self, mut waiter: Waiter<T>, limits: &QueueLimits, now: Duration) -> Result<u64, Refusal> {
        let since = self.seniors.comes(&waiter.need, now).unwrap_or(now);
        let ahead = self.queue.ahead_of_new(&waiter.key, waiter.priority, since, now);
        let expected = self.expected(ahead);
        let bytes = self.queue.bytes().saturating_add(waiter.bytes);
        let is_kept = self.rooms.iter().any(|room| room.keeps(&waiter.need));
        let reason = match () {
            () if self.queue.len_of_key(&waiter.key) >= limits.waiting_of_key => Some(Reason::Key),
            () if self.queue.len() >= limits.waiting || bytes > limits.bytes => Some(Reason::Full),
            // One for which room is kept is called at once.
            () if !is_kept && expected.is_some_and(|expected| expected > limits.wait) => Some(Reason::Wait),
            () => None,
        };
        if let Some(reason) = reason {
            let beyond = expected.unwrap_or_default().saturating_sub(limits.wait);
            let retry_after = beyond.max(Duration::from_secs(1));
            self.seniors.refused(&waiter.need, since, retry_after, now);
            return Err(Refusal { reason, retry_after });
        }
        if self.rooms.iter().all(|room| room.capacity().kv_tokens.is_some()) {
            // What nobody holds is pushed out by whoever comes next: it goes before nobody.
            let held = self.rooms.iter().map(|room| room.held_of(&waiter.need)).max();
            let least = waiter.need.prompt_tokens as f64 * CACHED_PART;
            waiter.is_cached &= held.is_some_and(|held| held as f64 >= least);
        }
        Ok(self.queue.push_since(waiter, is_kept, since))
    }

    /// When one that came at `since` is refused after all.
    pub fn until(since: Duration, limits: &QueueLimits) -> Duration {
        since.saturating_add(limits.wait.saturating_mul(OVERRUN))
    }

    /// The refusal of one that has waited until then.
    pub fn waited(&mut self, id: u64, now: Duration) -> Refusal {
        let ahead = self.queue.ahead(id, now).unwrap_or(0);
        let retry_after = self.expected(ahead).unwrap_or_default().max(Duration::from_secs(1));
        if let (Some(waiter), Some(since)) = (self.queue.waiter(id), self.queue.since(id)) {
            self.seniors.refused(&waiter.need, since, retry_after, now);
        }
        Refusal {
            reason: Reason::Waited,
            retry_after,
        }
    }

    /// Gives the rooms of those that `may` be asked to who is next, until nobody fits.
    pub fn call(&mut self, may: &[bool], now: Duration, mut called: impl FnMut(&mut T)) {
        if self.queue.is_empty() {
            return;
        }
        self.rooms.iter_mut().for_each(|room| room.ease(now));
        let others = self.queue.len() + self.seniors.expected(now);
        let turn = self
            .expected(others)
            .map_or(AGE, |turn| turn.saturating_mul(DUE_RATIO).max(AGE));
        self.queue.due_from(turn, now);
        self.reserved = self.reserved.filter(|(_, replica)| may.get(*replica) == Some(&true));
        // Each turn calls one that waits.
        loop {
            let (rooms, mut reserved) = (&self.rooms, self.reserved);
            if !rooms.iter().zip(may).any(|(room, may)| *may && room.has_any()) {
                return;
            }
            let before = reserved;
            let next = self.queue.call(
                now,
                |id, waiter| place(rooms, before, id, waiter, may, now),
                |id, _| {
                    if reserved.is_none() {
                        reserved = emptiest(rooms, may).map(|replica| (id, replica));
                    }
                },
            );
            self.reserved = reserved;
            let Some((id, replica)) = next else {
                if before == reserved {
                    return;
                }
                continue;
            };
            self.reserved = self.reserved.filter(|(due, _)| *due != id);
            if let (Some(waiter), Some(room)) = (self.queue.waiter_mut(id), self.rooms.get_mut(replica)) {
                room.take(&waiter.need);
                called(&mut waiter.tag);
            }
        }
    }

    /// Where it has been called to; `None` if it waits.
    pub fn called(&self, id: u64) -> Option<usize> {
        self.queue.called(id)
    }

    /// The called one lets go of the room that was kept for it, and looks around: what it takes, and which of the replicas that `may` be
    /// asked have room. It is to be taken in or to [`Admission::leave`] under the same lock, else it waits again.
    pub fn loosen(&mut self, id: u64, may: &[bool], now: Duration) -> Option<(Need, Vec<bool>)> {
        let called = self.queue.called(id);
        let need = self.queue.waiter(id).map(|waiter| waiter.need.clone())?;
        if let Some(room) = called.and_then(|replica| self.rooms.get_mut(replica)) {
            room.give_back(&need);
            self.queue.put_back(id);
        }
        let mut fits = self.fitting(&need, may, now);
        // It held that room until now, whoever fell due since: else each would keep it from the other, for ever.
        if let Some(fits) = called.and_then(|replica| fits.get_mut(replica).filter(|_| may.get(replica) == Some(&true)))
        {
            *fits = true;
        }
        Some((need, fits))
    }

    /// It is in the queue no more: it runs, or its client has left.
    pub fn leave(&mut self, id: u64) -> Option<Waiter<T>> {
        let (waiter, called) = self.queue.remove(id)?;
        if let Some(room) = called.and_then(|replica| self.rooms.get_mut(replica)) {
            room.give_back(&waiter.need);
        }
        self.reserved = self.reserved.filter(|(due, _)| *due != id);
        Some(waiter)
    }

    /// How long a place takes to come, with so many before: places that are held, each for the mean time. `None`: nothing was measured.
    pub fn expected(&self, ahead: usize) -> Option<Duration> {
        let running: usize = self.rooms.iter().map(Room::requests).sum();
        let seconds = self.held_s? * (ahead + 1) as f64 / running.max(1) as f64;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// The same for one place at this replica.
    pub fn expected_at(&self, replica: usize) -> Option<Duration> {
        let running = self.rooms.get(replica).map_or(0, Room::requests);
        Duration::try_from_secs_f64(self.held_s? / running.max(1) as f64).ok()
    }

    /// Requests that wait, of this priority.
    pub fn waiting(&self, priority: Priority) -> usize {
        self.queue.len_of(priority)
    }
}

/// Where it fits: the home that it waits for, or else the emptiest.
fn place<T>(
    rooms: &[Room],
    reserved: Option<(u64, usize)>,
    id: u64,
    waiter: &Waiter<T>,
    may: &[bool],
    now: Duration,
) -> Option<usize> {
    let own = reserved.filter(|(due, _)| *due == id).map(|(_, kept)| kept);
    let fits = |replica: usize| {
        let is_kept = reserved.is_some_and(|(_, kept)| kept == replica) && own.is_none();
        let room = rooms
            .get(replica)
            .filter(|_| !is_kept && may.get(replica) == Some(&true));
        room.is_some_and(|room| match own == Some(replica) {
            true => room.fits_due(&waiter.need),
            false => room.fits(&waiter.need, now),
        })
    };
    if let Some((home, until)) = waiter.home {
        if fits(home) {
            return Some(home);
        }
        // A home that can't be asked isn't waited for.
        if now < until && may.get(home) == Some(&true) {
            return own.filter(|replica| fits(*replica));
        }
    }
    let all = rooms.iter().enumerate().filter(|(replica, _)| fits(*replica));
    all.min_by_key(|(_, room)| (room.tokens(), room.sequences()))
        .map(|(replica, _)| replica)
}

/// The one that is soonest empty, for all that is known.
fn emptiest(rooms: &[Room], may: &[bool]) -> Option<usize> {
    let all = rooms.iter().zip(may).enumerate().filter(|(_, (_, may))| **may);
    all.min_by_key(|(_, (room, _))| (room.requests(), room.tokens()))
        .map(|(replica, _)| replica)
}

#[cfg(test)]
mod tests;
