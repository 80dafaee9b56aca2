//! A slice of every target, and all inputs that once broke one.

use std::alloc::System;
use std::time::Duration;

use fuzz::{Limit, TARGETS, Target, corpus, execute, targets};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn inputs_that_broke_something_break_nothing_any_more() {
    for target in TARGETS {
        for (idx, input) in corpus(&target).iter().enumerate() {
            if let Err(what) = execute(&target, input) {
                panic!("{}, input {idx}: {what}", target.name);
            }
        }
    }
}

fn slice(name: &str, n_executions: u64) {
    let target: Target = targets::named(name).expect("a target");
    // Once, so that what is made for all inputs is there.
    let seeds = (target.seeds)();
    let sound = seeds.iter().filter(|seed| execute(&target, seed).expect("seeds break nothing").0).count();
    assert!(sound > 0, "{name}: no seed is sound, so nothing behind the first check is reached");
    let limit = Limit { n_executions, time: Duration::from_secs(60) };
    let report = fuzz::run(&target, limit, 1);
    if let Some((input, what)) = report.failures.first() {
        panic!("{name}: {what}, by {input:02x?}");
    }
    println!("{name}: {} executions, {} sound", report.n_executions, report.n_accepted);
}

macro_rules! slices {
    ($($test:ident: $name:literal, $n:literal;)*) => {
        $(#[test]
        fn $test() {
            slice($name, $n);
        })*

        #[test]
        fn every_target_has_a_slice() {
            let names = [$($name),*];
            assert_eq!(names, TARGETS.map(|target| target.name));
        }
    };
}

slices! {
    gguf_header: "gguf-header", 200_000;
    gguf_file: "gguf-file", 2_000;
    tokenizer_encode: "tokenizer-encode", 20_000;
    adapter: "adapter", 20_000;
    recycling: "recycling", 50_000;
    pass_costs: "pass-costs", 100_000;
    model_record: "model-record", 1_000;
    wheel: "wheel", 50_000;
    row_plan: "row-plan", 50_000;
    output: "output", 20_000;
    prompt_place: "prompt-place", 20_000;
}

/// Nothing is allocated in proportion to what a header only claims.
#[test]
fn headers_allocate_in_proportion_to_what_they_are() {
    let target = targets::named("gguf-header").expect("a target");
    for seed in (target.seeds)() {
        for at in 0..seed.len().saturating_sub(8) {
            let mut input = seed.clone();
            input[at..at + 8].copy_from_slice(&(u64::MAX >> 3).to_le_bytes());
            let region = Region::new(ALLOCATOR);
            let _ = execute(&target, &input);
            let n_bytes = region.change().bytes_allocated;
            assert!(n_bytes < 64 << 10, "{n_bytes} bytes for {}, changed at {at}", input.len());
        }
    }
}
