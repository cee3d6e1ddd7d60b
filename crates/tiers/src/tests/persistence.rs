//! What lasts: reopening, unclean ends, foreign and newer directories, damaged rows, failed writes.

use std::sync::atomic::Ordering;

use table::{Admission, Expiry, Key, RowStatus, TableId, TableSpec};
use testkit::RowStore;

use super::{ADAM, HUGE, Scratch, TINY, batch, spec, step};
use crate::{Error, Store};

#[test]
fn a_clean_close_keeps_tables_rows_and_optimizer_state() {
    let mut scratch = Scratch::new(HUGE);
    let table = scratch.create_table(&spec("t", 7, ADAM)).unwrap();
    let keys = batch(table, [0, 1, 500, u64::MAX]);
    step(scratch.store(), &keys, 1.0);
    scratch.close_and_reopen();
    let status = scratch.store().status();
    assert!(status.opened_clean);
    assert_eq!(status.tables[0].spec, spec("t", 7, ADAM));
    assert_eq!((status.tables[0].rows, status.tables[0].ssd.rows), (4, 4));
    step(scratch.store(), &keys, -0.5);
    // the same two steps without a pause between them
    let unbroken = Scratch::new(HUGE);
    unbroken.create_table(&spec("t", 7, ADAM)).unwrap();
    step(unbroken.store(), &keys, 1.0);
    step(unbroken.store(), &keys, -0.5);
    assert_eq!(scratch.lookup(&keys).unwrap().0, unbroken.lookup(&keys).unwrap().0);
}

#[test]
fn an_unclean_end_is_told_and_the_rows_on_ssd_are_counted() {
    let mut scratch = Scratch::new(HUGE);
    assert!(scratch.store().status().opened_clean, "a new store was never unclean");
    let tables = [
        scratch.create_table(&spec("t", 3, ADAM)).unwrap(),
        scratch.create_table(&spec("empty", 3, ADAM)).unwrap(),
        scratch.create_table(&spec("u", 3, ADAM)).unwrap(),
    ];
    step(scratch.store(), &batch(tables[0], 0..10), 1.0);
    step(scratch.store(), &batch(tables[2], 0..3), 1.0);
    scratch.store().flush().unwrap();
    let kept = scratch.lookup(&batch(tables[0], 0..10)).unwrap().0;
    step(scratch.store(), &batch(tables[0], 0..12), 1.0); // lost
    scratch.reopen();
    let status = scratch.store().status();
    assert!(!status.opened_clean);
    let rows: Vec<u64> = status.tables.iter().map(|table| table.rows).collect();
    assert_eq!(rows, [10, 0, 3]);
    assert_eq!(scratch.lookup(&batch(tables[0], 0..10)).unwrap().0, kept);
    scratch.close_and_reopen();
    assert!(scratch.store().status().opened_clean);
}

#[test]
fn a_second_open_is_refused() {
    let scratch = Scratch::new(TINY);
    let error = Store::open(scratch.config.clone()).err().unwrap();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    scratch.create_table(&spec("t", 2, ADAM)).unwrap();
}

#[test]
fn a_closed_store_refuses_work() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 2, ADAM)).unwrap();
    let staged = scratch.store().stage(&batch(table, [1])).unwrap();
    scratch.store().close().unwrap();
    let errors = [
        scratch.store().push(&staged, &[0.0; 2], 0.1).err(),
        scratch.store().stage(&batch(table, [1])).err(),
        scratch.store().flush().err(),
        scratch.store().close().err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, Some(Error::Closed))), "{errors:?}");
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let scratch = Scratch::new(TINY);
    let mut config = scratch.config.clone();
    config.data_dir = scratch.dir.path().join("photos");
    std::fs::create_dir(&config.data_dir).unwrap();
    std::fs::write(config.data_dir.join("cat.jpg"), "meow").unwrap();
    let error = Store::open(config.clone()).err().unwrap();
    assert!(matches!(&error, Error::NotAStore { found, .. } if found == "cat.jpg"), "{error}");
    let left: Vec<_> = std::fs::read_dir(&config.data_dir).unwrap().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(std::fs::read(config.data_dir.join("cat.jpg")).unwrap(), b"meow");
}

