//! What it is worth that a conversation stays: time to the first token and cached tokens of growing conversations before two engines, by the
//! gateway and by round robin, turn by turn one after the other in one run, so that both see the same machine.
//!
//! Round robin is the client's: it asks the engines in turn, past any gateway. Both sides have the same conversations but for their first
//! words, so that none finds the other's blocks. Times are printed; asserted is what the engines themselves say that they had cached.
//! By hand: `./test real sticky --include-ignored`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::{Engine, KEY, SetUp, shared};
use crate::gateway::{CLIENT_KEY, Gateway};
use crate::message::payload;
use crate::script::{MODEL, Script};
use crate::wire::Call;

/// Odd: with an even number of them, taking turns would keep each at one of two engines.
const CONVERSATIONS: usize = 5;
const TURNS: usize = 6;
/// Sentences of ten tokens: of the first prompt, and of what comes with each further turn (a tool's result, a file).
const FIRST: usize = 400;
const FURTHER: usize = 60;

/// What one request took.
#[derive(Clone, Copy)]
struct Took {
    first_token: Duration,
    prompt: u64,
    cached: u64,
    /// The replica's name, as the gateway says it.
    replica: Option<char>,
}

/// One way to ask.
struct Side {
    name: &'static str,
    took: Vec<[Took; TURNS]>,
}

fn question(nonce: &str, sentences: usize) -> Value {
    let text = "All work and no play makes a dull engine. ".repeat(sentences);
    json!({"role": "user", "content": format!("{nonce} {text}{}", Script::say("Done.").marker())})
}

/// The conversation of this name as it stands at its `turn`-th turn, from 0.
fn conversation(name: &str, turn: usize) -> Vec<Value> {
    let mut messages = vec![question(name, FIRST)];
    for turn in 1..=turn {
        messages.push(json!({"role": "assistant", "content": "Done."}));
        messages.push(question(&turn.to_string(), FURTHER));
    }
    messages
}

fn ask(port: u16, key: &str, session: &str, messages: &[Value]) -> Took {
    let body = json!({"model": MODEL, "messages": messages, "max_tokens": 16, "temperature": 0,
        "stream": true, "stream_options": {"include_usage": true}});
    let headers = [("x-session-id", session)];
    let call = Call {
        port,
        method: "POST",
        path: "/v1/chat/completions",
        key: Some(key),
        headers: &headers,
        body: Some(&body),
    };
    let begun = Instant::now();
    let mut answer = call.open().unwrap();
    assert_eq!(answer.status, 200);
    let replica = answer.headers.get("x-sluice-replica");
    let replica = replica.and_then(|name| name.chars().next());
    let (mut first_token, mut usage) = (None, Value::Null);
    while let Some(event) = answer.event().unwrap() {
        let Some(chunk) = payload(&event).and_then(|data| serde_json::from_str::<Value>(data).ok()) else {
            continue;
        };
        let says = chunk["choices"][0]["delta"]["content"].as_str();
        if says.is_some_and(|text| !text.is_empty()) {
            first_token.get_or_insert_with(|| begun.elapsed());
        }
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
    }
    Took {
        first_token: first_token.expect("a token"),
        prompt: usage["prompt_tokens"].as_u64().unwrap(),
        cached: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
        replica,
    }
}

impl Side {
    /// Of the turns from this one on.
    fn from(&self, turn: usize) -> impl Iterator<Item = Took> + '_ {
        self.took.iter().flat_map(move |turns| turns[turn..].iter().copied())
    }

    /// Share of the prompt tokens that were cached.
    fn hits(&self, turn: usize) -> f64 {
        let sum = |of: fn(Took) -> u64| self.from(turn).map(of).sum::<u64>() as f64;
        sum(|took| took.cached) / sum(|took| took.prompt)
    }

    /// Mean and worst time to the first token, in milliseconds.
    fn first_tokens(&self, turn: usize) -> (f64, f64) {
        let all: Vec<Took> = self.from(turn).collect();
        let worst = all.iter().map(|took| took.first_token).max().unwrap_or_default();
        (mean_of(&all), worst.as_secs_f64() * 1e3)
    }
}

