//! Rough figures of the store alone: `cargo run --release -p tiers --example staging_throughput`.
//! One thread, batches of unique keys, all in RAM. It asserts nothing; `cargo xtask bench roofline`
//! sets the store beside the machine's limits.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // it speaks to whoever runs it

use std::time::Instant;

use table::{Initializer, Key, KeyBatch, Optimizer, TableSpec};
use testkit::Random;
use tiers::{Store, StoreConfig};

const ROWS: u64 = 6_000_000;
const BATCH_ROWS: u64 = 20_000;

fn main() {
    let dim: u32 = std::env::args().nth(1).map_or(16, |dim| dim.parse().unwrap());
    let rows =
        std::env::args().nth(2).map_or(ROWS, |rows| rows.parse().unwrap()) * 16 / u64::from(dim);
    let row_wise = Optimizer::RowWiseAdagrad { eps: 1e-10, initial_accumulator: 0.0 };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::new(dir.path().join("store"), 1 << 30)).unwrap();
    let initializer = Initializer::Uniform { bound: 0.05 };
    let table = store.create_table(&TableSpec::new("t", dim, row_wise, initializer, 1)).unwrap();
    let batch = |mut keys: Vec<Key>| {
        keys.sort_unstable();
        keys.dedup();
        let mut batch = KeyBatch::new();
        batch.push_run(table, &keys).unwrap();
        batch
    };
    let all: Vec<KeyBatch> = (0..(rows / BATCH_ROWS).max(1))
        .map(|b| batch((b * BATCH_ROWS..(b + 1) * BATCH_ROWS).map(Key).collect()))
        .collect();
    println!("first touch: {}", run(&store, &all));
    let mut random = Random::new(7);
    let mut drawn = || batch((0..BATCH_ROWS).map(|_| Key(random.below(rows))).collect());
    let batches: Vec<KeyBatch> = (0..60).map(|_| drawn()).collect();
    for _ in 0..40 {
        println!("hits: {}", run(&store, &batches));
    }
    let status = store.status();
    let rows = status.tables[0].host.rows;
    let bytes = status.host_ram_used_bytes as f64 / rows as f64;
    println!("{rows} rows, {bytes:.2} bytes each");
    store.close().unwrap();
}

fn run(store: &Store, batches: &[KeyBatch]) -> String {
    let (mut stage, mut pull, mut push, mut release, mut rows) = (0.0, 0.0, 0.0, 0.0, 0);
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
        let start = Instant::now();
        drop(staged);
        release += start.elapsed().as_secs_f64();
        rows += keys.len();
    }
    let rate = |seconds: f64| rows as f64 / seconds / 1e6;
    let (stage, pull, push, release) = (rate(stage), rate(pull), rate(push), rate(release));
    format!("M rows/s: stage {stage:.1}, pull {pull:.1}, push {push:.1}, release {release:.1}")
}
