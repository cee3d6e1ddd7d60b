//! Samples a second of whole training steps on the Criteo Kaggle shape, tables left out: rows come
//! from memory and their gradients stay there.
//!
//!     cargo run --release -p dlrm --example step_throughput -- [THREADS [BATCH [STEPS]]]
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use dlrm::{
    Architecture, DenseOptimizer, FeatureRows, Interaction, Loss, Model, Pooling, StepInput,
    parse_widths,
};

const FEATURES: usize = 26;
const DIM: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let number = |i: usize, default| numbers.get(i).copied().unwrap_or(default);
    let (threads, batch, steps) = (number(0, 1), number(1, 2048), number(2, 50));

    let architecture = Architecture {
        sparse_feature_size: DIM,
        features: FEATURES,
        mlp_bottom: parse_widths("13-512-256-64-16")?,
        mlp_top: parse_widths("512-256-1")?,
        interaction: Interaction::Dot,
        loss: Loss::Bce,
    };
    let mut model = Model::new(architecture, DenseOptimizer::Sgd, batch, 1, threads)?;

    // half of a feature's samples have a row of their own, the others share
    let unique = FEATURES * batch;
    let scatter = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 7) as u32;
    let value = |i: usize| (scatter(i) % 2000) as f32 / 1000.0 - 1.0;
    let rows: Vec<f32> = (0..unique * DIM).map(|i| 0.1 * value(i)).collect();
    let dense: Vec<f32> = (0..batch * 13).map(|i| 2.0 * value(i + 1).abs()).collect();
    let labels: Vec<f32> = (0..batch).map(|i| (scatter(i) % 4 / 3) as f32).collect();
    let offsets: Vec<u32> = (0..=batch as u32).collect();
    let indices: Vec<Vec<u32>> = (0..FEATURES)
        .map(|f| (0..batch).map(|s| (f * batch) as u32 + scatter(s) % batch as u32).collect())
        .collect();
    let pooling = Pooling::Sum;
    let features: Vec<FeatureRows<'_>> =
        indices.iter().map(|indices| FeatureRows { indices, offsets: &offsets, pooling }).collect();
    let input = StepInput { dense: &dense, labels: &labels, rows: &rows, features: &features };
    let mut gradients = vec![0.0; rows.len()];

    let mut times: Vec<Duration> = Vec::new();
    let mut loss = f32::NAN;
    for _ in 0..steps.max(1) {
        let start = Instant::now();
        loss = model.forward_backward(&input, &mut gradients)?;
        model.apply_dense(0.01);
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let rate = |time: Duration| batch as f64 / time.as_secs_f64();
    println!(
        "batch {batch}, {threads} threads: {:.0} samples/s in the median step, {:.0} in the best; \
         last loss {loss}",
        rate(times[times.len() / 2]),
        rate(times[0]),
    );
    Ok(())
}
