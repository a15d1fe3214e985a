//! One vLLM engine, step by step: blocks of 16 tokens found again by their hash, chunked prefill, preemption by recompute.
//!
//! As vLLM's scheduler does: a step takes a token of each decoding sequence and fills its budget with prefill, running sequences first, then
//! waiting ones by arrival, while blocks last. One that runs and finds no block preempts the last that was begun: its blocks are free (and
//! findable until somebody takes them), and it is computed anew. Freed blocks are taken in the order of their last use, a sequence's end
//! before its beginning. Times are those of the simulator's H100 (gateway's `simulator/engine`, fitted to measured ones).

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::work::Dice;

pub(crate) const BLOCK: u32 = 16;

/// `max_num_batched_tokens` and `max_num_seqs`.
const BUDGET: u32 = 8_192;
const SEQUENCES: usize = 128;

/// Seconds: a step at least, each of its tokens, each pair of prefill, each token that decode reads.
const STEP: f64 = 14.3e-3;
const TOKEN: f64 = 79.5e-6;
const PAIR: f64 = 2.99e-9;
const READ: f64 = 39e-9;

/// What a prompt consists of: blocks of a text that many have, then its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prompt {
    pub(crate) shared: u64,
    pub(crate) shared_tokens: u32,
    pub(crate) own: u64,
    pub(crate) tokens: u32,
}

impl Prompt {
    /// Of the block at this place; behind the prompt stands the answer, which is in the next prompt.
    fn hash(&self, place: u32) -> u64 {
        let is_shared = (place + 1) * BLOCK <= self.shared_tokens;
        let name = if is_shared { self.shared } else { self.own };
        Dice::new(name ^ u64::from(place) << 40).next()
    }
}

/// What a sequence has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    First { cached: u32 },
    Last,
}

struct Sequence {
    prompt: Prompt,
    answer: u32,
    computed: u32,
    produced: u32,
    /// Prompt tokens found when it was begun for the first time.
    cached: Option<u32>,
    blocks: Vec<usize>,
}

impl Sequence {
    /// Tokens that must be in the cache before the next one comes.
    fn wanted(&self) -> u32 {
        self.prompt.tokens + self.produced
    }
}

#[derive(Default)]
struct Block {
    hash: Option<u64>,
    users: u32,
    tick: u64,
}

struct Step {
    ends: u64,
    work: Vec<(usize, u32)>,
}

pub(crate) struct Engine {
    blocks: Vec<Block>,
    by_hash: HashMap<u64, usize>,
    /// Those that nobody uses, by last use.
    free: BTreeMap<u64, usize>,
    tick: u64,
    sequences: HashMap<usize, Sequence>,
    waiting: VecDeque<usize>,
    /// In the order in which they were begun.
    running: Vec<usize>,
    step: Option<Step>,
    pub(crate) preemptions: usize,
}

