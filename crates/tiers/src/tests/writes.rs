//! What goes to SSD: how much, and how fast.

use std::time::Instant;

use table::Optimizer;
use testkit::RowStore;

use super::{HUGE, Scratch, TINY, batch, spec, step};
use crate::Durability;

/// Bytes that RocksDB's limiter lets through at once, of those of a second: it is refilled ten times
/// in it.
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
    let slack = (2 * BYTES_PER_S / AT_ONCE + (64 << 10)) as f64; // the log of records is not held back
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
        assert_eq!(status.totals().ssd.bytes_written, 300 * 2400);
        (status.ssd_file_bytes_written, status.write_amplification().unwrap())
    };
    let (flushed, once) = written(Durability::Flush);
    let (logged, twice) = written(Durability::Log);
    assert!(logged >= flushed + 300 * 2400, "{flushed} and {logged} bytes");
    assert!((1.0..1.2).contains(&once) && (2.0..2.2).contains(&twice), "{once} and {twice}");
}
