//! What goes to SSD: how much, and how fast.

use std::time::Instant;

use table::Optimizer;
use testkit::RowStore;

use super::{HUGE, Scratch, TINY, batch, spec, step};
use crate::Durability;

/// RocksDB's limiter is refilled so many times in a second, and lets so much through at once.
const AT_ONCE: u64 = 10;

/// Slower is always allowed, so that this holds on a busy machine too.
#[test]
fn files_are_written_no_faster_than_the_operator_says() {
    const BYTES_PER_S: u64 = 8 << 20;
    let mut scratch = Scratch::new(TINY);
    scratch.config.ssd_write_bytes_per_s = Some(BYTES_PER_S);
    let begun = Instant::now();
    scratch.close_and_reopen();
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    // rows that are written over and over, so that files merge too
    for round in 0..10 {
        for start in (0..1000).step_by(50) {
            step(scratch.store(), &batch(table, start..start + 50), round as f32);
        }
    }
    scratch.store().flush().unwrap();
    let written = scratch.store().status().ssd_file_bytes_written;
    let allowed = BYTES_PER_S as f64 * begun.elapsed().as_secs_f64();
    // what is let through at once, and the log of the store's own records, which is not held back
    let slack = (2 * BYTES_PER_S / AT_ONCE + (64 << 10)) as f64;
    assert!(written > 2 * BYTES_PER_S, "{written} bytes: too few to tell");
    assert!(written as f64 <= allowed + slack, "{written} bytes written, {allowed} allowed");
}

#[test]
fn what_goes_through_the_log_is_counted_with_the_files() {
    let written = |durability| {
        let mut scratch = Scratch::new(HUGE);
        scratch.config.durability = durability;
        scratch.close_and_reopen();
        let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
        step(scratch.store(), &batch(table, 0..300), 1.0); // fewer than a memtable takes
        scratch.store().flush().unwrap();
        let status = scratch.store().status();
        let rows_bytes = status.totals().ssd.bytes_written as f64;
        assert_eq!(rows_bytes, 300.0 * 2400.0);
        let amplification = status.write_amplification().unwrap();
        assert_eq!(amplification, status.ssd_file_bytes_written as f64 / rows_bytes);
        amplification
    };
    let (flushed, logged) = (written(Durability::Flush), written(Durability::Log));
    let log = logged - flushed; // each row once, with its key and what makes a record of it
    assert!(flushed >= 1.0 && (1.0..1.1).contains(&log), "{flushed} and {logged}");
}
