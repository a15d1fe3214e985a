//! Time of one decision of the router, the median of many: `decide`. For a machine where criterion's harness takes too long to build.
#![allow(clippy::print_stdout)]

use sluice_benches::{Case, routing};
use std::hint::black_box;
use std::time::Instant;

/// Decisions of each case.
const RUNS: usize = 2_000;

fn main() {
    println!("| replicas | messages | measured | median | p90 |");
    println!("| --- | --- | --- | --- | --- |");
    for (replicas, messages) in [(2, 100), (64, 100), (64, 1000)] {
        for (name, is_known) in [("chain, index, choice", false), ("index, choice", true)] {
            let mut case = routing(replicas, messages, is_known);
            let mut times: Vec<f64> = (0..RUNS)
                .map(|_| {
                    let begun = Instant::now();
                    black_box(&mut case).run();
                    let time = begun.elapsed();
                    case.rest();
                    time.as_secs_f64() * 1e6
                })
                .collect();
            times.sort_by(f64::total_cmp);
            let at = |part: usize| times.get(RUNS * part / 100).copied().unwrap_or_default();
            println!(
                "| {replicas} | {messages} | {name} | {:.1} µs | {:.1} µs |",
                at(50),
                at(90)
            );
        }
    }
}
