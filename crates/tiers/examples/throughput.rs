//! Rough figures of the store alone: `cargo run --release -p tiers --example throughput`. One
//! thread, batches of unique keys drawn by a Zipf law. It asserts nothing; it compares with no
//! limit.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // it speaks to whoever runs it

use std::time::{Duration, Instant};

use table::{Initializer, KeyBatch, Optimizer, TableSpec};
use testkit::ZipfKeys;
use tiers::{Store, StoreConfig};

const DIM: u32 = 16;

fn main() {
    let row_wise = Optimizer::RowWiseAdagrad { eps: 1e-10, initial_accumulator: 0.0 };
    for (name, optimizer) in [("sgd", Optimizer::Sgd), ("row-wise adagrad", row_wise)] {
        for (host_ram_bytes, budget) in [(256 << 20, "all in RAM"), (16 << 20, "under 16 MiB")] {
            let dir = tempfile::tempdir().unwrap();
            let mut config = StoreConfig::new(dir.path().join("store"), host_ram_bytes);
            config.stage_wait = Duration::from_secs(60);
            let store = Store::open(config).unwrap();
            let initializer = Initializer::Uniform { bound: 0.05 };
            let name_of_table = "t".to_owned();
            let spec = TableSpec { name: name_of_table, dim: DIM, optimizer, initializer, seed: 1 };
            let table = store.create_table(&spec).unwrap();
            let mut zipf = ZipfKeys::new(1, 1_000_000, 0.9);
            let batches: Vec<KeyBatch> = (0..100).map(|_| zipf.batch(table, 50_000)).collect();
            println!("{name}, {budget}, first pass: {}", run(&store, &batches));
            println!("{name}, {budget}, second pass: {}", run(&store, &batches));
            store.close().unwrap();
        }
    }
}

fn run(store: &Store, batches: &[KeyBatch]) -> String {
    let (mut stage, mut pull, mut push, mut rows) = (0.0, 0.0, 0.0, 0);
    let mut buffer = Vec::new();
    for keys in batches {
        let start = Instant::now();
        let staged = store.stage(keys).unwrap();
        stage += start.elapsed().as_secs_f64();
        buffer.resize(staged.rows_floats(), 0.0);
        let start = Instant::now();
        store.pull(&staged, &mut buffer).unwrap();
        pull += start.elapsed().as_secs_f64();
        let start = Instant::now();
        store.push(&staged, &buffer, 0.01).unwrap();
        push += start.elapsed().as_secs_f64();
        rows += keys.len();
    }
    let rate = |seconds: f64| rows as f64 / seconds / 1e6;
    let (stage, pull, push) = (rate(stage), rate(pull), rate(push));
    format!("{rows} rows; M rows/s: stage {stage:.2}, pull {pull:.1}, push {push:.1}")
}
