//! Who is next: waiting requests, by priority, fair between keys, with turns whose prefix is cached first.
//!
//! Order: priority, which rises with the time waited (ageing); within one priority the keys take turns by deficit round robin over
//! tokens of work (what must be prefilled, and the expected answer); within a key what is cached before what isn't, else by
//! arrival, of a first try if it was refused before. What doesn't fit is passed over, so that no room stays empty. Nobody starves: who
//! was passed over [`PASSED_MOST`] times, or has waited too long (`Queue::due_from`), is *due*: first of its key, and a replica's room is
//! kept for it (`super`). Source: Shreedhar and Varghese, "Efficient fair queuing using deficit round robin"; its empty rounds are skipped by
//! counting them.
//!
//! Enters: a [`Waiter`]. Leaves: the id of the next one that fits. A waiter's tag is the caller's own; it isn't looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::room::Need;

/// Passed over so often, a request is due.
pub const PASSED_MOST: u32 = 16;

/// A request rises by one priority each time that it has waited so long.
pub const AGE: Duration = Duration::from_secs(10);

/// Tokens that a key gets in one round.
const QUANTUM: u64 = 2048;

/// So many waiting requests are looked at for one that fits.
pub const LOOKS: usize = 64;

/// How urgent. A closed set: it labels a metric.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// First.
    High,
    /// What is said of most.
    #[default]
    Normal,
    /// When nothing else waits.
    Low,
}

impl Priority {
    /// All, the first one first.
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

    /// The word of headers, files and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::High => "high",
            Priority::Normal => "normal",
            Priority::Low => "low",
        }
    }

    /// Of that word.
    pub fn of_word(word: &str) -> Option<Priority> {
        Priority::ALL.into_iter().find(|priority| priority.as_str() == word)
    }

    /// Of vLLM's `priority`: there less is earlier, 0 is usual.
    pub fn of_number(number: i64) -> Priority {
        match number {
            ..0 => Priority::High,
            0 => Priority::Normal,
            1.. => Priority::Low,
        }
    }

    fn aged(self, waited: Duration) -> usize {
        let rises = waited.as_nanos() / AGE.as_nanos();
        (self as usize).saturating_sub(usize::try_from(rises).unwrap_or(usize::MAX))
    }
}

/// Bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests that wait. Default 512.
    pub waiting: usize,
    /// And those of one key. Default 256.
    pub waiting_of_key: usize,
    /// And their bodies. Default 256 MiB.
    pub bytes: u64,
    /// Who would wait longer is refused at once. Default 10 s.
    pub wait: Duration,
}

impl Default for QueueLimits {
    fn default() -> Self {
        QueueLimits {
            waiting: 512,
            waiting_of_key: 256,
            bytes: 256 << 20,
            wait: Duration::from_secs(10),
        }
    }
}

/// A request that wants a place.
#[derive(Debug, Clone)]
pub struct Waiter<T> {
    /// Whose it is.
    pub key: Arc<str>,
    /// How urgent.
    pub priority: Priority,
    /// What it takes.
    pub need: Need,
    /// Of its body.
    pub bytes: u64,
    /// Most of its prompt is in a KV cache.
    pub is_cached: bool,
    /// Tokens to compute for it.
    pub work_tokens: u64,
    /// The replica that has its past, and until when it waits for that one: then another one is as good.
    pub home: Option<(usize, Duration)>,
    /// The caller's.
    pub tag: T,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// It has been given a place there, and hasn't come for it yet.
    Called(usize),
}

#[derive(Debug)]
struct Entry<T> {
    id: u64,
    /// Its first try.
    since: Duration,
    passed: u32,
    /// A replica keeps room for it: who waits wouldn't get that room in its place.
    is_kept: bool,
    state: State,
    waiter: Waiter<T>,
}

impl<T> Entry<T> {
    fn level(&self, now: Duration) -> usize {
        self.waiter.priority.aged(now.saturating_sub(self.since))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Queue<T> {
    /// By arrival.
    entries: Vec<Entry<T>>,
    /// Deficits of the keys that wait.
    deficits: BTreeMap<Arc<str>, u64>,
    /// Whose turn it was.
    last: Option<Arc<str>>,
    bytes: u64,
    next_id: u64,
    /// Who came before is due.
    due_before: Duration,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue {
            entries: Vec::new(),
            deficits: BTreeMap::new(),
            last: None,
            bytes: 0,
            next_id: 1,
            due_before: Duration::ZERO,
        }
    }
}

impl<T> Queue<T> {
    /// Nobody waits, nor has been called.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Requests in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of their bodies.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Requests of this priority in it.
    pub fn len_of(&self, priority: Priority) -> usize {
        let all = self.entries.iter();
        all.filter(|entry| entry.waiter.priority == priority).count()
    }

