//! The budget under pressure: what leaves, what stays, what is written, who waits.

use table::{Optimizer, RowStatus};
use testkit::{RowStore, ZipfKeys};

use super::{ADAM, HUGE, Scratch, TINY, batch, spec, step};
use crate::Error;

#[test]
fn clean_rows_leave_without_a_write() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    for keys in [0..60, 60..120, 120..180] {
        step(scratch.store(), &batch(table, keys), 1.0);
    }
    scratch.store().flush().unwrap();
    let before = scratch.store().status().totals();
    for keys in [0..60, 60..120, 120..180, 0..60] {
        drop(scratch.store().stage(&batch(table, keys)).unwrap()); // read, not written
    }
    let after = scratch.store().status().totals();
    assert!(after.evictions >= before.evictions + 120, "{after:?}");
    assert!(after.ssd_rereads >= before.ssd_rereads + 120, "{after:?}");
    assert_eq!(after.writebacks, before.writebacks);
    assert_eq!(after.ssd.bytes_written, before.ssd.bytes_written);
}

#[test]
fn a_held_row_survives_the_stages_after_it() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    let keys = batch(table, 0..20);
    let held = scratch.store().stage(&keys).unwrap();
    let first = scratch.pull(&held).unwrap();
    for start in (100..1000).step_by(50) {
        step(scratch.store(), &batch(table, start..start + 50), 1.0);
        assert_eq!(scratch.pull(&held).unwrap(), first);
    }
    assert_eq!(scratch.store().status().pinned_rows, 20);
    scratch.store().push(&held, &vec![2.0; 20 * 600], 0.5).unwrap();
    drop(held);
    assert_eq!(scratch.store().status().pinned_rows, 0);
    for start in (100..1000).step_by(50) {
        step(scratch.store(), &batch(table, start..start + 50), 1.0);
    }
    let (rows, statuses) = scratch.lookup(&keys).unwrap();
    assert!(statuses.iter().all(|status| *status == RowStatus::Ssd), "they left at last");
    let expected: Vec<f32> = first.iter().map(|w| w - 0.5 * 2.0).collect();
    assert_eq!(rows, expected);
}

#[test]
fn a_row_staged_twice_stays_until_both_let_go() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    let keys = batch(table, 0..30);
    let (first, second) = (scratch.store().stage(&keys), scratch.store().stage(&keys));
    assert_eq!(scratch.store().status().pinned_rows, 60, "once for each step");
    drop(first);
    assert_eq!(scratch.store().status().pinned_rows, 30);
    for start in (100..1000).step_by(40) {
        step(scratch.store(), &batch(table, start..start + 40), 1.0);
    }
    let hits = scratch.store().status().totals().host.hits;
    drop(scratch.store().stage(&keys).unwrap());
    assert_eq!(scratch.store().status().totals().host.hits, hits + 30);
    drop(second);
}

#[test]
fn when_all_fits_nothing_leaves_and_every_repeat_is_a_hit() {
    let scratch = Scratch::new(8 << 20);
    let table = scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    // as many rows as the budget holds: 8 MiB / 80 B = 104,857; a little less for whole chunks
    let rows = (8 << 20) / crate::host_bytes_per_row(spec("t", 16, Optimizer::Sgd).layout()) - 1000;
    let keys = batch(table, (0..rows).map(|i| i << 32));
    step(scratch.store(), &keys, 1.0);
    step(scratch.store(), &keys, 1.0);
    let totals = scratch.store().status().totals();
    assert_eq!(totals.evictions, 0);
    assert_eq!((totals.host.hits, totals.host.misses), (rows, rows));
    assert_eq!((totals.first_touch, totals.ssd.misses, totals.ssd.hits), (rows, rows, 0));
    assert_eq!(totals.host.bytes_written, 2 * rows * 64);
}

