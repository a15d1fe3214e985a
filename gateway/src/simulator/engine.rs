//! The engine as a step model: jobs and instants in, produced tokens out. No clock, no tasks, no sockets.
//!
//! As vLLM's scheduler does, a step takes one token of each decoding sequence and fills the rest of its token budget
//! with chunks of prefill, running sequences first, then waiting ones while places and KV blocks last. A step lasts as
//! long as the weights take to read or its tokens to compute, whichever is longer, plus the KV that decode reads; so one
//! long prefill slows everybody's decode. When blocks run out, the youngest sequence is preempted and computed anew.
//! Sequences with a pace of their own (knobs `ttft_ms`, `itl_ms`) are timed by one heap instead of by steps.
//!
//! | state | becomes | when |
//! | --- | --- | --- |
//! | `Arriving` | `Waiting` | the front end's time is over |
//! | `Waiting` | `Prefill`, `Timed` | a place and blocks are free |
//! | `Prefill` | `Decode`, `Timed` | its last prompt token is computed (first token) |
//! | `Prefill`, `Decode` | `Waiting` | preempted |
//! | `Timed` | `Timed`, `Decode` | its instant comes (a token) |
//! | any | gone | last token, or aborted |
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

use super::cache::BlockPool;
use super::config::{Rates, SimConfig};
use super::metrics::Tally;
use super::script::Script;
use super::tokens::{BLOCK_TOKENS, Chain};

/// Steps that may be made up for at once when the driver was late; more lag than that is dropped.
const CATCH_UP: Duration = Duration::from_millis(50);

/// One sequence to be generated; a request with `n` choices is `n` jobs.
pub(super) struct Job {
    /// The prompt.
    pub(super) prompt: Chain,
    /// The answer, known from the start.
    pub(super) script: Arc<Script>,
    /// First token this long after the arrival, instead of the model's time.
    pub(super) ttft: Option<Duration>,
    /// One token each such time, instead of the model's steps.
    pub(super) itl: Option<Duration>,
    /// Produces so many tokens and then none, keeping its place (knob `stall`).
    pub(super) stuck_after: Option<u32>,
    /// `max_tokens` of the request, for the metrics.
    pub(super) max_tokens: u32,
}

/// What a job has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// Number of the sequence.
    pub(super) id: u64,
    /// Tokens produced so far.
    pub(super) produced: u32,
    /// Prompt tokens that were found in the cache.
    pub(super) cached: u32,
    /// That was its last token.
    pub(super) is_last: bool,
}

/// When [`Core::advance`] wants to be called again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// At this instant.
    At(Duration),
    /// At once, after others had their turn.
    Now,
    /// When something is submitted.
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Arriving,
    Waiting,
    Prefill,
    Decode,
    Timed,
}

struct Seq {
    phase: Phase,
    job: Job,
    arrived: Duration,
    queued: Duration,
    scheduled: Option<Duration>,
    first: Option<Duration>,
    last: Option<Duration>,
    /// Hash chain over prompt and output.
    chain: Chain,
    /// Tokens whose KV is computed.
    computed: u32,
    produced: u32,
    /// Prompt tokens found in the cache at the first admission.
    cached: Option<u32>,
    blocks: Vec<u32>,
    /// Leading blocks that have been published.
    published: u32,
    preemptions: u32,
}

impl Seq {
    fn prompt(&self) -> u32 {
        self.job.prompt.tokens()
    }

    /// Tokens whose KV is needed before the next token can come.
    fn wanted(&self) -> u32 {
        self.prompt() + self.produced
    }

    fn is_stuck(&self) -> bool {
        self.job.stuck_after.is_some_and(|after| self.produced >= after)
    }

    fn is_complete(&self) -> bool {
        self.produced >= self.job.script.tokens()
    }
}

/// A step under way.
struct Step {
    ends: Duration,
    work: Vec<(u64, u32)>,
}

/// The whole engine's state.
pub(super) struct Core {
    rates: Rates,
    speed: f64,
    max_seqs: usize,
    max_waiting: usize,
    budget: u32,
    pool: BlockPool,
    seqs: HashMap<u64, Seq>,
    waiting: VecDeque<u64>,
    running: Vec<u64>,
    timers: BinaryHeap<Reverse<(Duration, u64)>>,
    step: Option<Step>,
    /// End of the step before, while steps follow each other without a pause.
    resume: Option<Duration>,
    next_id: u64,
    hung: bool,
    /// Counters and histograms for `/metrics`.
    pub(super) tally: Tally,
}

impl Core {
    /// An idle engine.
    pub(super) fn new(config: &SimConfig) -> Self {
        Self {
            rates: config.gpu.rates(),
            speed: config.speed,
            max_seqs: config.max_num_seqs as usize,
            max_waiting: config.max_waiting_seqs as usize,
            budget: config.batched_tokens(),
            pool: BlockPool::new(config.blocks(), config.prefix_caching),
            seqs: HashMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            timers: BinaryHeap::new(),
            step: None,
            resume: None,
            next_id: 0,
            hung: false,
            tally: Tally::default(),
        }
    }

