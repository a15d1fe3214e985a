//! The fleet, simulated: seeded, on a virtual clock, with a truth that the router can't read. Ours against what others do.
//!
//! Truth: prefill isn't of the router's form, has noise, and replicas differ; the KV cache is an LRU of small blocks below the working
//! set; tokens a byte differ by conversation; the router's prior is 70 % off; metrics are a second late. Oracle: knows all of it (except
//! the noise) and takes the smallest true time to the first token, as greedy as ours.
//!
//! And one replica, as an engine of blocks and steps, with more conversations than it holds: admission against none (`crowd`).
//!
//! The tests run a part of it. The whole tables: `CARGO_PROFILE_DEV_OPT_LEVEL=2 cargo test -p sluice-policy --test simulate -- --ignored
//! --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "simulate/crowd.rs"]
mod crowd;
#[path = "simulate/engine.rs"]
mod engine;
#[path = "simulate/fleet.rs"]
mod fleet;
#[path = "simulate/rivals.rs"]
mod rivals;
#[path = "simulate/work.rs"]
mod work;

use crowd::{Crowd, Door};
use fleet::{Outcome, run};
use rivals::Rival;
use sluice_policy::admission::queue::QueueLimits;
use std::ops::Range;
use std::time::Duration;
use work::Scenario;

/// Agents of the table: a fleet with much to do, and one with little.
const AGENTS: usize = 40;
const FEW_AGENTS: usize = 24;

/// Seeds that the rules were chosen on (as were 1001 to 1200 and 2001 to 2008 by now).
const SEEDS: Range<u64> = 1..4;

/// Seeds that they are judged on: they were run for the first time when the rules stood.
const HELD_OUT: Range<u64> = 3001..3041;
const CROWDS_HELD_OUT: Range<u64> = 4001..4009;