#[test]
fn a_newer_format_is_refused() {
    let mut scratch = Scratch::new(TINY);
    scratch.store = None;
    let path = scratch.config.data_dir.join("FORMAT");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace('2', "3")).unwrap();
    let error = Store::open(scratch.config.clone()).err().unwrap();
    assert!(matches!(error, Error::NewerFormat { found: 3, supported: 2, .. }), "{error}");
}

#[test]
fn a_table_is_never_redefined() {
    let mut scratch = Scratch::new(TINY);
    let first = spec("t", 4, ADAM);
    scratch.create_table(&first).unwrap();
    scratch.close_and_reopen();
    let others = [
        ("dim", TableSpec { dim: 8, ..first.clone() }),
        ("optimizer", TableSpec { optimizer: table::Optimizer::Sgd, ..first.clone() }),
        ("initializer", TableSpec { initializer: table::Initializer::Zeros, ..first.clone() }),
        ("seed", TableSpec { seed: 4, ..first.clone() }),
    ];
    for (differs, other) in others {
        let error = scratch.store().create_table(&other).unwrap_err();
        assert!(
            matches!(&error, Error::AlreadyExists { field, .. } if *field == differs),
            "{error}"
        );
    }
    assert_eq!(scratch.store().create_table(&first).unwrap(), TableId(0));
}

#[test]
fn a_file_that_a_crash_left_under_two_names_stays_as_it_is() {
    let mut scratch = Scratch::new(HUGE);
    let table = scratch.create_table(&spec("t", 2, ADAM)).unwrap();
    step(scratch.store(), &batch(table, 0..1000), 1.0);
    scratch.store().flush().unwrap();
    let rows = scratch.lookup(&batch(table, 0..1000)).unwrap().0;
    let folder = scratch.store().inner().config.data_dir.join("rows");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "sst")).collect();
    let largest = files.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    std::fs::hard_link(largest, folder.join("incoming.sst")).unwrap();
    step(scratch.store(), &batch(table, 1000..1010), 1.0);
    scratch.close_and_reopen();
    assert_eq!(scratch.lookup(&batch(table, 0..1000)).unwrap().0, rows);
    assert!(!folder.join("incoming.sst").exists());
}

#[test]
fn a_stored_row_of_the_wrong_length_fails_alone_and_its_step_can_t_be_pushed() {
    let mut scratch = Scratch::new(HUGE);
    let table = scratch.create_table(&spec("t", 2, ADAM)).unwrap();
    step(scratch.store(), &batch(table, [1, 2, 3]), 1.0);
    let trained = scratch.lookup(&batch(table, [1, 3])).unwrap().0;
    scratch.close_and_reopen();
    let ssd = &scratch.store().inner().ssd;
    ssd.write_rows(&[(table, Key(2), &[1; 8])]).unwrap();
    let corrupt =
        |error: &Error| matches!(error, Error::Corrupt { key: Key(2), found: 8, expected: 29, .. });
    let all = batch(table, [1, 2, 3]);
    let answers = |rows: &[f32], statuses: &[RowStatus], found: RowStatus| {
        assert_eq!(statuses, [found, RowStatus::Failed, found]);
        assert_eq!([&rows[..2], &rows[4..]].concat(), trained);
        assert!(rows[2..4].iter().all(|x| x.is_nan()), "{rows:?}");
    };
    let (rows, statuses) = scratch.lookup(&all).unwrap();
    answers(&rows, &statuses, RowStatus::Ssd);

    // a second stage waits for the same rows, which the first one brings
    let staging = [(); 2].map(|()| scratch.store().begin_stage(&all).unwrap());
    let [first, second] = staging.map(|staging| staging.wait().unwrap());
    for (staged, from_ssd) in [(&first, true), (&second, false)] {
        let mut rows = [0.0; 6];
        scratch.store().pull_some(staged, &mut rows).unwrap();
        let statuses = staged.statuses();
        let found = if from_ssd { RowStatus::Ssd } else { statuses[0] };
        answers(&rows, statuses, found);
        let refused = [
            scratch.store().pull(staged, &mut rows).unwrap_err(),
            scratch.store().push(staged, &[1.0; 6], 0.1).unwrap_err(),
        ];
        assert!(refused.iter().all(corrupt), "{refused:?}");
    }
    let error = scratch.store().assign(&batch(table, [2]), &[1.0; 2]).unwrap_err();
    assert!(corrupt(&error), "{error}");
    drop((first, second));
    // nothing of the row stayed behind, and the others are well, unchanged
    let status = scratch.store().status();
    assert_eq!((status.pinned_rows, status.tables[0].host.rows, status.tables[0].rows), (0, 2, 3));
    assert!((3..=4).contains(&status.tables[0].counters.failed), "{:?}", status.tables[0].counters);
    assert_eq!(scratch.lookup(&batch(table, [1, 3])).unwrap().0, trained);
    step(scratch.store(), &batch(table, [1, 3, 4]), 1.0);
    scratch.store().flush().unwrap();
}

