//! What is asked: agents with turns, drawn from a seed before anything runs, the same for each rival.

use sluice_policy::route::chain::{Chain, Link};
use std::sync::Arc;

/// Numbers from a seed (SplitMix64).
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.share()
    }

    /// Mostly near `mean`, sometimes far above.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.share()).ln()
    }

    /// About normal, mean 0, deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }
}

/// What is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Equal replicas, agents that come one by one.
    Steady,
    /// Agents come in crowds of eight.
    Bursts,
    /// Half of the agents begin as a copy of another one's conversation.
    Forks,
    /// Replicas differ by 2.
    Uneven,
    /// The KV cache holds a quarter of the working set.
    Small,
    /// A replica is lost for a while, and comes back empty.
    Lost,
    /// No client says which session it is, and all begin alike.
    Nameless,
}

impl Scenario {
    pub(crate) const ALL: [Scenario; 7] = [
        Scenario::Steady,
        Scenario::Bursts,
        Scenario::Forks,
        Scenario::Uneven,
        Scenario::Small,
        Scenario::Lost,
        Scenario::Nameless,
    ];
}

/// One turn of an agent.
pub(crate) struct Turn {
    /// What the router sees.
    pub(crate) chain: Arc<Chain>,
    /// What is true: hash of each block and the tokens up to its end.
    pub(crate) blocks: Vec<(u64, u32)>,
    pub(crate) answer_tokens: u32,
    /// Seconds between the last answer and this turn.
    pub(crate) pause: f64,
}

pub(crate) struct Agent {
    pub(crate) session: u64,
    pub(crate) is_named: bool,
    pub(crate) begins: f64,
    pub(crate) turns: Vec<Turn>,
}

/// True tokens of a block.
const BLOCK: u32 = 512;

/// A conversation as it grows: pieces of text with the tokens they have.
#[derive(Clone, Default)]
struct Text {
    links: Vec<Link>,
    blocks: Vec<(u64, u32)>,
    state: u64,
    bytes: u64,
    tokens: f64,
}

impl Text {
    /// More text, of this many tokens, with so many tokens a byte.
    fn grow(&mut self, name: u64, tokens: f64, tokens_per_byte: f64) {
        let mut left = tokens;
        while left > 0.0 {
            let piece = left.min(f64::from(BLOCK));
            left -= piece;
            self.state = Dice::new(self.state ^ name).next();
            self.tokens += piece;
            self.bytes += ((piece / tokens_per_byte) as u64).max(1);
            self.blocks.push((self.state, self.tokens as u32));
        }
        self.links.push(Link {
            hash: self.state,
            bytes: self.bytes,
        });
    }
}

/// Longest context, in tokens.
const CONTEXT: f64 = 100_000.0;

pub(crate) fn agents(scenario: Scenario, count: usize, seed: u64) -> Vec<Agent> {
    let mut dice = Dice::new(seed);
    let systems: Vec<(u64, f64)> = (0..4).map(|_| (dice.next(), dice.between(1_000.0, 8_000.0))).collect();
    let mut agents: Vec<Agent> = Vec::new();
    let mut texts: Vec<Text> = Vec::new();
    let mut clock = 0.0;
    for place in 0..count {
        let ratio = dice.between(0.18, 0.4);
        let mut text = Text::default();
        let (system, tokens) = systems[place % systems.len()];
        let fork = scenario == Scenario::Forks && place % 2 == 1;
        if fork {
            text = texts[place - 1].clone();
        } else {
            text.grow(system, tokens, 0.25);
        }
        let turns = dice.between(10.0, 50.0) as usize;
        let growth = dice.between(500.0, 3_000.0);
        let mut said = Vec::new();
        for turn in 0..turns {
            let new = dice.exponential(growth).max(30.0);
            if text.tokens + new > CONTEXT {
                break;
            }
            text.grow(dice.next(), new, ratio);
            let answer_tokens = dice.exponential(250.0).max(10.0) as u32;
            said.push(Turn {
                chain: Arc::new(Chain::from_links(text.links.clone())),
                blocks: text.blocks.clone(),
                answer_tokens,
                pause: dice.exponential(6.0),
            });
            if turn == 5 || turn + 1 == turns {
                texts.resize(place + 1, Text::default());
                texts[place] = text.clone();
            }
            text.grow(dice.next(), f64::from(answer_tokens), ratio);
        }
        texts.resize(place + 1, text);
        clock += match scenario {
            Scenario::Bursts if place % 8 == 0 => 24.0,
            Scenario::Bursts => 0.05,
            Scenario::Forks if fork => 60.0 / 8.0,
            _ => dice.exponential(3.0),
        };
        let session = match scenario {
            Scenario::Nameless => systems[place % systems.len()].0,
            _ => dice.next(),
        };
        agents.push(Agent {
            session,
            is_named: scenario != Scenario::Nameless,
            begins: clock,
            turns: said,
        });
    }
    // A fork of a conversation that is as long as the context has nothing to say.
    agents.retain(|agent| !agent.turns.is_empty());
    agents
}
