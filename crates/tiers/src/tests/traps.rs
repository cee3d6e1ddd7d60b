//! Faults that were seen in other systems, each held against this store. What the other modules
//! test is named in the list, so that nothing of it gets lost:
//!
//! | | fault | test, or why it does not arise |
//! |---|---|---|
//! | 1 | a gradient lands on the wrong row after a missing one |
//! `admission::gradients_meet_their_rows_…`, the contract's `a_key_gets_a_row_…` |
//! | 2 | an all-zero row is taken for a miss | the contract's `zeros_are_a_value` |
//! | 2b | a row that could not be made is answered with zeros |
//! `pressure::full_of_held_rows_…`, `persistence::a_stored_row_of_the_wrong_length_…` |
//! | 3 | a clean row is written again when it leaves | `pressure::clean_rows_leave_…` |
//! | 4 | a prefetch evicts a row that a batch still uses | `pressure::a_held_row_survives_…` |
//! | 5 | a read from SSD overtakes the write of the same row | `a_row_on_its_way_down_…` |
//! | 6 | conflicts in a set cost hits though all would fit | `whatever_the_keys_…`,
//! `pressure::when_all_fits_…` |
//! | 7 | one lock on the way of all updates | `pull_and_push_wait_for_no_lock_but_…` |
//! | 8 | a wait for the device at each level and table | does not arise: RAM is looked at without
//! the device, and `device::resolve` has one look, one insertion and one move each way for the rows
//! of all tables |
//! | 9 | files only ever grow | `files_do_not_grow_…` |
//! | 9b | the cache of blocks is as small as an example has it | `the_cache_of_blocks_has_…` |
//! | 10 | each section looks at all keys | does not arise: `staging::sort_probes` counts the keys
//! of each section, then puts each key where its section's are, once |
//! | 11 | the database's directory goes with its owner | `persistence::a_clean_close_keeps_…`,
//! `persistence::an_unclean_end_…` |
//! | 12 | changes are dropped when a queue is full, and deletions never told | does not arise: no
//! changes are sent to anybody yet; rows on their way down wait when their queue is full, as
//! `pressure::counts_are_exact_…` and `property` see |
//! | 13 | a read takes a lock to write, to say that the row was used |
//! `pulls_and_lookups_of_a_table_…` |
//! | 14 | another dimension re-initialises without a word | `persistence::a_table_is_never_…` |
//! | 15 | a size that always says 0 | `pressure::counts_are_exact_through_evictions` |

use std::collections::BTreeSet;

use table::{Key, KeyBatch, Optimizer, TableId};
use testkit::{RowStore, adversarial_key};

use super::{HUGE, Scratch, TINY, batch, spec, step};

#[test]
fn a_row_on_its_way_down_is_caught_before_it_is_read_again() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    let mut expected = scratch.lookup(&batch(table, 0..60)).unwrap().0;
    let inner = scratch.store().inner();
    let counts = || scratch.store().status().totals().ssd;
    let mut caught = 0;
    // rows leave and come back at once, before the writer can be done with all of them
    for round in 0..40 {
        let before = counts();
        step(scratch.store(), &batch(table, 0..60), 1.0);
        let after = counts();
        // what was found, less what was read
        caught += after.hits - before.hits - (after.bytes_read - before.bytes_read) / 2400;
        expected.iter_mut().for_each(|w| *w -= 0.1);
        step(scratch.store(), &batch(table, 1000 + round * 60..1060 + round * 60), 1.0);
        assert_eq!(scratch.lookup(&batch(table, 0..60)).unwrap().0, expected, "round {round}");
    }
    // those of a batch that is not full yet wait for sure, however fast the writer is
    let waits = |key: u64| inner.down.read(table, Key(key), |_| ()).is_some();
    assert!((0..4000).any(waits), "no row waits for the batch to be full");
    assert!(caught > 0, "no row was caught in 40 rounds");
}

