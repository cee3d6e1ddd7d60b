//! Faults that were seen in other systems, each held against this store. What the other modules
//! test is named in the list, so that nothing of it gets lost:
//!
//! | fault | test |
//! |---|---|
//! | a gradient lands on the wrong row after a missing one |
//! `admission::gradients_meet_their_rows_…` |
//! | an all-zero row is taken for a miss | the contract's `zeros_are_a_value` |
//! | a clean row is written again when it leaves | `pressure::clean_rows_leave_without_a_write` |
//! | a prefetch evicts a row that a batch still uses | `pressure::a_held_row_survives_…` |
//! | a read from SSD overtakes the write of the same row | here |
//! | conflicts in a set cost hits though all would fit | `pressure::when_all_fits_…`, here |
//! | files only ever grow | here |
//! | the database's directory goes with its owner | `persistence::a_clean_close_keeps_…` |
//! | another dimension re-initialises without a word | `persistence::a_table_is_never_redefined` |
//! | a size that always says 0 | `pressure::counts_are_exact_through_evictions` |

use table::{Key, KeyBatch, Optimizer, TableId};
use testkit::{RowStore, adversarial_key};

use super::{HUGE, Scratch, TINY, batch, spec, step};

#[test]
fn a_row_on_its_way_down_is_caught_before_it_is_read_again() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    let mut expected = scratch.lookup(&batch(table, 0..60)).unwrap().0;
    // rows leave and come back at once, before the writer can be done with all of them
    for round in 0..40 {
        step(scratch.store(), &batch(table, 0..60), 1.0);
        expected.iter_mut().for_each(|w| *w -= 0.1);
        step(scratch.store(), &batch(table, 1000 + round * 60..1060 + round * 60), 1.0);
        assert_eq!(scratch.lookup(&batch(table, 0..60)).unwrap().0, expected, "round {round}");
    }
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
    let before = scratch.store().inner().ssd.data_blocks_read();
    step(scratch.store(), &batch(table, (0..10_000).map(|i| 8 * i + 1)), 1.0);
    let read = scratch.store().inner().ssd.data_blocks_read() - before;
    assert_eq!(scratch.store().status().totals().first_touch, 10_000);
    assert!(read <= 500, "{read} blocks were read for 10,000 rows that are not there");
}

#[test]
fn known_next_uses_save_reads() {
    // fifty groups of 20 rows, one a step, in a circle: whoever knows nothing of the future keeps
    // what was used last, which comes back last
    let rereads = |told: bool| {
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
        scratch.store().status().totals().ssd_rereads
    };
    let (blind, told) = (rereads(false), rereads(true));
    // 436 of 1,000 rows fit: with MIN all of them hit on each round but the first
    assert!(told < 7500 && told <= blind, "{told} re-reads, {blind} without the next uses");
}
