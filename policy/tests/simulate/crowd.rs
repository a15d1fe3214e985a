//! Agents on one replica, with admission before it or without: does it thrash?
//!
//! Each agent asks, reads its answer, works for a while, and asks again with all that was said; at the end of its context it begins anew.
//! With admission a request enters as in the gateway (`upstream/admission`): the router says what is cached, the room says what
//! fits, the queue says who is next. Metrics (preemptions, what waits) are a second late. Whoever is refused comes again after the time
//! that it was told.

use sluice_policy::admission::queue::{Priority, QueueLimits, Waiter};
use sluice_policy::admission::room::{Capacity, Need};
use sluice_policy::admission::{Admission, Held, Wants};
use sluice_policy::route::chain::{Chain, Link};
use sluice_policy::route::choose::{Decision, Question, RouteSettings, Router, Ticket, Used};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use super::engine::{Engine, Prompt, Reached};
use super::work::Dice;

/// Tokens of the replica's KV cache.
const KV_TOKENS: u32 = 140_000;

/// Bytes of a link: long text is cut so.
const LINK: f64 = 4096.0;

const METRICS: u64 = 1_000_000;

/// Who waits looks by itself so often, as in the gateway.
const LOOK: u64 = 500_000;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crowd {
    pub(crate) agents: usize,
    /// Tokens that a conversation begins with and ends with.
    pub(crate) context: (u32, u32),
    /// Of these, the same for all.
    pub(crate) shared: u32,
    /// Mean seconds that an agent works between an answer and the next turn.
    pub(crate) pause: f64,
    /// Minutes of the run.
    pub(crate) minutes: u64,
}

/// Who lets them in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Door {
    /// Nobody: all go to the engine at once.
    Open,
    /// Admission, with these limits.
    Kept(QueueLimits),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Of whole turns.
    pub(crate) turns_a_minute: f64,
    /// Seconds from the first try to the first token; what waits at the end counts with its age.
    pub(crate) mean_ttft: f64,
    pub(crate) p99_ttft: f64,
    /// Prompt tokens found in the cache, of all.
    pub(crate) hits: f64,
    pub(crate) preemptions: f64,
    /// Turns of the least served agent, of the mean.
    pub(crate) least: f64,
    pub(crate) refused: f64,
}

impl Outcome {
    pub(crate) fn mean(runs: &[Outcome]) -> Outcome {
        let mean = |of: fn(&Outcome) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
        Outcome {
            turns_a_minute: mean(|run| run.turns_a_minute),
            mean_ttft: mean(|run| run.mean_ttft),
            p99_ttft: mean(|run| run.p99_ttft),
            hits: mean(|run| run.hits),
            preemptions: mean(|run| run.preemptions),
            least: mean(|run| run.least),
            refused: mean(|run| run.refused),
        }
    }
}

/// A conversation as it grows.
struct Agent {
    dice: Dice,
    prompt: Prompt,
    tokens_per_byte: f64,
    bytes: f64,
    links: Vec<Link>,
    state: u64,
    chain: Arc<Chain>,
    answer: u32,
    /// When this turn was first asked.
    asked: u64,
    has_first: bool,
    turns: usize,
    /// In the queue.
    waits: Option<u64>,
    held: Option<(Held, Ticket)>,
    cached: u32,
}

impl Agent {
    fn grow(&mut self, name: u64, tokens: u32) {
        let mut left = f64::from(tokens) / self.tokens_per_byte;
        while left > 0.0 {
            let piece = left.min(LINK);
            left -= piece;
            self.bytes += piece;
            self.state = Dice::new(self.state ^ name).next();
            let bytes = (self.bytes as u64).max(self.links.last().map_or(0, |link| link.bytes) + 1);
            let hash = self.state;
            self.links.push(Link { hash, bytes });
        }
    }

    fn begin(&mut self, crowd: &Crowd) {
        (self.bytes, self.state) = (0.0, 0);
        self.links.clear();
        self.prompt.own = self.dice.next();
        self.prompt.tokens = crowd.context.0;
        self.grow(7, crowd.shared);
        self.grow(self.prompt.own, crowd.context.0 - crowd.shared);
    }

    /// What it asks next.
    fn turn(&mut self, crowd: &Crowd) {
        let new = self.dice.exponential(400.0).max(20.0) as u32;
        if self.prompt.tokens + new > crowd.context.1 {
            self.begin(crowd);
        } else {
            let name = self.dice.next();
            self.prompt.tokens += new;
            self.grow(name, new);
        }
        self.answer = self.dice.exponential(250.0).clamp(10.0, 2000.0) as u32;
        self.chain = Arc::new(Chain::from_links(self.links.clone()));
        self.has_first = false;
    }

