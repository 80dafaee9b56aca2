//! A pass of a shape that has been run before allocates nothing.

mod common;

use std::alloc::System;

use common::smollm;
use speculate::{RowPlan, Target};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_pass_allocates_nothing() {
    let model = smollm();
    let mut sequence = model.sequence().expect("memory");
    sequence.prefill(&[1, 2, 3, 4, 5]).expect("the prompt fits");
    // A token, drafts in a tree, and an adaptive group.
    let mut plan = RowPlan::new(5);
    let root = plan.push_token(6, None);
    let left = plan.push_token(7, Some(root));
    plan.push_token(8, Some(root));
    plan.push_token(9, Some(left));
    let group = plan.push_adaptive_group(left, model.n_adaptive_tokens());
    (root..group).for_each(|row| {
        plan.want_logits(row);
    });
    (group..plan.rows().len()).for_each(|row| {
        plan.want_drafts(row);
    });
    // Threads keep their own scratch, and which of them does what is not known: some rounds warm all up.
    for _ in 0..20 {
        sequence.forward(&plan).expect("the plan fits");
    }
    let region = Region::new(ALLOCATOR);
    for _ in 0..3 {
        sequence.forward(&plan).expect("the plan fits");
    }
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "{change:?}");
}