    /// Sequences that hold a place in the batch.
    pub(super) fn running(&self) -> u32 {
        self.running.len() as u32
    }

    /// Sequences that wait for a place (those still in the front end aren't counted, as in vLLM).
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// Sequences known at all.
    pub(super) fn present(&self) -> usize {
        self.seqs.len()
    }

    /// Part of the KV blocks that is in use, 0 to 1.
    pub(super) fn kv_usage(&self) -> f64 {
        let used = self.pool.size() - self.pool.free();
        f64::from(used) / f64::from(self.pool.size().max(1))
    }

    /// Stops or resumes making steps, as a hung engine does; nothing is lost.
    pub(super) fn set_hung(&mut self, hung: bool) {
        self.hung = hung;
    }

    /// Forgets all cached prefixes (an engine that was restarted, or vLLM's `/reset_prefix_cache`).
    pub(super) fn forget_prefixes(&mut self) {
        self.pool.forget();
    }

    /// Takes a request's jobs in. None if the queue is full or a job could never fit the KV cache.
    pub(super) fn submit(&mut self, jobs: Vec<Job>, now: Duration) -> Option<Vec<u64>> {
        let outstanding = self.seqs.len() - self.running.len();
        let too_large = jobs
            .iter()
            .any(|job| (job.prompt.tokens() + job.script.tokens()).div_ceil(BLOCK_TOKENS) > self.pool.size());
        if too_large || outstanding + jobs.len() > self.max_waiting {
            return None;
        }
        self.tally.request(&jobs);
        Some(jobs.into_iter().map(|job| self.admit(job, now)).collect())
    }

