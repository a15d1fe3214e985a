//! Instructions of each case, counted by valgrind, so that a busy machine gives the same figures:
//! `cargo bench -p sluice-benches --bench instructions`. Needs valgrind and `gungraun-runner` in the version of Cargo.lock.
//!
//! What a case makes is returned: freeing it isn't counted. README.md has the figures per chunk.
#![allow(missing_docs, reason = "the harness's macros make items without")]

use gungraun::{library_benchmark, library_benchmark_group, main};
use sluice_benches::answers::{Decoding, Said};
use sluice_benches::calls::{Fault, Scan, scan};
use sluice_benches::{Case, Pushes, Reading, decoding, pushes, reading, requests};
use std::hint::black_box;

fn run<C: Case>(mut case: C) -> C {
    black_box(&mut case).run();
    case
}

fn agent(bytes: usize) -> Reading {
    reading(requests::agent(bytes))
}

fn image(bytes: usize) -> Reading {
    reading(requests::image(bytes))
}

#[library_benchmark(setup = decoding)]
#[bench::one_a_push(1)]
#[bench::eight_a_push(8)]
#[bench::sixty_four_a_push(64)]
fn sse(case: Decoding) -> Decoding {
    run(case)
}

#[library_benchmark(setup = pushes)]
#[bench::content_1(Said::Content, 1)]
#[bench::content_8(Said::Content, 8)]
#[bench::reasoning_1(Said::Reasoning, 1)]
#[bench::reasoning_8(Said::Reasoning, 8)]
#[bench::call_1(Said::Call, 1)]
#[bench::call_8(Said::Call, 8)]
#[bench::partial_tag_1(Said::PartialTag, 1)]
#[bench::partial_tag_8(Said::PartialTag, 8)]
fn pipeline(case: Pushes) -> Pushes {
    run(case)
}

#[library_benchmark]
#[bench::kb_4(args = (4 << 10), setup = agent)]
#[bench::kb_400(args = (400 << 10), setup = agent)]
#[bench::mb_10(args = (10 << 20), setup = agent)]
#[bench::image_5_mb(args = (5 << 20), setup = image)]
fn request(case: Reading) -> Reading {
    run(case)
}

#[library_benchmark(setup = scan)]
#[bench::valid_kb(Fault::Valid, 1 << 10)]
#[bench::closer_kb(Fault::Closer, 1 << 10)]
#[bench::comma_kb(Fault::Comma, 1 << 10)]
#[bench::quote_kb(Fault::Quote, 1 << 10)]
#[bench::inner_quotes_kb(Fault::InnerQuotes, 1 << 10)]
#[bench::single_quotes_kb(Fault::SingleQuotes, 1 << 10)]
#[bench::valid_mb(Fault::Valid, 1 << 20)]
fn call(case: Scan) -> Scan {
    run(case)
}

library_benchmark_group!(name = all, benchmarks = [sse, pipeline, request, call]);
main!(library_benchmark_groups = all);