/// Rows that leave must not empty one part of the index while new ones overflow the others.
#[test]
fn rows_that_are_seen_once_leave_the_index_even() {
    let scratch = Scratch::new(8 << 20);
    let table = scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    let farthest = || {
        let inner = scratch.store().inner();
        let classes = inner.classes_now();
        let section = classes[0].sections[0].lock();
        (section.passed_max(), section.rows())
    };
    for start in 0..300 {
        step(scratch.store(), &batch(table, start * 1000..(start + 1) * 1000), 1.0);
    }
    let (passed, rows) = farthest();
    assert!(rows > 90_000 && passed < 500, "{passed} of {rows} rows pass one bucket");
}

/// While the last bytes of a budget go, the index must not be built anew for each few rows.
#[test]
fn a_budget_fills_to_its_end_without_building_the_index_again_and_again() {
    let scratch = Scratch::new(24 << 20);
    let table = scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    let section = || scratch.store().inner().classes_now()[0].sections[0].lock().places();
    let (mut places, mut builds) = (0, 0);
    for start in 0.. {
        step(scratch.store(), &batch(table, start * 500..(start + 1) * 500), 1.0);
        if section() != places {
            (places, builds) = (section(), builds + 1);
        }
        if scratch.store().status().totals().evictions > 0 {
            break;
        }
    }
    assert!(builds < 60, "the index was built {builds} times");
    let status = scratch.store().status();
    let beside = status.host_ram_used_bytes as f64 / status.tables[0].host.rows as f64 - 64.0;
    let index = 64.0 / 5.0 * f64::from(section()) / status.tables[0].host.rows as f64;
    assert!(beside < 17.0, "{beside} bytes a row beside the row, {index} of them the index");
}

#[test]
fn counts_are_exact_through_evictions() {
    let scratch = Scratch::new(TINY);
    let tables =
        ["a", "b"].map(|name| scratch.create_table(&spec(name, 100, Optimizer::Sgd)).unwrap());
    let mut zipf = ZipfKeys::new(1, 3000, 1.0);
    let mut seen = [std::collections::BTreeSet::new(), std::collections::BTreeSet::new()];
    let mut staged_keys = 0;
    for i in 0..60 {
        let keys = zipf.batch(tables[i % 2], 200);
        staged_keys += keys.len() as u64;
        seen[i % 2].extend(keys.keys().to_vec());
        step(scratch.store(), &keys, 0.1);
        let status = scratch.store().status();
        for table in &status.tables {
            assert_eq!(table.rows, seen[table.id.0 as usize].len() as u64);
            assert_eq!(table.counters.first_touch, table.rows);
            assert_eq!(table.counters.host.misses, table.counters.evictions + table.host.rows);
            assert_eq!(table.counters.ssd_rereads, table.counters.ssd.hits);
        }
        let totals = status.totals();
        assert_eq!(totals.host.hits + totals.host.misses, staged_keys);
        assert_eq!(totals.ssd.hits + totals.ssd.misses, totals.host.misses);
        assert!(status.host_ram_used_bytes <= TINY);
    }
    assert!(scratch.store().status().totals().evictions > 1000);
    scratch.store().flush().unwrap();
    for table in scratch.store().status().tables {
        assert_eq!(table.ssd.rows, table.rows);
    }
}

#[test]
fn frequent_rows_stay_when_others_pass() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    let hot = batch(table, 0..20);
    step(scratch.store(), &hot, 1.0);
    let before = scratch.store().status().totals();
    for start in (100..2000).step_by(20) {
        step(scratch.store(), &batch(table, start..start + 20), 1.0);
        step(scratch.store(), &hot, 1.0);
    }
    let after = scratch.store().status().totals();
    assert_eq!(after.host.hits - before.host.hits, 20 * 95, "every touch of a hot row was a hit");
}

