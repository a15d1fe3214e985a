//! The mutator's table within its limits, on a part of its texts: `mutate` prints the whole one.
//!
//! A text that repair makes another call of is worse than ten that are asked again, so wrong ones are bounded in every kind and
//! over all, and equal ones from below, so that a repair that gives everything up doesn't pass either.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use sluice_benches::broken::{Count, Sample, Table, coding, mutants, public};
use sluice_benches::seed::Seed;
use std::path::PathBuf;

/// Percent of wrong calls in any one kind, and over all.
const WRONG: (f64, f64) = (1.0, 0.5);
/// The same over all calls of coding agents, whose wrong ones are wrong contents.
const WRONG_CONTENTS: f64 = 0.2;
/// Kinds whose texts have one reading only, and percent of them that must come back equal.
const PLAIN: [&str; 6] = [
    "single quotes",
    "Python literals",
    "trailing comma",
    "fence",
    "closers cut",
    "scalar type",
];
const PLAIN_EQUAL: f64 = 98.0;
/// Percent of the repairable ones that must come back equal of the others of BFCL's and of coding agents' calls, renamed keys left
/// out: no kind of edit may drop out.
const EQUAL: (f64, f64) = (97.0, 95.0);
/// The same of all of them, so that what can't be repaired isn't found everywhere.
const EQUAL_OF_ALL: f64 = 75.0;

#[test]
fn short_calls() {
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(|| PathBuf::from("../../shared"), PathBuf::from);
    let samples = public(&shared).unwrap_or_else(|error| panic!("{}: {error}; set SLUICE_SHARED", shared.display()));
    let table = table(&samples, 2);
    holds(&table, WRONG.1, EQUAL.0);
    assert!(table.total().all() > 3000, "{}", table.markdown());
}

#[test]
fn calls_of_coding_agents() {
    let samples = coding(&mut Seed::new(3), 300).unwrap();
    // every tool and language, small ones: a debug build reads these in seconds
    let small: Vec<Sample> = samples
        .into_iter()
        .filter(|sample| sample.text().len() < 4096)
        .take(40)
        .collect();
    let table = table(&small, 4);
    holds(&table, WRONG_CONTENTS, EQUAL.1);
    assert!(table.total().all() > 1000, "{}", table.markdown());
}

fn table(samples: &[Sample], each: usize) -> Table {
    let mut table = Table::default();
    for (at, sample) in samples.iter().enumerate() {
        for mutant in mutants(sample, &mut Seed::new(at as u64), each) {
            table.add(mutant.kind, sample.judge(&mutant));
        }
    }
    table
}

fn holds(table: &Table, wrong_over_all: f64, equal: f64) {
    let shown = table.markdown();
    let total = table.total();
    assert!(total.share(total.wrong) <= wrong_over_all, "wrong over all\n{shown}");
    for (kind, count) in table.rows() {
        // one of a hundred texts is no figure yet
        let within = count.wrong <= 1 || count.share(count.wrong) <= WRONG.0;
        assert!(within, "wrong: {kind}\n{shown}");
        let floor = floor(kind, count, equal);
        assert!(count.repaired() >= floor, "equal of repairable: {kind}\n{shown}");
        assert!(
            count.share(count.equal) >= floor.min(EQUAL_OF_ALL),
            "equal: {kind}\n{shown}"
        );
    }
}

fn floor(kind: &str, count: Count, equal: f64) -> f64 {
    match kind {
        // a key that was renamed is never guessed
        "key renamed" => 0.0,
        // a kind of few texts: one of them more or less is no figure
        _ if count.all() < 50 => 0.0,
        _ if PLAIN.contains(&kind) => PLAIN_EQUAL,
        _ => equal,
    }
}
