//! Rough figures of this store, on request: `cargo test --release -p tiers -- --ignored --nocapture`.
//! They assert nothing; the benchmarks of record are in `benches`.

use std::time::Instant;

use table::{KeyBatch, Optimizer, TableId};
use testkit::{RowStore, ZipfKeys};

use super::{HUGE, ROW_WISE, Scratch, spec};
use crate::Store;

#[test]
#[ignore = "prints figures"]
fn rows_per_second() {
    for (name, optimizer) in [("sgd", Optimizer::Sgd), ("row-wise adagrad", ROW_WISE)] {
        for (budget, label) in [(HUGE, "all in RAM"), (16 << 20, "16 MiB")] {
            let scratch = Scratch::patient(budget);
            let table = scratch.create_table(&spec("t", 16, optimizer)).unwrap();
            let mut zipf = ZipfKeys::new(1, 1_000_000, 0.9);
            let batches: Vec<KeyBatch> = (0..100).map(|_| zipf.batch(table, 50_000)).collect();
            run(scratch.store(), &batches); // first touches
            println!("{name}, {label}: {}", run(scratch.store(), &batches));
            println!("  {:?}", scratch.store().status().totals());
        }
    }
}

#[test]
#[ignore = "prints figures"]
fn first_touches_per_second() {
    let scratch = Scratch::patient(HUGE);
    scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    let batches: Vec<KeyBatch> = (0..20_u64)
        .map(|i| super::batch(TableId(0), (0..50_000).map(|k| i * 50_000 + k)))
        .collect();
    println!("first touch: {}", run(scratch.store(), &batches));
}

#[test]
#[ignore = "prints figures; run it alone"]
fn resident_memory() {
    let mut scratch = Scratch::new(64 << 20);
    scratch.config.ssd_memory_bytes = 16 << 20;
    scratch.close_and_reopen();
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = |name| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        format!("{} {}", line("VmRSS"), line("VmHWM"))
    };
    let table = scratch.create_table(&spec("t", 64, Optimizer::Sgd)).unwrap();
    println!("empty: {}", resident());
    let mut zipf = ZipfKeys::new(1, 10_000_000, 0.5);
    for _ in 0..6 {
        for _ in 0..200 {
            super::step(scratch.store(), &zipf.batch(table, 4096), 1.0);
        }
        let status = scratch.store().status();
        let (rows, used) = (status.tables[0].rows, status.host_ram_used_bytes);
        println!("{rows} rows, {} MiB used: {}", used >> 20, resident());
    }
}

fn run(store: &Store, batches: &[KeyBatch]) -> String {
    let (mut stage, mut pull, mut push, mut rows) = (0.0, 0.0, 0.0, 0);
    let mut buffer = vec![0.0; 50_000 * 16];
    for keys in batches {
        let start = Instant::now();
        let staged = store.stage(keys).unwrap();
        stage += start.elapsed().as_secs_f64();
        let buffer = &mut buffer[..staged.rows_floats()];
        let start = Instant::now();
        store.pull(&staged, buffer).unwrap();
        pull += start.elapsed().as_secs_f64();
        let start = Instant::now();
        store.push(&staged, buffer, 0.01).unwrap();
        push += start.elapsed().as_secs_f64();
        rows += keys.len();
    }
    let rate = |seconds: f64| rows as f64 / seconds / 1e6;
    let (stage, pull, push) = (rate(stage), rate(pull), rate(push));
    format!("{rows} rows; M rows/s: stage {stage:.2}, pull {pull:.1}, push {push:.1}")
}