impl Engine {
    pub(crate) fn new(kv_tokens: u32) -> Engine {
        let count = (kv_tokens / BLOCK) as usize;
        Engine {
            blocks: (0..count).map(|_| Block::default()).collect(),
            by_hash: HashMap::new(),
            free: (0..count).map(|block| (block as u64, block)).collect(),
            tick: count as u64,
            sequences: HashMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            step: None,
            preemptions: 0,
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn submit(&mut self, id: usize, prompt: Prompt, answer: u32, now: u64) {
        let sequence = Sequence {
            prompt,
            answer,
            computed: 0,
            produced: 0,
            cached: None,
            blocks: Vec::new(),
        };
        self.sequences.insert(id, sequence);
        self.waiting.push_back(id);
        if self.step.is_none() {
            self.plan(now);
        }
    }

    /// When the step ends that is under way.
    pub(crate) fn ends(&self) -> Option<u64> {
        self.step.as_ref().map(|step| step.ends)
    }

    /// Ends the step, and begins the next one.
    pub(crate) fn advance(&mut self) -> Vec<(usize, Reached)> {
        let Some(step) = self.step.take() else {
            return Vec::new();
        };
        let mut reached = Vec::new();
        for (id, tokens) in step.work {
            let sequence = self.sequences.get_mut(&id).unwrap();
            sequence.computed += tokens;
            self.publish(id);
            let sequence = self.sequences.get_mut(&id).unwrap();
            if sequence.computed < sequence.wanted() {
                continue;
            }
            sequence.produced += 1;
            if sequence.produced == 1 {
                let cached = sequence.cached.unwrap_or(0);
                reached.push((id, Reached::First { cached }));
            }
            if sequence.produced >= sequence.answer {
                reached.push((id, Reached::Last));
                self.running.retain(|other| *other != id);
                let sequence = self.sequences.remove(&id).unwrap();
                self.release(sequence.blocks);
            }
        }
        self.plan(step.ends);
        reached
    }

    fn plan(&mut self, now: u64) {
        let mut budget = BUDGET;
        let mut work: Vec<(usize, u32)> = Vec::new();
        let (mut preempted, mut next) = (false, 0);
        while let Some(&id) = self.running.get(next) {
            next += 1;
            let sequence = &self.sequences[&id];
            let chunk = (sequence.wanted() - sequence.computed).min(budget);
            if chunk == 0 {
                continue;
            }
            while !self.grow(id, chunk) {
                preempted = true;
                let victim = self.preempt();
                work.retain(|(other, _)| *other != victim);
                if victim == id {
                    break;
                }
            }
            if self.running.contains(&id) {
                work.push((id, chunk));
                budget -= chunk;
            }
        }
        while !preempted && budget > 0 && self.running.len() < SEQUENCES {
            let Some((id, chunk)) = self.begin(budget) else { break };
            budget -= chunk;
            work.push((id, chunk));
        }
        if !work.is_empty() {
            let ends = now + (self.seconds(&work) * 1e6) as u64;
            self.step = Some(Step { ends, work });
        }
    }

    /// The first that waits, if there are blocks for its first chunk.
    fn begin(&mut self, budget: u32) -> Option<(usize, u32)> {
        let id = *self.waiting.front()?;
        let sequence = self.sequences.get_mut(&id).unwrap();
        let wanted = sequence.wanted();
        let found: Vec<usize> = (0..(wanted - 1) / BLOCK)
            .map_while(|place| self.by_hash.get(&sequence.prompt.hash(place)).copied())
            .collect();
        let cached = found.len() as u32 * BLOCK;
        let chunk = (wanted - cached).min(budget);
        let fresh = ((cached + chunk).div_ceil(BLOCK)) as usize - found.len();
        let woken = found.iter().filter(|block| self.blocks[**block].users == 0).count();
        if woken + fresh > self.free.len() {
            return None;
        }
        sequence.computed = cached;
        sequence.cached.get_or_insert(cached);
        for block in found {
            let of = &mut self.blocks[block];
            if of.users == 0 {
                self.free.remove(&of.tick);
            }
            of.users += 1;
            sequence.blocks.push(block);
        }
        self.grow(id, chunk);
        self.waiting.pop_front();
        self.running.push(id);
        Some((id, chunk))
    }

    /// Blocks for so many tokens more; false if there are too few.
    fn grow(&mut self, id: usize, chunk: u32) -> bool {
        let sequence = self.sequences.get_mut(&id).unwrap();
        let needs = (sequence.computed + chunk).div_ceil(BLOCK) as usize;
        let missing = needs.saturating_sub(sequence.blocks.len());
        if missing > self.free.len() {
            return false;
        }
        for _ in 0..missing {
            let (_, block) = self.free.pop_first().unwrap();
            if let Some(hash) = self.blocks[block].hash.take() {
                self.by_hash.remove(&hash);
            }
            self.blocks[block].users = 1;
            sequence.blocks.push(block);
        }
        true
    }

    /// The last that was begun waits again, the first of all.
    fn preempt(&mut self) -> usize {
        let id = self.running.pop().unwrap();
        let sequence = self.sequences.get_mut(&id).unwrap();
        sequence.computed = 0;
        let blocks = std::mem::take(&mut sequence.blocks);
        self.release(blocks);
        self.waiting.push_front(id);
        self.preemptions += 1;
        id
    }

    /// What is computed can be found.
    fn publish(&mut self, id: usize) {
        let sequence = &self.sequences[&id];
        let full = (sequence.computed / BLOCK) as usize;
        for (place, block) in sequence.blocks.iter().enumerate().take(full).rev() {
            if self.blocks[*block].hash.is_some() {
                break;
            }
            let hash = sequence.prompt.hash(place as u32);
            // The first block with a content keeps its name.
            if let std::collections::hash_map::Entry::Vacant(entry) = self.by_hash.entry(hash) {
                entry.insert(*block);
                self.blocks[*block].hash = Some(hash);
            }
        }
    }

    /// A sequence's end is taken before its beginning.
    fn release(&mut self, blocks: Vec<usize>) {
        for block in blocks.into_iter().rev() {
            let of = &mut self.blocks[block];
            of.users -= 1;
            if of.users == 0 {
                self.tick += 1;
                of.tick = self.tick;
                self.free.insert(self.tick, block);
            }
        }
    }

    fn seconds(&self, work: &[(usize, u32)]) -> f64 {
        let (mut compute, mut read) = (0.0, 0.0);
        for (id, tokens) in work {
            let (tokens, before) = (f64::from(*tokens), f64::from(self.sequences[id].computed));
            compute += tokens * TOKEN;
            if tokens > 1.0 {
                compute += PAIR * tokens * (before + tokens / 2.0);
            } else {
                read += READ * before;
            }
        }
        compute.max(STEP) + read
    }
}
