//! The truth: replicas with their prefill, decode and KV cache, and what became of each turn.
//!
//! A replica prefills one prompt after the other, in the order of arrival, slower the more it decodes, and begins one only when there
//! is room for its tokens; then the answer decodes beside the others. Its cache is an LRU of blocks: ends are lost before beginnings.

use sluice_policy::route::choose::Used;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use super::rivals::{Chooser, Pending, Rival};
use super::work::{Agent, Dice, Scenario, Turn, agents};

const REPLICAS: usize = 4;

/// How often metrics are read, and how late they are.
const METRICS: f64 = 1.0;

/// Sequences that decode at once on a replica.
const SEQUENCES: usize = 32;

/// Seconds that an answer takes, about.
const MEAN_DECODE: f64 = 5.0;

/// Tokens of a replica's KV cache.
const KV_TOKENS: u32 = 600_000;

/// What became of it all.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Outcome {
    /// Seconds.
    pub(crate) mean_ttft: f64,
    pub p99_ttft: f64,
    /// Prompt tokens found in the cache, of all.
    pub(crate) hits: f64,
    /// Prompt tokens of the busiest replica, of the mean.
    pub(crate) balance: f64,
    /// Turns at which a conversation went back to the replica that it had left a turn ago, of all.
    pub(crate) returns: f64,
    pub(crate) turns: usize,
}

impl Outcome {
    pub(crate) fn mean(runs: &[Outcome]) -> Outcome {
        let mean = |of: fn(&Outcome) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
        Outcome {
            mean_ttft: mean(|run| run.mean_ttft),
            p99_ttft: mean(|run| run.p99_ttft),
            hits: mean(|run| run.hits),
            balance: mean(|run| run.balance),
            returns: mean(|run| run.returns),
            turns: runs.iter().map(|run| run.turns).sum(),
        }
    }
}

/// One replica as it is.
pub(crate) struct Truth {
    /// 1 as the H100's model, 2 twice as slow.
    slowness: f64,
    capacity: u32,
    /// Last touch of each block, and the reverse.
    blocks: HashMap<u64, (u64, u32)>,
    order: BTreeMap<u64, u64>,
    tick: u64,
    held: u32,
    /// Tokens of running sequences: their blocks aren't given up.
    pinned: u32,
    /// Jobs, with the seconds that each will need.
    waiting: VecDeque<(usize, f64)>,
    prefilling: Option<(usize, f64)>,
    decoding: usize,
    down: Option<(f64, f64)>,
    tokens: u64,
}

/// Seconds of a prefill: not of the form that is fitted.
fn prefill_seconds(uncached: f64, cached: f64) -> f64 {
    0.018 + 5.5e-5 * uncached.powf(1.035) + 1.6e-9 * uncached * (cached + uncached / 2.0).powf(1.05)
}

impl Truth {
    fn new(slowness: f64, capacity: u32, down: Option<(f64, f64)>) -> Truth {
        Truth {
            slowness,
            capacity,
            blocks: HashMap::new(),
            order: BTreeMap::new(),
            tick: 0,
            held: 0,
            pinned: 0,
            waiting: VecDeque::new(),
            prefilling: None,
            decoding: 0,
            down,
            tokens: 0,
        }
    }

    pub(crate) fn is_up(&self, now: Duration) -> bool {
        self.down
            .is_none_or(|(from, to)| !(from..to).contains(&now.as_secs_f64()))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.waiting.len() + usize::from(self.prefilling.is_some()) + self.decoding
    }

    /// Leading tokens that are in the cache.
    pub(crate) fn resident(&self, blocks: &[(u64, u32)]) -> u32 {
        let resident = blocks.iter().take_while(|(hash, _)| self.blocks.contains_key(hash));
        resident.last().map_or(0, |(_, tokens)| *tokens)
    }

    fn crowd(&self) -> f64 {
        1.0 + 0.015 * self.decoding as f64
    }

    /// Seconds of this prompt's prefill, without the noise.
    fn prefill(&self, blocks: &[(u64, u32)]) -> f64 {
        let whole = blocks.last().map_or(0, |block| block.1);
        let cached = self.resident(blocks).min(whole.saturating_sub(1));
        prefill_seconds(f64::from(whole - cached), f64::from(cached)) * self.slowness * self.crowd()
    }

    /// What the oracle goes by. What waits is taken from the queue itself.
    pub(crate) fn true_cost(&self, turn: &Turn, now: Duration) -> f64 {
        let own = self.prefill(&turn.blocks);
        let at_work = self
            .prefilling
            .map_or(0.0, |(_, ends)| (ends - now.as_secs_f64()).max(0.0));
        let queued: f64 = self.waiting.iter().map(|(_, seconds)| seconds).sum();
        let whole = turn.blocks.last().map_or(0, |block| block.1);
        let over = f64::from((self.pinned + whole).saturating_sub(self.capacity)) / f64::from(self.capacity);
        at_work + queued + own * 2.0 + over * MEAN_DECODE
    }