/// Whoever holds the other locks makes room, brings rows in, writes them down, counts keys without
/// a row, or updates another table. Were one of them on the way, this would wait for ever.
#[test]
fn pull_and_push_wait_for_no_lock_but_that_of_their_tables() {
    let scratch = Scratch::new(HUGE);
    let [table, other] =
        ["t", "other"].map(|name| scratch.create_table(&spec(name, 16, Optimizer::Sgd)).unwrap());
    step(scratch.store(), &batch(other, 0..100), 1.0);
    let staged = scratch.store().stage(&batch(table, 0..100)).unwrap();
    let before = scratch.pull(&staged).unwrap();
    let inner = scratch.store().inner();
    let (classes, tables) = (inner.classes_now(), inner.tables_now());
    let held =
        (inner.flushing.lock(), inner.sketch.lock(), inner.room.lock(), inner.readers.lock());
    let pinning = inner.pinning.write();
    let sections: Vec<_> = classes
        .iter()
        .flat_map(|class| class.sections.iter().map(|section| section.lock()))
        .collect();
    let updated = tables[other.0 as usize].rows.write();
    scratch.push(&staged, &vec![1.0; before.len()], 0.5).unwrap();
    let after = scratch.pull(&staged).unwrap();
    drop((held, pinning, sections, updated));
    let expected: Vec<f32> = before.iter().map(|w| w - 0.5).collect();
    assert_eq!(after, expected);
}

#[test]
fn pulls_and_lookups_of_a_table_go_on_beside_each_other() {
    let scratch = Scratch::new(HUGE);
    let table = scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    let keys = batch(table, 0..100);
    let staged = scratch.store().stage(&keys).unwrap();
    let tables = scratch.store().inner().tables_now();
    let _reads = tables[table.0 as usize].rows.read(); // as another's pull does
    let rows = scratch.pull(&staged).unwrap();
    assert_eq!(scratch.lookup(&keys).unwrap().0, rows);
}

#[test]
fn the_cache_of_blocks_has_half_of_what_the_ssd_tier_was_given() {
    let scratch = Scratch::new(HUGE);
    assert_eq!(scratch.store().inner().ssd.cache_bytes(), scratch.config.ssd_memory_bytes / 2);
}

#[test]
fn whatever_the_keys_all_that_fits_is_a_hit() {
    let patterns: [fn(u64) -> u64; 5] = [
        |i| i,
        |i| i << 20,
        |i| i << 40,
        |i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        |i| adversarial_key(i).0,
    ];
    let of_patterns = patterns.map(|pattern| (0..50_000).map(|i| Key(pattern(i))).collect());
    // whose homes lie close together under the first bijections, in an index of any size
    let crowds = [1, 3].map(|bijections| {
        crate::index::crowding_keys(TableId(0), bijections).take(50_000).collect()
    });
    let sets: Vec<Vec<Key>> = of_patterns.into_iter().chain(crowds).collect();
    for mut keys in sets {
        let scratch = Scratch::new(HUGE);
        let table = scratch.create_table(&spec("t", 4, Optimizer::Sgd)).unwrap();
        keys.sort_unstable();
        keys.dedup();
        let mut batch = KeyBatch::new();
        batch.push_run(table, &keys).unwrap();
        for _ in 0..3 {
            drop(scratch.store().stage(&batch).unwrap());
        }
        let totals = scratch.store().status().totals();
        let rows = keys.len() as u64;
        assert_eq!((totals.host.misses, totals.host.hits), (rows, 2 * rows));
        assert_eq!((totals.evictions, totals.ssd.bytes_read), (0, 0));
    }
}

#[test]
fn files_do_not_grow_with_every_write_of_the_same_rows() {
    let mut scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    let size = |scratch: &Scratch| -> u64 {
        let rows = scratch.config.data_dir.join("rows");
        let files = std::fs::read_dir(rows).unwrap();
        files.map(|file| file.unwrap().metadata().map_or(0, |data| data.len())).sum()
    };
    let round = |scratch: &Scratch| {
        for start in (0..2000).step_by(50) {
            step(scratch.store(), &batch(table, start..start + 50), 1.0);
        }
    };
    round(&scratch);
    scratch.close_and_reopen();
    let first = size(&scratch);
    for _ in 0..12 {
        round(&scratch);
    }
    scratch.close_and_reopen();
    let last = size(&scratch);
    assert!(last < 5 * first, "{first} bytes after one write of all rows, {last} after thirteen");
    let status = scratch.store().status();
    assert_eq!(status.tables[0].rows, 2000);
}

