//! Time of each call through the scanner, the least of many runs, and one case over and over for callgrind:
//! `calls`, `valgrind --tool=callgrind calls FAULT BYTES RUNS` (`pipeline` for a fault: 1 KB in tokens through `Turn`).
//!
//! Instructions of one run are the difference between two counts, by the difference in RUNS. It needs no runner of its own and
//! no optimised harness: `cargo bench --bench instructions` gives the same figures where gungraun's runner is at hand.
#![allow(clippy::print_stdout)]

use sluice_benches::answers::Said;
use sluice_benches::calls::{FAULTS, Fault};
use sluice_benches::{Case, pushes, scan};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that all runs of one case together read.
const WORK_BYTES: usize = 32 << 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [fault, bytes, runs] = args.as_slice() {
        let (bytes, runs) = (bytes.parse().unwrap_or(1024), runs.parse().unwrap_or(1));
        match FAULTS.iter().find(|(name, _)| name == fault) {
            Some((_, fault)) => {
                let mut case = scan(*fault, bytes);
                (0..runs).for_each(|_| once(&mut case));
            }
            None => (0..runs).for_each(|_| once(&mut pushes(Said::Call, 8))),
        }
        return;
    }
    let sizes = [1 << 10, 64 << 10, 1 << 20];
    for (name, fault) in FAULTS {
        for bytes in sizes
            .into_iter()
            .filter(|bytes| *bytes == 1 << 10 || fault == Fault::Valid)
        {
            println!("| {} KB, {name} | {:.1} µs |", bytes >> 10, micros(least(fault, bytes)));
        }
    }
}

fn once<C: Case>(case: &mut C) {
    black_box(&mut *case).run();
    case.rest();
}

fn least(fault: Fault, bytes: usize) -> Duration {
    let mut case = scan(fault, bytes);
    let mut least = Duration::MAX;
    for _ in 0..WORK_BYTES / bytes {
        let begun = Instant::now();
        black_box(&mut case).run();
        least = least.min(begun.elapsed());
        case.rest();
    }
    least
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
