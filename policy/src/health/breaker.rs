//! The breaker of one replica: whether it may be asked, by what became of those who asked it.
//!
//! Problem: who asks a replica that is away loses time, and who sends it everybody at the moment it is back (empty cache, cold graphs)
//! makes it slow for all. Rule: what breaks opens it at once, what is only refused does when it happens often in a row; it rests for a
//! time that doubles, takes a few *trials*, and then as many requests at once as a window allows, which grows with each good one.
//! Cold start: closed. Recovery: by trials, by the supervisor's word, or by its own time (`ramp`). A window bounds requests admitted since
//! the replica was last away: streams that outlived it don't count.
//!
//! | state | event | next state |
//! | --- | --- | --- |
//! | Closed | Broke | Open |
//! | Closed | Refused, `refusals` in a row | Open |
//! | Closed | Refused, fewer | Closed, one more |
//! | Closed | Good | Closed, none |
//! | Open | time, Alive | Probing |
//! | Open | Good | Probing, one good: somebody was served after all |
//! | Open | Broke, Refused | Open: the same outage |
//! | Probing | Good, `trials` of them | Returning |
//! | Probing, Returning | Broke, Refused | Open, for twice as long |
//! | Returning | Good | Returning, a wider window; Closed once it bounds nobody |
//! | Returning | time | Closed |
//! | any | Hung | Hung |
//! | Hung | Alive | Probing |
//! | Hung | any other | Hung: its front end answers, and proves nothing |
//! | any | Returned | Probing, as if for the first time |

use std::time::Duration;

/// The window when the trials are over, in trials.
const FIRST_WINDOW: usize = 2;
/// A good request makes room for so many more: each round is twice the last.
const WINDOW_GROWTH: usize = 2;
/// A window of so many requests bounds nobody any more.
const WINDOW_MAX: usize = 64;

/// The times and counts that rule a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The first rest; doubled each time that the trials fail. Default 500 ms.
    pub rest: Duration,
    /// The longest one. Default 10 s.
    pub longest_rest: Duration,
    /// Refusals in a row that open it. Default 5.
    pub refusals: u32,
    /// Requests at once that try whether it is back. Default 2.
    pub trials: usize,
    /// After the trials its requests are bounded for at most so long. Default 30 s.
    pub ramp: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            rest: Duration::from_millis(500),
            longest_rest: Duration::from_secs(10),
            refusals: 5,
            trials: 2,
            ramp: Duration::from_secs(30),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// No connection, or one that broke; or the engine's own word that it is dead.
    Broke,
    /// A 5xx.
    Refused,
    /// A token, or a whole answer.
    Good,
    /// No progress for too long.
    Hung,
    /// A probe had a token from it, or its engine made a step.
    Alive,
    /// It was away and is ready again: its supervisor says so.
    Returned,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All may ask.
    Closed {
        /// In a row.
        refusals: u32,
    },
    /// Nobody may.
    Open {
        /// The end of its rest.
        until: Duration,
        /// Rests in a row.
        rests: u32,
    },
    /// Nobody may until it is seen alive.
    Hung,
    /// A few may, to see.
    Probing {
        /// Good ones so far.
        good: usize,
        /// Rests before.
        rests: u32,
    },
    /// More and more may.
    Returning {
        /// At once.
        window: usize,
        /// Then all may.
        until: Duration,
        /// Rests before.
        rests: u32,
    },
}

/// A state without its figures, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// See [`State::Closed`].
    Closed,
    /// See [`State::Open`].
    Open,
    /// See [`State::Hung`].
    Hung,
    /// See [`State::Probing`].
    Probing,
    /// See [`State::Returning`].
    Returning,
}

impl State {
    /// Its name.
    pub fn phase(self) -> Phase {
        match self {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::Hung => Phase::Hung,
            State::Probing { .. } => Phase::Probing,
            State::Returning { .. } => Phase::Returning,
        }
    }

    /// What time alone makes of it.
    fn at(self, now: Duration) -> State {
        match self {
            State::Open { until, rests } if now >= until => State::Probing { good: 0, rests },
            State::Returning { until, .. } if now >= until => State::Closed { refusals: 0 },
            state => state,
        }
    }

