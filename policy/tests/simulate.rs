//! The fleet, simulated: seeded, on a virtual clock, with a truth that the router can't read. Ours against what others do.
//!
//! Truth: prefill isn't of the router's form, has noise, and replicas differ; the KV cache is an LRU of small blocks below the working
//! set; tokens a byte differ by conversation; the router's prior is 70 % off; metrics are a second late. Oracle: knows all of it (except
//! the noise) and takes the smallest true time to the first token, as greedy as ours.
//!
//! The test runs a part of it; the whole table: `cargo test -p sluice-policy --release --test simulate -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "simulate/fleet.rs"]
mod fleet;
#[path = "simulate/rivals.rs"]
mod rivals;
#[path = "simulate/work.rs"]
mod work;

use fleet::{Outcome, run};
use rivals::Rival;
use work::Scenario;

/// Agents and seeds of the table.
const AGENTS: usize = 40;
const SEEDS: [u64; 3] = [1, 2, 3];

/// Outcomes in one scenario, over all seeds.
fn outcome(scenario: Scenario, rival: Rival) -> Outcome {
    let runs: Vec<Outcome> = SEEDS.iter().map(|seed| run(scenario, AGENTS, *seed, rival)).collect();
    Outcome::mean(&runs)
}

/// Round robin and least load are twenty times slower, and slow to simulate: the table has them.
fn check(scenario: Scenario) {
    let ours = outcome(scenario, Rival::Ours);
    for rival in [Rival::SessionHash, Rival::PrefixOnly] {
        let theirs = outcome(scenario, rival).mean_ttft;
        assert!(
            ours.mean_ttft <= theirs * 1.02,
            "{scenario:?}: {rival:?} has {theirs:.3} s, ours {:.3} s",
            ours.mean_ttft
        );
    }
    let oracle = outcome(scenario, Rival::Oracle);
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
#[ignore = "a table of minutes in debug, for benches/README.md"]
fn the_whole_table() {
    println!("| scenario | rival | mean TTFT | p99 | hit rate | busiest / mean | to and fro |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for scenario in Scenario::ALL {
        for rival in Rival::ALL {
            let outcome = outcome(scenario, rival);
            println!(
                "| {scenario:?} | {rival:?} | {:.0} ms | {:.0} ms | {:.1} % | {:.2} | {:.2} % |",
                outcome.mean_ttft * 1e3,
                outcome.p99_ttft * 1e3,
                outcome.hits * 100.0,
                outcome.balance,
                outcome.returns * 100.0,
            );
        }
    }
}
