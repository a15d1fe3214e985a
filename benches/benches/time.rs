//! Time of each case: `cargo bench -p sluice-benches --bench time`. On a machine that does something else it measures that.
#![allow(missing_docs, reason = "the harness's macros make items without")]

use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use sluice_benches::answers::Said;
use sluice_benches::calls::{FAULTS, Fault, scan};
use sluice_benches::{Case, decoding, pushes, reading, requests};
use std::hint::black_box;

fn bench<C: Case>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, make: impl Fn() -> C) {
    group.throughput(Throughput::Elements(make().units()));
    group.bench_function(name, |bencher| {
        bencher.iter_batched(
            &make,
            |mut case| {
                black_box(&mut case).run();
                case
            },
            BatchSize::LargeInput,
        );
    });
}

fn sse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sse");
    for together in [1, 8, 64] {
        bench(&mut group, &format!("{together} events a push"), || decoding(together));
    }
}

fn pipeline(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    for (name, said) in [
        ("content", Said::Content),
        ("reasoning", Said::Reasoning),
        ("call of 1 KB", Said::Call),
        ("partial tag", Said::PartialTag),
    ] {
        for together in [1, 8] {
            bench(&mut group, &format!("{name}, {together} a push"), || {
                pushes(said, together)
            });
        }
    }
}

fn request(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    for (name, body) in [
        ("4 KB", requests::agent(4 << 10)),
        ("400 KB", requests::agent(400 << 10)),
        ("10 MB", requests::agent(10 << 20)),
        ("5 MB image", requests::image(5 << 20)),
    ] {
        bench(&mut group, name, || reading(body.clone()));
    }
}

fn call(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("call");
    for (name, fault) in FAULTS {
        bench(&mut group, &format!("1 KB, {name}"), || scan(fault, 1 << 10));
    }
    for bytes in [64 << 10, 256 << 10, 1 << 20] {
        bench(&mut group, &format!("{} KB, valid", bytes >> 10), || {
            scan(Fault::Valid, bytes)
        });
    }
}

criterion_group!(all, sse, pipeline, request, call);
criterion_main!(all);