    fn step(self, event: Event, now: Duration, rules: &Rules) -> State {
        let rests = |rests: u32| State::Open {
            until: now + rest(rests, rules),
            rests: rests.saturating_add(1),
        };
        match (self, event) {
            (_, Event::Hung) => State::Hung,
            (_, Event::Returned) => State::Probing { good: 0, rests: 0 },
            (State::Hung, Event::Alive) => State::Probing { good: 0, rests: 0 },
            (State::Hung, _) => State::Hung,
            (State::Closed { .. }, Event::Broke) => rests(0),
            (State::Closed { refusals }, Event::Refused) if refusals + 1 >= rules.refusals => rests(0),
            (State::Closed { refusals }, Event::Refused) => State::Closed { refusals: refusals + 1 },
            (State::Closed { .. }, Event::Good) => State::Closed { refusals: 0 },
            (State::Open { rests, .. }, Event::Alive) => State::Probing { good: 0, rests },
            (State::Open { rests, .. }, Event::Good) => one_good(0, rests, now, rules),
            (
                State::Probing { rests: before, .. } | State::Returning { rests: before, .. },
                Event::Broke | Event::Refused,
            ) => rests(before),
            (State::Probing { good, rests }, Event::Good) => one_good(good, rests, now, rules),
            (State::Returning { window, until, rests }, Event::Good) => match window + WINDOW_GROWTH {
                WINDOW_MAX.. => State::Closed { refusals: 0 },
                window => State::Returning { window, until, rests },
            },
            (state, Event::Alive | Event::Broke | Event::Refused) => state,
        }
    }
}

fn one_good(good: usize, rests: u32, now: Duration, rules: &Rules) -> State {
    if good + 1 < rules.trials {
        return State::Probing { good: good + 1, rests };
    }
    State::Returning {
        window: rules.trials.saturating_mul(FIRST_WINDOW),
        until: now + rules.ramp,
        rests,
    }
}

/// Doubled for each rest before.
fn rest(before: u32, rules: &Rules) -> Duration {
    let doubled = 2_u32.saturating_pow(before);
    rules.rest.saturating_mul(doubled).min(rules.longest_rest)
}

/// Whether somebody may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As always.
    Admit,
    /// To see whether it is back.
    Trial,
    /// Not now.
    Reject,
}

/// Somebody who was admitted. It is given back with [`Breaker::ended`] exactly once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "it counts until it is given back"]
pub struct Pass {
    round: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Breaker {
    rules: Rules,
    state: State,
    /// How often it was away: admissions before don't count any more.
    round: u64,
    /// Admitted in this round, and not ended.
    under_way: usize,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker::new(Rules::default())
    }
}

impl Breaker {
    /// Closed.
    pub fn new(rules: Rules) -> Breaker {
        Breaker {
            rules,
            state: State::Closed { refusals: 0 },
            round: 0,
            under_way: 0,
        }
    }

    /// Other rules from now on.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Where it stands now.
    pub fn state(&mut self, now: Duration) -> State {
        self.enter(self.state.at(now));
        self.state
    }

    /// Something happened.
    pub fn step(&mut self, event: Event, now: Duration) {
        let state = self.state(now);
        self.enter(state.step(event, now, &self.rules));
        if event == Event::Returned {
            // What it was given before it went away is gone, even if that was only a moment ago.
            self.begin_round();
        }
    }

    /// What somebody who asks now is told, without asking.
    pub fn verdict(&mut self, now: Duration) -> Verdict {
        match self.state(now) {
            State::Closed { .. } => Verdict::Admit,
            State::Probing { .. } if self.under_way < self.rules.trials => Verdict::Trial,
            State::Returning { window, .. } if self.under_way < window => Verdict::Admit,
            State::Open { .. } | State::Hung | State::Probing { .. } | State::Returning { .. } => Verdict::Reject,
        }
    }

    /// Somebody asks.
    pub fn admit(&mut self, now: Duration) -> Option<Pass> {
        (self.verdict(now) != Verdict::Reject).then(|| self.admit_anyway())
    }

    /// Somebody asks whom nobody else can serve.
    pub fn admit_anyway(&mut self) -> Pass {
        self.under_way += 1;
        Pass { round: self.round }
    }

    /// Who was admitted has ended, however.
    pub fn ended(&mut self, pass: Pass) {
        if pass.round == self.round {
            self.under_way = self.under_way.saturating_sub(1);
        }
    }

    fn enter(&mut self, state: State) {
        let is_away = |state: State| matches!(state, State::Open { .. } | State::Hung);
        let was = std::mem::replace(&mut self.state, state);
        if is_away(was) && !is_away(state) {
            self.begin_round();
        }
    }

    fn begin_round(&mut self) {
        self.round += 1;
        self.under_way = 0;
    }
}

#[cfg(test)]
mod tests;