#[test]
fn one_row_length_takes_memory_over_from_another() {
    let scratch = Scratch::new(TINY);
    let short = scratch.create_table(&spec("short", 4, Optimizer::Sgd)).unwrap();
    let long = scratch.create_table(&spec("long", 600, Optimizer::Sgd)).unwrap();
    let whole = scratch.create_table(&spec("whole", 4096, ADAM)).unwrap();
    for round in 0..4 {
        step(scratch.store(), &batch(short, 0..4000), 1.0);
        step(scratch.store(), &batch(long, round * 100..round * 100 + 50), 1.0);
        step(scratch.store(), &batch(whole, [round, round + 1]), 1.0);
        assert!(scratch.store().status().host_ram_used_bytes <= TINY);
    }
    let rows: Vec<u64> = scratch.store().status().tables.iter().map(|table| table.rows).collect();
    assert_eq!(rows, [4000, 200, 5]);
    let untouched = scratch.lookup(&batch(short, [1])).unwrap();
    assert_eq!(untouched.1, [RowStatus::Ssd]);
}

/// Misses of the last 400 of each 800 stages, of a table of short rows and one of long rows; of
/// each 800 the draws are others. `short_bytes`: at most so many of the budget are for the short
/// rows, and the rest is for the long ones; without, the store decides.
fn misses_of_two_row_lengths(use_of: &TwoLengths, short_bytes: Option<u64>) -> Vec<u64> {
    let mut scratch = Scratch::new(use_of.budget);
    if let Some(short_bytes) = short_bytes {
        let share = |table: &str, bytes: u64| crate::TableShare {
            table: table.to_owned(),
            host_bytes_min: 0,
            host_bytes_max: bytes,
        };
        let rest = use_of.budget - short_bytes;
        scratch.config.shares = vec![share("short", short_bytes), share("long", rest)];
        scratch.close_and_reopen();
    }
    let short = scratch.create_table(&spec("short", 8, Optimizer::Sgd)).unwrap();
    let long = scratch.create_table(&spec("long", 256, Optimizer::Sgd)).unwrap();
    let [(short_keys, short_skew), (long_keys, long_skew)] = use_of.keys;
    let mut of_short = ZipfKeys::new(1, short_keys, short_skew);
    let mut of_long = ZipfKeys::new(2, long_keys, long_skew);
    let misses = || scratch.store().status().totals().host.misses;
    let mut counted = Vec::new();
    for &[short_draws, long_draws] in use_of.draws {
        let mut before = 0;
        for step in 0..800 {
            if step == 400 {
                before = misses();
            }
            let mut keys = of_short.batch(short, short_draws);
            keys.push_run(long, of_long.batch(long, long_draws).keys()).unwrap();
            drop(scratch.store().stage(&keys).unwrap());
        }
        counted.push(misses() - before);
    }
    counted
}

/// Of the short rows and of the long ones.
#[derive(Debug)]
struct TwoLengths {
    budget: u64,
    keys: [(u64, f64); 2], // how many, and how unequal
    draws: &'static [[usize; 2]],
}

/// `ops/adr/0019-bytes-go-where-they-save-most.md` has the figures.
#[test]
fn two_row_lengths_miss_little_more_than_with_the_best_split_also_when_it_has_moved() {
    let case = |keys, draws| TwoLengths { budget: 4 * TINY, keys, draws };
    let uses = [
        // long rows that are used often, short ones that hardly come back
        case([(200_000, 0.5), (600, 1.0)], &[[100, 60]]),
        // both alike
        case([(20_000, 1.0), (2000, 1.0)], &[[50, 100]]),
        // short rows that are worth far more than they have at first
        case([(20_000, 0.8), (2000, 0.8)], &[[200, 20]]),
        // first the short rows are used, then the long ones; and the other way round
        case([(20_000, 0.9), (2000, 0.9)], &[[200, 5], [10, 60]]),
        case([(20_000, 0.9), (2000, 0.9)], &[[10, 60], [200, 5]]),
    ];
    for use_of in uses {
        let of_split =
            |tenths| misses_of_two_row_lengths(&use_of, Some(use_of.budget * tenths / 10));
        let splits = [1, 2, 3, 4, 6, 8, 9].map(of_split);
        let free = misses_of_two_row_lengths(&use_of, None);
        for (i, &free) in free.iter().enumerate() {
            let best = splits.iter().map(|misses| misses[i]).min().unwrap();
            assert!(
                4 * free <= 5 * best,
                "{use_of:?}: {free} misses, with fixed splits {splits:?}"
            );
        }
    }
}