/// Where rows are kept out until they were seen twice, one that can't be read is not taken for one
/// that is not there; nor does it stop the looks for rows that expired.
#[test]
fn a_row_that_can_t_be_read_is_neither_kept_out_nor_expired() {
    let mut scratch = Scratch::new(HUGE);
    let expiry = Expiry::Steps(5);
    let admission = Admission::AfterSights(2);
    let strict = scratch.create_table(&TableSpec { admission, ..spec("t", 2, ADAM) }).unwrap();
    let brief = scratch.create_table(&TableSpec { expiry, ..spec("u", 2, ADAM) }).unwrap();
    for table in [strict, brief] {
        for _ in 0..2 {
            step(scratch.store(), &batch(table, [1, 2, 3]), 1.0);
        }
    }
    scratch.close_and_reopen();
    for table in [strict, brief] {
        scratch.store().inner().ssd.write_rows(&[(table, Key(2), &[1; 8])]).unwrap();
    }
    *scratch.store().inner().sketch.lock() = None; // the sketch has forgotten all
    use RowStatus::{Failed, NotAdmitted, Ssd};
    let staged = scratch.store().stage(&batch(strict, [1, 2, 9])).unwrap();
    assert_eq!(staged.statuses(), [Ssd, Failed, NotAdmitted]);
    let mut rows = [0.0; 6];
    scratch.store().pull_some(&staged, &mut rows).unwrap();
    let is_nan: Vec<bool> = rows.iter().map(|x| x.is_nan()).collect();
    assert_eq!(is_nan, [false, false, true, true, false, false]);
    drop(staged);
    let others = scratch.create_table(&spec("others", 4, table::Optimizer::Sgd)).unwrap();
    for _ in 0..20 {
        step(scratch.store(), &batch(others, 0..8192), 1.0);
    }
    let counters = scratch.store().status().tables[brief.0 as usize].counters;
    assert_eq!((counters.dropped, counters.failed), (2, 0));
    assert_eq!(scratch.lookup(&batch(brief, [2])).unwrap().1, [Failed]);
}

#[test]
fn a_failed_write_poisons_the_store_and_what_was_on_ssd_is_there_at_the_next_open() {
    let mut scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, table::Optimizer::Sgd)).unwrap();
    step(scratch.store(), &batch(table, 0..40), 1.0);
    scratch.store().flush().unwrap();
    let kept = scratch.lookup(&batch(table, 0..40)).unwrap().0;
    step(scratch.store(), &batch(table, 0..40), 1.0);
    let held = scratch.store().stage(&batch(table, [0])).unwrap();
    scratch.store().inner().ssd.fail_writes.store(true, Ordering::Relaxed);
    // what must leave is written behind the stage's back; who comes after is told
    let staged = scratch.store().stage(&batch(table, 100..160));
    drop(staged);
    let error = scratch.store().flush().unwrap_err();
    assert!(matches!(&error, Error::Poisoned { cause } if cause.contains("write rows")), "{error}");
    scratch.store().inner().ssd.fail_writes.store(false, Ordering::Relaxed);
    let mut row = vec![0.0; 600];
    let refused = [
        scratch.store().pull(&held, &mut row).err(),
        scratch.store().push(&held, &row, 0.1).err(),
        scratch.store().stage(&batch(table, [0])).err(),
        scratch.store().assign(&batch(table, [0]), &row).err(),
        scratch.store().flush().err(),
        scratch.store().create_table(&spec("u", 1, ADAM)).err(),
        scratch.store().close().err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(Error::Poisoned { .. })), "{error:?}");
    }
    drop(held);
    scratch.reopen();
    assert!(!scratch.store().status().opened_clean);
    assert_eq!(scratch.store().status().tables[0].rows, 40);
    assert_eq!(scratch.lookup(&batch(table, 0..40)).unwrap().0, kept);
}