    fn answered(&mut self) {
        let (name, answer) = (self.dice.next(), self.answer);
        self.prompt.tokens += answer;
        self.grow(name, answer);
        self.turns += 1;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A new turn.
    Asks(usize),
    /// It was refused before.
    AsksAgain(usize),
    /// It looks whether it has waited too long: its number in the queue.
    Looks(usize, u64),
    Beat,
}

struct World {
    crowd: Crowd,
    door: Door,
    agents: Vec<Agent>,
    engine: Engine,
    router: Router,
    admission: Admission<usize>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    /// Preemptions and waiting, as metrics said a second ago; preemptions that were told.
    seen: (usize, usize),
    told: usize,
    ttfts: Vec<f64>,
    prompt_tokens: u64,
    hit_tokens: u64,
    turns: usize,
    refused: usize,
}

pub(crate) fn run(crowd: Crowd, seed: u64, door: Door) -> Outcome {
    let mut dice = Dice::new(seed);
    let agents = (0..crowd.agents).map(|_| {
        let mut agent = Agent {
            dice: Dice::new(dice.next()),
            prompt: Prompt {
                shared: 7,
                shared_tokens: crowd.shared,
                own: 0,
                tokens: 0,
            },
            tokens_per_byte: dice.between(0.2, 0.33),
            bytes: 0.0,
            links: Vec::new(),
            state: 0,
            chain: Arc::default(),
            answer: 0,
            asked: 0,
            has_first: true,
            turns: 0,
            waits: None,
            held: None,
            cached: 0,
        };
        // Conversations don't all end at the same time.
        agent.begin(&crowd);
        let ahead = dice.between(0.0, f64::from(crowd.context.1 - crowd.context.0) * 0.8) as u32;
        agent.prompt.tokens += ahead;
        agent.grow(1, ahead);
        agent
    });
    let mut router = Router::new(1, RouteSettings::default());
    router.capacity(0, u64::from(KV_TOKENS));
    let mut world = World {
        agents: agents.collect(),
        engine: Engine::new(KV_TOKENS),
        router,
        admission: Admission::new([Capacity {
            sequences: Some(128),
            kv_tokens: Some(u64::from(KV_TOKENS)),
        }]),
        events: BinaryHeap::new(),
        serial: 0,
        seen: (0, 0),
        told: 0,
        ttfts: Vec::new(),
        prompt_tokens: 0,
        hit_tokens: 0,
        turns: 0,
        refused: 0,
        crowd,
        door,
    };
    for agent in 0..crowd.agents {
        world.push((dice.between(0.0, 10.0) * 1e6) as u64, Event::Asks(agent));
    }
    world.push(LOOK, Event::Beat);
    world.all();
    world.outcome()
}

impl World {
    fn end(&self) -> u64 {
        self.crowd.minutes * 60_000_000
    }