    /// Requests of this key in it.
    pub fn len_of_key(&self, key: &str) -> usize {
        self.entries.iter().filter(|entry| &*entry.waiter.key == key).count()
    }

    /// One more at the end; its id.
    pub fn push(&mut self, waiter: Waiter<T>, now: Duration) -> u64 {
        self.push_since(waiter, false, now)
    }

    /// The same; a replica keeps room for it, or not, and it was first tried then.
    pub(super) fn push_since(&mut self, waiter: Waiter<T>, is_kept: bool, since: Duration) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.bytes += waiter.bytes;
        self.deficits.entry(waiter.key.clone()).or_default();
        self.entries.push(Entry {
            id,
            since,
            passed: 0,
            is_kept,
            state: State::Waiting,
            waiter,
        });
        id
    }

    /// It is out, whatever it was; with the place that it had been given.
    pub fn remove(&mut self, id: u64) -> Option<(Waiter<T>, Option<usize>)> {
        let index = self.find(id)?;
        let entry = self.entries.remove(index);
        self.bytes -= entry.waiter.bytes;
        self.settle(&entry.waiter.key);
        let replica = match entry.state {
            State::Called(replica) => Some(replica),
            State::Waiting => None,
        };
        Some((entry.waiter, replica))
    }

    /// Where it has been given a place; `None` if it waits or isn't there.
    pub fn called(&self, id: u64) -> Option<usize> {
        match self.entry(id)?.state {
            State::Called(replica) => Some(replica),
            State::Waiting => None,
        }
    }

    /// It waits again, with the age that it has.
    pub fn put_back(&mut self, id: u64) {
        if let Some(index) = self.find(id)
            && let Some(entry) = self.entries.get_mut(index)
        {
            entry.state = State::Waiting;
            self.deficits.entry(entry.waiter.key.clone()).or_default();
        }
    }

    /// It, if it is there.
    pub fn waiter(&self, id: u64) -> Option<&Waiter<T>> {
        self.entry(id).map(|entry| &entry.waiter)
    }

    /// The same.
    pub fn waiter_mut(&mut self, id: u64) -> Option<&mut Waiter<T>> {
        let index = self.find(id)?;
        self.entries.get_mut(index).map(|entry| &mut entry.waiter)
    }

    /// Requests that will be called before it.
    pub fn ahead(&self, id: u64, now: Duration) -> Option<usize> {
        let entry = self.entry(id)?;
        Some(self.before(&entry.waiter.key, entry.level(now), (entry.since, id), now))
    }

    /// The same for one that comes now, and was first tried then.
    pub fn ahead_of_new(&self, key: &str, priority: Priority, since: Duration, now: Duration) -> usize {
        let level = priority.aged(now.saturating_sub(since));
        self.before(key, level, (since, u64::MAX), now)
    }

    /// Who has waited so long is due from now on, unless room is kept for it.
    pub(super) fn due_from(&mut self, waited: Duration, now: Duration) {
        self.due_before = now.saturating_sub(waited);
    }

    /// When this one was first tried.
    pub(super) fn since(&self, id: u64) -> Option<Duration> {
        self.entry(id).map(|entry| entry.since)
    }

    /// Of its own key those that came before; of the others' as many, and one more, for they take turns.
    fn before(&self, key: &str, level: usize, place: (Duration, u64), now: Duration) -> usize {
        let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for entry in &self.entries {
            let (urgent, equal) = counts.entry(&*entry.waiter.key).or_default();
            match entry.level(now) {
                other if other < level => *urgent += 1,
                other if other == level && ((entry.since, entry.id) < place || *entry.waiter.key != *key) => {
                    *equal += 1
                }
                _ => {}
            }
        }
        let own = counts.get(key).map_or(0, |(_, equal)| *equal);
        let of = |(other, (urgent, equal)): (&&str, &(usize, usize))| {
            urgent + if *other == key { *equal } else { (*equal).min(own + 1) }
        };
        counts.iter().map(of).sum()
    }

    /// Calls the next one that `fits` has a replica for, and says whom and where. `unfit` hears of one that is due and doesn't fit.
    pub fn call(
        &mut self,
        now: Duration,
        mut fits: impl FnMut(u64, &Waiter<T>) -> Option<usize>,
        mut unfit: impl FnMut(u64, &Waiter<T>),
    ) -> Option<(u64, usize)> {
        let order = self.order(now);
        let mut skipped = Vec::new();
        let mut found = None;
        for index in order.into_iter().take(LOOKS) {
            let Some(entry) = self.entries.get(index) else { continue };
            match fits(entry.id, &entry.waiter) {
                Some(replica) => {
                    found = Some((index, replica));
                    break;
                }
                None => {
                    if self.is_due(entry) {
                        unfit(entry.id, &entry.waiter);
                    }
                    skipped.push(index);
                }
            }
        }
        let (index, replica) = found?;
        self.pass(index, &skipped, now);
        let entry = self.entries.get_mut(index)?;
        entry.state = State::Called(replica);
        let (id, key) = (entry.id, entry.waiter.key.clone());
        self.settle(&key);
        Some((id, replica))
    }