#[test]
fn a_batch_that_fits_alone_is_staged_however_its_rows_are_spread() {
    let scratch = Scratch::new(2 * TINY);
    let short = scratch.create_table(&spec("short", 4, Optimizer::Sgd)).unwrap();
    let long = scratch.create_table(&spec("long", 600, Optimizer::Sgd)).unwrap();
    step(scratch.store(), &batch(short, 0..10_000), 1.0);
    // one short row in every block, and long rows for nearly the whole budget
    let mut keys = batch(short, (0..10_000).step_by(1000));
    keys.push_run(long, &(0..100).map(table::Key).collect::<Vec<_>>()).unwrap();
    let staged = scratch.store().stage(&keys).unwrap();
    assert_eq!(staged.rows(), 110);
    drop(staged);
    assert_eq!(scratch.store().status().tables[0].rows, 10_000);
}

/// Bytes that the mappings of this process of `bytes_min` or more have, and those of them in RAM.
fn mapped_and_resident(bytes_min: u64) -> (u64, u64) {
    let (mut mapped, mut resident, mut large) = (0, 0, false);
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        let (name, kib) = (words.next(), words.next().and_then(|word| word.parse::<u64>().ok()));
        match (name, kib) {
            (Some("Size:"), Some(kib)) => {
                large = kib << 10 >= bytes_min;
                mapped += if large { kib << 10 } else { 0 };
            }
            (Some("Rss:"), Some(kib)) if large => resident += kib << 10,
            (_, _) => {}
        }
    }
    (mapped, resident)
}

#[test]
fn memory_is_only_touched_when_rows_come() {
    const BUDGET: u64 = 64 << 30;
    let scratch = Scratch::new(BUDGET);
    let table = scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    step(scratch.store(), &batch(table, 0..1000), 1.0);
    assert_eq!(scratch.store().status().tables[0].host.rows, 1000);
    // mappings that no other test has, and what the system may have put beside them as one
    let (mapped, resident) = mapped_and_resident(BUDGET);
    assert!(mapped >= BUDGET, "the rows' addresses were not found: {mapped} bytes");
    // a row touches a huge page for its floats and one for its bucket, at most
    assert!(resident <= 1000 * (4 << 20), "{resident} of {mapped} bytes were touched");
}

#[test]
fn an_unread_table_costs_no_read_of_ssd() {
    let scratch = Scratch::new(HUGE);
    let table = scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    step(scratch.store(), &batch(table, 0..1000), 1.0);
    let totals = scratch.store().status().totals();
    assert_eq!((totals.ssd.bytes_read, totals.ssd.hits, totals.first_touch), (0, 0, 1000));
}

#[test]
fn full_of_held_rows_answers_slow_down_and_too_large_says_how_much() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    let held = scratch.store().stage(&batch(table, 0..70)).unwrap();
    let error = scratch.store().stage(&batch(table, 60..120)).err().unwrap();
    assert!(matches!(error, Error::SlowDown { pinned_rows: 70, budget_bytes: TINY }), "{error}");
    assert_eq!(scratch.store().status().pinned_rows, 70);
    assert_eq!(scratch.store().status().tables[0].rows, 70, "the failed stage made no row");
    let error = scratch.store().stage(&batch(table, 0..1000)).err().unwrap();
    assert!(
        matches!(error, Error::BatchTooLarge { needed_bytes, .. } if needed_bytes > 1000 * 2400),
        "{error}"
    );
    drop(held);
    step(scratch.store(), &batch(table, 100..160), 1.0);
}