    /// Uses blocks, and gives up those that don't fit any more.
    fn touch(&mut self, blocks: &[(u64, u32)], answer: (u64, u32)) {
        self.put(answer.0, answer.1);
        for (place, (hash, tokens)) in blocks.iter().enumerate().rev() {
            let before = place.checked_sub(1).map_or(0, |place| blocks[place].1);
            self.put(*hash, tokens - before);
        }
        while self.held > self.capacity {
            let Some((_, hash)) = self.order.pop_first() else { break };
            self.held -= self.blocks.remove(&hash).unwrap().1;
        }
    }

    fn put(&mut self, hash: u64, tokens: u32) {
        self.tick += 1;
        if let Some((tick, tokens)) = self.blocks.insert(hash, (self.tick, tokens)) {
            self.order.remove(&tick);
            self.held -= tokens;
        }
        self.order.insert(self.tick, hash);
        self.held += tokens;
    }

    fn forget(&mut self) {
        self.blocks.clear();
        self.order.clear();
        self.held = 0;
    }
}

/// One try of a turn on a replica.
struct Job {
    agent: usize,
    turn: usize,
    replica: usize,
    cached: u32,
    pending: Pending,
    over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The first arrival of the turn was at that microsecond.
    Arrives {
        agent: usize,
        turn: usize,
        at: u64,
    },
    Prefilled {
        job: usize,
    },
    Done {
        job: usize,
    },
    Metrics,
    Lost {
        replica: usize,
    },
    Back {
        replica: usize,
    },
}

struct World {
    agents: Vec<Agent>,
    truth: Vec<Truth>,
    chooser: Chooser,
    jobs: Vec<Job>,
    arrived: Vec<u64>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    noise: Dice,
    seen_waiting: Vec<usize>,
    open_agents: usize,
    /// Of each agent: the replicas of its last two turns.
    homes: Vec<[usize; 2]>,
    ttfts: Vec<f64>,
    prompt_tokens: u64,
    hit_tokens: u64,
    returns: usize,
}

/// One seeded run.
pub(crate) fn run(scenario: Scenario, count: usize, seed: u64, rival: Rival) -> Outcome {
    let agents = agents(scenario, count, seed);
    let capacity = match scenario {
        Scenario::Small => KV_TOKENS / 4,
        _ => KV_TOKENS,
    };
    let truth = (0..REPLICAS).map(|place| {
        let slowness = match scenario {
            Scenario::Uneven => [1.0, 1.0, 2.0, 1.4][place],
            _ => [1.0, 1.05, 0.95, 1.0][place],
        };
        let down = (scenario == Scenario::Lost && place == 1).then_some((80.0, 140.0));
        Truth::new(slowness, capacity, down)
    });
    let mut world = World {
        truth: truth.collect(),
        chooser: Chooser::new(rival, REPLICAS, u64::from(capacity)),
        jobs: Vec::new(),
        arrived: Vec::new(),
        events: BinaryHeap::new(),
        serial: 0,
        noise: Dice::new(seed ^ 0xFEED),
        seen_waiting: vec![0; REPLICAS],
        open_agents: agents.len(),
        homes: vec![[usize::MAX; 2]; agents.len()],
        ttfts: Vec::new(),
        prompt_tokens: 0,
        hit_tokens: 0,
        returns: 0,
        agents,
    };
    world.all();
    world.outcome()
}

fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