    fn admit(&mut self, job: Job, now: Duration) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let front = if job.ttft.is_some() {
            Duration::ZERO
        } else {
            self.scaled(self.rates.front(job.prompt.tokens()))
        };
        let seq = Seq {
            phase: Phase::Arriving,
            chain: job.prompt.clone(),
            arrived: now,
            queued: now,
            scheduled: None,
            first: None,
            last: None,
            computed: 0,
            produced: 0,
            cached: None,
            blocks: Vec::new(),
            published: 0,
            preemptions: 0,
            job,
        };
        self.seqs.insert(id, seq);
        self.timers.push(Reverse((now + front, id)));
        id
    }

    /// Removes sequences whose client has gone; their places and blocks are free at once. Says how many were running
    /// or waiting.
    pub(super) fn abort(&mut self, ids: &[u64]) -> u32 {
        let aborted = self.remove(ids);
        self.tally.aborted(u64::from(aborted));
        aborted
    }

    /// Removes sequences that an error of the engine ended.
    pub(super) fn fail(&mut self, ids: &[u64]) {
        let failed = self.remove(ids);
        self.tally.failed(u64::from(failed));
    }

    fn remove(&mut self, ids: &[u64]) -> u32 {
        let mut removed = 0;
        for id in ids {
            if let Some(mut seq) = self.seqs.remove(id) {
                self.pool.release(&mut seq.blocks);
                self.running.retain(|other| other != id);
                self.waiting.retain(|other| other != id);
                removed += 1;
            }
        }
        removed
    }

    /// Does everything that is due by `now`, and says what was reached and when to come again.
    pub(super) fn advance(&mut self, now: Duration, reached: &mut Vec<Reached>) -> Next {
        if self.hung {
            return Next::Idle;
        }
        self.fire_timers(now, reached);
        if self.step.as_ref().is_some_and(|step| step.ends <= now) {
            self.finish_step(now, reached);
        }
        if self.step.is_none() {
            self.plan(now);
            self.resume = None;
        }
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        match (self.step.as_ref().map(|step| step.ends), timer) {
            (Some(ends), _) if ends <= now => Next::Now,
            (Some(ends), Some(at)) => Next::At(ends.min(at)),
            (Some(at), None) | (None, Some(at)) => Next::At(at),
            (None, None) => Next::Idle,
        }
    }

    fn scaled(&self, time: Duration) -> Duration {
        if self.speed == 0.0 {
            Duration::ZERO
        } else {
            time.div_f64(self.speed)
        }
    }

    fn fire_timers(&mut self, now: Duration, reached: &mut Vec<Reached>) {
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            match self.seqs.get_mut(&id) {
                Some(seq) if seq.phase == Phase::Arriving => {
                    seq.phase = Phase::Waiting;
                    seq.queued = at;
                    self.waiting.push_back(id);
                }
                Some(seq) if seq.phase == Phase::Timed => self.timed_token(id, at, reached),
                // Its sequence was aborted, or preempted and planned anew.
                _ => {}
            }
        }
    }

    /// A token of a sequence with a pace of its own. Such a pace is exact: if no block is free, it goes on without.
    fn timed_token(&mut self, id: u64, at: Duration, reached: &mut Vec<Reached>) {
        let Some(seq) = self.seqs.get_mut(&id) else { return };
        if seq.is_stuck() {
            return;
        }
        let wanted = seq.wanted();
        let missing = wanted.div_ceil(BLOCK_TOKENS).saturating_sub(seq.blocks.len() as u32);
        self.pool.take(&[], missing, &mut seq.blocks);
        self.tally.step(u64::from(wanted - seq.computed.min(wanted)).max(1));
        seq.computed = wanted;
        self.produce(id, at, reached);
        let Some(seq) = self.seqs.get_mut(&id) else { return };
        match seq.job.itl {
            Some(itl) => self.timers.push(Reverse((at + itl, id))),
            None => seq.phase = Phase::Decode,
        }
    }

    /// One more token of a sequence whose KV is computed; ends it if that was the last.
    fn produce(&mut self, id: u64, at: Duration, reached: &mut Vec<Reached>) {
        let Some(seq) = self.seqs.get_mut(&id) else { return };
        if let Some(token) = seq.job.script.ids.get(seq.produced as usize) {
            seq.chain.push(*token);
        }
        seq.produced += 1;
        self.tally.token(
            seq.first.is_none().then_some(at.saturating_sub(seq.arrived)),
            seq.last.map(|last| at.saturating_sub(last)),
        );
        seq.first.get_or_insert(at);
        seq.last = Some(at);
        publish(&mut self.pool, seq);
        reached.push(Reached {
            id,
            produced: seq.produced,
            cached: seq.cached.unwrap_or(0),
            is_last: seq.is_complete(),
        });
        if !seq.is_complete() {
            return;
        }
        if let Some(mut seq) = self.seqs.remove(&id) {
            self.pool.release(&mut seq.blocks);
            self.running.retain(|other| *other != id);
            self.tally.finished(&finished(&seq, at));
        }
    }

    fn finish_step(&mut self, now: Duration, reached: &mut Vec<Reached>) {
        let Some(step) = self.step.take() else { return };
        self.resume = (now.saturating_sub(step.ends) < CATCH_UP).then_some(step.ends);
        self.tally
            .step(step.work.iter().map(|(_, tokens)| u64::from(*tokens)).sum());
        for (id, tokens) in step.work {
            let Some(seq) = self.seqs.get_mut(&id) else { continue };
            if !matches!(seq.phase, Phase::Prefill | Phase::Decode) {
                continue;
            }
            seq.computed += tokens;
            publish(&mut self.pool, seq);
            if seq.computed < seq.wanted() {
                continue;
            }
            if seq.is_stuck() {
                seq.phase = Phase::Decode;
                continue;
            }
            let itl = seq.job.itl;
            seq.phase = if itl.is_some() { Phase::Timed } else { Phase::Decode };
            self.produce(id, step.ends, reached);
            if let (Some(itl), true) = (itl, self.seqs.contains_key(&id)) {
                self.timers.push(Reverse((step.ends + itl, id)));
            }
        }
    }

    /// Puts the next step together, if there is anything to compute.
    fn plan(&mut self, now: Duration) {
        let mut budget = self.budget;
        let mut work: Vec<(u64, u32)> = Vec::new();
        let mut preempted = false;
        let mut next = 0;
        while let Some(id) = self.running.get(next).copied() {
            next += 1;
            let Some(seq) = self.seqs.get(&id) else { continue };
            if !matches!(seq.phase, Phase::Prefill | Phase::Decode) || seq.is_stuck() || budget == 0 {
                continue;
            }
            let chunk = (seq.wanted() - seq.computed).min(budget);
            loop {
                if self.grow(id, chunk) {
                    work.push((id, chunk));
                    budget -= chunk;
                    break;
                }
                preempted = true;
                let Some((place, victim)) = self.preempt_youngest(now, &mut work) else {
                    break;
                };
                next -= usize::from(place < next);
                if victim == id {
                    break;
                }
            }
        }
        while !preempted && budget > 0 && self.running.len() < self.max_seqs {
            let Some(chunk) = self.start_next(now, budget) else {
                break;
            };
            budget -= chunk.1;
            if chunk.1 > 0 {
                work.push(chunk);
            }
        }
        if !work.is_empty() {
            let starts = self.resume.unwrap_or(now);
            let lasts = self.scaled(Duration::from_secs_f64(self.cost(&work)));
            self.step = Some(Step {
                ends: starts + lasts,
                work,
            });
        }
    }

    /// Admits the first waiting sequence: its number and first chunk (0 for one with a pace of its own).
    fn start_next(&mut self, now: Duration, budget: u32) -> Option<(u64, u32)> {
        let id = *self.waiting.front()?;
        let Some(seq) = self.seqs.get_mut(&id) else {
            self.waiting.pop_front();
            return Some((id, 0));
        };
        let wanted = seq.wanted();
        let findable = ((wanted - 1) / BLOCK_TOKENS) as usize;
        let hashes = &seq.chain.blocks()[..findable.min(seq.chain.blocks().len())];
        let found = self.pool.resident(hashes);
        let cached = found as u32 * BLOCK_TOKENS;
        let ttft = seq.job.ttft.filter(|_| seq.produced == 0);
        let is_timed = ttft.is_some();
        let chunk = if is_timed { 0 } else { (wanted - cached).min(budget) };
        let tokens = if is_timed { wanted } else { cached + chunk };
        let fresh = tokens.div_ceil(BLOCK_TOKENS) - found as u32;
        if !self.pool.take(&hashes[..found], fresh, &mut seq.blocks) {
            return None;
        }
        self.waiting.pop_front();
        self.running.push(id);
        seq.published = found as u32;
        seq.computed = cached;
        if seq.cached.is_none() {
            seq.cached = Some(cached.min(seq.prompt()));
            seq.scheduled = Some(now);
            self.tally
                .scheduled(seq.prompt(), cached.min(seq.prompt()), now.saturating_sub(seq.queued));
        }
        match ttft {
            Some(ttft) => {
                seq.phase = Phase::Timed;
                self.timers.push(Reverse(((seq.arrived + ttft).max(now), id)));
                seq.computed = wanted;
                publish(&mut self.pool, seq);
                Some((id, 0))
            }
            None => {
                seq.phase = Phase::Prefill;
                Some((id, chunk))
            }
        }
    }

    /// Blocks for `chunk` more tokens of a running sequence.
    fn grow(&mut self, id: u64, chunk: u32) -> bool {
        let Some(seq) = self.seqs.get_mut(&id) else {
            return false;
        };
        let missing = (seq.computed + chunk)
            .div_ceil(BLOCK_TOKENS)
            .saturating_sub(seq.blocks.len() as u32);
        self.pool.take(&[], missing, &mut seq.blocks)
    }

    /// Takes the blocks of the youngest sequence that runs by steps and sends it back to the head of the queue.
    fn preempt_youngest(&mut self, now: Duration, work: &mut Vec<(u64, u32)>) -> Option<(usize, u64)> {
        let place = self.running.iter().rposition(|id| {
            self.seqs
                .get(id)
                .is_some_and(|seq| matches!(seq.phase, Phase::Prefill | Phase::Decode))
        })?;
        let id = self.running.remove(place);
        work.retain(|(other, _)| *other != id);
        if let Some(seq) = self.seqs.get_mut(&id) {
            self.pool.release(&mut seq.blocks);
            seq.phase = Phase::Waiting;
            seq.queued = now;
            (seq.computed, seq.published) = (0, 0);
            self.waiting.push_front(id);
            seq.preemptions += 1;
            self.tally.preempted();
        }
        Some((place, id))
    }

    /// Time of a step, seconds.
    fn cost(&self, work: &[(u64, u32)]) -> f64 {
        let (mut compute, mut reading) = (0.0, 0.0);
        for (id, tokens) in work {
            let Some(seq) = self.seqs.get(id) else { continue };
            let (tokens, before) = (f64::from(*tokens), f64::from(seq.computed));
            compute += tokens * self.rates.token_s;
            if seq.phase == Phase::Prefill {
                compute += self.rates.attention_s * tokens * (before + tokens / 2.0);
            } else {
                reading += self.rates.kv_read_s * before;
            }
        }
        compute.max(self.rates.weights_s) + reading
    }
}

/// Makes the full and computed blocks of a sequence findable.
fn publish(pool: &mut BlockPool, seq: &mut Seq) {
    let full = (seq.computed / BLOCK_TOKENS)
        .min(seq.blocks.len() as u32)
        .min(seq.chain.blocks().len() as u32);
    for place in seq.published..full {
        pool.publish(seq.blocks[place as usize], seq.chain.blocks()[place as usize]);
    }
    seq.published = seq.published.max(full);
}

fn finished(seq: &Seq, at: Duration) -> super::metrics::Finished {
    let first = seq.first.unwrap_or(at);
    let scheduled = seq.scheduled.unwrap_or(first);
    super::metrics::Finished {
        is_length: seq.job.script.is_length(),
        prompt: seq.prompt(),
        computed: seq.prompt() - seq.cached.unwrap_or(0),
        generated: seq.produced,
        total: at.saturating_sub(seq.arrived),
        prefill: first.saturating_sub(scheduled),
        decode: at.saturating_sub(first),
        preemptions: seq.preemptions,
    }
}

#[cfg(test)]
mod tests;
