//! A training step allocates nothing once its buffers are there, on no thread and whatever the
//! shape. It is a program of its own, for it counts what the whole process allocates.

#![allow(clippy::unwrap_used)] // as in any test

#[path = "model/batch.rs"]
#[allow(dead_code)]
mod batch;

use std::alloc::System;
use std::hint::black_box;

use dlrm::{DenseOptimizer, Interaction, Loss, Model};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::batch::{architecture, made_up};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Steps until every buffer is as large as it gets and every thread has begun.
const STEPS_FIRST: usize = 3;
const STEPS: usize = 20;

/// Allocations of this process while `run` runs.
fn allocations(run: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    run();
    let change = region.change();
    change.allocations + change.reallocations
}

/// One test, for others would run beside it and allocate.
#[test]
fn a_step_allocates_nothing_after_the_first_few() {
    assert_eq!(allocations(|| drop(black_box(vec![0_u8; 100]))), 1, "what allocates is counted");
    for (interaction, optimizer) in [
        (Interaction::Dot, DenseOptimizer::Sgd),
        (Interaction::DotWithItself, DenseOptimizer::Adagrad { eps: 1e-10 }),
        (Interaction::Cat, DenseOptimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 }),
    ] {
        // several strips and panels a layer; one tile, two, and more than threads
        let shape = architecture(interaction, Loss::Bce, 5, "13-300-16", "140-40-1", 16);
        for (samples, bag_max) in [(1, 3), (128, 1), (128, 3), (700, 3)] {
            let summed = made_up(&shape, samples, 40, bag_max, 3);
            for (pooling, batch) in
                [("sums", summed.clone()), ("in turn", summed.pooled_in_turn(4))]
            {
                for threads in [1, 2, 3] {
                    let mut model = Model::new(shape.clone(), optimizer, 700, 7, threads).unwrap();
                    let (features, dense) = (batch.features(), &batch.dense);
                    let mut gradients = vec![0.0; batch.rows.len()];
                    let mut train = |steps: usize| {
                        for step in 0..steps {
                            if step % 2 == 1 {
                                model.begin(dense).unwrap();
                            }
                            let input = batch.step(&features);
                            black_box(model.forward_backward(&input, &mut gradients).unwrap());
                            model.apply_dense(0.01);
                        }
                    };
                    train(STEPS_FIRST);
                    let found = allocations(|| train(STEPS));
                    assert_eq!(
                        found, 0,
                        "allocations in {STEPS} steps of {samples} samples, {interaction:?}, \
                         {pooling}, bags of {bag_max}, {threads} threads"
                    );
                }
            }
        }
    }
}