impl World {
    fn all(&mut self) {
        for agent in 0..self.agents.len() {
            let at = micros(self.agents[agent].begins);
            self.push(at, Event::Arrives { agent, turn: 0, at });
        }
        self.push(micros(METRICS), Event::Metrics);
        for replica in 0..REPLICAS {
            if let Some((from, to)) = self.truth[replica].down {
                self.push(micros(from), Event::Lost { replica });
                self.push(micros(to), Event::Back { replica });
            }
        }
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            self.event(event, now);
            if self.open_agents == 0 {
                break;
            }
        }
    }

    fn push(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, event)));
    }

    fn event(&mut self, event: Event, now: u64) {
        let clock = Duration::from_micros(now);
        match event {
            Event::Arrives { agent, turn, at } => self.arrives(agent, turn, at, now),
            Event::Prefilled { job } if !self.jobs[job].over => self.prefilled(job, now),
            Event::Done { job } if !self.jobs[job].over => self.done(job, now),
            Event::Prefilled { .. } | Event::Done { .. } => {}
            Event::Metrics => {
                for replica in 0..REPLICAS {
                    let waiting = std::mem::replace(&mut self.seen_waiting[replica], self.truth[replica].waiting.len());
                    self.chooser.waiting(replica, waiting);
                }
                self.push(now + micros(METRICS), Event::Metrics);
            }
            Event::Lost { replica } => {
                let lost: Vec<usize> = (0..self.jobs.len())
                    .filter(|job| self.jobs[*job].replica == replica && !self.jobs[*job].over)
                    .collect();
                let truth = &mut self.truth[replica];
                truth.waiting.clear();
                truth.prefilling = None;
                truth.decoding = 0;
                truth.pinned = 0;
                for job in lost {
                    self.jobs[job].over = true;
                    let pending = self.jobs[job].pending.take();
                    self.chooser.ended(pending, Used::default(), clock);
                    let (agent, turn, at) = (self.jobs[job].agent, self.jobs[job].turn, self.arrived[job]);
                    self.push(now, Event::Arrives { agent, turn, at });
                }
            }
            Event::Back { replica } => {
                self.truth[replica].forget();
                self.chooser.restarted(replica);
            }
        }
    }

    fn arrives(&mut self, agent: usize, turn: usize, at: u64, now: u64) {
        let clock = Duration::from_micros(now);
        let what = &self.agents[agent].turns[turn];
        let (replica, pending) = self
            .chooser
            .choose(&self.agents[agent], what, &self.truth, clock)
            .unwrap();
        let seconds = self.truth[replica].prefill(&what.blocks);
        let job = self.jobs.len();
        self.jobs.push(Job {
            agent,
            turn,
            replica,
            cached: 0,
            pending,
            over: false,
        });
        self.arrived.push(at);
        let homes = &mut self.homes[agent];
        self.returns += usize::from(homes[0] == replica && homes[1] != replica);
        *homes = [homes[1], replica];
        self.truth[replica].waiting.push_back((job, seconds));
        self.begin(replica, now);
    }

    /// The next prefill, if there is one and room for it.
    fn begin(&mut self, replica: usize, now: u64) {
        let truth = &mut self.truth[replica];
        if truth.prefilling.is_some() || truth.decoding >= SEQUENCES {
            return;
        }
        let Some(&(job, _)) = truth.waiting.front() else { return };
        let turn = &self.agents[self.jobs[job].agent].turns[self.jobs[job].turn];
        let whole = turn.blocks.last().unwrap().1;
        if truth.decoding > 0 && truth.pinned + whole > truth.capacity {
            return;
        }
        truth.waiting.pop_front();
        let noise = (0.12 * self.noise.normal()).exp();
        // Now and then something else has the machine.
        let noise = if self.noise.share() < 0.01 { noise * 4.0 } else { noise };
        let seconds = truth.prefill(&turn.blocks) * noise;
        let cached = truth.resident(&turn.blocks).min(whole - 1);
        truth.prefilling = Some((job, now as f64 / 1e6 + seconds));
        truth.pinned += whole;
        truth.tokens += u64::from(whole);
        truth.touch(&turn.blocks, (u64::MAX - job as u64, turn.answer_tokens));
        self.jobs[job].cached = cached;
        self.prompt_tokens += u64::from(whole);
        self.hit_tokens += u64::from(cached);
        self.push(now + micros(seconds), Event::Prefilled { job });
    }

    fn prefilled(&mut self, job: usize, now: u64) {
        let replica = self.jobs[job].replica;
        let answer = self.agents[self.jobs[job].agent].turns[self.jobs[job].turn].answer_tokens;
        self.chooser
            .first_token(&mut self.jobs[job].pending, Duration::from_micros(now));
        self.ttfts.push((now - self.arrived[job]) as f64 / 1e6);
        let truth = &mut self.truth[replica];
        truth.prefilling = None;
        truth.decoding += 1;
        let seconds = f64::from(answer) * 0.015 * (1.0 + 0.03 * truth.decoding as f64) * truth.slowness;
        self.push(now + micros(seconds), Event::Done { job });
        self.begin(replica, now);
    }

    fn done(&mut self, job: usize, now: u64) {
        let (agent, turn, replica) = (self.jobs[job].agent, self.jobs[job].turn, self.jobs[job].replica);
        let what = &self.agents[agent].turns[turn];
        let whole = what.blocks.last().unwrap().1;
        let used = Used {
            prompt_tokens: Some(u64::from(whole)),
            cached_tokens: Some(u64::from(self.jobs[job].cached)),
            completion_tokens: Some(u64::from(what.answer_tokens)),
        };
        let truth = &mut self.truth[replica];
        truth.decoding -= 1;
        truth.pinned -= whole;
        truth.touch(&what.blocks, (u64::MAX - job as u64, what.answer_tokens));
        self.jobs[job].over = true;
        let pending = self.jobs[job].pending.take();
        self.chooser.ended(pending, used, Duration::from_micros(now));
        match self.agents[agent].turns.get(turn + 1) {
            Some(next) => {
                let at = now + micros(next.pause);
                self.push(
                    at,
                    Event::Arrives {
                        agent,
                        turn: turn + 1,
                        at,
                    },
                );
            }
            None => self.open_agents -= 1,
        }
        self.begin(replica, now);
    }

    fn outcome(mut self) -> Outcome {
        self.ttfts.sort_by(f64::total_cmp);
        let turns = self.ttfts.len();
        let tokens: Vec<u64> = self.truth.iter().map(|replica| replica.tokens).collect();
        let mean = tokens.iter().sum::<u64>() as f64 / REPLICAS as f64;
        Outcome {
            mean_ttft: self.ttfts.iter().sum::<f64>() / turns as f64,
            p99_ttft: self.ttfts[turns * 99 / 100],
            hits: self.hit_tokens as f64 / self.prompt_tokens as f64,
            balance: *tokens.iter().max().unwrap() as f64 / mean,
            returns: self.returns as f64 / turns as f64,
            turns,
        }
    }
}
