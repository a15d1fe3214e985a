//! One decision of the router: the chain of a conversation, what each replica has of it, the choice.

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_policy::protocol::ask::{self, Ask, AskLimits, Endpoint, Grants};
use sluice_policy::route::chain::Chain;
use sluice_policy::route::choose::{Decision, Question, RouteSettings, Router, Used};
use std::sync::Arc;
use std::time::Duration;

use crate::Case;
use crate::seed::{Seed, prose};

/// Conversations that the router knows beside the one that asks, and their messages.
const CONVERSATIONS: u64 = 256;

/// Bytes of a message's text, at least.
const MESSAGE_BYTES: usize = 400;

/// See the module.
pub struct Routing {
    ask: Option<Ask>,
    router: Router,
    may: Vec<bool>,
    is_known: bool,
    made: Option<(Arc<Chain>, Option<Decision>)>,
}

/// A conversation of so many messages that asks a fleet of so many replicas, for which others work too. `is_known`: its chain is there
/// already (admission has made it), so that index and choice alone are measured.
pub fn routing(replicas: usize, messages: usize, is_known: bool) -> Routing {
    let mut router = Router::new(replicas, RouteSettings::default());
    (0..replicas).for_each(|replica| router.capacity(replica, 600_000));
    let may = vec![true; replicas];
    let mut now = Duration::ZERO;
    for conversation in 1..=CONVERSATIONS {
        let Some(ask) = conversation_of(conversation, messages) else {
            continue;
        };
        now += Duration::from_millis(100);
        let chain = Arc::new(Chain::of(&ask));
        turn(&mut router, conversation, &chain, &may, now);
    }
    let ask = conversation_of(1, messages + 2);
    let made = is_known.then(|| (chain_of(ask.as_ref()), None));
    Routing {
        ask,
        router,
        may,
        is_known,
        made,
    }
}

/// Of which all but the last two messages are those of a shorter one with this number.
fn conversation_of(number: u64, messages: usize) -> Option<Ask> {
    let mut seed = Seed::new(number);
    let messages: Vec<Value> = (0..messages)
        .map(|place| {
            let mut text = format!("{number} {place} ");
            while text.len() < MESSAGE_BYTES {
                text.push_str(prose(&mut seed));
            }
            json!({"role": if place % 2 == 0 { "user" } else { "assistant" }, "content": text})
        })
        .collect();
    let body = Bytes::from(json!({"model": "Qwen/Qwen3-32B-AWQ", "messages": messages}).to_string());
    ask::read(
        &Endpoint::ChatCompletions,
        body,
        &AskLimits::default(),
        &Grants::default(),
    )
    .ok()
}

fn chain_of(ask: Option<&Ask>) -> Arc<Chain> {
    Arc::new(ask.map(Chain::of).unwrap_or_default())
}

fn question<'q>(session: u64, chain: &'q Arc<Chain>, may: &'q [bool]) -> Question<'q> {
    Question {
        session,
        is_named: true,
        chain,
        may,
        hint: None,
    }
}

fn turn(router: &mut Router, session: u64, chain: &Arc<Chain>, may: &[bool], now: Duration) {
    let ring = (0..may.len()).map(|place| (place + session as usize) % may.len());
    if let Some(decision) = router.choose(question(session, chain, may), ring, now) {
        let mut ticket = router.dispatch(session, chain, &decision, now);
        router.first_token(&mut ticket, now + Duration::from_millis(50));
        router.ended(ticket, Used::default(), now + Duration::from_millis(90));
    }
}

impl Case for Routing {
    fn run(&mut self) {
        let chain = match self.made.take().filter(|_| self.is_known) {
            Some((chain, _)) => chain,
            None => chain_of(self.ask.as_ref()),
        };
        let now = Duration::from_secs(60);
        let decision = self
            .router
            .choose(question(1, &chain, &self.may), 0..self.may.len(), now);
        self.made = Some((chain, decision));
    }

    fn units(&self) -> u64 {
        1
    }

    fn rest(&mut self) {
        if !self.is_known {
            self.made = None;
        }
    }
}