    /// Those that wait, in the order in which they may be called.
    fn order(&self, now: Duration) -> Vec<usize> {
        let waiting = self.entries.iter().enumerate();
        let waiting = waiting.filter(|(_, entry)| entry.state == State::Waiting);
        let mut all: Vec<(usize, &Entry<T>)> = waiting.collect();
        all.sort_by_key(|(_, entry)| {
            let own = (
                !self.is_due(entry),
                !self.is_due(entry) && !entry.waiter.is_cached,
                entry.since,
                entry.id,
            );
            (entry.level(now), &entry.waiter.key, own)
        });
        // Of each key the first, then of each the second: a key has its turn before what another one has behind its first.
        let mut ranked = Vec::with_capacity(all.len());
        let mut head: Option<(usize, &Arc<str>, u64)> = None;
        let mut rank = 0_usize;
        for (index, entry) in all {
            let level = entry.level(now);
            let rounds = match head {
                Some((of, key, rounds)) if of == level && *key == entry.waiter.key => {
                    rank += 1;
                    rounds
                }
                _ => {
                    rank = 0;
                    self.rounds(&entry.waiter)
                }
            };
            head = Some((level, &entry.waiter.key, rounds));
            ranked.push((
                (
                    level,
                    rank,
                    rounds,
                    self.is_behind(&entry.waiter.key),
                    &entry.waiter.key,
                ),
                index,
            ));
        }
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, index)| index).collect()
    }

    fn is_due(&self, entry: &Entry<T>) -> bool {
        entry.passed >= PASSED_MOST || (!entry.is_kept && entry.since < self.due_before)
    }

    /// Rounds until its key has gathered what it costs.
    fn rounds(&self, waiter: &Waiter<T>) -> u64 {
        let has = self.deficits.get(&waiter.key).copied().unwrap_or(0);
        waiter.work_tokens.saturating_sub(has).div_ceil(QUANTUM)
    }

    /// The ring is the keys' own order, and goes on behind the one that was last.
    fn is_behind(&self, key: &Arc<str>) -> bool {
        self.last.as_ref().is_some_and(|last| key <= last)
    }

    /// It goes, and those before it don't.
    fn pass(&mut self, index: usize, skipped: &[usize], now: Duration) {
        let Some(entry) = self.entries.get(index) else { return };
        let (level, place_of, key) = (entry.level(now), (entry.since, entry.id), entry.waiter.key.clone());
        let (work, rounds, is_kept) = (entry.waiter.work_tokens, self.rounds(&entry.waiter), entry.is_kept);
        for (place, other) in self.entries.iter_mut().enumerate() {
            let is_overtaken =
                other.waiter.key == key && (other.since, other.id) < place_of && other.level(now) <= level;
            if !is_kept && other.state == State::Waiting && (is_overtaken || skipped.contains(&place)) {
                other.passed = other.passed.saturating_add(1);
            }
        }
        // A key that isn't served gathers what its dearest costs, and no more.
        let mut dearest: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
        for other in self.entries.iter().filter(|other| other.level(now) == level) {
            let most = dearest.entry(&other.waiter.key).or_insert(QUANTUM);
            *most = (*most).max(other.waiter.work_tokens);
        }
        for (other, most) in dearest.into_iter().filter(|(other, _)| **other != key) {
            if let Some(deficit) = self.deficits.get_mut(other).filter(|deficit| **deficit < most) {
                *deficit = deficit.saturating_add(rounds.saturating_mul(QUANTUM)).min(most);
            }
        }
        if let Some(deficit) = self.deficits.get_mut(&key) {
            *deficit = deficit
                .saturating_add(rounds.saturating_mul(QUANTUM))
                .saturating_sub(work);
        }
        self.last = Some(key);
    }

    /// A key that waits no more keeps nothing.
    fn settle(&mut self, key: &Arc<str>) {
        let mut waiting = self.entries.iter().filter(|entry| entry.state == State::Waiting);
        if !waiting.any(|entry| entry.waiter.key == *key) {
            self.deficits.remove(key);
        }
    }

    fn entry(&self, id: u64) -> Option<&Entry<T>> {
        self.find(id).and_then(|index| self.entries.get(index))
    }

    fn find(&self, id: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&id, |entry| entry.id).ok()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