/// Outcomes over all seeds, by as many threads as there are seeds, in their order.
fn over<O: Send>(seeds: Range<u64>, run: impl Fn(u64) -> O + Sync) -> Vec<O> {
    std::thread::scope(|scope| {
        let run = &run;
        let runs: Vec<_> = seeds.map(|seed| scope.spawn(move || run(seed))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

/// Outcomes in one scenario.
fn outcome(scenario: Scenario, agents: usize, seeds: Range<u64>, rival: Rival) -> Outcome {
    Outcome::mean(&over(seeds, |seed| run(scenario, agents, seed, rival)))
}

/// Round robin and least load are twenty times slower, and slow to simulate: the table has them.
fn check(scenario: Scenario) {
    let ours = outcome(scenario, AGENTS, SEEDS, Rival::Ours);
    for rival in [Rival::SessionHash, Rival::PrefixOnly] {
        let theirs = outcome(scenario, AGENTS, SEEDS, rival).mean_ttft;
        assert!(
            ours.mean_ttft <= theirs * 1.02,
            "{scenario:?}: {rival:?} has {theirs:.3} s, ours {:.3} s",
            ours.mean_ttft
        );
    }
    let oracle = outcome(scenario, AGENTS, SEEDS, Rival::Oracle);
    assert!(
        ours.hits >= oracle.hits * 0.95,
        "{scenario:?}: {:.3} of {:.3}",
        ours.hits,
        oracle.hits
    );
    assert!(
        ours.returns <= 0.01,
        "{scenario:?}: {} of the turns went to and fro",
        ours.returns
    );
}

#[test]
fn ours_is_the_best_where_agents_come_in_crowds() {
    check(Scenario::Bursts);
}

#[test]
fn ours_is_the_best_where_replicas_differ() {
    check(Scenario::Uneven);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let one = run(Scenario::Lost, 12, 7, Rival::Ours);
    assert_eq!(one, run(Scenario::Lost, 12, 7, Rival::Ours));
    assert!(one.turns > 200);
}

#[test]
#[ignore = "a table of minutes, for benches/README.md"]
fn the_whole_table() {
    println!("| agents | scenario | rival | mean TTFT | p99 | hit rate | busiest / mean | to and fro |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for agents in [AGENTS, FEW_AGENTS] {
        for scenario in Scenario::ALL {
            for rival in Rival::ALL {
                let outcome = outcome(scenario, agents, HELD_OUT, rival);
                println!(
                    "| {agents} | {scenario:?} | {rival:?} | {:.0} ms | {:.0} ms | {:.1} % | {:.2} | {:.2} % |",
                    outcome.mean_ttft * 1e3,
                    outcome.p99_ttft * 1e3,
                    outcome.hits * 100.0,
                    outcome.balance,
                    outcome.returns * 100.0,
                );
            }
        }
    }
}

/// So many agents of 60,000 tokens, who work for six seconds between two turns.
fn long(agents: usize, minutes: u64) -> Crowd {
    Crowd {
        agents,
        context: (54_000, 66_000),
        shared: 0,
        pause: 6.0,
        minutes,
    }
}

/// Who waits as long as it takes.
fn patient() -> Door {
    Door::Kept(QueueLimits {
        wait: Duration::from_secs(3600),
        ..QueueLimits::default()
    })
}

#[test]
fn ten_long_agents_do_not_thrash() {
    let [open, kept] = [Door::Open, patient()].map(|door| crowd::run(long(10, 12), 1, door));
    assert!(open.hits < 0.05, "there is nothing to prevent: {open:?}");
    assert!(kept.hits > 0.35, "{kept:?}");
    assert!(
        kept.turns_a_minute > open.turns_a_minute * 1.2,
        "{kept:?} against {open:?}"
    );
    assert!(kept.mean_ttft < open.mean_ttft * 0.9, "{kept:?} against {open:?}");
    assert!(kept.preemptions <= open.preemptions / 10.0, "{kept:?} against {open:?}");
    assert!(kept.least > 0.3, "nobody starves: {kept:?}");
    // With the default limits most are refused, and come again: no later for that.
    let refused = crowd::run(long(10, 12), 1, Door::Kept(QueueLimits::default()));
    // So few turns have a p99 that is nearly the longest wait.
    for (bounded, ratio) in [(&kept, 2.2), (&refused, 3.0)] {
        assert!(
            bounded.p99_ttft <= open.p99_ttft * ratio,
            "{bounded:?} against {open:?}"
        );
    }
    assert!(
        refused.refused > 100.0,
        "there is nothing to come back from: {refused:?}"
    );
}

#[test]
fn agents_that_fit_do_not_feel_admission() {
    let few = Crowd {
        context: (8_000, 16_000),
        ..long(8, 4)
    };
    for crowd in [long(2, 10), few] {
        let [open, kept] = [Door::Open, patient()].map(|door| crowd::run(crowd, 1, door));
        assert!(
            kept.turns_a_minute >= open.turns_a_minute * 0.97,
            "{kept:?} against {open:?}"
        );
        assert!(
            kept.mean_ttft <= open.mean_ttft * 1.05 + 0.1,
            "{kept:?} against {open:?}"
        );
    }
}

#[test]
#[ignore = "a table of minutes, for benches/README.md"]
fn the_table_of_crowds() {
    let small = |agents| Crowd {
        context: (8_000, 16_000),
        ..long(agents, 40)
    };
    let crowds = [
        ("2 of 60k", long(2, 40)),
        ("3 of 60k", long(3, 40)),
        ("5 of 60k", long(5, 40)),
        ("10 of 60k", long(10, 40)),
        ("20 of 60k", long(20, 40)),
        (
            "10 of 60k, 20k of it shared",
            Crowd {
                shared: 20_000,
                ..long(10, 40)
            },
        ),
        (
            "10 of 60k, pause 2 s",
            Crowd {
                pause: 2.0,
                ..long(10, 40)
            },
        ),
        (
            "10 of 60k, pause 20 s",
            Crowd {
                pause: 20.0,
                ..long(10, 40)
            },
        ),
        ("10 of 12k", small(10)),
        ("20 of 12k", small(20)),
    ];
    let doors = [
        ("none", Door::Open),
        ("patient", patient()),
        ("10 s", Door::Kept(QueueLimits::default())),
    ];
    println!("| crowd | admission | turns a minute | mean TTFT | p99 | hits | preemptions | least served | refusals |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, crowd) in crowds {
        for (door, of) in doors {
            let runs = over(CROWDS_HELD_OUT, |seed| crowd::run(crowd, seed, of));
            let outcome = crowd::Outcome::mean(&runs);
            println!(
                "| {name} | {door} | {:.1} | {:.1} s | {:.0} s | {:.0} % | {:.0} | {:.2} | {:.0} |",
                outcome.turns_a_minute,
                outcome.mean_ttft,
                outcome.p99_ttft,
                outcome.hits * 100.0,
                outcome.preemptions,
                outcome.least,
                outcome.refused,
            );
        }
    }
}