    fn push(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, event)));
    }

    fn all(&mut self) {
        // A beat comes each half second, so that there is always an event; each turn takes one event or one step.
        loop {
            let Some(Reverse((at, ..))) = self.events.peek() else {
                return;
            };
            let (at, step) = (*at, self.engine.ends());
            if at.min(step.unwrap_or(at)) > self.end() {
                return;
            }
            match step.filter(|step| *step <= at) {
                Some(step) => {
                    for (agent, reached) in self.engine.advance() {
                        match reached {
                            Reached::First { cached } => self.first(agent, cached, step),
                            Reached::Last => self.last(agent, step),
                        }
                    }
                }
                None => {
                    if let Some(Reverse((at, _, event))) = self.events.pop() {
                        self.event(event, at);
                    }
                }
            }
        }
    }

    fn event(&mut self, event: Event, now: u64) {
        match event {
            Event::Asks(agent) => {
                let crowd = self.crowd;
                self.agents[agent].turn(&crowd);
                self.agents[agent].asked = now;
                self.enters(agent, now);
            }
            Event::AsksAgain(agent) => self.enters(agent, now),
            Event::Looks(agent, id) => {
                if self.agents[agent].waits == Some(id) {
                    self.agents[agent].waits = None;
                    let refusal = self.admission.waited(id, Duration::from_micros(now));
                    self.admission.leave(id);
                    self.comes_again(agent, refusal.retry_after, now);
                    self.call(now);
                }
            }
            Event::Beat => {
                self.push(now + LOOK, Event::Beat);
                if now.is_multiple_of(METRICS) {
                    self.metrics(now);
                }
                self.call(now);
            }
        }
    }

    fn metrics(&mut self, now: u64) {
        let (preemptions, waiting) =
            std::mem::replace(&mut self.seen, (self.engine.preemptions, self.engine.waiting()));
        if preemptions > self.told {
            self.told = preemptions;
            self.admission.preempted(0, Duration::from_micros(now));
        }
        self.router.waiting(0, waiting);
    }

    fn comes_again(&mut self, agent: usize, after: Duration, now: u64) {
        self.refused += 1;
        // Clients add a little of their own.
        let after = after.as_secs_f64() * self.agents[agent].dice.between(1.0, 1.25);
        self.push(now + (after * 1e6) as u64, Event::AsksAgain(agent));
    }

    fn decide(&mut self, agent: usize, now: Duration) -> Decision {
        let chain = &self.agents[agent].chain;
        let question = Question {
            session: agent as u64,
            is_named: true,
            chain,
            may: &[true],
            hint: None,
        };
        self.router.choose(question, [0].into_iter(), now).unwrap()
    }

    /// As the gateway's `enter`.
    fn enters(&mut self, agent: usize, now: u64) {
        let clock = Duration::from_micros(now);
        let prompt_bytes = self.agents[agent].chain.bytes();
        let need = self.admission.need(&Wants {
            sequences: 1,
            prompt_bytes,
            max_tokens: None,
            chain: self.agents[agent].chain.clone(),
        });
        let Door::Kept(limits) = self.door else {
            return self.goes(agent, need, now);
        };
        let fits = self.admission.fitting(&need, &[true], clock);
        if self.admission.queue().is_empty() && fits == [true] {
            return self.goes(agent, need, now);
        }
        let seen = self.decide(agent, clock);
        let (work_tokens, is_cached) = self.admission.work(&need, prompt_bytes, seen.cached_bytes);
        let waiter = Waiter {
            key: "key".into(),
            priority: Priority::Normal,
            need,
            bytes: prompt_bytes,
            is_cached,
            work_tokens,
            home: None,
            tag: agent,
        };
        match self.admission.wait(waiter, &limits, clock) {
            Ok(id) => {
                self.agents[agent].waits = Some(id);
                let until = Admission::<usize>::until(clock, &limits);
                self.push(until.as_micros() as u64, Event::Looks(agent, id));
                self.call(now);
            }
            Err(refusal) => self.comes_again(agent, refusal.retry_after, now),
        }
    }

    /// Whoever is next comes for its place.
    fn call(&mut self, now: u64) {
        let clock = Duration::from_micros(now);
        loop {
            let mut called = Vec::new();
            self.admission.call(&[true], clock, |agent| called.push(*agent));
            if called.is_empty() {
                return;
            }
            for agent in called {
                let id = self.agents[agent].waits.unwrap();
                let (need, fits) = self.admission.loosen(id, &[true], clock).unwrap();
                assert_eq!(fits, [true], "whoever is called has its place");
                self.admission.leave(id);
                self.agents[agent].waits = None;
                self.goes(agent, need, now);
            }
        }
    }

    fn goes(&mut self, agent: usize, need: Need, now: u64) {
        let clock = Duration::from_micros(now);
        let decision = self.decide(agent, clock);
        let of = &mut self.agents[agent];
        let held = self.admission.take(0, need, of.chain.bytes(), decision.anew, clock);
        let ticket = self.router.dispatch(agent as u64, &of.chain, &decision, clock);
        of.held = Some((held, ticket));
        self.engine.submit(agent, of.prompt, of.answer, now);
    }

    fn first(&mut self, agent: usize, cached: u32, now: u64) {
        let of = &mut self.agents[agent];
        of.has_first = true;
        of.cached = cached;
        self.ttfts.push((now - of.asked) as f64 / 1e6);
        self.prompt_tokens += u64::from(of.prompt.tokens);
        self.hit_tokens += u64::from(cached);
        if let Some((_, ticket)) = &mut of.held {
            self.router.first_token(ticket, Duration::from_micros(now));
        }
    }

    fn last(&mut self, agent: usize, now: u64) {
        let clock = Duration::from_micros(now);
        let of = &mut self.agents[agent];
        let (held, ticket) = of.held.take().unwrap();
        let (prompt, answer) = (u64::from(of.prompt.tokens), u64::from(of.answer));
        let used = Used {
            prompt_tokens: Some(prompt),
            cached_tokens: Some(u64::from(of.cached)),
            completion_tokens: Some(answer),
        };
        of.answered();
        let pause = of.dice.exponential(self.crowd.pause);
        self.router.ended(ticket, used, clock);
        self.admission.give_back(held, Some(prompt), Some(answer), clock);
        self.turns += 1;
        self.push(now + (pause * 1e6) as u64, Event::Asks(agent));
        self.call(now);
    }

    fn outcome(mut self) -> Outcome {
        let end = self.end();
        let open = self.agents.iter().filter(|agent| !agent.has_first);
        self.ttfts.extend(open.map(|agent| (end - agent.asked) as f64 / 1e6));
        self.ttfts.sort_by(f64::total_cmp);
        let count = self.ttfts.len();
        let least = self.agents.iter().map(|agent| agent.turns).min().unwrap();
        Outcome {
            turns_a_minute: self.turns as f64 / self.crowd.minutes as f64,
            mean_ttft: self.ttfts.iter().sum::<f64>() / count as f64,
            p99_ttft: self.ttfts[count * 99 / 100],
            hits: self.hit_tokens as f64 / self.prompt_tokens as f64,
            preemptions: self.engine.preemptions as f64,
            least: (least * self.crowd.agents) as f64 / self.turns as f64,
            refused: self.refused as f64,
        }
    }
}