#[test]
#[ignore = "a measurement: a minute of two engines"]
fn a_conversation_that_stays_finds_its_cache() {
    let engines = [shared(SetUp::Raw), &Engine::start(SetUp::Raw).unwrap()];
    let gateway = Gateway::over(&[("a", engines[0]), ("b", engines[1])]);
    // What an engine does at its first prompts is in nobody's figures.
    for engine in engines {
        ask(engine.port, KEY, "warm-up", &conversation("warm-up", 1));
    }
    let mut sides = ["stays", "round robin"].map(|name| Side { name, took: Vec::new() });
    let nothing = Took {
        first_token: Duration::ZERO,
        prompt: 0,
        cached: 0,
        replica: None,
    };
    sides
        .iter_mut()
        .for_each(|side| side.took = vec![[nothing; TURNS]; CONVERSATIONS]);
    let mut asked = 0;
    for turn in 0..TURNS {
        for number in 0..CONVERSATIONS {
            let name = |side: &str| format!("{side} {number}");
            let [stays, robin] = sides.each_ref().map(|side| name(side.name));
            sides[0].took[number][turn] = ask(gateway.port, CLIENT_KEY, &stays, &conversation(&stays, turn));
            let engine = engines[asked % 2];
            sides[1].took[number][turn] = ask(engine.port, KEY, &robin, &conversation(&robin, turn));
            asked += 1;
        }
    }
    // The longest prompts once more, as nobody has them.
    let cold: Vec<Took> = (0..CONVERSATIONS)
        .map(|number| {
            let name = format!("cold {number}");
            ask(gateway.port, CLIENT_KEY, &name, &conversation(&name, TURNS - 1))
        })
        .collect();
    report(&sides, &cold);

    let [stays, robin] = &sides;
    let homes: Vec<_> = stays.took.iter().map(|turns| turns.map(|took| took.replica)).collect();
    assert!(
        homes
            .iter()
            .all(|at| at[0].is_some() && at.iter().all(|place| *place == at[0])),
        "{homes:?}"
    );
    for (number, turns) in stays.took.iter().enumerate() {
        for pair in turns.windows(2) {
            // All of the turn before, but for a block that wasn't full.
            let (before, now) = (pair[0], pair[1]);
            assert!(
                now.cached + 256 >= before.prompt,
                "{number}: {} of {}",
                now.cached,
                before.prompt
            );
        }
    }
    assert!(stays.hits(1) > robin.hits(1), "{} and {}", stays.hits(1), robin.hits(1));
    assert!(cold.iter().all(|took| took.cached < 256));
}

fn report(sides: &[Side; 2], cold: &[Took]) {
    for side in sides {
        let (mean, worst) = side.first_tokens(1);
        let second: Vec<Took> = side.took.iter().map(|turns| turns[1]).collect();
        eprintln!(
            "{}: hits {:.1} % of all prompt tokens, {:.1} % from the second turn on; first token from then on mean {mean:.0} ms, \
             worst {worst:.0} ms, second turn {:.0} ms",
            side.name,
            100.0 * side.hits(0),
            100.0 * side.hits(1),
            mean_of(&second),
        );
    }
    let ratio = sides[1].first_tokens(1).0 / sides[0].first_tokens(1).0;
    let warm: Vec<Took> = sides[0].took.iter().map(|turns| turns[TURNS - 1]).collect();
    eprintln!(
        "round robin takes {ratio:.1} times as long from the second turn on; the last prompt ({} tokens) cold {:.0} ms, warm {:.0} ms: {:.1} times",
        warm[0].prompt,
        mean_of(cold),
        mean_of(&warm),
        mean_of(cold) / mean_of(&warm),
    );
}

/// Time to the first token, in milliseconds.
fn mean_of(took: &[Took]) -> f64 {
    let all = took.iter().map(|took| took.first_token.as_secs_f64() * 1e3);
    all.sum::<f64>() / took.len() as f64
}