#[test]
fn a_first_touch_reads_nothing_from_ssd_after_a_restart_too() {
    let mut scratch = Scratch::new(HUGE);
    let table = scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    step(scratch.store(), &batch(table, (0..40_000).map(|i| 2 * i)), 1.0);
    scratch.close_and_reopen();
    let before = scratch.store().inner().ssd.blocks_read();
    step(scratch.store(), &batch(table, (0..10_000).map(|i| 8 * i + 1)), 1.0);
    let after = scratch.store().inner().ssd.blocks_read();
    let read: u64 = after.iter().zip(before).map(|(after, before)| after - before).sum();
    assert_eq!(scratch.store().status().totals().first_touch, 10_000);
    assert!(read <= 500, "{read} blocks were read for 10,000 rows that are not there");
}

/// Filters of 2 M rows take 2.6 MB, where the cache has 2 MiB for everything.
#[test]
fn a_first_touch_reads_part_of_a_filter_at_most_where_the_cache_can_not_hold_them() {
    let mut scratch = Scratch::new(HUGE);
    let table = scratch.create_table(&spec("t", 1, Optimizer::Sgd)).unwrap();
    for start in (0..1_u64 << 21).step_by(1 << 16) {
        step(scratch.store(), &batch(table, (start..start + (1 << 16)).map(|i| i << 20)), 1.0);
    }
    scratch.config.ssd_memory_bytes = crate::StoreConfig::SSD_MEMORY_BYTES_MIN;
    scratch.close_and_reopen();
    while scratch.store().inner().ssd.is_merging() {
        std::thread::sleep(std::time::Duration::from_millis(10)); // what merges read is not meant
    }
    let mut random = testkit::Random::new(5);
    let mut new_keys = || -> BTreeSet<u64> {
        (0..100).map(|_| (random.below(1 << 21) << 20) + 1 + random.below(1 << 19)).collect()
    };
    let blocks = || scratch.store().inner().ssd.blocks_read();
    let mut touched = 0;
    for _ in 0..50 {
        step(scratch.store(), &batch(table, new_keys()), 1.0); // the cache fills
    }
    let before = blocks();
    for _ in 0..100 {
        let keys = new_keys();
        touched += keys.len() as u64;
        step(scratch.store(), &batch(table, keys), 1.0);
    }
    let [rows, beside] = [0, 1].map(|kind| blocks()[kind] - before[kind]);
    assert_eq!(scratch.store().status().totals().ssd.hits, 0);
    assert!(100 * rows <= 2 * touched, "{rows} blocks of rows for {touched} first touches");
    assert!(2 * beside <= touched, "{beside} blocks of filters for {touched} first touches");
}

/// Re-reads of the best policy there is, which takes what is used again latest, where `step` uses
/// the rows of group `step % groups`.
fn least_rereads(steps: usize, groups: usize, group_rows: usize, capacity: usize) -> usize {
    let mut there = vec![0; groups]; // rows of each group
    let mut rereads = 0;
    for now in 0..steps {
        let group = now % groups;
        let missing = group_rows - there[group];
        rereads += if now < groups { 0 } else { missing };
        there[group] = group_rows;
        let mut over = there.iter().sum::<usize>().saturating_sub(capacity);
        // the group before this one comes last, this one is in use
        for ago in 1..groups {
            let left = &mut there[(group + groups - ago) % groups];
            let goes = over.min(*left);
            (*left, over) = (*left - goes, over - goes);
        }
    }
    rereads
}

#[test]
fn known_next_uses_save_reads() {
    // fifty groups of 20 rows, one a step, in a circle: whoever knows nothing of the future keeps
    // what was used last, which comes back last
    let run = |told: bool| {
        let scratch = Scratch::new(4 * TINY);
        let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
        for now in 0..500 {
            let group = now % 50;
            let mut keys = batch(table, group * 20..group * 20 + 20);
            if told {
                keys.set_next_uses(vec![50; 20]).unwrap();
            }
            step(scratch.store(), &keys, 1.0);
        }
        let status = scratch.store().status();
        (status.totals().ssd_rereads as usize, status.tables[0].host.rows as usize)
    };
    let ((blind, _), (told, rows)) = (run(false), run(true));
    let least = least_rereads(500, 50, 20, rows);
    assert!(10 * told <= 11 * least, "{told} re-reads where {least} would do");
    assert!(10 * blind >= 12 * told, "{blind} re-reads without the next uses, {told} with them");
}
